//! The activations as stock tensor operations, for every backend.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata, get_device_settings};

use switchyard_kernels_cpu::activation::{Activation, SQRT_2_OVER_PI, TANH_CUBIC};

/// Hidden values `[n, f]` of the up projection and, if gated, the gate projection.
pub(in crate::feed_forward) fn activate<B: Backend>(
    activation: Activation,
    up_nf: FloatTensor<B>,
    gate_nf: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    match (activation, gate_nf) {
        (Activation::ClampedSwiglu { alpha, limit }, Some(gate_nf)) => {
            let (factor_nf, gate_nf) = clamped::<B>(up_nf, gate_nf, limit);
            let sigmoid_nf = B::sigmoid(B::float_mul_scalar(gate_nf.clone(), alpha.into()));
            B::float_mul(B::float_mul(gate_nf, sigmoid_nf), factor_nf)
        }
        (_, Some(gate_nf)) => B::float_mul(B::float_mul(gate_nf.clone(), B::sigmoid(gate_nf)), up_nf),
        (Activation::Relu, None) => B::relu(up_nf),
        (_, None) => B::float_mul(up_nf.clone(), phi::<B>(up_nf, activation)),
    }
}

/// Gradients of the up projection and, if gated, the gate projection, each `[n, f]`.
pub(in crate::feed_forward) fn gradients<B: Backend>(
    activation: Activation,
    up_nf: FloatTensor<B>,
    gate_nf: Option<FloatTensor<B>>,
    dhidden_nf: FloatTensor<B>,
) -> (FloatTensor<B>, Option<FloatTensor<B>>) {
    match (activation, gate_nf) {
        (Activation::ClampedSwiglu { alpha, limit }, Some(gate_nf)) => {
            let (dup_nf, dgate_nf) =
                clamped_swiglu_gradients::<B>(up_nf, gate_nf, dhidden_nf, [alpha, limit]);
            (dup_nf, Some(dgate_nf))
        }
        (_, Some(gate_nf)) => {
            let (dup_nf, dgate_nf) = swiglu_gradients::<B>(up_nf, gate_nf, dhidden_nf);
            (dup_nf, Some(dgate_nf))
        }
        (Activation::Relu, None) => (B::relu_backward(B::relu(up_nf), dhidden_nf), None),
        (_, None) => (B::float_mul(dhidden_nf, gelu_slope::<B>(up_nf, activation)), None),
    }
}

fn swiglu_gradients<B: Backend>(
    up_nf: FloatTensor<B>,
    gate_nf: FloatTensor<B>,
    dhidden_nf: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sigmoid_nf = B::sigmoid(gate_nf.clone());
    let silu_nf = B::float_mul(gate_nf, sigmoid_nf.clone());
    let dup_nf = B::float_mul(dhidden_nf.clone(), silu_nf.clone());
    // silu' = sigmoid + silu (1 - sigmoid)
    let rest_nf = B::float_add_scalar(B::float_neg(sigmoid_nf.clone()), 1.0.into());
    let slope_nf = B::float_add(sigmoid_nf, B::float_mul(silu_nf, rest_nf));
    (dup_nf, B::float_mul(B::float_mul(dhidden_nf, up_nf), slope_nf))
}

/// The factor `clamp(up, -limit, limit) + 1` and the gate `min(gate, limit)`.
fn clamped<B: Backend>(
    up_nf: FloatTensor<B>,
    gate_nf: FloatTensor<B>,
    limit: f64,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let up_nf = B::float_clamp(up_nf, (-limit).into(), limit.into());
    (B::float_add_scalar(up_nf, 1.0.into()), B::float_clamp_max(gate_nf, limit.into()))
}

fn clamped_swiglu_gradients<B: Backend>(
    up_nf: FloatTensor<B>,
    gate_nf: FloatTensor<B>,
    dhidden_nf: FloatTensor<B>,
    [alpha, limit]: [f64; 2],
) -> (FloatTensor<B>, FloatTensor<B>) {
    let bools = get_device_settings::<B>(&up_nf.device()).bool_dtype;
    let up_beyond_nf = B::float_greater_elem(B::float_abs(up_nf.clone()), limit.into(), bools);
    let gate_beyond_nf = B::float_greater_elem(gate_nf.clone(), limit.into(), bools);
    let (factor_nf, gate_nf) = clamped::<B>(up_nf, gate_nf, limit);
    let steep_nf = B::float_mul_scalar(gate_nf, alpha.into());
    // The hidden value times `alpha` is the SwiGLU of the gate times `alpha`.
    let (dup_nf, dgate_nf) = swiglu_gradients::<B>(factor_nf, steep_nf, dhidden_nf);
    let dup_nf = B::float_mul_scalar(dup_nf, (1.0 / alpha).into());
    (
        B::float_mask_fill(dup_nf, up_beyond_nf, 0.0.into()),
        B::float_mask_fill(dgate_nf, gate_beyond_nf, 0.0.into()),
    )
}

/// The normal distribution function of `x_nf`, `[n, f]`, exact or by its tanh formula.
fn phi<B: Backend>(x_nf: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    if activation == Activation::GeluTanh {
        // Products, not `powf`: a power of a negative base is undefined in some shading languages.
        let square_nf = B::float_mul(x_nf.clone(), x_nf.clone());
        let cubic_nf = B::float_add_scalar(B::float_mul_scalar(square_nf, TANH_CUBIC.into()), 1.0.into());
        let inner_nf = B::float_mul_scalar(B::float_mul(x_nf, cubic_nf), SQRT_2_OVER_PI.into());
        B::float_mul_scalar(B::float_add_scalar(B::float_tanh(inner_nf), 1.0.into()), 0.5.into())
    } else {
        let erf_nf = B::float_erf(B::float_mul_scalar(x_nf, std::f64::consts::FRAC_1_SQRT_2.into()));
        B::float_mul_scalar(B::float_add_scalar(erf_nf, 1.0.into()), 0.5.into())
    }
}

/// The derivative of GELU at `x_nf`, `[n, f]`.
fn gelu_slope<B: Backend>(x_nf: FloatTensor<B>, activation: Activation) -> FloatTensor<B> {
    let phi_nf = phi::<B>(x_nf.clone(), activation);
    let square_nf = B::float_mul(x_nf.clone(), x_nf.clone());
    let density_nf = if activation == Activation::GeluTanh {
        // phi is a logistic function of twice the tanh's argument.
        let rest_nf = B::float_add_scalar(B::float_neg(phi_nf.clone()), 1.0.into());
        let inner_slope_nf =
            B::float_add_scalar(B::float_mul_scalar(square_nf, (3.0 * TANH_CUBIC).into()), 1.0.into());
        let slope_nf = B::float_mul(B::float_mul(phi_nf.clone(), rest_nf), inner_slope_nf);
        B::float_mul_scalar(slope_nf, (2.0 * SQRT_2_OVER_PI).into())
    } else {
        let exp_nf = B::float_exp(B::float_mul_scalar(square_nf, (-0.5).into()));
        B::float_mul_scalar(exp_nf, (0.5 * SQRT_2_OVER_PI).into())
    };
    B::float_add(phi_nf, B::float_mul(x_nf, density_nf))
}

//! Activation functions of feed-forward blocks, each in one pass forward and one backward.
//!
//! Shape letters: n rows, f hidden width.

mod lanes;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::FloatTensor,
};
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::slices::{BLOCK_LEN, all_f32, contiguous, elements, from_elements};

/// `gate * sigmoid(gate) * up` (arXiv:2002.05202, eq. 6, with the projections already made).
///
/// # Shapes
/// - `up_nf`, `gate_nf`: `[rows, f]`; returns `[rows, f]`
///
/// # Panics
/// If the shapes differ.
pub fn swiglu(up_nf: Tensor<2>, gate_nf: Tensor<2>) -> Tensor<2> {
    let (up_shape, gate_shape) = (up_nf.dims(), gate_nf.dims());
    assert!(up_shape == gate_shape, "up projection {up_shape:?} and gate projection {gate_shape:?} differ");
    Tensor::from_dispatch(Dispatch::swiglu(up_nf.into_dispatch(), gate_nf.into_dispatch()))
}

/// `x * Phi(x)` with the normal distribution function Phi (arXiv:1606.08415, eq. 2), which the CPU's f32 path
/// has to a relative 5e-7 at 0 and above and to `1e-7 * (5 + x^2)` below.
///
/// # Shapes
/// - `x_nf`: `[rows, f]`; returns `[rows, f]`
pub fn gelu(x_nf: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gelu_by(x_nf.into_dispatch(), GeluFormula::Exact))
}

/// `0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))` (arXiv:1606.08415, section 2).
///
/// # Shapes
/// - `x_nf`: `[rows, f]`; returns `[rows, f]`
pub fn gelu_tanh(x_nf: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::gelu_by(x_nf.into_dispatch(), GeluFormula::Tanh))
}

/// How the distribution function in GELU is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GeluFormula {
    Exact,
    Tanh,
}

/// `sqrt(2 / pi)`.
const SQRT_2_OVER_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
/// Weight of the cube in the tanh formula.
const TANH_CUBIC: f64 = 0.044715;

/// The operations and their gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Activate: Backend {
    /// `up_nf` times SiLU of `gate_nf`: `[n, f]`.
    fn swiglu(up_nf: FloatTensor<Self>, gate_nf: FloatTensor<Self>) -> FloatTensor<Self> {
        stock_swiglu::<Self>(up_nf, gate_nf)
    }

    /// Gradients of `up_nf` and `gate_nf`, each `[n, f]`.
    fn swiglu_gradients(
        up_nf: FloatTensor<Self>,
        gate_nf: FloatTensor<Self>,
        dy_nf: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock_swiglu_gradients::<Self>(up_nf, gate_nf, dy_nf)
    }

    /// GELU of `x_nf`: `[n, f]`.
    fn gelu_by(x_nf: FloatTensor<Self>, formula: GeluFormula) -> FloatTensor<Self> {
        stock_gelu::<Self>(x_nf, formula)
    }

    /// Gradient of `x_nf`: `[n, f]`.
    fn gelu_by_gradient(
        x_nf: FloatTensor<Self>,
        dy_nf: FloatTensor<Self>,
        formula: GeluFormula,
    ) -> FloatTensor<Self> {
        stock_gelu_gradient::<Self>(x_nf, dy_nf, formula)
    }
}

/// The default body of [`Activate::swiglu`].
fn stock_swiglu<B: Backend>(up_nf: FloatTensor<B>, gate_nf: FloatTensor<B>) -> FloatTensor<B> {
    let silu_nf = B::float_mul(gate_nf.clone(), B::sigmoid(gate_nf));
    B::float_mul(silu_nf, up_nf)
}

/// The default body of [`Activate::swiglu_gradients`].
fn stock_swiglu_gradients<B: Backend>(
    up_nf: FloatTensor<B>,
    gate_nf: FloatTensor<B>,
    dy_nf: FloatTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let sigmoid_nf = B::sigmoid(gate_nf.clone());
    let silu_nf = B::float_mul(gate_nf, sigmoid_nf.clone());
    let dup_nf = B::float_mul(dy_nf.clone(), silu_nf.clone());
    // silu' = sigmoid + silu (1 - sigmoid)
    let rest_nf = B::float_add_scalar(B::float_neg(sigmoid_nf.clone()), 1.0.into());
    let slope_nf = B::float_add(sigmoid_nf, B::float_mul(silu_nf, rest_nf));
    (dup_nf, B::float_mul(B::float_mul(dy_nf, up_nf), slope_nf))
}

/// The default body of [`Activate::gelu_by`].
fn stock_gelu<B: Backend>(x_nf: FloatTensor<B>, formula: GeluFormula) -> FloatTensor<B> {
    let phi_nf = stock_phi::<B>(x_nf.clone(), formula);
    B::float_mul(x_nf, phi_nf)
}

/// The distribution function of `x_nf`, `[n, f]`.
fn stock_phi<B: Backend>(x_nf: FloatTensor<B>, formula: GeluFormula) -> FloatTensor<B> {
    match formula {
        GeluFormula::Exact => {
            let erf_nf = B::float_erf(B::float_mul_scalar(x_nf, std::f64::consts::FRAC_1_SQRT_2.into()));
            B::float_mul_scalar(B::float_add_scalar(erf_nf, 1.0.into()), 0.5.into())
        }
        GeluFormula::Tanh => {
            // Products, not `powf`: a power of a negative base is undefined in some shading languages.
            let square_nf = B::float_mul(x_nf.clone(), x_nf.clone());
            let cubic_nf = B::float_add_scalar(B::float_mul_scalar(square_nf, TANH_CUBIC.into()), 1.0.into());
            let inner_nf = B::float_mul_scalar(B::float_mul(x_nf, cubic_nf), SQRT_2_OVER_PI.into());
            B::float_mul_scalar(B::float_add_scalar(B::float_tanh(inner_nf), 1.0.into()), 0.5.into())
        }
    }
}

/// The default body of [`Activate::gelu_by_gradient`].
fn stock_gelu_gradient<B: Backend>(
    x_nf: FloatTensor<B>,
    dy_nf: FloatTensor<B>,
    formula: GeluFormula,
) -> FloatTensor<B> {
    let phi_nf = stock_phi::<B>(x_nf.clone(), formula);
    let square_nf = B::float_mul(x_nf.clone(), x_nf.clone());
    let density_nf = match formula {
        GeluFormula::Exact => {
            let exp_nf = B::float_exp(B::float_mul_scalar(square_nf, (-0.5).into()));
            B::float_mul_scalar(exp_nf, (0.5 * SQRT_2_OVER_PI).into())
        }
        GeluFormula::Tanh => {
            // phi is a logistic function of twice the tanh's argument.
            let rest_nf = B::float_add_scalar(B::float_neg(phi_nf.clone()), 1.0.into());
            let inner_slope_nf =
                B::float_add_scalar(B::float_mul_scalar(square_nf, (3.0 * TANH_CUBIC).into()), 1.0.into());
            let slope_nf = B::float_mul(B::float_mul(phi_nf.clone(), rest_nf), inner_slope_nf);
            B::float_mul_scalar(slope_nf, (2.0 * SQRT_2_OVER_PI).into())
        }
    };
    B::float_mul(dy_nf, B::float_add(phi_nf, B::float_mul(x_nf, density_nf)))
}

impl Activate for Flex {
    fn swiglu(up_nf: FlexTensor, gate_nf: FlexTensor) -> FlexTensor {
        if !all_f32(&[&up_nf, &gate_nf]) {
            return stock_swiglu::<Flex>(up_nf, gate_nf);
        }
        let (up_nf, gate_nf) = (contiguous(up_nf), contiguous(gate_nf));
        let mut y = vec![0.0; up_nf.shape().num_elements()];
        y.par_chunks_mut(BLOCK_LEN)
            .zip(elements(&up_nf).par_chunks(BLOCK_LEN))
            .zip(elements(&gate_nf).par_chunks(BLOCK_LEN))
            .for_each(|((y, up), gate)| lanes::swiglu(y, up, gate));
        from_elements(y, up_nf.shape())
    }

    fn swiglu_gradients(
        up_nf: FlexTensor,
        gate_nf: FlexTensor,
        dy_nf: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        if !all_f32(&[&up_nf, &gate_nf, &dy_nf]) {
            return stock_swiglu_gradients::<Flex>(up_nf, gate_nf, dy_nf);
        }
        let (up_nf, gate_nf, dy_nf) = (contiguous(up_nf), contiguous(gate_nf), contiguous(dy_nf));
        let mut dup = vec![0.0; up_nf.shape().num_elements()];
        let mut dgate = vec![0.0; dup.len()];
        dup.par_chunks_mut(BLOCK_LEN)
            .zip(dgate.par_chunks_mut(BLOCK_LEN))
            .zip(elements(&up_nf).par_chunks(BLOCK_LEN))
            .zip(elements(&gate_nf).par_chunks(BLOCK_LEN))
            .zip(elements(&dy_nf).par_chunks(BLOCK_LEN))
            .for_each(|((((dup, dgate), up), gate), dy)| {
                lanes::swiglu_gradients(dup, dgate, up, gate, dy);
            });
        (from_elements(dup, up_nf.shape()), from_elements(dgate, gate_nf.shape()))
    }

    fn gelu_by(x_nf: FlexTensor, formula: GeluFormula) -> FlexTensor {
        if !all_f32(&[&x_nf]) {
            return stock_gelu::<Flex>(x_nf, formula);
        }
        let x_nf = contiguous(x_nf);
        let mut y = vec![0.0; x_nf.shape().num_elements()];
        y.par_chunks_mut(BLOCK_LEN).zip(elements(&x_nf).par_chunks(BLOCK_LEN)).for_each(
            |(y, x)| match formula {
                GeluFormula::Exact => lanes::gelu(y, x),
                GeluFormula::Tanh => lanes::gelu_tanh(y, x),
            },
        );
        from_elements(y, x_nf.shape())
    }

    fn gelu_by_gradient(x_nf: FlexTensor, dy_nf: FlexTensor, formula: GeluFormula) -> FlexTensor {
        if !all_f32(&[&x_nf, &dy_nf]) {
            return stock_gelu_gradient::<Flex>(x_nf, dy_nf, formula);
        }
        let (x_nf, dy_nf) = (contiguous(x_nf), contiguous(dy_nf));
        let mut dx = vec![0.0; x_nf.shape().num_elements()];
        dx.par_chunks_mut(BLOCK_LEN)
            .zip(elements(&x_nf).par_chunks(BLOCK_LEN))
            .zip(elements(&dy_nf).par_chunks(BLOCK_LEN))
            .for_each(|((dx, x), dy)| match formula {
                GeluFormula::Exact => lanes::gelu_gradient(dx, x, dy),
                GeluFormula::Tanh => lanes::gelu_tanh_gradient(dx, x, dy),
            });
        from_elements(dx, x_nf.shape())
    }
}

#[cfg(feature = "cube")]
impl Activate for burn_cubecl::CubeBackend {}

impl<B: Activate, C: CheckpointStrategy> Activate for Autodiff<B, C> {
    fn swiglu(up_nf: FloatTensor<Self>, gate_nf: FloatTensor<Self>) -> FloatTensor<Self> {
        match SwigluBackward.prepare::<C>([up_nf.node(), gate_nf.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = [prepared.checkpoint(&up_nf), prepared.checkpoint(&gate_nf)];
                prepared.finish(state, B::swiglu(up_nf.into_primitive(), gate_nf.into_primitive()))
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::swiglu(up_nf.into_primitive(), gate_nf.into_primitive()))
            }
        }
    }

    fn gelu_by(x_nf: FloatTensor<Self>, formula: GeluFormula) -> FloatTensor<Self> {
        match GeluBackward.prepare::<C>([x_nf.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let state = (prepared.checkpoint(&x_nf), formula);
                prepared.finish(state, B::gelu_by(x_nf.into_primitive(), formula))
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::gelu_by(x_nf.into_primitive(), formula)),
        }
    }
}

#[derive(Debug)]
struct SwigluBackward;

impl<B: Activate> Backward<B, 2> for SwigluBackward {
    type State = [NodeId; 2];

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_nf = grads.consume::<B>(&ops.node);
        let [up_nf, gate_nf] = ops.state.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let (dup_nf, dgate_nf) = B::swiglu_gradients(up_nf, gate_nf, dy_nf);
        for (node, gradient) in ops.parents.into_iter().zip([dup_nf, dgate_nf]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[derive(Debug)]
struct GeluBackward;

impl<B: Activate> Backward<B, 1> for GeluBackward {
    type State = (NodeId, GeluFormula);

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_nf = grads.consume::<B>(&ops.node);
        let (id, formula) = ops.state;
        let x_nf = checkpointer.retrieve_node_output::<FloatTensor<B>>(id);
        let [x_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::gelu_by_gradient(x_nf, dy_nf, formula));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};

    /// Phi by its series near 0 and by the continued fraction of the tail elsewhere, in f64.
    fn normal_distribution(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let t = x.abs();
        if t < 3.0 {
            let (mut term, mut sum, mut n) = (x, x, 1.0);
            while f64::abs(term) > 1e-18 {
                n += 2.0;
                term *= x * x / n;
                sum += term;
            }
            return 0.5 + density * sum;
        }
        let fraction = (1..200).rev().fold(t, |fraction, k| t + f64::from(k) / fraction);
        if x < 0.0 { density / fraction } else { 1.0 - density / fraction }
    }

    #[test]
    fn gelu_has_its_documented_accuracy() {
        let x: Vec<f32> = (0..400_001).map(|i| -12.0 + i as f32 * 6e-5).collect();
        let y =
            <Flex as Activate>::gelu_by(from_elements(x.clone(), [1, x.len()].into()), GeluFormula::Exact);
        for (&x, &y) in x.iter().zip(elements(&y)) {
            let expected = f64::from(x) * normal_distribution(f64::from(x));
            let relative = if x < 0.0 { 1e-7 * (5.0 + f64::from(x * x)) } else { 5e-7 };
            let error = (f64::from(y) - expected).abs();
            assert!(error <= relative * expected.abs(), "gelu({x}) = {y}, not {expected}");
        }
    }

    #[test]
    fn gelu_far_out_is_the_identity_or_zero() {
        let x = from_elements(vec![f32::INFINITY, 1e30, -1e30, f32::NAN], [1, 4].into());
        for formula in [GeluFormula::Exact, GeluFormula::Tanh] {
            let y = <Flex as Activate>::gelu_by(x.clone(), formula);
            assert_eq!(elements(&y)[..3], [f32::INFINITY, 1e30, 0.0], "{formula:?}");
            assert!(elements(&y)[3].is_nan(), "{formula:?}");
            let ones = from_elements(vec![1.0; 4], [1, 4].into());
            let dx = <Flex as Activate>::gelu_by_gradient(x.clone(), ones, formula);
            assert_eq!(elements(&dx)[..3], [1.0, 1.0, 0.0], "{formula:?}");
        }
    }

    #[test]
    fn fused_activations_agree_with_the_stock_bodies() {
        for shape in [[1, 1], [3, 7], [37, 1201]] {
            let (up, gate, dy) = (random_flex(1, shape), random_flex(2, shape), random_flex(3, shape));
            let fused = <Flex as Activate>::swiglu(up.clone(), gate.clone());
            assert_agree("swiglu", &fused, &stock_swiglu::<Flex>(up.clone(), gate.clone()));
            let fused = <Flex as Activate>::swiglu_gradients(up.clone(), gate.clone(), dy.clone());
            let stock = stock_swiglu_gradients::<Flex>(up.clone(), gate, dy.clone());
            assert_agree("gradient of up", &fused.0, &stock.0);
            assert_agree("gradient of gate", &fused.1, &stock.1);
            for formula in [GeluFormula::Exact, GeluFormula::Tanh] {
                let fused = <Flex as Activate>::gelu_by(up.clone(), formula);
                assert_agree("gelu", &fused, &stock_gelu::<Flex>(up.clone(), formula));
                let fused = <Flex as Activate>::gelu_by_gradient(up.clone(), dy.clone(), formula);
                let stock = stock_gelu_gradient::<Flex>(up.clone(), dy.clone(), formula);
                assert_agree("gradient of gelu", &fused, &stock);
            }
        }
    }

    #[test]
    fn activations_read_transposed_views() {
        let (up, gate) = (random_flex(4, [5, 9]).transpose(0, 1), random_flex(5, [9, 5]));
        let fused = <Flex as Activate>::swiglu(up.clone(), gate.clone());
        assert_agree("swiglu", &fused, &stock_swiglu::<Flex>(up, gate));
    }

    #[test]
    fn activations_repeat_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let [up, gate, dy] = [1, 2, 3].map(|seed| random_flex(seed, [37, 1201]));
            let y = <Flex as Activate>::swiglu(up.clone(), gate.clone());
            let (dup, dgate) = <Flex as Activate>::swiglu_gradients(up.clone(), gate, dy.clone());
            let dx = <Flex as Activate>::gelu_by_gradient(up, dy, GeluFormula::Exact);
            vec![y, dup, dgate, dx]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }
}

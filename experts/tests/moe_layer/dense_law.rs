use burn::tensor::{DType, Gradients, Tensor};
use switchyard_experts::{Activation, Compute, DenseFfn, DenseFfnWeights, FfnOptions};
use switchyard_router::{AuxLossKind, SoftmaxOrder};

use crate::case::{
    Setup, Values, bits, flat_gradient, forward_in, layer, layer_gradients, loss_of, param_gradient, tensor,
    training, values,
};

fn dense(setup: &Setup, inputs: &Values) -> DenseFfn {
    let (d, f) = (setup.d_model, setup.d_expert);
    let weights = DenseFfnWeights {
        w_gate_df: setup.activation.is_gated().then(|| tensor(&inputs.w_gate_edf, [d, f], DType::F32)),
        w_up_df: tensor(&inputs.w_up_edf, [d, f], DType::F32),
        w_down_fd: tensor(&inputs.w_down_efd, [f, d], DType::F32),
        b_gate_f: None,
        b_up_f: None,
        b_down_d: None,
    };
    DenseFfn::new(weights, setup.activation)
}

fn dense_gradients(x_td: &Tensor<2>, dense: &DenseFfn, gradients: &Gradients) -> [Tensor<1>; 4] {
    [
        flat_gradient(x_td, gradients),
        param_gradient(dense.w_gate_df.as_ref(), gradients),
        param_gradient(Some(&dense.w_up_df), gradients),
        param_gradient(Some(&dense.w_down_fd), gradients),
    ]
}

/// The law for one layer: output, loss and every gradient have the same bits, and the router learns
/// nothing.
#[track_caller]
fn assert_equals_dense(setup: &Setup) {
    for compute in [Compute::F32, Compute::Bf16] {
        for recompute in [false, true] {
            assert_equals_dense_in(FfnOptions { compute, recompute }, setup);
        }
    }
}

#[track_caller]
fn assert_equals_dense_in(options: FfnOptions, setup: &Setup) {
    let inputs = Values::random(setup, 7);
    let shape = [setup.num_tokens, setup.d_model];
    let c_td = tensor(&inputs.c_td, shape, DType::F32);

    let dense = dense(setup, &inputs);
    let x_td = tensor(&inputs.x_td, shape, DType::F32).require_grad();
    let dense_output = dense.forward(x_td.clone(), options);
    let dense_loss = (dense_output.clone() * c_td.clone()).sum();
    let expected = dense_gradients(&x_td, &dense, &dense_loss.backward());

    let layer = layer(setup, &inputs, DType::F32);
    let x_td = tensor(&inputs.x_td, shape, DType::F32).require_grad();
    let output = forward_in(&layer, x_td.clone(), training(), options);
    let balancing =
        loss_of(&output.aux, AuxLossKind::LoadBalancing).unwrap_or_else(|| panic!("the loss has a weight"));
    let loss = (output.hidden_td.clone() * c_td).sum();
    let gradients = (loss.clone() + balancing.clone()).backward();
    let [dx, drouter, dgate, dup, ddown, ..] = layer_gradients(&x_td, &layer, &gradients);

    assert_eq!(bits(&output.hidden_td), bits(&dense_output), "output");
    assert_eq!(bits(&loss), bits(&dense_loss), "loss");
    assert_eq!(values(&balancing), [1.0]);
    for ((name, actual), expected) in
        [("x", dx), ("gate", dgate), ("up", dup), ("down", ddown)].into_iter().zip(expected)
    {
        assert_eq!(bits(&actual), bits(&expected), "gradient of {name}");
    }
    assert!(values(&drouter).iter().all(|&g| g == 0.0), "the router has a gradient");
}

#[test]
fn one_expert_equals_the_dense_block_bit_for_bit() {
    let clamped = Activation::ClampedSwiglu { alpha: 1.702, limit: 0.25 };
    for activation in [Activation::Swiglu, clamped, Activation::Gelu, Activation::GeluTanh, Activation::Relu]
    {
        for softmax in [SoftmaxOrder::BeforeSelection, SoftmaxOrder::AfterSelection] {
            for renormalise in [true, false] {
                // The second size is one at which the matrix products use several threads.
                for (num_tokens, d_model, d_expert) in [(5, 3, 4), (200, 160, 240)] {
                    let mut setup = Setup::small(num_tokens, 1, 1);
                    (setup.d_model, setup.d_expert) = (d_model, d_expert);
                    (setup.activation, setup.router.softmax) = (activation, softmax);
                    setup.router.renormalise = renormalise;
                    assert_equals_dense(&setup);
                }
            }
        }
    }
}

#[test]
fn a_bias_is_added_to_every_token() {
    let setup = Setup::small(4, 1, 1);
    let inputs = Values::random(&setup, 8);
    let bias = |len| Tensor::<1>::ones([len], &burn::tensor::Device::flex().autodiff());
    let mut weights = DenseFfnWeights {
        w_gate_df: None,
        w_up_df: tensor(&inputs.w_up_edf, [3, 4], DType::F32),
        w_down_fd: tensor(&inputs.w_down_efd, [4, 3], DType::F32).zeros_like(),
        b_gate_f: None,
        b_up_f: Some(bias(4)),
        b_down_d: Some(bias(3) * 2.0),
    };
    let x_td = tensor(&inputs.x_td, [4, 3], DType::F32);
    let output =
        DenseFfn::new(weights.clone(), Activation::Relu).forward(x_td.clone(), FfnOptions::default());
    assert_eq!(values(&output), [2.0; 12]);

    // With zero inputs the hidden layer is the up bias alone: each output is 4 * relu(1) * 1 + 2.
    weights.w_down_fd = weights.w_down_fd.ones_like();
    let output = DenseFfn::new(weights, Activation::Relu).forward(x_td.zeros_like(), FfnOptions::default());
    assert_eq!(values(&output), [6.0; 12]);
}

#[test]
#[should_panic(expected = "Swiglu with gate projection = false")]
fn a_gated_block_without_gate_is_refused() {
    let setup = Setup { activation: Activation::Relu, ..Setup::small(1, 1, 1) };
    let weights = DenseFfnWeights {
        w_gate_df: None,
        w_up_df: tensor(&[0.0; 12], [3, 4], DType::F32),
        w_down_fd: tensor(&[0.0; 12], [4, 3], DType::F32),
        b_gate_f: None,
        b_up_f: None,
        b_down_d: None,
    };
    assert!(!setup.activation.is_gated());
    DenseFfn::new(weights, Activation::Swiglu);
}

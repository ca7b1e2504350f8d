use burn::tensor::DType;
use switchyard_experts::DropPolicy;
use switchyard_router::RouterPass;

use crate::case::{Setup, Values, capacity, forward, layer, tensor, training, values};

fn crowded(shared: Option<usize>) -> (Setup, Values) {
    let mut setup = Setup::small(8, 4, 1);
    setup.d_shared_expert = shared;
    // One token per expert at most.
    setup.capacity = Some(capacity(0.5, DropPolicy::Position));
    let mut inputs = Values::random(&setup, 9);
    let first_token = inputs.x_td[..setup.d_model].to_vec();
    inputs.x_td = first_token.repeat(setup.num_tokens);
    (setup, inputs)
}

#[test]
fn evaluation_is_dropless() {
    let (setup, inputs) = crowded(None);
    let layer_with = |setup: &Setup| layer(setup, &inputs, DType::F32);
    let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
    let output = forward(&layer_with(&setup), x_td.clone(), RouterPass::Evaluation);
    let dropless = forward(&layer_with(&Setup { capacity: None, ..setup }), x_td, training());
    assert_eq!(output.aux.statistics.dropped_fraction(), 0.0);
    assert_eq!(values(&output.hidden_td), values(&dropless.hidden_td));
}

#[test]
fn a_dropped_token_gets_the_shared_expert_only() {
    for shared in [None, Some(2)] {
        let (setup, inputs) = crowded(shared);
        let layer = layer(&setup, &inputs, DType::F32);
        let x_td = tensor(&inputs.x_td, [8, 3], DType::F32);
        let output = forward(&layer, x_td.clone(), training());
        let shared_td =
            layer.shared_expert.map_or_else(|| x_td.zeros_like(), |shared| shared.forward(x_td.clone()));
        let (hidden, shared_hidden) = (values(&output.hidden_td), values(&shared_td));
        assert_eq!(output.aux.statistics.dropped_fraction(), 7.0 / 8.0);
        assert_eq!(hidden[3..], shared_hidden[3..], "tokens after the first are dropped");
        assert_ne!(hidden[..3], shared_hidden[..3], "the first token is kept");
    }
}

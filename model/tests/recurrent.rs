//! What a recurrent model hands from one window to the next, and what it does not.

use burn::tensor::{Device, Tensor};
use switchyard_experts::{Activation, DenseSpec, ExpertsSpec, FfnSpec, MoeSpec, RouterSpec};
use switchyard_model::{
    InitConfig, LayerSpec, LstmSpec, MixerSpec, ModelCounts, ModelInput, ModelOutput, ModelSpec, ModelState,
    MultipliersConfig, NormKind, Pass, PositionKind, Residual, Transformer, parameter_gradients,
    parameter_tensors,
};
use switchyard_router::RouterConfig;

const VOCAB_SIZE: usize = 11;
const D_MODEL: usize = 6;

fn layer(d_hidden: usize, ffn: FfnSpec) -> LayerSpec {
    let mixer = MixerSpec::Lstm(LstmSpec { d_hidden, forget_bias: 1.0 });
    LayerSpec { mixer, ffn, residual: Residual::Sequential }
}

fn mixture() -> FfnSpec {
    let experts = ExpertsSpec {
        activation: Activation::Relu,
        num_experts: 4,
        d_expert: 5,
        granularity: None,
        bias: false,
        shared: None,
    };
    let router = RouterSpec { key: "router".into(), config: RouterConfig::top_k(2) };
    FfnSpec::Moe(MoeSpec { experts, router, capacity: None })
}

/// Two LSTMs, the second with a projection, and a mixture between them.
fn spec(norm: NormKind) -> ModelSpec {
    ModelSpec {
        vocab_size: VOCAB_SIZE,
        max_seq_len: 8,
        num_positions: None,
        d_model: D_MODEL,
        layers: vec![layer(D_MODEL, mixture()), layer(9, FfnSpec::Absent)],
        norm,
        position: PositionKind::Absent,
        tie_embeddings: false,
        dropout: 0.0,
        // Large, so that states matter.
        init: InitConfig { std: 0.5, scale_residual: false },
        multipliers: MultipliersConfig::default(),
        parametrisation: None,
        head_bias: false,
        padding_id: None,
    }
}

fn network(device: &Device) -> Transformer {
    Transformer::new(&spec(NormKind::Rms { epsilon: 1e-5 }), 3, device)
}

/// Windows of `len` tokens of two sequences.
fn ids(first: usize, len: usize) -> Vec<i32> {
    let row = |row: usize| (first..first + len).map(move |i| ((i * i + 3 * i + 5 * row) % VOCAB_SIZE) as i32);
    (0..2).flat_map(row).collect()
}

fn forward(
    model: &Transformer,
    ids: Vec<i32>,
    segments: Option<Vec<i32>>,
    state: Option<ModelState>,
) -> ModelOutput {
    let shape = [2, ids.len() / 2];
    let input = ModelInput::upload(ids, segments, shape, &Device::default()).after(state);
    model.forward(&input, Pass::Evaluation)
}

/// `[2, len, d]`
fn rows(output: &ModelOutput) -> Tensor<3> {
    let [t, d] = output.hidden_td.dims();
    output.hidden_td.clone().reshape([2, t / 2, d])
}

fn bits<const D: usize>(tensor: Tensor<D>) -> Vec<u32> {
    tensor.into_data().iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn windows_with_the_state_carried_are_one_long_window_bit_for_bit() {
    let model = network(&Device::default());
    let whole = rows(&forward(&model, ids(0, 13), None, None));
    let mut state = None;
    for (first, len) in [(0, 8), (8, 1), (9, 4)] {
        let output = forward(&model, ids(first, len), None, state);
        assert!(bits(rows(&output)) == bits(whole.clone().narrow(1, first, len)), "tokens from {first} on");
        state = output.state;
    }
    let without = forward(&model, ids(9, 4), None, None);
    assert!(bits(rows(&without)) != bits(whole.narrow(1, 9, 4)), "the state matters");
}

#[test]
fn a_document_begins_with_an_empty_state() {
    let model = network(&Device::default());
    let state = forward(&model, ids(20, 3), None, None).state;
    // Document 0 goes on for 2 tokens, then come two more documents.
    let segments: Vec<i32> = [0, 0, 1, 1, 1, 2, 2].repeat(2);
    let output = rows(&forward(&model, ids(0, 7), Some(segments), state.clone()));
    for (first, len, state) in [(0, 2, state), (2, 3, None), (5, 2, None)] {
        let alone = rows(&forward(&model, ids(first, len), None, state));
        assert!(bits(alone) == bits(output.clone().narrow(1, first, len)), "the document at {first}");
    }
}

#[test]
fn a_state_of_another_document_is_forgotten() {
    let model = network(&Device::default());
    let state = forward(&model, ids(20, 3), None, None).state;
    for len in [1, 4] {
        let after = forward(&model, ids(0, len), Some(vec![1; 2 * len]), state.clone());
        let begun = forward(&model, ids(0, len), None, None);
        assert!(bits(rows(&after)) == bits(rows(&begun)), "{len} tokens");
    }
}

/// The loss of the second window gives the embeddings of the first nothing, although its state
/// depends on them.
#[test]
fn gradients_end_at_the_border_of_a_window() {
    let model = network(&Device::default().autodiff());
    let state = forward(&model, vec![1, 2, 3, 1, 2, 3], None, None).state;
    let output = forward(&model, vec![4, 5, 6, 4, 5, 6], None, state);
    let gradients = parameter_gradients(&model, &output.hidden_td.powi_scalar(2).sum().backward());
    let of = |name: &str| {
        let found = gradients.iter().find(|gradient| gradient.name.to_string() == name).unwrap();
        found.value.clone().into_data().try_into_vec::<f32>().unwrap()
    };
    let embedding = of("embedding.token");
    let has_gradient = |id: usize| embedding[id * D_MODEL..][..D_MODEL].iter().any(|value| *value != 0.0);
    assert_eq!((1..=6).map(has_gradient).collect::<Vec<_>>(), [false, false, false, true, true, true]);
    assert!(of("blocks.0.lstm.recurrent").iter().any(|value| *value != 0.0));
}

#[test]
fn counts_are_those_of_the_parameters() {
    for norm in
        [NormKind::Off, NormKind::Rms { epsilon: 1e-5 }, NormKind::Layer { epsilon: 1e-5, bias: true }]
    {
        let spec = spec(norm);
        let parameters = parameter_tensors(&Transformer::new(&spec, 0, &Device::default()));
        let size = |shape: &Vec<usize>| shape.iter().product::<usize>() as u64;
        let total: u64 = parameters.iter().map(|parameter| size(&parameter.value.shape)).sum();
        assert_eq!(ModelCounts::of(&spec, 8).total_params, total, "{norm:?}");
        let of_lstm = parameters.iter().filter(|parameter| parameter.name.role.group() == "lstm");
        let of_lstm: u64 = of_lstm.map(|parameter| size(&parameter.value.shape)).sum();
        assert_eq!(ModelCounts::of(&spec, 8).params.lstm, of_lstm, "{norm:?}");
    }
}

#[test]
fn the_forget_gates_begin_open_and_the_other_gates_at_zero() {
    let parameters = parameter_tensors(&network(&Device::default()));
    let name = "blocks.0.lstm.bias";
    let bias = parameters.into_iter().find(|parameter| parameter.name.to_string() == name).unwrap();
    let values = bias.value.values_n.into_data().try_into_vec::<f32>().unwrap();
    let wanted = [0.0, 1.0, 0.0, 0.0].map(|value| vec![value; D_MODEL]).concat();
    assert_eq!(values, wanted);
}

#[test]
fn a_dense_block_beside_an_lstm_is_a_block_like_any_other() {
    let dense = FfnSpec::Dense(DenseSpec { activation: Activation::Swiglu, d_ff: 7, bias: true });
    for residual in [Residual::Sequential, Residual::Parallel, Residual::OutputNorm, Residual::PostNorm] {
        let mut spec = spec(NormKind::Rms { epsilon: 1e-5 });
        spec.layers = vec![LayerSpec { residual, ..layer(D_MODEL, dense.clone()) }; 2];
        let model = Transformer::new(&spec, 3, &Device::default());
        let hidden_td = forward(&model, ids(0, 5), None, None).hidden_td;
        assert!(hidden_td.into_data().iter::<f32>().all(f32::is_finite), "{residual:?}");
    }
}

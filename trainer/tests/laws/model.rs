//! Laws of the whole network.

use crate::tiny;
use burn::backend::DispatchTensorKind;
use burn::module::Module;
use burn::tensor::{Device, Tensor, TensorData};
use switchyard_datasets::TokenBatch;
use switchyard_experts::RouterOverride;
use switchyard_model::{
    AttentionBias, ModelInput, ParameterName, Pass, PassOptions, QkNorm, QkNormConfig, Role, Transformer,
    parameter_data, update_parameters,
};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::optimizer::Optimizer;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::step::{StepSettings, step_gradients};

fn model(config: &RunConfig, device: &Device) -> Transformer {
    Transformer::new(&RunPlan::resolve(config).unwrap().model, config.seed, device)
}

fn logits(model: &Transformer, input_ids: &[i32], segment_ids: Option<&[i32]>) -> Vec<Vec<f32>> {
    let shape = [1, input_ids.len()];
    let input =
        ModelInput::upload(input_ids.to_vec(), segment_ids.map(<[i32]>::to_vec), shape, &Device::flex());
    let logits_tv = model.logits(model.forward(&input, Pass::Evaluation).hidden_td);
    let vocab_size = logits_tv.dims()[1];
    let values = logits_tv.into_data().try_into_vec::<f32>().unwrap();
    values.chunks(vocab_size).map(<[f32]>::to_vec).collect()
}

fn table<T: serde::de::DeserializeOwned>(text: &str) -> T {
    toml::from_str(text).unwrap()
}

/// The part of `[model.ffn.moe]` that is a list of tables.
#[derive(serde::Deserialize)]
struct MoeTables {
    router_overrides: Vec<RouterOverride>,
}

/// Configurations that between them use every component.
fn variants() -> Vec<(&'static str, RunConfig)> {
    let mut learned = tiny::dense();
    learned.model.position = Some(table("[learned]"));
    learned.model.norm = Some(table("[layer]\nbias = true"));
    learned.model.tie_embeddings = true;
    learned.model.attention_mut().bias = AttentionBias::All;
    learned.model.ffn = table("activation = \"gelu_tanh\"\nd_ff = 40\nbias = true");
    let mut sinusoidal = tiny::moe();
    sinusoidal.model.position = Some(table("[sinusoidal]"));
    sinusoidal.model.attention_mut().qk_norm = QkNorm::On(QkNormConfig::default());
    sinusoidal.model.ffn.activation = switchyard_experts::Activation::Relu;
    sinusoidal.model.ffn.d_ff = Some(20);
    sinusoidal.model.ffn.moe.as_mut().unwrap().layers = Some(table("every = 2"));
    let mut alibi = tiny::dense();
    alibi.model.position = Some(table("[alibi]"));
    let mut block_sparse = tiny::dense();
    block_sparse.model.ffn = table(
        "activation = \"swiglu\"\n[block_sparse]\nblock = 4\nd_ff = 48\ndensity = 0.5\ntopology = { small_world = {} }",
    );
    let mut fine = tiny::moe();
    let moe = fine.model.ffn.moe.as_mut().unwrap();
    moe.granularity = Some(2);
    moe.router_overrides = table::<MoeTables>(
        "[[router_overrides]]\nlayers = [1]\nrouter = { top_k = 1, renormalise = false, cosine = { d_projection = 4 } }",
    )
    .router_overrides;
    vec![
        ("dense", tiny::dense()),
        ("moe", tiny::moe()),
        ("learned", learned),
        ("sinusoidal", sinusoidal),
        ("alibi", alibi),
        ("fine", fine),
        ("block-sparse", block_sparse),
    ]
}

#[test]
fn the_plan_counts_the_parameters_that_the_model_has() {
    for (name, config) in variants() {
        let plan = RunPlan::resolve(&config).unwrap();
        let num_params = model(&config, &Device::flex()).num_params() as u64;
        assert_eq!(plan.counts.total_params, num_params, "{name}");
    }
}

#[test]
fn no_logit_depends_on_a_later_token() {
    for (name, config) in variants() {
        let model = model(&config, &Device::flex());
        let one: Vec<i32> = (0..12).map(|i| (i * 5 + 1) % 32).collect();
        let mut other = one.clone();
        other[8] = 30;
        let (one, other) = (logits(&model, &one, None), logits(&model, &other, None));
        assert_eq!(one[..8], other[..8], "{name}");
        assert_ne!(one[8], other[8], "{name}");
    }
}

#[test]
fn order_matters() {
    for (name, config) in variants() {
        let model = model(&config, &Device::flex());
        let (one, other) = (logits(&model, &[1, 2, 3, 4], None), logits(&model, &[2, 1, 3, 4], None));
        let difference = one[3].iter().zip(&other[3]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(difference > 1e-7, "{name}: swapping two earlier tokens changes nothing");
    }
}

#[test]
fn masked_documents_do_not_see_each_other() {
    let mut config = tiny::moe();
    config.model.position = Some(table("[rope]"));
    let model = model(&config, &Device::flex());
    let first = logits(&model, &[1, 2, 3, 9, 8, 7], Some(&[0, 0, 0, 1, 1, 1]));
    let second = logits(&model, &[4, 5, 6, 9, 8, 7], Some(&[0, 0, 0, 1, 1, 1]));
    assert_eq!(first[3..], second[3..]);
    let unmasked = logits(&model, &[4, 5, 6, 9, 8, 7], None);
    assert_ne!(second[3..], unmasked[3..]);
}

/// `steps` updates; the cross-entropy of each, and the parameters at the end.
fn train(config: &RunConfig, steps: u64) -> (Vec<f64>, Vec<(ParameterName, TensorData)>) {
    let device = Device::flex();
    let mut network = model(config, &device.clone().autodiff());
    let mut optimizer = Optimizer::new(&config.train, network.spec());
    let mut losses = Vec::new();
    for step in 0..steps {
        let token = |i: usize| ((i as u64 * 7 + step * 3 + i as u64 / 5) % 32) as i32;
        let batch = TokenBatch {
            input_ids: (0..64).map(token).collect(),
            target_ids: (1..65).map(token).collect(),
            segment_ids: None,
            target_mask: None,
            row_lens: None,
            follows: false,
            domains: vec![0; 4],
            source_ids_b: vec![0; 4],
            num_sequences: 4,
            seq_len: 16,
        };
        let settings = StepSettings {
            seed: 1,
            step,
            max_grad_norm: Some(0.5),
            head_z_weight: None,
            options: PassOptions::default(),
            state: None,
        };
        let (gradients, measurements) =
            step_gradients(&network, vec![batch.clone(), batch], &settings, &device).unwrap();
        network = optimizer.update(network, gradients, 1e-2);
        losses.push(measurements.cross_entropy_nats);
    }
    let parameters = parameter_data(&network).into_iter().map(|named| (named.name, named.value)).collect();
    (losses, parameters)
}

#[test]
fn a_mixture_of_one_expert_trains_as_the_dense_model_bit_for_bit() {
    for activation in ["\"swiglu\"", "{ clamped_swiglu = { limit = 0.5 } }", "\"gelu\"", "\"relu\""] {
        let mut dense = tiny::dense();
        dense.model.ffn = table(&format!("activation = {activation}\nd_ff = 24"));
        dense.train.muon = (activation == "\"gelu\"").then(|| table(""));
        let mut moe = dense.clone();
        moe.model.ffn = table(&format!(
            "activation = {activation}\n[moe]\nnum_experts = 1\nd_expert = 24\n[moe.router]\ntop_k = 1\n\
             load_balancing_weight = 0.01"
        ));
        let (dense_losses, dense_parameters) = train(&dense, 4);
        let (moe_losses, moe_parameters) = train(&moe, 4);
        assert_eq!(dense_losses, moe_losses, "{activation}");

        let routers: Vec<_> =
            moe_parameters.iter().filter(|(name, _)| matches!(name.role, Role::Router(_))).collect();
        assert_eq!(routers.len(), 2, "one router a layer");
        assert_eq!(moe_parameters.len(), dense_parameters.len() + routers.len());
        let values = |data: &TensorData| data.try_to_vec::<f32>().unwrap();
        for (name, data) in &dense_parameters {
            let twin = match name.role {
                Role::Dense(matrix) => ParameterName { role: Role::Expert(matrix), ..*name },
                _ => *name,
            };
            let found = moe_parameters.iter().find(|(name, _)| *name == twin);
            let (_, moe_data) = found.unwrap_or_else(|| panic!("{name} has no twin {twin}"));
            assert_eq!(values(data), values(moe_data), "{activation}: {name}");
        }
    }
}

#[test]
fn the_heads_z_loss_is_added_with_its_weight_and_measured_without() {
    let config = tiny::dense();
    let settings = StepSettings {
        seed: 1,
        step: 0,
        max_grad_norm: None,
        head_z_weight: Some(0.25),
        options: PassOptions::default(),
        state: None,
    };
    let batch = TokenBatch {
        input_ids: (0..16).collect(),
        target_ids: (1..17).collect(),
        segment_ids: None,
        target_mask: None,
        row_lens: None,
        follows: false,
        domains: vec![0],
        source_ids_b: vec![0],
        num_sequences: 1,
        seq_len: 16,
    };
    let device = Device::flex();
    let network = model(&config, &device.clone().autodiff());
    let measured = step_gradients(&network, vec![batch], &settings, &device).unwrap().1;
    let z_loss = measured.head_z_loss.unwrap();
    // The fresh model's scores are near zero, so its partition function is near the number of
    // tokens.
    assert!((z_loss.sqrt() - 32f64.ln()).abs() < 0.1, "{z_loss}");
    // The total is a sum in f32.
    assert!((measured.total_loss - measured.cross_entropy_nats - 0.25 * z_loss).abs() < 1e-6, "{measured:?}");
}

#[test]
fn accumulated_micro_batches_give_the_gradient_of_the_whole_batch() {
    // Cross-entropy is a mean over tokens, so two halves of a batch average to the batch; float
    // addition in another order is the only difference.
    let mut config = tiny::dense();
    config.model.dropout = 0.0;
    let device = Device::flex();
    let batch = |range: std::ops::Range<i32>| TokenBatch {
        input_ids: range.clone().map(|i| (i * 11 + 3) % 32).collect(),
        target_ids: range.clone().map(|i| (i * 11 + 14) % 32).collect(),
        segment_ids: None,
        target_mask: None,
        row_lens: None,
        follows: false,
        domains: vec![0; range.len() / 16],
        source_ids_b: vec![0; range.len() / 16],
        num_sequences: range.len() / 16,
        seq_len: 16,
    };
    let norm_of = |batches: Vec<TokenBatch>| {
        let settings = StepSettings {
            seed: 1,
            step: 0,
            max_grad_norm: None,
            head_z_weight: None,
            options: PassOptions::default(),
            state: None,
        };
        let network = model(&config, &device.clone().autodiff());
        step_gradients(&network, batches, &settings, &device).unwrap().1
    };
    let whole = norm_of(vec![batch(0..64)]);
    let halves = norm_of(vec![batch(0..32), batch(32..64)]);
    assert!((whole.cross_entropy_nats - halves.cross_entropy_nats).abs() < 1e-6);
    assert!(
        (whole.grad_norm / halves.grad_norm - 1.0).abs() < 1e-5,
        "{} {}",
        whole.grad_norm,
        halves.grad_norm
    );
}

/// Where a CPU tensor's elements begin.
fn address(value_n: &Tensor<1>) -> *const u8 {
    match value_n.clone().into_dispatch().kind {
        DispatchTensorKind::Flex(tensor) => tensor.as_float().bytes().as_ptr(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn parameters_are_updated_where_they_lie() {
    let mut config = tiny::moe();
    config.train.muon = Some(table("roles = [\"experts\"]"));
    let (device, mut network) = (Device::flex(), model(&config, &Device::flex().autodiff()));
    let mut optimizer = Optimizer::new(&config.train, network.spec());
    let settings = StepSettings {
        seed: 1,
        step: 0,
        max_grad_norm: Some(0.5),
        head_z_weight: None,
        options: PassOptions::default(),
        state: None,
    };
    let batch = TokenBatch {
        input_ids: (0..32).collect(),
        target_ids: (0..32).rev().collect(),
        segment_ids: None,
        target_mask: None,
        row_lens: None,
        follows: false,
        domains: vec![0; 2],
        source_ids_b: vec![0; 2],
        num_sequences: 2,
        seq_len: 16,
    };
    let mut addresses = Vec::new();
    for _ in 0..3 {
        let (gradients, _) = step_gradients(&network, vec![batch.clone()], &settings, &device).unwrap();
        let mut addresses_of_step = Vec::new();
        network = optimizer.update(network, gradients, 1e-3);
        network = update_parameters(network, |_, _, value_n| {
            addresses_of_step.push(address(&value_n));
            value_n
        });
        addresses.push(addresses_of_step);
    }
    assert_eq!(addresses[1], addresses[0]);
    assert_eq!(addresses[2], addresses[0]);
}

#[test]
fn granularity_keeps_total_and_active_expert_parameters() {
    let plan = |granularity: Option<usize>| {
        let mut config = tiny::moe();
        let moe = config.model.ffn.moe.as_mut().unwrap();
        (moe.d_expert, moe.granularity) = (16, granularity);
        RunPlan::resolve(&config).unwrap()
    };
    let coarse = plan(None);
    for granularity in [1, 2, 4, 8] {
        let fine = plan(Some(granularity));
        let (experts, router) = fine.model.layers[0].ffn.routed().unwrap();
        assert_eq!((experts.num_experts, experts.d_expert), (4 * granularity, 16 / granularity));
        assert_eq!(router.config.top_k, 2 * granularity);
        assert_eq!(fine.counts.params.routed_experts, coarse.counts.params.routed_experts);
        let router_growth = fine.counts.params.router - coarse.counts.params.router;
        assert_eq!(router_growth, 2 * 16 * 4 * (granularity as u64 - 1), "two gates of width 16");
        assert_eq!(fine.counts.active_params, coarse.counts.active_params + router_growth);
        assert_eq!(fine.counts.total_params, coarse.counts.total_params + router_growth);
        let flops = |plan: &RunPlan| plan.counts.forward_flops.routed_experts;
        assert_eq!(flops(&fine), flops(&coarse));
        assert!(fine.describe().contains(&format!(", granularity {granularity}")));
    }
}

#[test]
fn each_layer_routes_with_its_own_router() {
    let mut config = tiny::moe();
    let moe = config.model.ffn.moe.as_mut().unwrap();
    moe.capacity = None;
    moe.router_overrides = table::<MoeTables>(
        "[[router_overrides]]\nlayers = [1]\nrouter = { top_k = 3, softmax = \"after_selection\" }",
    )
    .router_overrides;
    let model = model(&config, &Device::flex());
    let input = ModelInput::upload((0..16).collect(), None, [1, 16], &Device::flex());
    let output = model.forward(&input, Pass::Evaluation);
    let slots: Vec<u64> =
        output.moe_layers.iter().map(|(_, aux)| aux.statistics.tokens_per_expert().iter().sum()).collect();
    assert_eq!(slots, [16 * 2, 16 * 3]);
    let plan = RunPlan::resolve(&config).unwrap();
    assert!(plan.describe().contains("in layer 1, each token to 3"), "{}", plan.describe());
}

#[test]
fn a_block_sparse_model_learns_with_the_blocks_that_are_planned() {
    for topology in ["random", "small_world", "barabasi_albert"] {
        let mut config = tiny::dense();
        config.model.ffn = table(&format!(
            "activation = \"gelu_tanh\"\n[block_sparse]\nblock = 4\nd_ff = 48\ndensity = 0.25\ntopology = {{ {topology} = {{}} }}"
        ));
        let (losses, _) = train(&config, 12);
        assert!(losses[11] < losses[0] - 0.1, "{topology}: {losses:?}");
        let plan = RunPlan::resolve(&config).unwrap();
        // Two matrices in two layers, a quarter of 4 x 12 blocks of 4 x 4.
        assert_eq!(plan.counts.params.block_sparse_ffn, 2 * 2 * 12 * 16);
        assert!(plan.describe().contains("12 of 48 blocks of side 4 in each matrix"), "{}", plan.describe());
    }
}

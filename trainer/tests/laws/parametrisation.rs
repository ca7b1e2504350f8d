//! Laws of `[model.parametrisation]`: what a parameter's role says of its initial values and its
//! updates, each number written out here by hand.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_datasets::TokenBatch;
use switchyard_hub::tensor_files::Element;
use switchyard_hub::{Family, export::ExpertForm};
use switchyard_model::{Named, ParameterName, PassOptions, Transformer, parameter_data, update_parameters};
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::export::{ExportSettings, export};
use switchyard_trainer::optimizer::Optimizer;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::OpenMode;
use switchyard_trainer::step::{StepSettings, step_gradients};
use tempfile::TempDir;

use crate::resume::{tensors, with_steps};
use crate::tiny;

/// The tiny mixture, which has 2 layers of width 16 with 2 heads of 8, and 4 experts of width 12, 2 of
/// a token, beside one of width 8.
fn with_base(base: &str) -> RunConfig {
    let mut config = tiny::moe();
    config.model.parametrisation = Some(toml::from_str(&format!("base = {{ {base} }}")).unwrap());
    config
}

const OWN_SHAPE: &str = "d_model = 16, num_layers = 2, num_heads = 2, num_experts = 4, d_expert = 12, top_k = 2, \
                         d_shared_expert = 8";
/// Half as wide and deep, with half the heads, half the experts a quarter as wide, and half of them per
/// token.
const SMALLER: &str = "d_model = 8, num_layers = 1, num_heads = 1, num_experts = 2, d_expert = 3, top_k = 1, \
                       d_shared_expert = 4";

fn network(config: &RunConfig) -> Transformer {
    let plan = RunPlan::resolve(config).unwrap();
    Transformer::new(&plan.model, config.seed, &Device::flex().autodiff())
}

fn batch(step: usize) -> TokenBatch {
    let id = |index: usize| ((index * 7 + 3 * step + index / 5) % 32) as i32;
    TokenBatch {
        input_ids: (0..64).map(id).collect(),
        target_ids: (1..65).map(id).collect(),
        segment_ids: None,
        target_mask: None,
        row_lens: None,
        follows: false,
        domains: vec![0; 4],
        source_ids_b: vec![0; 4],
        num_sequences: 4,
        seq_len: 16,
    }
}

/// The network after steps at this rate with this optimizer, and the loss of each.
fn trained(
    network: Transformer,
    mut optimizer: Optimizer,
    steps: usize,
    rate: f64,
) -> (Transformer, Vec<f64>) {
    let (mut network, mut losses) = (network, Vec::new());
    for step in 0..steps {
        let settings = StepSettings {
            seed: 1,
            step: step as u64,
            max_grad_norm: None,
            head_z_weight: None,
            options: PassOptions::default(),
            state: None,
        };
        let (gradients, measured) =
            step_gradients(&network, vec![batch(step)], &settings, &Device::flex()).unwrap();
        losses.push(measured.cross_entropy_nats);
        network = optimizer.update(network, gradients, rate);
    }
    (network, losses)
}

fn values(network: &Transformer) -> BTreeMap<ParameterName, Vec<f32>> {
    let of = |Named { name, value }: Named<TensorData>| (name, value.try_into_vec::<f32>().unwrap());
    parameter_data(network).into_iter().map(of).collect()
}

fn bits(network: &Transformer) -> BTreeMap<ParameterName, Vec<u32>> {
    let of = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    values(network).into_iter().map(|(name, values)| (name, of(values))).collect()
}

#[test]
fn at_the_base_shape_a_run_is_the_run_without_the_table_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    let run = |config: &RunConfig, name: &str| {
        let out = folder.path().join(name);
        tiny::run(&with_steps(config, 4, 2), &out, OpenMode::New).unwrap();
        (tiny::rows(&out), tensors(&out, 4))
    };
    let plain = run(&tiny::moe(), "plain");
    assert!(plain == run(&with_base(OWN_SHAPE), "own"));
    assert!(plain != run(&with_base(SMALLER), "smaller"));
}

#[test]
fn a_transferred_run_resumes_bit_for_bit() {
    let folder = TempDir::new().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    let config = with_base(SMALLER);
    tiny::run(&with_steps(&config, 4, 1), &whole, OpenMode::New).unwrap();
    tiny::run(&with_steps(&config, 2, 1), &parts, OpenMode::New).unwrap();
    tiny::run(&with_steps(&config, 4, 2), &parts, OpenMode::Resume).unwrap();
    assert_eq!(tiny::rows(&whole), tiny::rows(&parts));
    assert!(tensors(&whole, 4) == tensors(&parts, 4));
}

/// Of each parameter of `SMALLER`'s model: deviation, rate and epsilon over those without the table.
fn expected(name: &str) -> [f64; 3] {
    let in_block = name.rsplit_once("blocks.").map(|(_, rest)| rest.split_once('.').unwrap().1);
    match in_block {
        None => match name {
            "embedding.token" | "head" | "final_norm.weight" => [1.0, 1.0, 1.0 / 2.0],
            other => panic!("{other}"),
        },
        Some("attention_norm.weight" | "ffn_norm.weight") => [1.0, 1.0, 1.0 / 4.0],
        Some(name) if name.starts_with("attention.") => [0.5_f64.sqrt(), 1.0 / 2.0, 1.0 / 4.0],
        Some("ffn.router.weight") => [1.0 / 2.0, 1.0 / 2.0, 1.0 / 2.0],
        Some("ffn.shared_expert.gate" | "ffn.shared_expert.up" | "ffn.shared_expert.down") => {
            [0.5_f64.sqrt(), 1.0 / 2.0, 1.0 / 4.0]
        }
        // 2 times the experts of 4 times the width, in 2 times the layers.
        Some("ffn.experts.gate" | "ffn.experts.up") => [0.5_f64.sqrt(), 1.0 / 2.0, 1.0 / 16.0],
        // Half the gate, 8 times the active hidden units: `2 / sqrt(8)` and `2 / 8`. Its gradients are
        // half as large by the gate, come from as many tokens per expert, and by width and depth.
        Some("ffn.experts.down") => [0.5_f64.sqrt(), 1.0 / 4.0, 1.0 / 8.0],
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn every_role_begins_with_its_own_deviation() {
    let deviations = |config: &RunConfig| {
        let of = |values: Vec<f32>| {
            let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
            (squares / values.len() as f64).sqrt()
        };
        let all = values(&network(config)).into_iter();
        all.map(|(name, values)| (name.to_string(), of(values))).collect::<BTreeMap<String, f64>>()
    };
    let (plain, found) = (deviations(&tiny::moe()), deviations(&with_base(SMALLER)));
    assert_eq!(plain.len(), found.len());
    for (name, deviation) in found {
        // Projections to the stream have `sqrt(2 * num_layers)` of the base shape, half as many.
        let writes = [".output.weight", ".down"].iter().any(|end| name.ends_with(end));
        let scale = expected(&name)[0] * if writes { 2.0_f64.sqrt() } else { 1.0 };
        // The same normal numbers, scaled, in f32.
        let relative = deviation / (plain[&name] * scale);
        assert!((relative - 1.0).abs() < 1e-6, "{name}: {relative}");
    }
}

#[test]
fn every_role_is_updated_with_its_own_rate_decay_and_epsilon() {
    let config = with_base(SMALLER);
    let start = network(&config);
    // Without it, and with an epsilon that matters: the gradients are about as large.
    let with_epsilon = |epsilon: f64, decay: f64| {
        let mut train = config.train.clone();
        (train.adamw.epsilon, train.adamw.weight_decay) = (epsilon, decay);
        train
    };
    let (epsilon, decay, rate) = (1e-3, 0.25, 1e-2);
    let optimizer = Optimizer::new(&with_epsilon(epsilon, decay), start.spec());
    let found = bits(&trained(start.clone(), optimizer, 1, rate).0);
    let plain_spec = RunPlan::resolve(&tiny::moe()).unwrap().model;
    for (name, found) in found {
        let [_, rate_factor, epsilon_factor] = expected(&name.to_string());
        let train = with_epsilon(epsilon * epsilon_factor, decay / rate_factor);
        let optimizer = Optimizer::new(&train, &plain_spec);
        let alone = bits(&trained(start.clone(), optimizer, 1, rate * rate_factor).0);
        assert_eq!(found, alone[&name], "{name}");
    }
}

/// A mixture in which every token goes to all `num_experts` experts with equal gates, whose values are
/// those of the mixture of 2 experts of width 12, cut into parts that are scaled by what their gates
/// lost.
fn cut(granularity: usize) -> (RunConfig, Transformer) {
    let text = |num_experts: usize, d_expert: usize| {
        let mut config = with_base(
            "d_model = 16, num_layers = 2, num_heads = 2, num_experts = 2, d_expert = 12, top_k = 2",
        );
        let router = format!("top_k = {num_experts}");
        let moe = config.model.ffn.moe.as_mut().unwrap();
        (moe.router, moe.capacity) = (toml::from_str(&router).unwrap(), None);
        (moe.num_experts, moe.d_expert, moe.d_shared_expert) = (num_experts, d_expert, None);
        (config.model.dropout, config.train.adamw.epsilon) = (0.0, 1e-4);
        config.train.groups = vec![toml::from_str("match = \"router\"\nfreeze = true").unwrap()];
        config
    };
    let whole = values(&network(&text(2, 12)));
    let config = text(2 * granularity, 12 / granularity);
    let (d, f, g) = (16, 12, granularity);
    let part = f / g;
    let network = update_parameters(network(&config), |name, _, initial_n| {
        let source = &whole[&name];
        let text = name.to_string();
        let values: Vec<f32> = if text.contains("router") {
            vec![0.0; initial_n.dims()[0]]
        } else if text.ends_with("experts.down") {
            // Rows are hidden units: the parts lie one after the other.
            source.iter().map(|value| value * g as f32).collect()
        } else if text.contains("experts") {
            let of_part = |index: usize| {
                let (expert, first) = (index / g, index % g * part);
                (0..d)
                    .flat_map(move |row| (first..first + part).map(move |unit| (expert * d + row) * f + unit))
            };
            (0..2 * g).flat_map(of_part).map(|place| source[place]).collect()
        } else {
            source.clone()
        };
        Tensor::from_data(TensorData::new(values, initial_n.dims()), &initial_n.device())
    });
    (config, network)
}

/// What granularity transfers: the same function, trained with the fine experts' own rates, decays and
/// epsilons, stays the same function.
#[test]
fn experts_cut_into_finer_ones_take_the_same_steps() {
    let losses = |granularity| {
        let (config, network) = cut(granularity);
        let optimizer = Optimizer::new(&config.train, network.spec());
        trained(network, optimizer, 8, 1e-2).1
    };
    let whole = losses(1);
    assert!(whole[0] - whole[7] > 0.2, "it learns: {whole:?}");
    for granularity in [2, 4] {
        for (fine, whole) in losses(granularity).iter().zip(&whole) {
            // Sums of f32 in another order, through 8 steps; a wrong factor moves it by 1e-2.
            assert!((fine - whole).abs() < 2e-4, "granularity {granularity}: {fine} against {whole}");
        }
    }
}

#[test]
fn a_transferred_model_is_exported_with_its_multipliers_or_refused_by_name() {
    // Narrower heads, and heads as wide as the model's, whose scale is the usual one.
    for (d_model, logits) in [(4, "0.25"), (8, "0.5")] {
        check_export(d_model, logits);
    }
}

fn check_export(base_d_model: usize, logits: &str) {
    let folder = TempDir::new().unwrap();
    let mut config = with_base(&format!(
        "d_model = {base_d_model}, num_layers = 1, num_heads = 1, num_experts = 2, d_expert = 3, top_k = 1"
    ));
    config.model.tie_embeddings = true;
    config.model.dropout = 0.0;
    let moe = config.model.ffn.moe.as_mut().unwrap();
    (moe.d_shared_expert, moe.capacity) = (None, None);
    moe.router = toml::from_str("top_k = 2\nsoftmax = \"after_selection\"").unwrap();
    let out = folder.path().join("run");
    tiny::run(&with_steps(&config, 2, 1), &out, OpenMode::New).unwrap();
    let checkpoint = Checkpoint::read(&out.join("checkpoints/step-2")).unwrap();
    let settings = |name: &str, family| ExportSettings {
        to: folder.path().join(name),
        element: Element::F32,
        experts: ExpertForm::Published,
        family,
    };
    let certificate = export(&checkpoint, &settings("granite", None)).unwrap();
    assert_eq!(certificate.family, "granitemoe");
    assert!(certificate.logits_max_abs > 0.0 && certificate.logits_max_abs_diff < 1e-6, "{certificate:?}");
    let mixtral = Family::ALL.into_iter().find(|family| family.names().0 == "mixtral").unwrap();
    let message = export(&checkpoint, &settings("mixtral", Some(mixtral))).unwrap_err().to_string();
    assert!(message.contains(&format!("multipliers.logits = {logits}")), "{message}");
    assert!(message.contains("multipliers.residual = 0.5"), "{message}");
}

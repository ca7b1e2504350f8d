//! Laws of Muon beside AdamW.

use std::collections::BTreeMap;
use std::fs;

use burn::tensor::{Device, Tensor, TensorData};
use safetensors::SafeTensors;
use switchyard_kernels::{MuonState, MuonStep, muon_update};
use switchyard_model::{Named, ParameterName, Role, Transformer, hidden_matrices, parameter_tensors};
use switchyard_trainer::checkpoint::Checkpoint;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::optimizer::Optimizer;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::run_folder::{OpenMode, RunStatus};
use tempfile::TempDir;

use crate::groups::{gradients_of, network};
use crate::resume::{assert_refused_on_resume, tensors, with_steps};
use crate::tiny;

pub(crate) fn with_muon(mut config: RunConfig, muon: &str, groups: &[&str]) -> RunConfig {
    config.train.muon = Some(toml::from_str(muon).unwrap());
    config.train.groups = groups.iter().map(|text| toml::from_str(text).unwrap()).collect();
    config
}

/// A mixture whose latent attention has every projection.
pub(crate) fn latent() -> RunConfig {
    let mut config = tiny::moe();
    let latent = "d_query = 6\nd_key_value = 8\nd_rope = 4\nd_value = 4";
    let attention = config.model.attention_mut();
    (attention.latent, attention.num_kv_heads) = (Some(toml::from_str(latent).unwrap()), None);
    config
}

pub(crate) fn recurrent() -> RunConfig {
    let mut config = tiny::moe();
    (config.model.attention, config.model.lstm) = (None, Some(toml::from_str("d_hidden = 12").unwrap()));
    config.model.norm = Some(toml::from_str("[off]").unwrap());
    config
}

pub(crate) fn block_sparse() -> RunConfig {
    let mut config = tiny::dense();
    config.model.ffn = toml::from_str(
        "activation = \"gelu_tanh\"\n[block_sparse]\nblock = 4\nd_ff = 48\ndensity = 0.5\ntopology = { random = {} }",
    )
    .unwrap();
    config
}

/// Configurations that between them have every kind of matrix between hidden units.
fn kinds() -> [RunConfig; 6] {
    let soft = tiny::routed("top_k = 2\nselection = { soft = {} }");
    [tiny::dense(), tiny::moe(), latent(), recurrent(), block_sparse(), soft]
}

#[test]
fn hidden_matrices_are_counted_as_the_network_has_them() {
    for config in kinds() {
        let spec = RunPlan::resolve(&config).unwrap().model;
        let counted: BTreeMap<ParameterName, Vec<usize>> = hidden_matrices(&spec)
            .into_iter()
            .map(|Named { name, value: [number, rows, columns] }| {
                let is_stack = matches!(name.role, Role::Expert(_));
                (name, if is_stack { vec![number, rows, columns] } else { vec![rows, columns] })
            })
            .collect();
        let found: BTreeMap<ParameterName, Vec<usize>> = parameter_tensors(&network(&config))
            .into_iter()
            .filter(|parameter| parameter.name.role.is_hidden_matrix())
            .map(|parameter| (parameter.name, parameter.value.shape))
            .collect();
        assert_eq!(counted, found);
    }
}

type Values = BTreeMap<ParameterName, (Vec<usize>, Vec<f32>)>;

fn values(network: &Transformer) -> Values {
    let parameters = parameter_tensors(network).into_iter();
    parameters.map(|named| (named.name, (named.value.shape.clone(), host(named.value.values_n)))).collect()
}

fn host(values_n: Tensor<1>) -> Vec<f32> {
    values_n.into_data().try_into_vec().unwrap()
}

/// Every parameter before an update and after it, and what the optimizer then remembers.
fn updated(config: &RunConfig, learning_rate: f64) -> (Values, Values, BTreeMap<String, Vec<f32>>) {
    let network = network(config);
    let (before, gradients) = (values(&network), gradients_of(&network));
    let mut optimizer = Optimizer::new(&config.train, &network.spec().clone());
    let after = values(&optimizer.update(network, gradients, learning_rate));
    let moments = optimizer.moments().into_iter().map(|(name, moment)| (name, host(moment.values_n)));
    (before, after, moments.collect())
}

/// One matrix after the first update of its momentum, which is its gradient.
fn moved_alone([value, gradient]: [&[f32]; 2], shape: [usize; 2], step: &MuonStep) -> Vec<f32> {
    let flat =
        |values: &[f32]| Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), &Device::flex());
    let state = MuonState { value_n: flat(value), momentum_n: flat(&vec![0.0; value.len()]) };
    host(muon_update(state, flat(gradient), [1, shape[0], shape[1]], step).value_n)
}

/// The step of a parameter by the keys and groups of the next test.
fn expected_step(name: &str) -> MuonStep {
    let (factor, weight_decay) = match name {
        name if name.contains("attention") => (0.5, 0.3),
        name if name.starts_with("blocks.1.") && name.contains(".experts.") => (1.0, 0.0),
        _ => (1.0, 0.2),
    };
    MuonStep {
        learning_rate: 1e-2 * factor,
        momentum: 0.9,
        nesterov: true,
        newton_schulz_steps: 5,
        weight_decay,
        gradient_scale: 1.0,
    }
}

/// Each projection and each expert's matrix moves as if there were no other, at the rate and the decay
/// of its group; what Muon does not take moves as it does without Muon.
#[test]
fn muon_moves_each_matrix_alone_and_adamw_moves_the_rest() {
    let groups = [
        "match = \"attention\"\nlearning_rate_factor = 0.5\nweight_decay = 0.3",
        "match = \"blocks.1.ffn.experts.*\"\nweight_decay = 0.0",
    ];
    let config = with_muon(tiny::moe(), "momentum = 0.9\nweight_decay = 0.2", &groups);
    let mut without = config.clone();
    without.train.muon = None;
    let (before, after, moments) = updated(&config, 1e-2);
    let (_, by_adamw, _) = updated(&without, 1e-2);
    let mut num_matrices = 0;
    for (name, (shape, found)) in &after {
        if !name.role.is_hidden_matrix() {
            assert_eq!(found, &by_adamw[name].1, "{name}");
            assert!(moments.contains_key(&format!("second.{name}")), "{name}");
            continue;
        }
        assert_ne!(found, &by_adamw[name].1, "{name}");
        let gradient = &moments[&format!("momentum.{name}")];
        let &[rows, columns] = &shape[shape.len() - 2..] else { panic!("{shape:?}") };
        let matrices = before[name].1.chunks(rows * columns).zip(gradient.chunks(rows * columns));
        for (index, (value, gradient)) in matrices.enumerate() {
            let step = expected_step(&name.to_string());
            let expected = moved_alone([value, gradient], [rows, columns], &step);
            assert_eq!(found[index * rows * columns..][..rows * columns], expected, "{name}, matrix {index}");
            num_matrices += 1;
        }
    }
    // In each of two layers four projections, three matrices of four experts and of a shared one.
    assert_eq!(num_matrices, 2 * (4 + 3 * 4 + 3));
}

#[test]
fn only_the_roles_that_are_asked_for_are_muons() {
    let config = with_muon(tiny::moe(), "roles = [\"experts\"]", &[]);
    let (.., moments) = updated(&config, 1e-2);
    let of_muon: Vec<&str> = moments.keys().filter_map(|name| name.strip_prefix("momentum.")).collect();
    assert_eq!(of_muon.len(), 6, "{of_muon:?}");
    assert!(of_muon.iter().all(|name| name.contains(".experts.")), "{of_muon:?}");
}

#[test]
fn a_resumed_run_is_the_unbroken_one_bit_for_bit_with_any_number_of_threads() {
    for (name, config) in [("dense", tiny::dense()), ("moe", tiny::moe())] {
        let config = with_muon(config, "", &["match = \"*.up\"\nlearning_rate_factor = 3.0"]);
        let config = if name == "dense" { with_muon(config, "nesterov = false", &[]) } else { config };
        let folder = TempDir::new().unwrap();
        let mut reference = None;
        for threads in [1, 2] {
            let whole = folder.path().join(format!("{name}-whole-{threads}"));
            let parts = folder.path().join(format!("{name}-parts-{threads}"));
            tiny::run(&with_steps(&config, 6, threads), &whole, OpenMode::New).unwrap();
            tiny::run(&with_steps(&config, 3, threads), &parts, OpenMode::New).unwrap();
            tiny::run(&with_steps(&config, 6, threads), &parts, OpenMode::Resume).unwrap();
            assert_eq!(tiny::rows(&whole), tiny::rows(&parts), "{name}, {threads} threads");
            let found = (tiny::rows(&whole), tensors(&whole, 6));
            assert!(found.1 == tensors(&parts, 6), "{name}, {threads} threads: stored tensors");
            assert!(*reference.get_or_insert(found.clone()) == found, "{name}: depends on the threads");
        }
    }
}

#[test]
fn a_frozen_role_stays_and_has_no_momentum() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let config = with_muon(tiny::moe(), "", &["match = \"experts\"\nfreeze = true"]);
    tiny::run(&with_steps(&config, 3, 1), &out, OpenMode::New).unwrap();
    let before = values(&network(&config));
    let checkpoint = Checkpoint::read(&out.join("checkpoints/step-3")).unwrap();
    for (name, (_, values)) in values(&checkpoint.model(&Device::flex()).unwrap()) {
        assert_eq!(values == before[&name].1, name.to_string().contains(".experts."), "{name}");
    }
    let stored = fs::read(out.join("checkpoints/step-3/optimizer.safetensors")).unwrap();
    let stored = SafeTensors::deserialize(&stored).unwrap();
    assert!(stored.names().iter().all(|name| !name.contains(".experts.")));
    let names = stored.names();
    assert!(names.contains(&"momentum.blocks.0.attention.query.weight"), "{names:?}");
    assert!(!names.contains(&"second.blocks.0.attention.query.weight"), "{names:?}");
    // All that Muon would take.
    let frozen =
        ["attention", "experts", "shared_experts"].map(|word| format!("match = \"{word}\"\nfreeze = true"));
    let config = with_muon(tiny::moe(), "", &frozen.each_ref().map(String::as_str));
    let message = tiny::run(&config, &folder.path().join("none"), OpenMode::New).unwrap_err().to_string();
    assert!(message.contains("`train.muon` has nothing to train"), "{message}");
}

#[test]
fn a_run_learns_by_muon() {
    let folder = TempDir::new().unwrap();
    let mut config = with_muon(tiny::moe(), "", &[]);
    config.train.num_steps = 60;
    let out = folder.path().join("run");
    let summary = tiny::run(&config, &out, OpenMode::New).unwrap();
    assert_eq!(summary.manifest.status, RunStatus::Finished);
    let last = summary.manifest.final_validation_cross_entropy_nats.unwrap();
    // ln 32 = 3.47 is what knowing nothing costs.
    assert!(last < 2.9, "the loss is {last}");
}

#[test]
fn a_checkpoint_of_another_optimizer_is_refused_by_key() {
    let folder = TempDir::new().unwrap();
    let adamw = with_steps(&tiny::dense(), 3, 1);
    let muon = with_steps(&with_muon(tiny::dense(), "", &[]), 3, 1);
    let fewer = with_steps(&with_muon(tiny::dense(), "roles = [\"dense\"]", &[]), 3, 1);
    for (index, (before, now, expected)) in [
        (&adamw, &muon, "`train.muon` is absent there and {\"momentum\":0.95,"),
        (&muon, &adamw, "`train.muon` is {\"momentum\":0.95,"),
        (&muon, &fewer, "`train.muon.roles` is absent there and [\"dense\"] now"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = folder.path().join(format!("run-{index}"));
        assert_refused_on_resume((before, now), &out, expected);
    }
}

/// Each matrix of Muon has one moment, where AdamW has two, and the update of one has buffers.
#[test]
fn the_memory_plan_counts_one_moment_of_muons_matrices() {
    for config in [tiny::dense(), tiny::moe(), recurrent()] {
        let with = RunPlan::resolve(&with_muon(config.clone(), "", &[])).unwrap();
        let without = RunPlan::resolve(&config).unwrap();
        let of_muon: usize =
            hidden_matrices(&with.model).iter().map(|matrix| matrix.value.iter().product::<usize>()).sum();
        assert!(of_muon > 0);
        assert_eq!(without.memory.moments_bytes - with.memory.moments_bytes, 4 * of_muon as u64);
        let total = with.counts.total_params;
        assert_eq!(with.memory.moments_bytes, 4 * (2 * total - of_muon as u64));
        let grouped = switchyard_ground::units::grouped(of_muon as u64);
        let page = with.describe();
        assert!(page.contains(&format!("Muon for {grouped} parameters in matrices of ")), "{page}");
        assert!(!without.describe().contains("Muon"));
    }
}

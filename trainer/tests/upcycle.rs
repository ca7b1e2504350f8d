//! What upcycling promises: the function where it is kept, the differences where they are made, and
//! clear refusals.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

use std::collections::BTreeMap;

use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_experts::{Activation, ExpertsSpec, FfnSpec};
use switchyard_model::{
    AttentionSpec, Compute, LayerSpec, MixerSpec, ModelInput, ModelSpec, ParameterName, Pass, Transformer,
    parameter_data,
};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::upcycle::{
    DenseModel, UpcycleError, UpcycleMethod, UpcycleSettings, deviation_from_dense, upcycled_model,
};

/// Large initial values, so that the feed-forward blocks matter to the loss.
const HEAD: &str = r#"
name = "tiny"
data = { synthetic = { num_domains = 2, vocab_size = 32, num_documents = 9, document_tokens = 40, branching = 3 } }
train = { num_steps = 3, seq_len = 16, batch_tokens = 64, adamw = { learning_rate = 1e-2 } }
[model]
num_layers = 2
d_model = 16
attention = { num_heads = 2 }
init = { std = 0.3 }
"#;

/// Rounding of two sums in f32 whose terms are of size one.
const F32_TOLERANCE: f64 = 1e-6;

fn spec(model: &str) -> ModelSpec {
    RunPlan::resolve(&toml::from_str(&format!("{HEAD}{model}")).unwrap()).unwrap().model
}

fn dense() -> ModelSpec {
    spec("[model.ffn]\nactivation = \"swiglu\"\nd_ff = 24")
}

/// A mixture whose tables are `moe`, in the place of the dense block.
fn mixture(moe: &str, router: &str) -> ModelSpec {
    spec(&format!(
        "[model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\n{moe}\n[model.ffn.moe.router]\n{router}"
    ))
}

fn parameters(model: &Transformer) -> BTreeMap<ParameterName, TensorData> {
    parameter_data(model).into_iter().map(|named| (named.name, named.value)).collect()
}

/// The dense model and what becomes of it.
struct Case {
    dense: Transformer,
    moe: Transformer,
    deviation: Option<String>,
}

impl Case {
    fn new(spec: &ModelSpec, method: UpcycleMethod) -> Self {
        let dense_spec = dense();
        let dense = Transformer::new(&dense_spec, 7, &Device::flex());
        let source = DenseModel { spec: &dense_spec, parameters: &parameters(&dense) };
        let settings = UpcycleSettings { method, seed: 1 };
        let moe = upcycled_model(source, spec, settings, &Device::flex()).unwrap();
        Self { dense, moe, deviation: deviation_from_dense(&dense_spec, spec, method) }
    }

    /// Losses of the mixture and of the dense model apart.
    fn difference(&self) -> f64 {
        (cross_entropy(&self.moe) - cross_entropy(&self.dense)).abs()
    }
}

/// Loss on fixed tokens, while evaluating.
fn cross_entropy(model: &Transformer) -> f64 {
    let device = Device::flex();
    let ids = |offset: i32| (0..64).map(|i| (i * 7 + offset + i / 5) % 32).collect::<Vec<i32>>();
    let input = ModelInput::upload(ids(0), None, [4, 16], &device);
    let targets_t = Tensor::<1, Int>::from_data(TensorData::new(ids(1), [64]), &device);
    let hidden_td = model.forward(&input, Pass::Evaluation).hidden_td;
    let loss = model.head_loss(hidden_td, targets_t, None, Compute::F32).cross_entropy_1;
    f64::from(loss.into_data().iter::<f32>().next().unwrap())
}

fn values(model: &Transformer, name: &str) -> Vec<f32> {
    parameters(model)[&ParameterName::parse(name).unwrap()].iter::<f32>().collect()
}

fn refusal(spec: &ModelSpec, method: UpcycleMethod) -> UpcycleError {
    let dense_spec = dense();
    let dense = Transformer::new(&dense_spec, 7, &Device::flex());
    let source = DenseModel { spec: &dense_spec, parameters: &parameters(&dense) };
    upcycled_model(source, spec, UpcycleSettings { method, seed: 1 }, &Device::flex()).unwrap_err()
}

#[test]
fn copies_start_at_the_dense_models_loss() {
    for (moe, router) in [
        ("num_experts = 4\nd_expert = 24", "top_k = 2"),
        ("num_experts = 8\nd_expert = 24", "top_k = 3\nsoftmax = \"after_selection\""),
        ("num_experts = 4\nd_expert = 24\nd_shared_expert = 8\nshared_expert_gate = true", "top_k = 2"),
        (
            "num_experts = 4\nd_expert = 24",
            "top_k = 2\nsigmoid = { routed_scaling = 2.5 }\nbias = { sign = {} }",
        ),
        ("num_experts = 4\nd_expert = 24", "top_k = 2\ncosine = { d_projection = 8 }"),
        ("num_experts = 4\nd_expert = 24", "top_k = 2\nselection = { noisy = {} }"),
        ("num_experts = 4\nd_expert = 24", "top_k = 2\nselection = { hash = {} }"),
        ("num_experts = 4\nd_expert = 24\ncapacity = { factor = 0.5 }", "top_k = 2"),
    ] {
        let case = Case::new(&mixture(moe, router), UpcycleMethod::Copy);
        assert_eq!(case.deviation, None, "{moe} {router}");
        assert!(case.difference() < F32_TOLERANCE, "{moe} {router}: {}", case.difference());
    }
}

#[test]
fn layers_that_stay_dense_are_carried_over() {
    let ffn = "[model.ffn]\nactivation = \"swiglu\"\nd_ff = 24\n[model.ffn.moe]\nnum_experts = 4\nd_expert = 24\n\
               layers = { every = 2 }\n[model.ffn.moe.router]\ntop_k = 2";
    let case = Case::new(&spec(ffn), UpcycleMethod::Copy);
    assert!(case.difference() < F32_TOLERANCE, "{}", case.difference());
    assert_eq!(values(&case.moe, "blocks.0.ffn.up.weight"), values(&case.dense, "blocks.0.ffn.up.weight"));
}

#[test]
fn whole_copies_of_parts_start_at_the_dense_models_loss() {
    for (num_experts, d_expert, top_k) in [(4, 12, 2), (12, 8, 6), (8, 6, 4), (4, 24, 2), (4, 6, 4)] {
        for router in ["softmax = \"after_selection\"", "sigmoid = {}", "cosine = { d_projection = 8 }"] {
            let moe = format!("num_experts = {num_experts}\nd_expert = {d_expert}");
            let spec = mixture(&moe, &format!("top_k = {top_k}\n{router}"));
            let case = Case::new(&spec, UpcycleMethod::GranularSplit);
            assert_eq!(case.deviation, None, "{moe} {router}");
            assert!(case.difference() < F32_TOLERANCE, "{moe} {router}: {}", case.difference());
        }
    }
}

#[test]
fn what_is_not_promised_is_said_and_true() {
    let copies = "num_experts = 4\nd_expert = 24";
    let halves = "num_experts = 8\nd_expert = 12";
    let evaluation_capacity =
        "num_experts = 4\nd_expert = 24\ncapacity = { factor = 1.0, evaluation_factor = 0.5 }";
    let drop = UpcycleMethod::Drop { ratio: 0.5 };
    for (moe, router, method, reason) in [
        (copies, "top_k = 1\nrenormalise = false", UpcycleMethod::Copy, "gates do not add up"),
        (copies, "top_k = 2\nselection = { expert_choice = {} }", UpcycleMethod::Copy, "gates do not add up"),
        (evaluation_capacity, "top_k = 2", UpcycleMethod::Copy, "`model.ffn.moe.capacity.evaluation_factor`"),
        (halves, "top_k = 3", UpcycleMethod::GranularSplit, "`top_k` = 3 takes no whole copies of 2 parts"),
        (
            halves,
            "top_k = 2\nselection = { hash = {} }",
            UpcycleMethod::GranularSplit,
            "does not keep the 2 parts",
        ),
        (copies, "top_k = 2", drop, "drawn anew"),
    ] {
        let case = Case::new(&mixture(moe, router), method);
        let said = case.deviation.clone().unwrap_or_default();
        assert!(said.starts_with("layer 0: ") && said.contains(reason), "{moe} {router}: {said:?}");
        assert!(case.difference() > 1e3 * F32_TOLERANCE, "{moe} {router}: {}", case.difference());
    }
}

#[test]
fn dropping_draws_the_asked_share_of_hidden_units_anew_for_each_expert() {
    let spec = mixture("num_experts = 3\nd_expert = 24", "top_k = 2");
    let case = Case::new(&spec, UpcycleMethod::Drop { ratio: 0.5 });
    let (d, f) = (16, 24);
    let dense_up = values(&case.dense, "blocks.1.ffn.up.weight");
    let dense_down = values(&case.dense, "blocks.1.ffn.down.weight");
    let ups = values(&case.moe, "blocks.1.ffn.experts.up");
    let downs = values(&case.moe, "blocks.1.ffn.experts.down");
    let mut redrawn_of_experts = Vec::new();
    for (up, down) in ups.chunks(d * f).zip(downs.chunks(f * d)) {
        let changed_up = |unit: &usize| (0..d).all(|row| up[row * f + unit] != dense_up[row * f + unit]);
        let changed_down =
            |unit: &usize| down[unit * d..(unit + 1) * d] != dense_down[unit * d..(unit + 1) * d];
        let redrawn: Vec<usize> = (0..f).filter(changed_up).collect();
        assert_eq!(redrawn.len(), f / 2);
        assert_eq!(redrawn, (0..f).filter(changed_down).collect::<Vec<_>>(), "the same units in each matrix");
        let kept = (0..f).filter(|unit| !redrawn.contains(unit));
        assert!(kept.into_iter().all(|unit| up[unit] == dense_up[unit]), "the others are the dense block's");
        redrawn_of_experts.push(redrawn);
    }
    redrawn_of_experts.dedup();
    assert_eq!(redrawn_of_experts.len(), 3, "experts differ");
}

#[test]
fn values_drawn_anew_have_the_moments_of_those_that_they_replace() {
    let spec = mixture("num_experts = 2\nd_expert = 24", "top_k = 2");
    let case = Case::new(&spec, UpcycleMethod::Drop { ratio: 1.0 });
    let moments = |values: &[f32]| {
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / values.len() as f64;
        let variance =
            values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    };
    let dense = moments(&values(&case.dense, "blocks.0.ffn.up.weight"));
    let drawn = moments(&values(&case.moe, "blocks.0.ffn.experts.up"));
    // Five standard errors over 768 values of deviation 0.3.
    assert!((dense.0 - drawn.0).abs() < 5.0 * 0.0108, "{dense:?} {drawn:?}");
    assert!((dense.1 - drawn.1).abs() < 5.0 * 0.0077, "{dense:?} {drawn:?}");
}

#[test]
fn dropping_nothing_is_copying() {
    let spec = mixture("num_experts = 4\nd_expert = 24", "top_k = 2");
    let (copy, drop) =
        (Case::new(&spec, UpcycleMethod::Copy), Case::new(&spec, UpcycleMethod::Drop { ratio: 0.0 }));
    assert_eq!(parameters(&copy.moe), parameters(&drop.moe));
    assert_eq!(drop.deviation, None);
}

#[test]
fn routers_follow_the_seed_and_parts_of_a_copy_share_their_columns() {
    let spec = mixture("num_experts = 6\nd_expert = 8", "top_k = 3");
    let case = Case::new(&spec, UpcycleMethod::GranularSplit);
    let router_de = values(&case.moe, "blocks.0.ffn.router.weight");
    for row in router_de.chunks(6) {
        assert!(row[0] == row[1] && row[1] == row[2] && row[3] == row[4] && row[4] == row[5]);
        assert!(row[0] != row[3]);
    }
}

fn attention(spec: &mut ModelSpec) -> &mut AttentionSpec {
    let MixerSpec::Attention(attention) = &mut spec.layers[0].mixer else { panic!("attention") };
    attention
}

fn experts(spec: &mut ModelSpec) -> &mut ExpertsSpec {
    let LayerSpec { ffn: FfnSpec::Moe(moe), .. } = &mut spec.layers[0] else {
        panic!("layer 0 is no mixture")
    };
    &mut moe.experts
}

#[test]
fn each_refusal_names_its_key_value_and_remedy() {
    let copies = "num_experts = 4\nd_expert = 24";
    let message = |spec: &ModelSpec, method| refusal(spec, method).to_string();
    let differs = |change: fn(&mut ModelSpec)| {
        let mut spec = mixture(copies, "top_k = 2");
        change(&mut spec);
        message(&spec, UpcycleMethod::Copy)
    };
    let wider = differs(|spec| spec.d_model = 32);
    assert!(wider.starts_with("`model.d_model` is 32, but 16 in the dense checkpoint"), "{wider}");
    for (key, found) in [
        ("model.attention.num_heads", differs(|spec| attention(spec).num_heads = 4)),
        ("model.vocab_size", differs(|spec| spec.vocab_size = 33)),
        ("model.tie_embeddings", differs(|spec| spec.tie_embeddings = true)),
        ("model.num_layers", differs(|spec| spec.layers.truncate(1))),
        ("model.ffn.activation", differs(|spec| experts(spec).activation = Activation::Relu)),
        ("model.norm", differs(|spec| spec.norm = switchyard_model::NormKind::Rms { epsilon: 1e-6 })),
        ("model.position", differs(|spec| spec.position = switchyard_model::PositionKind::Sinusoidal)),
    ] {
        assert!(found.starts_with(&format!("`{key}` is ")), "{found}");
    }
    let narrow = mixture("num_experts = 4\nd_expert = 10", "top_k = 2");
    assert_eq!(
        message(&narrow, UpcycleMethod::Copy),
        "`model.ffn.moe.d_expert` is 10, but each expert is a copy of the dense block of width 24: use 24, or \
         `--method granular_split`"
    );
    assert_eq!(
        message(&narrow, UpcycleMethod::GranularSplit),
        "`model.ffn.moe.d_expert` is 10, which does not divide the dense block's width 24: use a divisor"
    );
    let odd = mixture("num_experts = 4\nd_expert = 8", "top_k = 2");
    assert_eq!(
        message(&odd, UpcycleMethod::GranularSplit),
        "`model.ffn.moe.num_experts` is 4, but the dense block is cut into 3 parts: use a multiple"
    );
    assert_eq!(
        message(&mixture(copies, "top_k = 2"), UpcycleMethod::Drop { ratio: 1.5 }),
        "the drop ratio is 1.5: use a number in 0..=1"
    );
    assert!(message(&dense(), UpcycleMethod::Copy).starts_with("`model.ffn.moe` is missing"));
}

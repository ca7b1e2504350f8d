//! What a plan counts against plain loops that do the same and count every multiply-add.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use switchyard_experts::{FfnOptions, MoeInput, MoeLayer};
use switchyard_model::Transformer;
use switchyard_router::{RouterNoise, RouterPass, Sequences};
use switchyard_trainer::plan::RunPlan;

use crate::tiny;

/// Two mixtures of 5 experts of width 6, in passes over 3 sequences of 4 tokens of width 8.
const MODEL: &str = r#"
name = "counted"
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 200
document_tokens = 40
branching = 3
[train]
num_steps = 1
seq_len = 4
batch_tokens = 24
micro_batch_tokens = 12
[train.adamw]
learning_rate = 1e-2
[model]
num_layers = 2
d_model = 8
[model.attention]
num_heads = 2
[model.init]
std = 0.5
"#;
const NUM_TOKENS: usize = 12;
const SEQ_LEN: usize = 4;
const D: usize = 8;
const E: usize = 5;
const F: usize = 6;

/// Products that are counted.
#[derive(Default)]
struct Counter {
    multiply_adds: u64,
}

impl Counter {
    /// `x W`, with `W` row-major.
    fn product(&mut self, x: &[f64], matrix: &[f64]) -> Vec<f64> {
        let columns = matrix.len() / x.len();
        let mut y = vec![0.0; columns];
        for (i, x) in x.iter().enumerate() {
            for (j, y) in y.iter_mut().enumerate() {
                *y += x * matrix[i * columns + j];
                self.multiply_adds += 1;
            }
        }
        y
    }
}

/// Parameters of a mixture on the host.
struct Weights {
    router: Vec<f64>,
    gate: Option<Vec<f64>>,
    up: Vec<f64>,
    down: Vec<f64>,
}

fn host<const R: usize>(param: &Param<Tensor<R>>) -> Vec<f64> {
    param.val().into_data().iter::<f64>().collect()
}

impl Weights {
    fn of(moe: &MoeLayer) -> Self {
        Self {
            router: host(moe.router.weight_de.as_ref().unwrap()),
            gate: moe.experts.w_gate_edf.as_ref().map(host),
            up: host(&moe.experts.w_up_edf),
            down: host(&moe.experts.w_down_efd),
        }
    }

    fn expert(&self, expert: usize, x: &[f64], counter: &mut Counter) -> Vec<f64> {
        let part = |matrix: &'_ [f64]| matrix[expert * D * F..][..D * F].to_vec();
        let up = counter.product(x, &part(&self.up));
        let hidden: Vec<f64> = match &self.gate {
            Some(gate) => {
                let gate = counter.product(x, &part(gate));
                gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
            }
            None => up.into_iter().map(|up| up.max(0.0)).collect(),
        };
        counter.product(&hidden, &part(&self.down))
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    logits.iter().map(|logit| logit.exp() / sum).collect()
}

fn add(to: &mut [f64], weight: f64, what: &[f64]) {
    to.iter_mut().zip(what).for_each(|(to, what)| *to += weight * what);
}

/// Indices from the largest value on; the values of these tests are distinct.
fn best_first(values: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
    order
}

type Rows = Vec<Vec<f64>>;

/// Each token to its two best experts, their gates renormalised.
fn two_best(weights: &Weights, x: &Rows, counter: &mut Counter) -> Rows {
    let of_token = |x: &Vec<f64>| {
        let scores = softmax(&counter.product(x, &weights.router));
        let chosen = &best_first(&scores)[..2];
        let sum: f64 = chosen.iter().map(|&expert| scores[expert]).sum();
        let mut y = vec![0.0; D];
        for &expert in chosen {
            add(&mut y, scores[expert] / sum, &weights.expert(expert, x, counter));
        }
        y
    };
    x.iter().map(of_token).collect()
}

/// Each expert takes its `capacity` best tokens and weighs them with its own score.
fn experts_choose(capacity: usize, weights: &Weights, x: &Rows, counter: &mut Counter) -> Rows {
    let scores: Rows = x.iter().map(|x| softmax(&counter.product(x, &weights.router))).collect();
    let mut y = vec![vec![0.0; D]; x.len()];
    for expert in 0..E {
        let of_expert: Vec<f64> = scores.iter().map(|scores| scores[expert]).collect();
        for &token in best_first(&of_expert).iter().take(capacity) {
            let output = weights.expert(expert, &x[token], counter);
            add(&mut y[token], of_expert[token], &output);
        }
    }
    y
}

/// Every slot a mean of its sequence's tokens, every token a mean of its sequence's slots.
fn mixed(slots_per_expert: usize, weights: &Weights, x: &Rows, counter: &mut Counter) -> Rows {
    let num_slots = E * slots_per_expert;
    let of_sequence = |x: &[Vec<f64>]| {
        let logits: Rows = x.iter().map(|x| counter.product(x, &weights.router)).collect();
        let outputs: Vec<f64> = (0..num_slots)
            .flat_map(|slot| {
                let column: Vec<f64> = logits.iter().map(|logits| logits[slot]).collect();
                let mean = counter.product(&softmax(&column), &x.concat());
                weights.expert(slot / slots_per_expert, &mean, counter)
            })
            .collect();
        logits.iter().map(|logits| counter.product(&softmax(logits), &outputs)).collect::<Rows>()
    };
    x.chunks(SEQ_LEN).flat_map(of_sequence).collect()
}

/// Checks that the loops do what the layers of this model do, and that the plan counts what the
/// loops count.
fn check(router: &str, activation: &str, loops: impl Fn(&Weights, &Rows, &mut Counter) -> Rows) -> RunPlan {
    let config = tiny::parse(&format!(
        "{MODEL}[model.ffn]\nactivation = \"{activation}\"\n[model.ffn.moe]\nnum_experts = {E}\nd_expert = {F}\n\
         [model.ffn.moe.router]\n{router}\n"
    ));
    let plan = RunPlan::resolve(&config).unwrap();
    let model = Transformer::new(&plan.model, 3, &Device::flex());
    let x: Rows = (0..NUM_TOKENS)
        .map(|t| (0..D).map(|i| f64::from(((7 * t + 3 * i * i + t * i) % 11) as u8) / 5.0 - 1.0).collect())
        .collect();
    let mut counter = Counter::default();
    for (_, moe) in model.moe_layers() {
        let x_td = Tensor::from_data(TensorData::new(x.concat(), [NUM_TOKENS, D]), &Device::flex());
        let pass = RouterPass::Training { noise: RouterNoise::new(0), earlier_tokens_per_expert: &[] };
        let input = MoeInput {
            x_td,
            router_x_td: None,
            token_ids_t: &[],
            sequences: Sequences::OfLen(SEQ_LEN),
            pass,
            options: FfnOptions::default(),
        };
        let actual: Vec<f64> = moe.forward(input).hidden_td.into_data().iter::<f64>().collect();
        let expected = loops(&Weights::of(moe), &x, &mut counter).concat();
        for (actual, expected) in actual.iter().zip(&expected) {
            // Sums of some dozen terms of size 1 in f32.
            assert!((actual - expected).abs() < 1e-4, "{router}: {actual} instead of {expected}");
        }
    }
    let flops = &plan.counts.forward_flops;
    let counted = (flops.router + flops.routed_experts + flops.soft_mixing) * NUM_TOKENS as u64;
    // The plan rounds the mean over the tokens, once in each layer.
    assert!(
        counted.abs_diff(2 * counter.multiply_adds) <= NUM_TOKENS as u64,
        "{router}: {counted} by the plan"
    );
    plan
}

#[test]
fn a_token_costs_the_two_experts_that_it_is_sent_to() {
    for activation in ["swiglu", "relu"] {
        let plan = check("top_k = 2", activation, two_best);
        let matrices = if activation == "swiglu" { 3 } else { 2 };
        assert_eq!(plan.counts.forward_flops.routed_experts, 2 * 2 * 2 * matrices * 8 * 6);
        assert_eq!(plan.counts.forward_flops.soft_mixing, 0);
    }
}

/// 24 assignments to 5 experts are 4.8 each: so many times the factor, rounded up, and neither none
/// nor more than there are.
#[test]
fn experts_that_choose_cost_what_they_take_rounded_up_at_least_one_and_at_most_all() {
    for (factor, capacity) in [(1.0, 5), (0.3, 2), (0.01, 1), (1.25, 6), (2.5, 12), (4.0, 12)] {
        let router =
            format!("top_k = 2\nselection = {{ expert_choice = {{ capacity_factor = {factor:?} }} }}");
        let plan =
            check(&router, "swiglu", |weights, x, counter| experts_choose(capacity, weights, x, counter));
        // Three matrices of 8 x 6 an expert, two layers.
        let idle = 2 * 3 * 8 * 6 * (5 * (12 - capacity as u64)) / 12;
        assert_eq!(plan.counts.total_params - plan.counts.active_params, idle, "factor {factor}");
    }
}

/// 8 tokens' worth of two experts on 5 are 1.6 slots, rounded up.
#[test]
fn mixed_tokens_cost_their_slots_and_both_products_that_mix() {
    for (soft, slots_per_expert) in [("", 2), ("slots_per_expert = 1", 1), ("slots_per_expert = 3", 3)] {
        for activation in ["swiglu", "relu"] {
            let router = format!("top_k = 2\nselection = {{ soft = {{ {soft} }} }}");
            let plan = check(&router, activation, |weights, x, counter| {
                mixed(slots_per_expert, weights, x, counter)
            });
            let slots = 5 * slots_per_expert as u64;
            assert_eq!(plan.counts.forward_flops.soft_mixing, 2 * 4 * 8 * slots);
            // Every expert's output enters every token.
            assert_eq!(plan.counts.active_params, plan.counts.total_params);
        }
    }
}

/// Absurd numbers are large numbers, and no others.
#[test]
fn the_most_slots_that_a_plan_allows_do_not_wrap_around() {
    let mut config = tiny::parse(&format!(
        "{MODEL}[model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 16384\nd_expert = 262144\n\
         router = {{ top_k = 1, selection = {{ soft = {{ slots_per_expert = 262144 }} }} }}\n"
    ));
    config.model.num_layers = 1024;
    config.model.d_model = 65_536;
    config.model.attention_mut().d_head = Some(2);
    let counts = RunPlan::resolve(&config).unwrap().counts;
    assert_eq!(counts.training_flops_per_token, u64::MAX);
    assert_eq!(counts.params.router, 1024 * 65_536 * 16_384 * 262_144);
}

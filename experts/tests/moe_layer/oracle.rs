//! The layer as its definition says, one token at a time, in f64 and plain loops.

use switchyard_experts::{Activation, DropPolicy};
use switchyard_router::SoftmaxOrder;

use crate::case::{Setup, Values};

/// What the layer should return.
pub(crate) struct Outcome {
    pub(crate) hidden_td: Vec<f64>,
    pub(crate) load_balancing_loss: f64,
    pub(crate) router_z_loss: f64,
    pub(crate) tokens_per_expert: Vec<u64>,
    pub(crate) num_dropped: usize,
}

impl Outcome {
    /// The number whose gradients the tests compare.
    pub(crate) fn loss(&self, setup: &Setup, values: &Values) -> f64 {
        let output: f64 = self.hidden_td.iter().zip(&values.c_td).map(|(y, c)| y * c).sum();
        output
            + setup.router.load_balancing_weight.unwrap_or(0.0) * self.load_balancing_loss
            + setup.router.z_loss_weight.unwrap_or(0.0) * self.router_z_loss
    }
}

/// One assignment of a token to an expert.
struct Assignment {
    token: usize,
    expert: usize,
    gate: f64,
}

pub(crate) fn forward(setup: &Setup, values: &Values) -> Outcome {
    let (d, e) = (setup.d_model, setup.num_experts);
    let tokens: Vec<&[f64]> = values.x_td.chunks(d).collect();
    let logits: Vec<Vec<f64>> = tokens.iter().map(|x| vector_times_matrix(x, &values.router_de, e)).collect();
    let probs: Vec<Vec<f64>> = logits.iter().map(|logits| softmax(logits)).collect();

    let mut assignments = Vec::new();
    for token in 0..tokens.len() {
        for (expert, gate) in choose(setup, &logits[token], &probs[token]) {
            assignments.push(Assignment { token, expert, gate });
        }
    }
    let mut tokens_per_expert = vec![0; e];
    for assignment in &assignments {
        tokens_per_expert[assignment.expert] += 1;
    }
    let kept: Vec<&Assignment> = assignments.iter().filter(|a| is_kept(setup, a, &assignments)).collect();

    let mut hidden_td = vec![0.0; tokens.len() * d];
    for assignment in &kept {
        let output = expert(setup, values, assignment.expert, tokens[assignment.token]);
        for (i, y) in output.iter().enumerate() {
            hidden_td[assignment.token * d + i] += assignment.gate * y;
        }
    }
    if setup.d_shared_expert.is_some() {
        for (token, x) in tokens.iter().enumerate() {
            for (i, y) in shared_expert(setup, values, x).iter().enumerate() {
                hidden_td[token * d + i] += y;
            }
        }
    }
    Outcome {
        hidden_td,
        load_balancing_loss: load_balancing_loss(&probs, &tokens_per_expert),
        router_z_loss: router_z_loss(&logits),
        num_dropped: assignments.len() - kept.len(),
        tokens_per_expert,
    }
}

/// The chosen experts of one token with their gates.
fn choose(setup: &Setup, logits: &[f64], probs: &[f64]) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    order.truncate(setup.router.top_k);
    let chosen_probs: Vec<f64> = order.iter().map(|&e| probs[e]).collect();
    let gates = match (setup.router.softmax, setup.router.renormalise) {
        (SoftmaxOrder::AfterSelection, _) => softmax(&order.iter().map(|&e| logits[e]).collect::<Vec<f64>>()),
        (SoftmaxOrder::BeforeSelection, false) => chosen_probs,
        (SoftmaxOrder::BeforeSelection, true) => {
            chosen_probs.iter().map(|p| p / chosen_probs.iter().sum::<f64>()).collect()
        }
    };
    order.into_iter().zip(gates).collect()
}

/// Whether fewer assignments than the capacity take precedence at the same expert.
fn is_kept(setup: &Setup, assignment: &Assignment, all: &[Assignment]) -> bool {
    let Some(capacity) = &setup.capacity else { return true };
    let even_share = (setup.router.top_k * setup.num_tokens) as f64 / setup.num_experts as f64;
    let limit = (capacity.factor * even_share).ceil() as usize;
    let precedes = |other: &&Assignment| match capacity.drop {
        DropPolicy::Position => other.token < assignment.token,
        DropPolicy::Probability => other.gate > assignment.gate,
        DropPolicy::Random => panic!("who is dropped at random is not a function of the values"),
    };
    all.iter().filter(|other| other.expert == assignment.expert).filter(precedes).count() < limit
}

/// One expert's output for one token.
pub(crate) fn expert(setup: &Setup, values: &Values, expert: usize, x: &[f64]) -> Vec<f64> {
    let len = setup.d_model * setup.d_expert;
    let gate = values.w_gate_edf.chunks(len).nth(expert).unwrap_or_default();
    let up = values.w_up_edf.chunks(len).nth(expert).unwrap_or_default();
    let down = values.w_down_efd.chunks(len).nth(expert).unwrap_or_default();
    feed_forward(setup.activation, x, gate, up, down, setup.d_expert)
}

fn shared_expert(setup: &Setup, values: &Values, x: &[f64]) -> Vec<f64> {
    let Values { shared_gate_df, shared_up_df, shared_down_fd, .. } = values;
    let width = shared_up_df.len() / setup.d_model;
    feed_forward(setup.activation, x, shared_gate_df, shared_up_df, shared_down_fd, width)
}

fn feed_forward(
    activation: Activation,
    x: &[f64],
    w_gate: &[f64],
    w_up: &[f64],
    w_down: &[f64],
    width: usize,
) -> Vec<f64> {
    let up = vector_times_matrix(x, w_up, width);
    let hidden: Vec<f64> = match activation {
        Activation::Swiglu => {
            let gate = vector_times_matrix(x, w_gate, width);
            gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
        }
        Activation::ClampedSwiglu { alpha, limit } => {
            let gate = vector_times_matrix(x, w_gate, width);
            let gate = gate.iter().map(|g| g.min(limit));
            let factor = up.iter().map(|u| u.max(-limit).min(limit) + 1.0);
            gate.zip(factor).map(|(g, factor)| g / (1.0 + (-alpha * g).exp()) * factor).collect()
        }
        Activation::Gelu => up.iter().map(|x| x * 0.5 * (1.0 + erf(x / 2.0_f64.sqrt()))).collect(),
        Activation::GeluTanh => {
            let c = (2.0 / std::f64::consts::PI).sqrt();
            up.iter().map(|x| 0.5 * x * (1.0 + (c * (x + 0.044715 * x.powi(3))).tanh())).collect()
        }
        Activation::Relu => up.iter().map(|x| x.max(0.0)).collect(),
    };
    vector_times_matrix(&hidden, w_down, x.len())
}

/// The Maclaurin series: for the |x| < 3 of the tests its terms stay below 500, so 1e-13 is left.
fn erf(x: f64) -> f64 {
    let (mut power, mut sum) = (x, 0.0);
    for n in 0..80 {
        sum += power / f64::from(2 * n + 1);
        power *= -x * x / f64::from(n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn load_balancing_loss(probs: &[Vec<f64>], tokens_per_expert: &[u64]) -> f64 {
    let total = tokens_per_expert.iter().sum::<u64>() as f64;
    let per_expert = tokens_per_expert.iter().enumerate().map(|(e, &count)| {
        let mean_probability = probs.iter().map(|probs| probs[e]).sum::<f64>() / probs.len() as f64;
        count as f64 / total * mean_probability
    });
    tokens_per_expert.len() as f64 * per_expert.sum::<f64>()
}

fn router_z_loss(logits: &[Vec<f64>]) -> f64 {
    let squares = logits.iter().map(|logits| logits.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2));
    squares.sum::<f64>() / logits.len() as f64
}

pub(crate) fn softmax(logits: &[f64]) -> Vec<f64> {
    let partition: f64 = logits.iter().map(|x| x.exp()).sum();
    logits.iter().map(|x| x.exp() / partition).collect()
}

pub(crate) fn vector_times_matrix(x: &[f64], matrix: &[f64], num_columns: usize) -> Vec<f64> {
    (0..num_columns)
        .map(|j| x.iter().enumerate().map(|(i, x)| x * matrix[i * num_columns + j]).sum())
        .collect()
}

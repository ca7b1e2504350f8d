//! Rows of made-up runs, for tests.

use std::collections::BTreeMap;

use switchyard_trainer::metrics::{EvalRecord, LayerRecord, Record, StepRecord, perplexity};

/// A training step with the given loss.
pub(crate) fn step(step: u64, cross_entropy_nats: f64, layers: Vec<LayerRecord>) -> Record {
    Record::Step(step_record(step, cross_entropy_nats, 1024.0, layers))
}

/// A training step at the given speed.
pub(crate) fn step_at_rate(step: u64, tokens_per_sec: f64) -> Record {
    Record::Step(step_record(step, 3.0, tokens_per_sec, Vec::new()))
}

/// Router statistics of a layer with the given loads.
pub(crate) fn layer(layer: usize, tokens_per_expert: &[u64]) -> LayerRecord {
    LayerRecord {
        layer,
        tokens_per_expert: tokens_per_expert.to_vec(),
        max_violation: 0.5,
        running_max_violation: None,
        coefficient_of_variation: 0.25,
        gini_coefficient: 0.125,
        effective_num_experts: 1.75,
        gate_entropy_nats: 1.0,
        marginal_entropy_nats: 1.25,
        dead_expert_fraction: 0.0,
        gate_margin: 0.125,
        dropped_fraction: 0.0,
        router_grad_norm: None,
        router_weight_norm: None,
    }
}

/// An evaluation of the whole split, half a second per step into the run.
pub(crate) fn eval(step: u64, cross_entropy_nats: f64) -> Record {
    Record::Eval(EvalRecord {
        step,
        tokens_seen: step * 512,
        cross_entropy_nats,
        bits_per_byte: None,
        perplexity: perplexity(cross_entropy_nats),
        num_tokens: 4096,
        whole_split: true,
        sources: BTreeMap::new(),
        end_of_run: false,
        eval_secs: 0.25,
        elapsed_secs: 0.5 * step as f64,
        layers: Vec::new(),
    })
}

fn step_record(
    step: u64,
    cross_entropy_nats: f64,
    tokens_per_sec: f64,
    layers: Vec<LayerRecord>,
) -> StepRecord {
    StepRecord {
        step,
        tokens_seen: step * 512,
        cross_entropy_nats,
        bits_per_byte: None,
        skipped: false,
        data_passes: None,
        tokens_per_source: BTreeMap::new(),
        losses: BTreeMap::new(),
        weighted_losses: BTreeMap::new(),
        total_loss: cross_entropy_nats,
        learning_rate: 1e-3,
        grad_norm: 1.0,
        max_attention_logit: None,
        clipped_heads: None,
        tokens_per_sec,
        step_secs: 0.5,
        elapsed_secs: 0.5 * step as f64,
        active_flops: 1e9,
        mfu: None,
        layers,
    }
}

//! One row of `metrics.jsonl`.
//!
//! Every `f64` is finite and survives the file bit for bit. A NaN or an infinity is refused when it
//! is written, see [`Record::first_non_finite`].

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use switchyard_flight::{LayerLoad, RunStep};

/// A row, told apart by its first key `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// An optimizer step.
    Step(StepRecord),
    /// An evaluation on the validation split.
    Eval(EvalRecord),
}

/// What one optimizer step measured, before its update was applied.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Updates done, this one included: the first row is 1.
    pub step: u64,
    /// Training tokens consumed so far.
    pub tokens_seen: u64,
    /// Whether the step moved no parameter, because `train.skip_spikes` found a spike in it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// Mean next-token cross-entropy over the step's targets, in nats per token.
    pub cross_entropy_nats: f64,
    /// The same in bits per byte of text, which compares between tokenizers; absent where the bytes
    /// are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Passes over the training split so far; absent in rows of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_passes: Option<f64>,
    /// Training tokens of each source so far, by its name; absent where there is one source.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens_per_source: BTreeMap<String, u64>,
    /// Each further loss with a weight, unweighted, mean over layers and micro-batches, by its
    /// name, such as `load_balancing_loss` or `head_z_loss`; a key of its own in the row.
    #[serde(flatten, deserialize_with = "losses")]
    pub losses: BTreeMap<String, f64>,
    /// Each router loss as it enters the total, weighted, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weighted_losses: BTreeMap<String, f64>,
    /// The number that was differentiated: cross-entropy plus the weighted auxiliary losses.
    pub total_loss: f64,
    /// Learning rate of this update.
    pub learning_rate: f64,
    /// Global L2 norm of the gradient, before clipping.
    pub grad_norm: f64,
    /// Largest attention logit of any head; absent without `train.qk_clip`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attention_logit: Option<f64>,
    /// Heads that were made smaller after the update; absent without `train.qk_clip`, and where the
    /// step was skipped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clipped_heads: Option<usize>,
    /// Training tokens per second of this step.
    pub tokens_per_sec: f64,
    /// Wall-clock duration of this step.
    pub step_secs: f64,
    /// Wall-clock time since the run began, earlier processes of a resumed run included.
    pub elapsed_secs: f64,
    /// Floating-point operations so far, forward and backward, of the active parameters only.
    pub active_flops: f64,
    /// Share of the measured matrix-multiply peak that this step reached; absent without a peak.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// One entry per MoE layer; absent from a dense run's rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRecord>,
}

/// How the router of one MoE layer spread the tokens.
///
/// The order of the fields is that of every log: the mark of a log in a checkpoint is a hash of its
/// rows as they are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Load of the busiest expert over the mean load, minus 1 (MaxVio, arXiv:2408.15664, section
    /// 4.1).
    pub max_violation: f64,
    /// The same of the load averaged over about 50 steps, earlier ones fading; absent without the
    /// flight recorder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running_max_violation: Option<f64>,
    /// Standard deviation of the expert loads over their mean.
    pub coefficient_of_variation: f64,
    /// Gini coefficient of the expert loads: 0 is balance, near 1 collapse.
    #[serde(default)]
    pub gini_coefficient: f64,
    /// Exponential of the entropy of the load shares: experts that would carry the load if it were
    /// even.
    #[serde(default)]
    pub effective_num_experts: f64,
    /// Mean over tokens of the entropy of the gate's distribution.
    pub gate_entropy_nats: f64,
    /// Entropy of the gate's distribution averaged over tokens.
    pub marginal_entropy_nats: f64,
    /// Share of experts that got no token.
    pub dead_expert_fraction: f64,
    /// Mean gap between the last chosen and the first rejected probability.
    pub gate_margin: f64,
    /// Share of (token, expert) assignments dropped by the capacity limit; 0 when dropless.
    pub dropped_fraction: f64,
    /// Gradient norm of the router, before clipping; absent if it learns nothing or without the
    /// flight recorder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_grad_norm: Option<f64>,
    /// Weight norm of the router after the update; absent without the flight recorder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_weight_norm: Option<f64>,
}

/// What one evaluation measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Updates done when the model was evaluated; 0 is the initial model.
    pub step: u64,
    /// Training tokens consumed so far.
    pub tokens_seen: u64,
    /// Mean next-token cross-entropy over `num_tokens` targets, in nats per token.
    pub cross_entropy_nats: f64,
    /// The same in bits per byte of text, which compares between tokenizers; absent where the bytes
    /// are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// [`perplexity`] of the cross-entropy.
    pub perplexity: f64,
    /// Targets evaluated on.
    pub num_tokens: u64,
    /// Whether that was the whole validation split.
    pub whole_split: bool,
    /// The loss on each source's own validation split, by the source's name; absent where there is
    /// one source. Without sources whose split is shorter than a window.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, SourceLoss>,
    /// Whether it was made because the run was over, and no evaluation of the interval had just
    /// covered the whole split. A run that is resumed was not over: it drops this row.
    #[serde(default)]
    pub end_of_run: bool,
    /// Wall-clock duration of this evaluation.
    pub eval_secs: f64,
    /// Wall-clock time since the run began, earlier processes of a resumed run included.
    pub elapsed_secs: f64,
    /// One entry per MoE layer, over all tokens of the evaluation; absent from a dense run's rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerRecord>,
}

/// What one evaluation measured on one of several sources.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// Mean next-token cross-entropy over `num_tokens` targets, in nats per token.
    pub cross_entropy_nats: f64,
    /// The same in bits per byte of text; absent where the bytes are not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Targets evaluated on.
    pub num_tokens: u64,
    /// Whether that was the source's whole validation split.
    pub whole_split: bool,
}

/// The losses among the keys of a row that no field has. Other keys are another version's.
fn losses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let keys = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
    let loss = |(key, value): (String, serde_json::Value)| {
        key.ends_with("_loss").then(|| value.as_f64()).flatten().map(|value| (key, value))
    };
    Ok(keys.into_iter().filter_map(loss).collect())
}

/// `exp(cross_entropy_nats)`, at most `f64::MAX`: a diverged model's loss must still fit in a JSON
/// number.
pub fn perplexity(cross_entropy_nats: f64) -> f64 {
    cross_entropy_nats.exp().min(f64::MAX)
}

/// [`perplexity`] as a person reads it: that of a diverged model has hundreds of digits.
pub fn perplexity_text(cross_entropy_nats: f64) -> String {
    match perplexity(cross_entropy_nats) {
        small if small < 1e6 => format!("{small:.2}"),
        large => format!("{large:.2e}"),
    }
}

impl Record {
    /// Updates done when the row was written.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(row) => row.step,
            Self::Eval(row) => row.step,
        }
    }

    /// The row of a training step.
    pub fn as_step(&self) -> Option<&StepRecord> {
        match self {
            Self::Step(row) => Some(row),
            Self::Eval(_) => None,
        }
    }

    /// The row of an evaluation.
    pub fn as_eval(&self) -> Option<&EvalRecord> {
        match self {
            Self::Eval(row) => Some(row),
            Self::Step(_) => None,
        }
    }

    /// Router statistics of the row, one per MoE layer.
    pub fn layers(&self) -> &[LayerRecord] {
        match self {
            Self::Step(row) => &row.layers,
            Self::Eval(row) => &row.layers,
        }
    }

    /// The row with every measurement of the clock set to zero (`mfu` to absent), so that two runs
    /// of one plan can be compared bit for bit.
    pub fn without_timings(&self) -> Self {
        match self.clone() {
            Self::Step(row) => Self::Step(row.without_timings()),
            Self::Eval(row) => Self::Eval(EvalRecord { eval_secs: 0.0, elapsed_secs: 0.0, ..row }),
        }
    }

    /// Name and value of the first number that is NaN or infinite, in the order of the file.
    pub fn first_non_finite(&self) -> Option<(String, f64)> {
        let bad = |(_, value): &(&str, f64)| !value.is_finite();
        let of_row = match self {
            Self::Step(row) => row.numbers().into_iter().find(bad),
            Self::Eval(row) => row.numbers().into_iter().find(bad),
        };
        let of_row = of_row.map(|(field, value)| (field.to_string(), value));
        of_row.or_else(|| self.non_finite_source()).or_else(|| {
            self.layers().iter().enumerate().find_map(|(index, layer)| {
                let (field, value) = layer.numbers().into_iter().find(bad)?;
                Some((format!("layers[{index}].{field}"), value))
            })
        })
    }

    fn non_finite_source(&self) -> Option<(String, f64)> {
        self.as_eval()?.sources.iter().find_map(|(name, loss)| {
            let nats = loss.cross_entropy_nats;
            (!nats.is_finite()).then(|| (format!("sources.{name}.cross_entropy_nats"), nats))
        })
    }
}

impl StepRecord {
    /// As [`Record::without_timings`].
    pub fn without_timings(self) -> Self {
        Self { tokens_per_sec: 0.0, step_secs: 0.0, elapsed_secs: 0.0, mfu: None, ..self }
    }

    fn numbers(&self) -> Vec<(&str, f64)> {
        let fields = [
            ("cross_entropy_nats", self.cross_entropy_nats),
            ("bits_per_byte", self.bits_per_byte.unwrap_or(0.0)),
            ("data_passes", self.data_passes.unwrap_or(0.0)),
            ("total_loss", self.total_loss),
            ("learning_rate", self.learning_rate),
            ("grad_norm", self.grad_norm),
            ("max_attention_logit", self.max_attention_logit.unwrap_or(0.0)),
            ("tokens_per_sec", self.tokens_per_sec),
            ("step_secs", self.step_secs),
            ("elapsed_secs", self.elapsed_secs),
            ("active_flops", self.active_flops),
            ("mfu", self.mfu.unwrap_or(0.0)),
        ];
        let losses = self.losses.iter().map(|(name, value)| (name.as_str(), *value));
        fields.into_iter().chain(losses).collect()
    }

    /// The worst load imbalance of any layer; absent from a dense run.
    pub fn worst_max_violation(&self) -> Option<f64> {
        self.layers.iter().map(|layer| layer.max_violation).reduce(f64::max)
    }
}

impl From<&StepRecord> for RunStep {
    fn from(row: &StepRecord) -> Self {
        Self {
            step: row.step,
            cross_entropy_nats: row.cross_entropy_nats,
            grad_norm: row.grad_norm,
            layers: row.layers.iter().map(LayerLoad::from).collect(),
        }
    }
}

impl From<&LayerRecord> for LayerLoad {
    fn from(row: &LayerRecord) -> Self {
        Self { layer: row.layer, tokens_per_expert: row.tokens_per_expert.clone() }
    }
}

impl EvalRecord {
    fn numbers(&self) -> [(&'static str, f64); 5] {
        [
            ("cross_entropy_nats", self.cross_entropy_nats),
            ("bits_per_byte", self.bits_per_byte.unwrap_or(0.0)),
            ("perplexity", self.perplexity),
            ("eval_secs", self.eval_secs),
            ("elapsed_secs", self.elapsed_secs),
        ]
    }
}

impl LayerRecord {
    /// The statistics that are one number each, by the name they have in the file.
    pub(super) fn numbers(&self) -> Vec<(&'static str, f64)> {
        let recorded = [
            ("running_max_violation", self.running_max_violation),
            ("router_grad_norm", self.router_grad_norm),
            ("router_weight_norm", self.router_weight_norm),
        ];
        let always = [
            ("max_violation", self.max_violation),
            ("coefficient_of_variation", self.coefficient_of_variation),
            ("gini_coefficient", self.gini_coefficient),
            ("effective_num_experts", self.effective_num_experts),
            ("gate_entropy_nats", self.gate_entropy_nats),
            ("marginal_entropy_nats", self.marginal_entropy_nats),
            ("dead_expert_fraction", self.dead_expert_fraction),
            ("gate_margin", self.gate_margin),
            ("dropped_fraction", self.dropped_fraction),
        ];
        let recorded = recorded.into_iter().filter_map(|(name, value)| Some((name, value?)));
        always.into_iter().chain(recorded).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(in super::super) fn layer(layer: usize, tokens_per_expert: &[u64]) -> LayerRecord {
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

    pub(in super::super) fn step(step: u64, cross_entropy_nats: f64, layers: Vec<LayerRecord>) -> StepRecord {
        StepRecord {
            step,
            tokens_seen: step * 512,
            skipped: false,
            cross_entropy_nats,
            bits_per_byte: None,
            data_passes: None,
            tokens_per_source: BTreeMap::new(),
            losses: BTreeMap::from([("load_balancing_loss".to_owned(), 1.5)]),
            weighted_losses: BTreeMap::new(),
            total_loss: cross_entropy_nats + 0.015,
            learning_rate: 1e-3,
            grad_norm: 0.75,
            max_attention_logit: None,
            clipped_heads: None,
            tokens_per_sec: 1024.0,
            step_secs: 0.5,
            elapsed_secs: 0.5 * step as f64,
            active_flops: 1e9 * step as f64,
            mfu: Some(0.25),
            layers,
        }
    }

    pub(in super::super) fn eval(step: u64, cross_entropy_nats: f64) -> EvalRecord {
        EvalRecord {
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
        }
    }

    #[test]
    fn kind_is_the_first_key_and_absent_numbers_have_no_key() {
        let line = serde_json::to_string(&Record::Step(step(1, 2.5, Vec::new()))).unwrap();
        assert!(line.starts_with(r#"{"kind":"step","step":1,"#), "{line}");
        assert!(!line.contains("router_z_loss") && !line.contains("layers"), "{line}");
        let line = serde_json::to_string(&Record::Eval(eval(1, 2.5))).unwrap();
        assert!(line.starts_with(r#"{"kind":"eval","step":1,"#), "{line}");
    }

    #[test]
    fn rows_that_differ_in_the_clock_only_are_equal_without_timings() {
        let mut slow = step(3, 2.5, vec![layer(0, &[1, 2])]);
        let fast = Record::Step(slow.clone());
        (slow.tokens_per_sec, slow.step_secs, slow.elapsed_secs, slow.mfu) = (1.0, 9.0, 99.0, None);
        let slow = Record::Step(slow);
        assert_ne!(slow, fast);
        assert_eq!(slow.without_timings(), fast.without_timings());
        let mut other = step(3, 2.5f64.next_up(), vec![layer(0, &[1, 2])]);
        other.mfu = None;
        assert_ne!(Record::Step(other).without_timings(), fast.without_timings());
    }

    #[test]
    fn the_first_non_finite_number_is_named_with_its_layer() {
        let mut bad = step(3, 2.5, vec![layer(0, &[1]), layer(2, &[1])]);
        assert_eq!(Record::Step(bad.clone()).first_non_finite(), None);
        bad.layers[1].gate_margin = f64::NEG_INFINITY;
        let found = Record::Step(bad.clone()).first_non_finite();
        assert_eq!(found, Some(("layers[1].gate_margin".into(), f64::NEG_INFINITY)));
        bad.mfu = Some(f64::NAN);
        assert_eq!(Record::Step(bad).first_non_finite().unwrap().0, "mfu");
    }

    #[test]
    fn perplexity_of_a_diverged_model_is_still_a_number_and_a_short_one() {
        assert_eq!(perplexity(0.0), 1.0);
        assert_eq!(perplexity(1e6), f64::MAX);
        assert_eq!(
            [0.0, 10.0, 700.0, 1e6].map(perplexity_text),
            ["1.00", "22026.47", "1.01e304", "1.80e308"]
        );
    }

    proptest! {
        #[test]
        fn every_finite_number_survives_the_file_bit_for_bit(bits in any::<u64>(), tokens in any::<u64>()) {
            let value = f64::from_bits(bits);
            prop_assume!(value.is_finite());
            let mut row = step(7, value, vec![layer(0, &[tokens])]);
            row.grad_norm = value;
            row.losses.insert("load_balancing_loss".into(), value);
            row.layers[0].gate_margin = value;
            row.total_loss = value;
            let line = serde_json::to_string(&Record::Step(row.clone())).unwrap();
            let Record::Step(back) = serde_json::from_str(&line).unwrap() else { panic!("kind changed") };
            prop_assert_eq!(back.layers[0].gate_margin.to_bits(), bits);
            prop_assert_eq!(back.grad_norm.to_bits(), bits);
            prop_assert_eq!(back, row);
        }
    }
}

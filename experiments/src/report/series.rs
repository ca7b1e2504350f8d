//! What the report needs of each run: plain rows that the caller reads from the run's logs.

/// The rows of one run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunSeries {
    /// Name of the run, such as its folder.
    pub(crate) label: String,
    /// Arm that the run belongs to. Runs of an arm and a budget differ in the seed alone.
    pub(crate) arm: String,
    /// Seed.
    pub(crate) seed: u64,
    /// Optimizer steps of its budget.
    pub(crate) num_steps: u64,
    /// Parameters of its model; `None` if the run does not tell.
    pub(crate) params: Option<ParamCounts>,
    /// Wall-clock seconds, evaluations included; `None` if the run does not tell.
    pub(crate) train_secs: Option<f64>,
    /// Loss of the last model on the test split; `None` unless it was measured.
    pub(crate) final_test_loss_nats: Option<f64>,
    /// Energy that the processor used during the run, in joules; `None` where it does not tell.
    pub(crate) energy_joules: Option<f64>,
    /// Passes over the training split; `None` if the run does not tell.
    pub(crate) data_passes: Option<f64>,
    /// Evaluations of the validation loss, in the order of the steps.
    pub(crate) evals: Vec<EvalPoint>,
    /// The same evaluations on each of several sources; empty for one.
    pub(crate) sources: Vec<SourcePoint>,
    /// Its mixture-of-experts layers; empty for a dense run.
    pub(crate) layers: Vec<LayerSeries>,
    /// Alarms that the flight recorder raised.
    pub(crate) alarms: Vec<AlarmRow>,
}

/// Parameters of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParamCounts {
    /// All of them.
    pub(crate) total: u64,
    /// Those that a token meets.
    pub(crate) active: u64,
}

/// One evaluation of the validation loss, and what the run had used by then.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct EvalPoint {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Training tokens seen.
    pub(crate) tokens: u64,
    /// Training FLOPs of the active parameters.
    pub(crate) active_flops: f64,
    /// Wall-clock seconds.
    pub(crate) secs: f64,
    /// Validation cross-entropy in nats per token.
    pub(crate) loss_nats: f64,
    /// The same in bits per byte of text; `None` where the bytes are not known.
    pub(crate) bits_per_byte: Option<f64>,
}

/// The validation loss on one of several sources at one evaluation.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SourcePoint {
    /// Optimizer steps done.
    pub(crate) step: u64,
    /// Name of the source.
    pub(crate) source: String,
    /// Training tokens seen of it.
    pub(crate) tokens: Option<u64>,
    /// Cross-entropy of its validation split in nats per token; `None` where that holds no window.
    pub(crate) loss_nats: Option<f64>,
    /// The same in bits per byte of text.
    pub(crate) bits_per_byte: Option<f64>,
}

/// The router statistics of one layer over a run.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerSeries {
    /// Index of the layer in the model.
    pub(crate) layer: usize,
    /// Experts of the layer.
    pub(crate) num_experts: usize,
    /// Step of each time bin of `load_shares`, ascending.
    pub(crate) steps: Vec<u64>,
    /// For each time bin, each expert's share of the load; the shares of a bin add up to 1.
    pub(crate) load_shares: Vec<Vec<f32>>,
    /// (step, entropy of the routing in nats).
    pub(crate) entropy: Vec<(u64, f64)>,
    /// (step, share of the tokens that found no place in their expert).
    pub(crate) dropped_fraction: Vec<(u64, f64)>,
    /// (step, load of the busiest expert in even shares, minus 1).
    pub(crate) max_violation: Vec<(u64, f64)>,
}

/// One alarm of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AlarmRow {
    /// Optimizer step at which it was raised.
    pub(crate) step: u64,
    /// Kind of the alarm.
    pub(crate) name: String,
    /// What was seen.
    pub(crate) message: String,
}

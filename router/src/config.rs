//! What the user writes in `[model.ffn.moe.router]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{ExpertGroups, SinkhornConfig};

/// Where the softmax stands relative to the choice of the top-k experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum SoftmaxOrder {
    /// Softmax over all experts, then select (Switch, OLMoE, Qwen3-MoE).
    #[default]
    BeforeSelection,
    /// Select by logit, then softmax over the selected logits only (Mixtral).
    AfterSelection,
}

/// How tokens choose experts: a gate scores them, a selection picks from the scores, a bias or
/// losses balance the load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)] // A misspelt `top_K` must stop the run, not train another model.
pub struct RouterConfig {
    /// Experts each token is sent to, in `1..=num_experts`. Under expert choice the average; under
    /// soft mixing the experts whose work equals that of all slots.
    pub top_k: usize,
    /// Where the softmax stands; default `before_selection`.
    #[serde(default)]
    pub softmax: SoftmaxOrder,
    /// Divide the selected gates by their sum, so that they add up to one; default true.
    /// Has no effect with `softmax = "after_selection"`, whose gates already sum to one.
    #[serde(default = "enabled")]
    pub renormalise: bool,
    /// Factor on all gates, after they are renormalised (`routed_scaling_factor` of DeepSeek-V2);
    /// default 1. Beside `sigmoid` it is `sigmoid.routed_scaling`.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub routed_scaling: f64,
    /// Accept that the only gate of a token is always 1, so that the router learns from its own losses
    /// alone: a published model that renormalises with `top_k = 1`. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub constant_gate: bool,
    /// Bias on the linear gate's logits (gpt-oss); default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gate_bias: bool,
    /// Sigmoid scores in place of the softmax (DeepSeek-V3, arXiv:2412.19437, eq. 12-15).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sigmoid: Option<SigmoidConfig>,
    /// A cosine gate in place of the linear one (X-MoE, arXiv:2204.09179, section 3).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cosine: Option<CosineConfig>,
    /// Only the experts of each token's best groups compete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub groups: Option<ExpertGroups>,
    /// A bias per expert, added to the scores for the selection only, which balances the load
    /// without a loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasRule>,
    /// How experts are picked from the scores; absent is the `top_k` best of each token.
    #[serde(default, skip_serializing_if = "Selection::is_top_k")]
    pub selection: Selection,
    /// Round the number of tokens of each expert to a multiple of a tile while training; absent takes
    /// each token's choice as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_rounding: Option<TokenRoundingConfig>,
    /// Multiply the router's input by uniform noise in `[1 - jitter, 1 + jitter]` while training
    /// (Switch, arXiv:2101.03961, appendix C); absent turns it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<f64>,
    /// Type of the gate's arithmetic; default `f32`, also where the model computes in a shorter
    /// one.
    #[serde(default)]
    pub precision: GatePrecision,
    /// Factor on the standard deviation of the gate's initial values; default 1 (Switch, section
    /// 2.4, uses 0.1).
    #[serde(default = "one")]
    pub init_scale: f64,
    /// What the router reads; default `normed`.
    #[serde(default)]
    pub input: RouterSource,
    /// Weight of the load-balancing loss; absent turns the loss off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing_weight: Option<f64>,
    /// Over which tokens the load-balancing loss counts the loads; default `micro_batch`.
    #[serde(default)]
    pub load_balancing_scope: BalancingScope,
    /// Weight of the router z-loss; absent turns the loss off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub z_loss_weight: Option<f64>,
    /// Weight of the gate's mean entropy: above 0 makes tokens decided, below 0 undecided; absent
    /// turns it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy_weight: Option<f64>,
}

impl RouterConfig {
    /// The `top_k` best experts by softmax, renormalised, without losses: every other key at its
    /// default.
    pub fn top_k(top_k: usize) -> Self {
        Self {
            top_k,
            softmax: SoftmaxOrder::default(),
            renormalise: enabled(),
            routed_scaling: one(),
            constant_gate: false,
            gate_bias: false,
            sigmoid: None,
            cosine: None,
            groups: None,
            bias: None,
            selection: Selection::TopK,
            token_rounding: None,
            jitter: None,
            precision: GatePrecision::default(),
            init_scale: one(),
            input: RouterSource::default(),
            load_balancing_weight: None,
            load_balancing_scope: BalancingScope::default(),
            z_loss_weight: None,
            entropy_weight: None,
        }
    }

    /// Factor on all gates.
    pub fn gate_scale(&self) -> f64 {
        self.sigmoid.as_ref().map_or(self.routed_scaling, |sigmoid| sigmoid.routed_scaling)
    }

    /// Whether a token's experts depend on no later token.
    pub fn is_causal(&self) -> bool {
        !matches!(self.selection, Selection::ExpertChoice(_) | Selection::Soft(_))
    }

    /// Whether a gate is learned at all.
    pub fn learns(&self) -> bool {
        !matches!(self.selection, Selection::Hash(_) | Selection::Random {} | Selection::ForcedUniform {})
    }
}

/// `[model.ffn.moe.router.sigmoid]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SigmoidConfig {
    /// Factor on all gates (`routed_scaling_factor` of DeepSeek-V3); default 1.
    #[serde(default = "one")]
    pub routed_scaling: f64,
}

/// `[model.ffn.moe.router.cosine]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CosineConfig {
    /// Width in which tokens and experts are compared.
    pub d_projection: usize,
    /// Initial temperature, which divides the cosines and is learned; default 0.07.
    #[serde(default = "default_temperature")]
    pub temperature: f64,
}

/// `[model.ffn.moe.router.token_rounding]`: each expert takes a multiple of `tile` tokens of a
/// micro-batch, whichever is nearest, by dropping its tokens with the lowest scores or adding those
/// with the highest of the others (arXiv:2512.14080). While training; evaluation and generation take
/// each token's best experts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRoundingConfig {
    /// Tokens of a tile; default 128.
    #[serde(default = "default_tile")]
    pub tile: usize,
}

/// `[model.ffn.moe.router.bias]`: exactly one of the tables. The bias is updated once per optimizer
/// step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum BiasRule {
    /// A step of fixed size towards balance (loss-free balancing, arXiv:2408.15664, algorithm 1).
    Sign(BiasRateConfig),
    /// A step in proportion to the violation.
    Proportional(BiasRateConfig),
    /// The bias that would have balanced the step's tokens (quantile balancing).
    Quantile {},
    /// The bias stays as it is: that of an imported model.
    Fixed {},
}

/// `[model.ffn.moe.router.bias.sign]` and `.proportional`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BiasRateConfig {
    /// Step size; default 0.001.
    #[serde(default = "default_bias_rate")]
    pub rate: f64,
}

/// How experts are picked from the scores; `[model.ffn.moe.router.selection]` holds exactly one of
/// the tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Selection {
    /// The best of each token: what is done without the table.
    #[default]
    #[serde(skip)]
    TopK,
    /// Normal noise of learned size on the logits (Shazeer et al., arXiv:1701.06538, section 2.1).
    Noisy(NoisyConfig),
    /// The second expert is kept with a probability of twice its gate (GShard, arXiv:2006.16668,
    /// algorithm 1).
    RandomSecond(RandomSecondConfig),
    /// Balanced assignment by Sinkhorn's algorithm while training (S-BASE, arXiv:2202.01169);
    /// evaluation takes the best.
    Sinkhorn(SinkhornConfig),
    /// Each expert takes its best tokens (arXiv:2202.09368). Not causal: a token's experts depend
    /// on later tokens.
    ExpertChoice(ExpertChoiceConfig),
    /// Experts by token id at random, nothing learned (the random hash of arXiv:2106.04426).
    Hash(HashConfig),
    /// Every expert works on weighted means of the tokens (Soft MoE, arXiv:2308.00951). Not causal.
    Soft(SoftConfig),
    /// Two experts in turn, each weighed by a softmax over those close to it (SparseMixer-v2 of
    /// Phi-3.5-MoE, arXiv:2409.12136, as its published code evaluates); gates can add up to 2.
    SparseMixer(SparseMixerConfig),
    /// Experts at random, drawn anew each step: a control.
    Random {},
    /// Experts in turn, by position: a control with perfect balance.
    ForcedUniform {},
}

impl Selection {
    fn is_top_k(&self) -> bool {
        *self == Self::TopK
    }
}

/// `[model.ffn.moe.router.selection.sparse_mixer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SparseMixerConfig {
    /// Experts whose logit is further than twice this below the pick's, relative to the larger of
    /// its magnitude and the pick's logit, have no part in the pick's softmax; default 0.01.
    #[serde(default = "default_sparse_mixer_jitter")]
    pub jitter: f64,
}

/// `[model.ffn.moe.router.selection.noisy]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NoisyConfig {
    /// Weight of the importance loss (eq. 6 and 7); absent turns it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance_weight: Option<f64>,
    /// Weight of the load loss (appendix A); absent turns it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_weight: Option<f64>,
}

/// `[model.ffn.moe.router.selection.random_second]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandomSecondConfig {
    /// Draw the second expert from the others' probabilities instead of taking the second best;
    /// default false.
    #[serde(default)]
    pub sampled: bool,
}

/// `[model.ffn.moe.router.selection.expert_choice]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpertChoiceConfig {
    /// An expert takes `ceil(capacity_factor * top_k * num_tokens / num_experts)` tokens;
    /// default 1.
    #[serde(default = "one")]
    pub capacity_factor: f64,
    /// How text is generated, where later tokens are not known; absent refuses to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<GenerationRule>,
}

/// How a selection that is not causal generates text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GenerationRule {
    /// Each token takes its `top_k` best experts.
    TopK,
}

/// `[model.ffn.moe.router.selection.hash]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HashConfig {
    /// Seed of the hash, apart from the run's; default 0.
    #[serde(default)]
    pub seed: u64,
}

/// `[model.ffn.moe.router.selection.soft]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SoftConfig {
    /// Slots of each expert per sequence; absent is `ceil(top_k * seq_len / num_experts)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots_per_expert: Option<usize>,
}

/// Type of the gate's arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum GatePrecision {
    /// 32 bits.
    #[default]
    F32,
    /// 64 bits.
    F64,
}

/// What a router reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum RouterSource {
    /// What the experts read: the normalised residual stream.
    #[default]
    Normed,
    /// The residual stream itself, whose length tells tokens apart too.
    Residual,
}

/// Tokens over which the load-balancing loss counts the experts' loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum BalancingScope {
    /// Each sequence alone (DeepSeek-V3, arXiv:2412.19437, eq. 17-20): the mean over sequences.
    Sequence,
    /// Each micro-batch alone.
    #[default]
    MicroBatch,
    /// Each micro-batch alone, the rows of all layers as if they were one layer's (Hugging Face's
    /// loss of Mixtral and others).
    AllLayers,
    /// The step's micro-batches so far (arXiv:2501.11873, section 3): loads add up over gradient
    /// accumulation.
    GlobalBatch,
}

/// Limit on the tokens one expert takes from a batch while training. Evaluation is dropless.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CapacityConfig {
    /// Capacity of an expert is `ceil(factor * top_k * num_tokens / num_experts)`.
    pub factor: f64,
    /// Factor of each expert, in place of `factor`; absent is the same for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub factor_per_expert: Option<Vec<f64>>,
    /// Which assignments are dropped over capacity.
    #[serde(default)]
    pub drop: DropPolicy,
    /// Factor while evaluating; absent evaluates dropless.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluation_factor: Option<f64>,
}

/// Which assignments an expert over its capacity drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum DropPolicy {
    /// The later tokens of the batch (Switch, GShard).
    #[default]
    Position,
    /// Those with the smallest gate.
    Probability,
    /// A random choice, so that no position is favoured (DeepSpeed's random token selection).
    Random,
}

fn enabled() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

fn default_sparse_mixer_jitter() -> f64 {
    0.01
}

fn default_tile() -> usize {
    128
}

fn default_temperature() -> f64 {
    0.07
}

fn default_bias_rate() -> f64 {
    0.001
}

//! Asking a run what another capacity or `top_k` would have done to a step whose scores it
//! recorded.

use std::path::Path;

use switchyard_experts::{FfnSpec, MoeSpec};
use switchyard_model::{FfnUse, LayerSpec, ModelSpec};
pub use switchyard_router::DropPolicy;
use switchyard_router::{GatePrecision, RouterConfig, Selection, SoftmaxOrder};

use crate::TrainError;
use crate::config::RunConfig;
use crate::plan::RunPlan;
use crate::run_folder::{RunFolderError, RunManifest, RunPaths};
use switchyard_flight::columns::{ScoreRow, read_scores, recorded_score_steps};
use switchyard_flight::whatif::{LayerScores, WhatIf, WhatIfError, what_if};

/// What is asked; whatever is absent is as it was in the run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RunQuestion {
    /// A step with recorded scores; absent is the last.
    pub step: Option<u64>,
    /// Experts of each token.
    pub top_k: Option<usize>,
    /// The capacity.
    pub capacity: Option<AskedCapacity>,
    /// Which assignments are dropped over capacity.
    pub drop: Option<DropPolicy>,
}

/// A capacity to ask about.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AskedCapacity {
    /// No limit.
    Dropless,
    /// A factor.
    Factor(f64),
}

/// What a run answers.
#[derive(Debug, Clone, PartialEq)]
pub struct RunAnswer {
    /// The step whose scores were read.
    pub step: u64,
    /// One entry per mixture whose scores were recorded, but for those of the refusals.
    pub layers: Vec<LayerAnswer>,
    /// Mixtures whose routers leave the question open.
    pub refusals: Vec<LayerRefusal>,
}

/// Layers that give no answer.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerRefusal {
    /// Indices of the Transformer blocks, from 0.
    pub layers: Vec<usize>,
    /// Why there is none, and what to do instead.
    pub reason: String,
}

/// What happened in a layer, and what would have.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAnswer {
    /// Index of the Transformer block, from 0.
    pub layer: u32,
    /// The setting that the answer is about, with everything filled in from the layer's own router.
    pub setting: WhatIf,
    /// As recorded.
    pub recorded: LayerOutcome,
    /// As asked.
    pub asked: LayerOutcome,
}

/// Where a layer's tokens went.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct LayerOutcome {
    /// Tokens sent to each expert, dropped ones included.
    pub tokens_per_expert: Vec<u64>,
    /// Those that it took.
    pub kept_per_expert: Vec<u64>,
    /// Share of the assignments that was dropped.
    pub dropped_fraction: f64,
    /// Load of the busiest expert over the mean load, minus 1.
    pub max_violation: f64,
    /// Experts that no token chose.
    pub dead_experts: Vec<usize>,
}

/// What the run in `folder` answers. Each layer is asked alone, about its own router and with the
/// scores that it had: another setting would change the scores of the layers above it too, so only
/// the first mixture's answer is what a rerun would show.
///
/// # Errors
/// [`TrainError::Question`] if no router's choice follows from the recorded scores, or the setting
/// cannot be; [`TrainError::Recording`] if there are no scores; [`TrainError::RunFolder`].
pub fn ask(folder: &Path, question: &RunQuestion) -> Result<RunAnswer, TrainError> {
    let paths = RunPaths::new(folder);
    let plan = plan_of(&paths)?;
    let uses = plan.model.mixture_uses();
    if uses.is_empty() {
        return Err(WhatIfError::NoMixture.into());
    }
    let obstacles: Vec<WhatIfError> = uses.iter().filter_map(obstacle).collect();
    if let (Some(first), true) = (obstacles.first(), obstacles.len() == uses.len()) {
        return Err(first.clone().into());
    }
    check_capacities(&plan.model, question)?;
    let recorded_steps = recorded_score_steps(&paths.flight())?;
    let step = question.step.or(recorded_steps.last().copied()).unwrap_or(plan.num_steps);
    let rows = read_scores(&paths.flight(), step)?;
    let mut layers = Vec::new();
    for (layer, LayerSpec { ffn, .. }) in plan.model.layers.iter().enumerate() {
        let FfnSpec::Moe(moe) = ffn else { continue };
        if plain_obstacle(&moe.router.config).is_none() {
            layers.extend(answer(&rows, layer as u32, filled_in(question, moe, &plan))?);
        }
    }
    Ok(RunAnswer { step, layers, refusals: obstacles.into_iter().filter_map(refusal).collect() })
}

/// The plan that a run was made with.
pub(super) fn plan_of(run: &RunPaths) -> Result<RunPlan, TrainError> {
    let path = run.manifest();
    let manifest = RunManifest::read(&path)?;
    let RunManifest { plan, config, .. } = manifest;
    // Another version has other words for what the configuration says.
    let anew = |_| {
        let config: RunConfig = serde_json::from_value(config).map_err(|error| error.to_string())?;
        RunPlan::resolve(&config).map_err(|error| error.to_string())
    };
    let bad = |reason: String| RunFolderError::BadManifest { path: path.clone(), reason };
    let plan = serde_json::from_value(plan).or_else(anew).map_err(|reason: String| {
        bad(format!("its `plan` was written by another version, and its `config` cannot be used: {reason}"))
    })?;
    plan.check_sizes().map_err(|reason| bad(format!("its `plan` is damaged: {reason}")))?;
    Ok(plan)
}

fn filled_in(question: &RunQuestion, moe: &MoeSpec, plan: &RunPlan) -> WhatIf {
    let (router, configured) = (&moe.router.config, moe.capacity.as_ref());
    WhatIf {
        top_k: question.top_k.unwrap_or(router.top_k),
        capacity_factor: match question.capacity {
            Some(AskedCapacity::Dropless) => None,
            Some(AskedCapacity::Factor(factor)) => Some(factor),
            None => configured.map(|capacity| capacity.factor),
        },
        drop: question.drop.or(configured.map(|capacity| capacity.drop)).unwrap_or_default(),
        renormalise: router.renormalise || router.softmax == SoftmaxOrder::AfterSelection,
        tokens_per_pass: Some(plan.micro_batch_tokens()),
    }
}

/// Why a router's layers give no answer; `None` if they do.
fn obstacle(used: &FfnUse<'_>) -> Option<WhatIfError> {
    let router = used.ffn.router()?;
    let key = plain_obstacle(&router.config)?;
    Some(WhatIfError::NotPlain { layers: used.layers.clone(), key: format!("{}.{key}", router.key) })
}

fn refusal(error: WhatIfError) -> Option<LayerRefusal> {
    let reason = error.to_string();
    let WhatIfError::NotPlain { layers, .. } = error else { return None };
    Some(LayerRefusal { layers, reason })
}

/// The key with which the recorded scores are not all that decides who goes where; `None` without
/// one.
fn plain_obstacle(router: &RouterConfig) -> Option<&'static str> {
    match &router.selection {
        Selection::TopK if router.bias.is_some() => Some("bias"),
        Selection::TopK if router.groups.is_some() => Some("groups"),
        Selection::TopK if router.token_rounding.is_some() => Some("token_rounding"),
        Selection::TopK if router.sigmoid.is_some() => Some("sigmoid"),
        Selection::TopK if router.precision == GatePrecision::F64 => Some("precision = \"f64\""),
        Selection::TopK => None,
        Selection::Noisy(_) => Some("selection.noisy"),
        Selection::RandomSecond(_) => Some("selection.random_second"),
        Selection::Sinkhorn(_) => Some("selection.sinkhorn"),
        Selection::ExpertChoice(_) => Some("selection.expert_choice"),
        Selection::Hash(_) => Some("selection.hash"),
        Selection::Soft(_) => Some("selection.soft"),
        Selection::SparseMixer(_) => Some("selection.sparse_mixer"),
        Selection::Random {} => Some("selection.random"),
        Selection::ForcedUniform {} => Some("selection.forced_uniform"),
    }
}

/// Ok if the question can express the capacity of every layer, or asks about another.
fn check_capacities(spec: &ModelSpec, question: &RunQuestion) -> Result<(), WhatIfError> {
    let has_own_factors = spec.layers.iter().any(|layer| match &layer.ffn {
        FfnSpec::Moe(moe) => {
            moe.capacity.as_ref().is_some_and(|capacity| capacity.factor_per_expert.is_some())
        }
        FfnSpec::Dense(_) | FfnSpec::SoftMoe(_) | FfnSpec::BlockSparse(_) | FfnSpec::Absent => false,
    });
    if has_own_factors && question.capacity.is_none() { Err(WhatIfError::FactorPerExpert) } else { Ok(()) }
}

/// The answer of a layer; `None` if none of its scores were recorded.
fn answer(rows: &[ScoreRow], layer: u32, setting: WhatIf) -> Result<Option<LayerAnswer>, WhatIfError> {
    let Some(scores) = LayerScores::of_layer(rows, layer)? else { return Ok(None) };
    let answer = what_if(&scores, &setting)?;
    let recorded = rows.iter().filter(|row| row.layer == layer && row.rank.is_some());
    let (mut tokens, mut kept) = (vec![0; scores.num_experts], vec![0; scores.num_experts]);
    for row in recorded {
        tokens[row.expert as usize] += 1;
        kept[row.expert as usize] += u64::from(row.kept);
    }
    Ok(Some(LayerAnswer {
        layer,
        setting,
        recorded: LayerOutcome::new(tokens, kept),
        asked: LayerOutcome::new(answer.summary.tokens_per_expert, answer.kept_per_expert),
    }))
}

impl LayerOutcome {
    fn new(tokens_per_expert: Vec<u64>, kept_per_expert: Vec<u64>) -> Self {
        let (num_assigned, num_kept): (u64, u64) =
            (tokens_per_expert.iter().sum(), kept_per_expert.iter().sum());
        let mean = num_assigned as f64 / tokens_per_expert.len() as f64;
        let largest = tokens_per_expert.iter().max().map_or(0.0, |&largest| largest as f64);
        Self {
            dropped_fraction: (num_assigned - num_kept) as f64 / num_assigned.max(1) as f64,
            max_violation: if mean > 0.0 { largest / mean - 1.0 } else { 0.0 },
            dead_experts: (0..tokens_per_expert.len())
                .filter(|&expert| tokens_per_expert[expert] == 0)
                .collect(),
            tokens_per_expert,
            kept_per_expert,
        }
    }
}

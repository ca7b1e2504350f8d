//! Asking a run what another capacity or `top_k` would have done to a step whose scores it recorded.

use std::path::Path;

use switchyard_experts::MoeConfig;
pub use switchyard_router::DropPolicy;
use switchyard_router::{GatePrecision, Selection, SoftmaxOrder};

use super::columns::{ScoreRow, read_scores, recorded_score_steps};
use super::whatif::{LayerScores, WhatIf, WhatIfError, what_if};
use crate::TrainError;
use crate::plan::RunPlan;
use crate::run_folder::{RunManifest, RunPaths};

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
    /// The setting that the answer is about, with everything filled in.
    pub asked: WhatIf,
    /// One entry per mixture.
    pub layers: Vec<LayerAnswer>,
}

/// What happened in a layer, and what would have.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerAnswer {
    /// Index of the Transformer block, from 0.
    pub layer: u32,
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

/// What the run in `folder` answers. Each layer is asked alone, with the scores that it had: another setting would change
/// the scores of the layers above it too, so only the first mixture's answer is what a rerun would show.
///
/// # Errors
/// [`TrainError::Question`] if the router's choice does not follow from the recorded scores, or the setting is none;
/// [`TrainError::Recording`] if there are no scores; [`TrainError::RunFolder`].
pub fn ask(folder: &Path, question: &RunQuestion) -> Result<RunAnswer, TrainError> {
    let paths = RunPaths::new(folder);
    let plan = plan_of(&paths)?;
    let Some(moe) = &plan.model.moe else { return Err(WhatIfError::NoMixture.into()) };
    check_is_plain(moe, question)?;
    let recorded_steps = recorded_score_steps(&paths.flight())?;
    let step = question.step.or(recorded_steps.last().copied()).unwrap_or(plan.num_steps);
    let rows = read_scores(&paths.flight(), step)?;
    let asked = filled_in(question, moe, &plan);
    let mut layers: Vec<u32> = rows.iter().map(|row| row.layer).collect();
    layers.dedup();
    let layers = layers.into_iter().map(|layer| answer(&rows, layer, &asked));
    Ok(RunAnswer { step, layers: layers.collect::<Result<_, _>>()?, asked })
}

/// The plan that a run was made with.
pub(super) fn plan_of(run: &RunPaths) -> Result<RunPlan, TrainError> {
    let path = run.manifest();
    let manifest = RunManifest::read(&path)?;
    let bad = |error: serde_json::Error| crate::run_folder::RunFolderError::BadManifest {
        path,
        reason: format!("its `plan` is none of this version: {error}"),
    };
    Ok(serde_json::from_value(manifest.plan).map_err(bad)?)
}

fn filled_in(question: &RunQuestion, moe: &MoeConfig, plan: &RunPlan) -> WhatIf {
    let router = &moe.router;
    let configured = moe.capacity.as_ref();
    WhatIf {
        top_k: question.top_k.unwrap_or(router.top_k),
        capacity_factor: match question.capacity {
            Some(AskedCapacity::Dropless) => None,
            Some(AskedCapacity::Factor(factor)) => Some(factor),
            None => configured.map(|capacity| capacity.factor),
        },
        drop: question.drop.or(configured.map(|capacity| capacity.drop)).unwrap_or_default(),
        renormalise: router.renormalise || router.softmax == SoftmaxOrder::AfterSelection,
        tokens_per_pass: Some(plan.sequences_per_micro_batch * plan.seq_len),
    }
}

/// Ok if the recorded scores alone decide who goes where.
fn check_is_plain(moe: &MoeConfig, question: &RunQuestion) -> Result<(), WhatIfError> {
    let router = &moe.router;
    let obstacle = match router.selection() {
        Selection::TopK if router.bias.is_some() => Some("bias"),
        Selection::TopK if router.groups.is_some() => Some("groups"),
        Selection::TopK if router.sigmoid.is_some() => Some("sigmoid"),
        Selection::TopK if router.precision == GatePrecision::F64 => Some("precision = \"f64\""),
        Selection::TopK => None,
        Selection::Noisy(_) => Some("selection.noisy"),
        Selection::RandomSecond(_) => Some("selection.random_second"),
        Selection::Sinkhorn(_) => Some("selection.sinkhorn"),
        Selection::ExpertChoice(_) => Some("selection.expert_choice"),
        Selection::Hash(_) => Some("selection.hash"),
        Selection::Soft(_) => Some("selection.soft"),
        Selection::Random => Some("selection.random"),
        Selection::ForcedUniform => Some("selection.forced_uniform"),
    };
    if let Some(key) = obstacle {
        return Err(WhatIfError::NotPlain { key });
    }
    let has_own_factors = moe.capacity.as_ref().is_some_and(|capacity| capacity.factor_per_expert.is_some());
    if has_own_factors && question.capacity.is_none() { Err(WhatIfError::FactorPerExpert) } else { Ok(()) }
}

fn answer(rows: &[ScoreRow], layer: u32, asked: &WhatIf) -> Result<LayerAnswer, WhatIfError> {
    let scores =
        LayerScores::of_layer(rows, layer)?.unwrap_or(LayerScores { num_experts: 1, logits_te: Vec::new() });
    let answer = what_if(&scores, asked)?;
    let recorded = rows.iter().filter(|row| row.layer == layer && row.rank.is_some());
    let (mut tokens, mut kept) = (vec![0; scores.num_experts], vec![0; scores.num_experts]);
    for row in recorded {
        tokens[row.expert as usize] += 1;
        kept[row.expert as usize] += u64::from(row.kept);
    }
    Ok(LayerAnswer {
        layer,
        recorded: LayerOutcome::new(tokens, kept),
        asked: LayerOutcome::new(answer.summary.tokens_per_expert, answer.kept_per_expert),
    })
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

//! What is measured at intervals, as rows of `flight/probes.jsonl` and `flight/saturation.jsonl`.
//!
//! The same tokens, the first of the validation split, are routed by the model at every probe. The
//! experts that they went to are in the row: three bytes an id, in the one file that a resumed run
//! must rewind, where it finds its last probe too.
//!
//! Shape letters: t tokens, e experts, k experts per token.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use switchyard_datasets::{Dataset, EvaluationWindows, TokenBatch};
use switchyard_experts::{Experts, MoeLayer};
use switchyard_model::{ModelOutput, Pass, StepNoise, Transformer, parameter_gradients};
use switchyard_router::AuxLossKind;

use super::error::RecorderError;
use super::lines::{FlightRow, Lines, ResumedLines, read_rows, replace_rows};
use crate::batch::DeviceBatch;
use crate::metrics::MetricsError;
use crate::norms::expert_weight_norms;
use crate::optimizer::GradientSum;
use crate::plan::RunPlan;
use crate::readings::Readings;
use crate::routed_pass::RoutedPass;
use crate::run_folder::RunPaths;
use switchyard_flight::probe::{
    CoActivation, MutualInformation, agreement, churn, expert_similarity, mutual_information,
};

/// Most tokens of a probe: they cost a forward pass, and a backward pass where there is a balancing
/// loss.
const MAX_PROBE_TOKENS: usize = 512;

/// Share of a step's tokens that a probe takes at most, but one sequence at least.
const PROBE_SHARE: usize = 4;

/// Weights of an expert that are compared to those of another: every pair of experts is, and a
/// cosine of this many independent weights is off by 1/256.
const MAX_COMPARED_WEIGHTS: usize = 1 << 16;

/// What a probe found in one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProbeRow {
    /// Updates done.
    pub step: u64,
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Experts of each probe token; `None` where that differs between tokens.
    pub top_k: Option<usize>,
    /// Share of the probe tokens' experts that the previous probe chose too; `None` at the first.
    pub agreement_with_previous: Option<f64>,
    /// Share of the probe tokens whose experts have changed since the previous probe.
    pub churn: Option<f64>,
    /// What the step's experts tell about the domains of their tokens; `None` where no domains are
    /// known.
    pub domain_information: Option<Information>,
    /// What the step's experts tell about the ids of their tokens.
    pub token_information: Option<Information>,
    /// Tokens of the step that chose both experts, `[num_experts][num_experts]`; empty where tokens
    /// are mixed softly.
    pub co_activation: Vec<Vec<u64>>,
    /// Mean cosine of two experts' weights; `None` with fewer than two.
    pub expert_similarity_mean: Option<f64>,
    /// Largest cosine of two experts' weights.
    pub expert_similarity_max: Option<f64>,
    /// Norm of each expert's weights.
    pub expert_weight_norms: Vec<f64>,
    /// Gradient norm of the router from the weighted balancing losses alone; `None` without one.
    pub balancing_grad_norm: Option<f64>,
    /// Experts of the probe tokens, `[num_tokens * top_k]`; empty where their number differs
    /// between tokens.
    pub probe_experts: Vec<u32>,
}

/// [`MutualInformation`] as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Information {
    /// In nats.
    pub nats: f64,
    /// Over the smaller of the two entropies, from 0 to 1.
    pub normalised: f64,
    /// What `nats` is expected to be too high by.
    pub bias_nats: f64,
}

/// How far a layer's router was, at a probe, from what it became.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SaturationRow {
    /// Step of the probe.
    pub step: u64,
    /// Index of the Transformer block, from 0.
    pub layer: usize,
    /// Share of the probe tokens' experts that the final router chose too.
    pub agreement_with_final: f64,
}

impl FlightRow for ProbeRow {
    fn step(&self) -> u64 {
        self.step
    }
}

impl From<MutualInformation> for Information {
    fn from(information: MutualInformation) -> Self {
        let MutualInformation { nats, normalised, bias_nats } = information;
        Self { nats, normalised, bias_nats }
    }
}

/// Experts of the probe tokens in one layer.
#[derive(Debug, Clone, PartialEq)]
struct ProbeChoice {
    expert_ids_tk: Vec<u32>,
    top_k: usize,
}

impl ProbeChoice {
    fn of(row: ProbeRow) -> Option<Self> {
        Some(Self { top_k: row.top_k?, expert_ids_tk: row.probe_experts })
    }

    /// Agreement and churn since an earlier choice; `None` if it was of another number of experts
    /// or tokens.
    fn compared_to(&self, earlier: &Self) -> Option<(f64, f64)> {
        let (before, after, k) = (&earlier.expert_ids_tk, &self.expert_ids_tk, self.top_k);
        let is_comparable = earlier.top_k == k && before.len() == after.len();
        is_comparable.then(|| (agreement(before, after, k), churn(before, after, k)))
    }
}

/// The probes of one run.
#[derive(Debug)]
pub(super) struct Prober {
    batch: TokenBatch,
    seed: u64,
    has_domains: bool,
    previous: BTreeMap<usize, ProbeChoice>,
    rows: Lines<ProbeRow>,
    rows_path: PathBuf,
    saturation_path: PathBuf,
}

impl Prober {
    /// The probes of a run, rewound to `last_step`, with what the user should know; absent is a new
    /// run.
    pub(super) fn open(
        paths: &RunPaths,
        plan: &RunPlan,
        dataset: &Dataset,
        mask_documents: bool,
        last_step: Option<u64>,
    ) -> Result<(Self, Option<String>), RecorderError> {
        let max_tokens = MAX_PROBE_TOKENS.min(plan.tokens_per_step / PROBE_SHARE);
        let windows = EvaluationWindows::new(dataset.validation.clone(), plan.seq_len)?
            .with_max_tokens(max_tokens)
            .with_document_masking(mask_documents);
        let ResumedLines { lines, rows, note } = Lines::rewind(&paths.probes(), last_step)?;
        // A run that goes on has no final router yet.
        replace_rows::<SaturationRow>(&paths.saturation(), &[])?;
        let all = windows.batches(windows.num_windows()).next().transpose()?;
        let prober = Self {
            batch: all.unwrap_or_else(|| unreachable!("a store that holds a window has a first batch")),
            seed: plan.seed,
            has_domains: !dataset.manifest.domain_names.is_empty(),
            previous: last_choices(rows),
            rows: lines,
            rows_path: paths.probes(),
            saturation_path: paths.saturation(),
        };
        Ok((prober, note))
    }

    pub(super) fn has_domains(&self) -> bool {
        self.has_domains
    }

    /// Probes `model`, which has done `step` updates, and the routing of the last of them. The
    /// second value is why the rows are not on the disk; they are written at the next try.
    pub(super) fn probe(
        &mut self,
        step: u64,
        model: &Transformer,
        passes: &[RoutedPass],
        device: &Device,
    ) -> Result<(Vec<ProbeRow>, Option<MetricsError>), RecorderError> {
        let choices = self.choices(model, device);
        let balancing = self.balancing_grad_norms(step, model, device)?;
        let rows: Vec<ProbeRow> = model
            .moe_layers()
            .map(|(layer, moe)| ProbeRow {
                balancing_grad_norm: balancing.get(&layer).copied(),
                ..self.row(step, layer, moe, passes, choices.get(&layer))
            })
            .collect();
        self.previous = choices;
        let problem = self.rows.append_all(&rows).err();
        Ok((rows, problem))
    }

    /// Writes how far the router was from this, the final one, at each probe.
    pub(super) fn finish(&self, model: &Transformer, device: &Device) -> Result<(), RecorderError> {
        let last = self.choices(model, device);
        let saturation = read_rows::<ProbeRow>(&self.rows_path)?.into_iter().filter_map(|row| {
            let (step, layer) = (row.step, row.layer);
            let (agreement_with_final, _) = last.get(&layer)?.compared_to(&ProbeChoice::of(row)?)?;
            Some(SaturationRow { step, layer, agreement_with_final })
        });
        Ok(replace_rows(&self.saturation_path, &saturation.collect::<Vec<_>>())?)
    }

    pub(super) fn sync(&mut self) -> Result<Option<String>, RecorderError> {
        Ok(self.rows.sync()?)
    }

    fn choices(&self, model: &Transformer, device: &Device) -> BTreeMap<usize, ProbeChoice> {
        let batch = DeviceBatch::upload(self.batch.clone(), device);
        let output = model.valid().forward(&batch.input, Pass::Evaluation);
        let choice = |(layer, aux): (usize, switchyard_experts::MoeAux)| {
            let choice = aux.route?.choice;
            let top_k = choice.keep_tk.is_none().then_some(choice.slots_per_token)?;
            Some((layer, ProbeChoice { expert_ids_tk: choice.expert_ids_tk, top_k }))
        };
        output.moe_layers.into_iter().filter_map(choice).collect()
    }

    /// Gradient norm of each router from the balancing losses of the probe tokens, as while
    /// training; empty without such a loss.
    fn balancing_grad_norms(
        &self,
        step: u64,
        model: &Transformer,
        device: &Device,
    ) -> Result<BTreeMap<usize, f64>, RecorderError> {
        let has_loss = |moe: &MoeLayer| moe.router.config().load_balancing_weight.is_some();
        if !model.moe_layers().any(|(_, moe)| has_loss(moe)) {
            return Ok(BTreeMap::new());
        }
        let batch = DeviceBatch::upload(self.batch.clone(), device);
        let noise = StepNoise::new(self.seed, step, u64::MAX);
        let Some(loss_1) = balancing_loss(&model.forward(&batch.input, Pass::training(noise))) else {
            return Ok(BTreeMap::new());
        };
        let mut sum = GradientSum::default();
        // It is not on a tape if all that it depends on is frozen.
        if loss_1.is_tracked() {
            sum.push(parameter_gradients(model, &loss_1.backward()));
        }
        let gradients = sum.finish();
        let num_experts = |layer| model.moe(layer).map_or(1, |moe| moe.router.num_experts());
        let mut readings = Readings::default();
        let squares = gradients.start_norms(num_experts, &mut readings);
        let norms = gradients
            .norms(&squares, &readings.read()?)
            .map_err(|source| RecorderError::NonFiniteGradient { step, source })?;
        let norm = |(layer, moe): (usize, &MoeLayer)| {
            let router = norms.moe.get(&layer).and_then(|norms| norms.router);
            // A loss that does not reach the router leaves no gradient at all.
            has_loss(moe).then(|| (layer, router.unwrap_or(0.0)))
        };
        Ok(model.moe_layers().filter_map(norm).collect())
    }

    fn row(
        &self,
        step: u64,
        layer: usize,
        moe: &MoeLayer,
        passes: &[RoutedPass],
        choice: Option<&ProbeChoice>,
    ) -> ProbeRow {
        let routed = StepRouting::of(passes, layer, self.has_domains);
        let compared = choice.and_then(|choice| choice.compared_to(self.previous.get(&layer)?));
        let similarity = similarity(&moe.experts);
        ProbeRow {
            step,
            layer,
            top_k: choice.map(|choice| choice.top_k),
            agreement_with_previous: compared.map(|(agreement, _)| agreement),
            churn: compared.map(|(_, churn)| churn),
            domain_information: routed
                .as_ref()
                .filter(|_| self.has_domains)
                .map(|routed| routed.about(&routed.domains)),
            token_information: routed.as_ref().map(|routed| routed.about(&routed.token_ids)),
            co_activation: routed
                .map_or_else(Vec::new, |routed| routed.co_activation(moe.router.num_experts())),
            expert_similarity_mean: similarity.mean,
            expert_similarity_max: similarity.max,
            expert_weight_norms: expert_weight_norms(&moe.experts),
            balancing_grad_norm: None,
            probe_experts: choice.map_or_else(Vec::new, |choice| choice.expert_ids_tk.clone()),
        }
    }
}

/// The last probe's choices, for a run that goes on.
fn last_choices(rows: Vec<ProbeRow>) -> BTreeMap<usize, ProbeChoice> {
    let last_step = rows.last().map(|row| row.step);
    let last = rows.into_iter().filter(|row| Some(row.step) == last_step);
    last.filter_map(|row| Some((row.layer, ProbeChoice::of(row)?))).collect()
}

/// The weighted losses that balance, over all layers; `None` without one.
fn balancing_loss(output: &ModelOutput) -> Option<Tensor<1>> {
    let losses = output.moe_layers.iter().flat_map(|(_, aux)| &aux.losses);
    losses
        .filter(|loss| loss.kind == AuxLossKind::LoadBalancing)
        .map(|loss| loss.value_1.clone().mul_scalar(loss.weight))
        .reduce(|sum, loss| sum + loss)
}

/// Similarity of the experts by at most [`MAX_COMPARED_WEIGHTS`] of each one's weights, evenly
/// spread.
fn similarity(experts: &Experts) -> switchyard_flight::probe::ExpertSimilarity {
    let [num_experts, _, _] = experts.w_up_edf.dims();
    let matrices = [experts.w_gate_edf.as_ref(), Some(&experts.w_up_edf), Some(&experts.w_down_efd)];
    let matrices: Vec<Vec<f32>> =
        matrices.into_iter().flatten().map(|matrix| matrix.val().to_data().iter::<f32>().collect()).collect();
    let of_expert = |expert: usize| {
        let rows = matrices.iter().map(|matrix| {
            let row_len = matrix.len() / num_experts;
            &matrix[expert * row_len..][..row_len]
        });
        let all = rows.collect::<Vec<_>>().concat();
        all.iter().copied().step_by(all.len().div_ceil(MAX_COMPARED_WEIGHTS).max(1)).collect()
    };
    let weights: Vec<Vec<f32>> = (0..num_experts).map(of_expert).collect();
    expert_similarity(&weights.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The choices of one layer in all passes of a step, those of tokens that each choose equally many.
struct StepRouting {
    expert_ids_tk: Vec<u32>,
    top_k: usize,
    token_ids: Vec<Option<u32>>,
    domains: Vec<Option<u32>>,
}

impl StepRouting {
    fn of(passes: &[RoutedPass], layer: usize, has_domains: bool) -> Option<Self> {
        let top_k = passes.first()?.layer(layer)?.top_k?;
        let mut all = Self { expert_ids_tk: Vec::new(), top_k, token_ids: Vec::new(), domains: Vec::new() };
        for pass in passes {
            let route = pass.layer(layer)?.route.as_ref()?;
            all.expert_ids_tk.extend(&route.choice.expert_ids_tk);
            all.token_ids.extend(pass.token_ids_t.iter().copied().map(Some));
            all.domains.extend(pass.domains_of_tokens().map(|domain| has_domains.then_some(domain)));
        }
        Some(all)
    }

    fn about(&self, tags_t: &[Option<u32>]) -> Information {
        mutual_information(&self.expert_ids_tk, tags_t, self.top_k).into()
    }

    fn co_activation(&self, num_experts: usize) -> Vec<Vec<u64>> {
        let counts = CoActivation::measure(&self.expert_ids_tk, num_experts, self.top_k);
        counts.tokens_ee().chunks_exact(num_experts).map(<[u64]>::to_vec).collect()
    }
}

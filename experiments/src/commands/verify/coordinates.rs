//! `switchyard verify --coordinates`: that activations do not drift with the model's size.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use switchyard_datasets::{Dataset, Progress};
use switchyard_trainer::TrainError;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::coordinates::{Coordinate, Site, coordinates};
use switchyard_trainer::plan::RunPlan;

use crate::cli::VerifyArgs;
use crate::commands::{load_to_run, print_text};
use crate::coordinates::{Axis, MAX_EXPONENT, Series, base_shape, min_exponent, scaled, table};
use crate::failure::Failure;
use crate::interrupt::Interruption;

/// Steps, unless given: enough for every weight to have moved by Adam's full step.
const STEPS: u64 = 8;
/// Tokens of a step, at least one sequence: enough for a mean, and few enough for 8 times the width.
const STEP_TOKENS: usize = 1024;

pub(super) fn run(args: &VerifyArgs, interruption: &Interruption) -> Result<(), Failure> {
    let (loaded, plan) = load_to_run(&args.config.file, &args.config.overrides)?;
    check_heeded(args, &loaded.config)?;
    let at_base = with_short_steps(base_shape(&loaded.config, &plan.model));
    let stop = interruption.watch("stopping after this step")?;
    let progress = Progress::stderr().with_stop(stop.clone());
    let dataset = switchyard_datasets::prepare(&at_base.data, &progress).map_err(TrainError::from)?;
    let mut check = Check { args, at_base, dataset, stop, known: BTreeMap::new() };
    let mut all = Vec::new();
    for axis in Axis::ALL {
        for is_transferred in [false, true] {
            all.extend(check.series(axis, is_transferred)?);
        }
    }
    print_text(&table(&all))?;
    judge(args, &all)
}

/// Ok unless the recipe has something that the check does not heed: it draws initial values, trains
/// every parameter, and clips no head.
fn check_heeded(args: &VerifyArgs, config: &RunConfig) -> Result<(), Failure> {
    let freezes = config.train.groups.iter().any(|group| group.freeze);
    let unheeded = [
        ("start", !config.start.is_default()),
        ("train.groups", freezes),
        ("train.qk_clip", config.train.qk_clip.is_some()),
    ];
    match unheeded.into_iter().find(|(_, is_there)| *is_there) {
        None => Ok(()),
        Some((key, _)) => Err(Failure::Mistake(format!(
            "{}: `{key}` has no effect on the coordinate check, which draws initial values, trains every parameter and \
             clips no head: pass `--set {key}=`",
            args.config.file.display()
        ))),
    }
}

/// Small batches, and no warm-up: the first steps are the ones that are looked at.
fn with_short_steps(mut config: RunConfig) -> RunConfig {
    let seq_len = config.train.seq_len.max(1);
    let tokens = (STEP_TOKENS / seq_len).max(1) * seq_len;
    config.train.batch_tokens = config.train.batch_tokens.min(tokens);
    config.train.micro_batch_tokens = None;
    config
}

/// What the shapes of one check have in common.
struct Check<'a> {
    args: &'a VerifyArgs,
    at_base: RunConfig,
    dataset: Dataset,
    stop: Arc<AtomicBool>,
    /// Coordinates of the shapes that several series have, by their configuration.
    known: BTreeMap<String, Vec<Coordinate>>,
}

impl Check<'_> {
    /// The axis at all multiples; `None` if the model does not have it.
    fn series(&mut self, axis: Axis, is_transferred: bool) -> Result<Option<Series>, Failure> {
        let mut points = Vec::new();
        for multiple in axis.multiples() {
            match scaled(&self.at_base, axis, *multiple, is_transferred) {
                Some(config) => points.push((*multiple, self.coordinates(&config)?)),
                None if axis == Axis::Granularity && !points.is_empty() => {
                    let text = format!(
                        "granularity {multiple} is left out: it does not divide the experts' width\n"
                    );
                    if is_transferred {
                        print_text(&text)?;
                    }
                }
                None => return Ok(None),
            }
        }
        Ok(Some(Series { axis, is_transferred, points }))
    }

    fn coordinates(&mut self, config: &RunConfig) -> Result<Vec<Coordinate>, Failure> {
        let plan = RunPlan::resolve(config).map_err(|error| {
            Failure::Mistake(format!(
                "{}: {} layers of width {}, which the check makes of the recipe: {error}",
                self.args.config.file.display(),
                config.model.num_layers,
                config.model.d_model
            ))
        })?;
        let key = serde_json::to_string(&plan.model)?;
        if let Some(known) = self.known.get(&key) {
            return Ok(known.clone());
        }
        let found = coordinates(config, &plan, &self.dataset, self.args.steps.unwrap_or(STEPS), &self.stop)?;
        self.known.insert(key, found.clone());
        Ok(found)
    }
}

/// Ok if nothing drifts in the transferred models.
fn judge(args: &VerifyArgs, all: &[Series]) -> Result<(), Failure> {
    let drifts: Vec<String> = all
        .iter()
        .filter(|series| series.is_transferred)
        .flat_map(|series| {
            let text = |(site, exponent): (Site, f64)| {
                format!("{} over {} ({exponent:+.2})", site.name(), series.axis)
            };
            series.drifts().into_iter().map(text).collect::<Vec<_>>()
        })
        .collect();
    let file = args.config.file.display();
    if drifts.is_empty() {
        return print_text(&format!(
            "{file}: what {} steps change in a transferred model does not drift with its size: no exponent above \
             {MAX_EXPONENT}, and none below {} (of what is read out, {})\n",
            args.steps.unwrap_or(STEPS),
            min_exponent(Site::Blocks),
            min_exponent(Site::Logits)
        ));
    }
    Err(Failure::Fault(anyhow!(
        "{file}: activations of transferred models drift with the model's size: {}, where exponents up to {MAX_EXPONENT} are within bounds; a rate \
         that is best for the base shape is not best for larger ones. Try a lower `train.adamw.learning_rate`, or fewer \
         `--steps`: rules of the first steps hold while nothing saturates",
        drifts.join(", ")
    )))
}

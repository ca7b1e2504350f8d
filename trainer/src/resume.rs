//! Where a run begins: at its initial values, or at its newest checkpoint.

use std::path::Path;

use burn::tensor::Device;
use serde_json::Value;
use switchyard_datasets::Dataset;
use switchyard_model::{ModelState, Transformer};

use crate::TrainError;
use crate::checkpoint::{
    Checkpoint, CheckpointError, CheckpointManifest, CheckpointStore, TrainingState, steps_in,
};
use crate::config::RunConfig;
use crate::moved_data::{check_has_data, data_path_words, is_data_path};
use crate::optimizer::Optimizer;
use crate::parameter_groups;
use crate::plan::RunPlan;
use crate::run_folder::{OpenMode, RunManifest, RunPaths, RunStatus};
use crate::start::{initial_network, note_on_start, with_frozen_parameters};

/// Keys that may change between the parts of a run: how far it goes, how often it is looked at,
/// where it runs, what is kept, and what is computed anew to the same bits. The model, the data and
/// the optimizer may not.
const MAY_CHANGE: [&str; 13] = [
    "name",
    "device",
    "threads",
    "distributed",
    "data.cache_dir",
    "train.num_steps",
    "train.eval_every_steps",
    "train.eval",
    "train.checkpoint_every_steps",
    "train.checkpoints",
    "train.recompute",
    "train.flight_recorder",
    "sample",
];

/// What to do about another key that differs.
const SAME_OR_NEW: &str = ". Resume with the run's own configuration, or start a new run in another folder";

/// Those of them that change nothing of what a finished run has left.
const CHANGES_NO_RESULT: [&str; 6] =
    ["name", "device", "threads", "distributed", "data.cache_dir", "train.recompute"];

/// The moving parts at the beginning of this process.
pub(crate) struct Start {
    pub(crate) model: Transformer,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainingState,
    /// What a recurrent model carries on.
    pub(crate) carried: Option<ModelState>,
    /// Whether they come from a checkpoint.
    pub(crate) resumed: bool,
    /// What the user should know.
    pub(crate) notes: Vec<String>,
}

/// The beginning of a new run, or the newest checkpoint of a resumed one. A resumed run that was
/// killed before its first checkpoint begins anew.
pub(crate) fn start(
    config: &RunConfig,
    plan: &RunPlan,
    dataset: &Dataset,
    checkpoints: &CheckpointStore,
    mode: OpenMode,
    device: &Device,
) -> Result<Start, TrainError> {
    let training_device = device.clone().autodiff();
    let newest = if mode == OpenMode::Resume { checkpoints.steps()?.pop() } else { None };
    let Some(step) = newest else {
        let model = initial_network(config, plan, &training_device)?;
        return Ok(Start {
            notes: note_on_start(config).into_iter().chain(parameter_groups::notes(&model, config)).collect(),
            model,
            optimizer: Optimizer::new(&config.train, &plan.model),
            state: TrainingState::initial(config.seed, &dataset.manifest.key),
            carried: None,
            resumed: false,
        });
    };
    let checkpoint = Checkpoint::read(&checkpoints.path_of(step))?;
    check_same_run(&checkpoint, config)?;
    checkpoint.check_data_of(&config.data, dataset)?;
    let mut notes = notes_on_schedule(&checkpoint, plan);
    let model = with_frozen_parameters(checkpoint.model(&training_device)?, config)?;
    notes.extend(parameter_groups::notes(&model, config));
    let optimizer = checkpoint.optimizer(&model)?;
    let carried = checkpoint.carried_state(&training_device)?;
    Ok(Start { model, optimizer, state: checkpoint.state, carried, resumed: true, notes })
}

/// What can be said of a run that is to be resumed before its data is prepared: its `run.json` if
/// it is finished as it is asked for, so that nothing is left to do.
///
/// # Errors
/// [`CheckpointError::FewerSteps`] if it has gone further than it is asked to go.
pub(crate) fn finished_already(
    folder: &Path,
    config: &RunConfig,
    plan: &RunPlan,
) -> Result<Option<RunManifest>, TrainError> {
    let paths = RunPaths::new(folder);
    let manifest = RunManifest::read(&paths.manifest())?;
    if manifest.is_imported() {
        check_has_data(folder, "")?;
    }
    let checkpoints = paths.checkpoints();
    let newest = if checkpoints.is_dir() { steps_in(&checkpoints)?.pop() } else { None };
    let Some(step) = newest else { return Ok(None) };
    let path = checkpoints.join(format!("step-{step}"));
    // Its manifest knows whether it is of the step in its name.
    let done = CheckpointManifest::read(&path)?.step;
    if plan.num_steps < done {
        return Err(CheckpointError::FewerSteps { path, done, asked: plan.num_steps }.into());
    }
    let is_finished = manifest.status == RunStatus::Finished && manifest.steps_done == done;
    let is_same = check_same_config(&manifest.config, config, &CHANGES_NO_RESULT).is_ok();
    Ok((is_finished && is_same).then_some(manifest))
}

/// Ok if a run that has no checkpoint may begin anew: it was killed before its first one, and
/// nothing else than that run is asked for.
pub(crate) fn check_restart(
    folder: &Path,
    manifest: &RunManifest,
    config: &RunConfig,
    data_key: &str,
) -> Result<(), CheckpointError> {
    let refuse = |reason: String| CheckpointError::Mismatch { path: folder.into(), reason };
    if manifest.status == RunStatus::Finished {
        let reason = "it has finished, but its checkpoints are gone. Start it again with `--overwrite`";
        return Err(refuse(reason.into()));
    }
    if manifest.upcycled_from.is_some() {
        let reason =
            "it was upcycled from a dense checkpoint, and its own checkpoints are gone. Upcycle again";
        return Err(refuse(reason.into()));
    }
    check_same_config(&manifest.config, config, &MAY_CHANGE).map_err(|what| refuse(what + SAME_OR_NEW))?;
    match &manifest.data_key {
        Some(then) if then != data_key => {
            let paths = data_path_words(&config.data);
            Err(refuse(format!("it was begun on data {then}, but {paths} now gives {data_key}")))
        }
        _ => Ok(()),
    }
}

fn check_same_run(checkpoint: &Checkpoint, config: &RunConfig) -> Result<(), CheckpointError> {
    let refuse = |reason: String| CheckpointError::Mismatch { path: checkpoint.path.clone(), reason };
    check_same_config(&json(&checkpoint.config), config, &MAY_CHANGE)
        .map_err(|what| refuse(what + SAME_OR_NEW))
}

/// Ok if the run of `manifest`, once it has finished, is what `config` asks for, whatever computed
/// it.
///
/// # Errors
/// The first key that differs, with both values.
pub fn check_asked_for(manifest: &RunManifest, config: &RunConfig) -> Result<(), String> {
    check_same_config(&manifest.config, config, &CHANGES_NO_RESULT)
}

/// Ok if the two configurations differ in keys of `may_change` and in paths of data only, whose
/// content is compared elsewhere; else the first other difference.
fn check_same_config(before: &Value, now: &RunConfig, may_change: &[&str]) -> Result<(), String> {
    let mut differences = Vec::new();
    collect_differences("", before, &json(now), &mut differences);
    differences.retain(|difference| {
        let inside = |allowed: &&str| {
            difference.key.strip_prefix(*allowed).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        !(may_change.iter().any(inside) || is_data_path(&difference.key))
    });
    let Some(first) = differences.first() else { return Ok(()) };
    Err(format!(
        "`{}` is {} there and {} now ({} key(s) differ)",
        first.key,
        shown(&first.before),
        shown(&first.now),
        differences.len()
    ))
}

/// A value as a message has it.
fn shown(value: &Value) -> String {
    if value.is_null() { "absent".into() } else { value.to_string() }
}

/// What the user should know about going on with another number of steps.
fn notes_on_schedule(checkpoint: &Checkpoint, plan: &RunPlan) -> Vec<String> {
    let (then, now) = (checkpoint.plan.num_steps, plan.num_steps);
    let [before, after] = [&checkpoint.plan.schedule, &plan.schedule];
    let mut done = 0..checkpoint.state.step;
    if then == now || done.all(|step| before.learning_rate(step) == after.learning_rate(step)) {
        return Vec::new();
    }
    vec![format!(
        "`train.num_steps` was {then} and is {now}: the learning rate of the coming steps follows the new length, so \
         this is not the run that {now} steps from the start would have been"
    )]
}

fn json(config: &RunConfig) -> Value {
    serde_json::to_value(config).unwrap_or_default()
}

/// A key whose value differs between two configurations.
#[derive(Debug, PartialEq)]
struct Difference {
    key: String,
    before: Value,
    now: Value,
}

fn collect_differences(key: &str, before: &Value, now: &Value, differences: &mut Vec<Difference>) {
    if let (Value::Object(before), Value::Object(now)) = (before, now) {
        let mut names: Vec<&String> = before.keys().chain(now.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let inner = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
            let value =
                |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
            collect_differences(&inner, &value(before), &value(now), differences);
        }
    } else if let (Value::Array(before), Value::Array(now)) = (before, now)
        && before.len() == now.len()
        && before.iter().chain(now).all(Value::is_object)
    {
        for (index, (before, now)) in before.iter().zip(now).enumerate() {
            collect_differences(&format!("{key}[{index}]"), before, now, differences);
        }
    } else if before != now {
        differences.push(Difference { key: key.into(), before: before.clone(), now: now.clone() });
    }
}

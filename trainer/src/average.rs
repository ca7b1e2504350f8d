//! The mean of several checkpoints of a run: often better than the last of them while the learning rate
//! is high (latest weight averaging, arXiv:2209.14981).

use std::collections::BTreeMap;
use std::path::Path;

use burn::tensor::{Device, TensorData};
use switchyard_model::{ParameterName, Transformer};

use crate::checkpoint::{Checkpoint, CheckpointError, step_name, steps_in};
use crate::run_folder::RunPaths;
use crate::start::with_parameters;

/// The newest `count` checkpoints of the run in the folder `run`, the oldest first.
///
/// # Errors
/// [`CheckpointError::TooFew`] if there are fewer; a checkpoint that cannot be read.
pub fn newest(run: &Path, count: usize) -> Result<Vec<Checkpoint>, CheckpointError> {
    let checkpoints = RunPaths::new(run).checkpoints();
    let steps = if checkpoints.is_dir() { steps_in(&checkpoints)? } else { Vec::new() };
    let Some(first) = steps.len().checked_sub(count) else {
        return Err(CheckpointError::TooFew { path: run.into(), found: steps.len(), asked: count });
    };
    steps[first..].iter().map(|step| Checkpoint::read(&checkpoints.join(step_name(*step)))).collect()
}

/// The network whose parameters are the means of those of `checkpoints`, in f64, on `device`. One
/// checkpoint is read after the other.
///
/// # Errors
/// If there is none, they are of different models, or one cannot be read.
pub fn mean(checkpoints: &[Checkpoint], device: &Device) -> Result<Transformer, CheckpointError> {
    let Some(newest) = checkpoints.last() else {
        let reason = "there is no checkpoint to average".into();
        return Err(CheckpointError::Mismatch { path: Path::new("").into(), reason });
    };
    let mut sums: BTreeMap<ParameterName, Vec<f64>> = BTreeMap::new();
    for checkpoint in checkpoints {
        if checkpoint.plan.model != newest.plan.model {
            let reason = format!("it is of another model than {}", newest.path.display());
            return Err(CheckpointError::Mismatch { path: checkpoint.path.clone(), reason });
        }
        for (name, data) in checkpoint.parameters()? {
            let values = data.iter::<f64>();
            match sums.entry(name) {
                std::collections::btree_map::Entry::Vacant(sum) => {
                    sum.insert(values.collect());
                }
                std::collections::btree_map::Entry::Occupied(mut sum) => {
                    sum.get_mut().iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                }
            }
        }
    }
    let count = checkpoints.len() as f64;
    let initial = Transformer::new(&newest.plan.model, newest.config.seed, device);
    let mean = |(name, sum): (ParameterName, Vec<f64>)| {
        let values: Vec<f32> = sum.into_iter().map(|sum| (sum / count) as f32).collect();
        let num_values = values.len();
        (name, TensorData::new(values, [num_values]))
    };
    Ok(with_parameters(initial, &sums.into_iter().map(mean).collect()))
}

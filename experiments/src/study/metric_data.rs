//! The data of all arms, and whether a study's metric can be had of it.
//!
//! Text is split before it is tokenized, so that arms with tokenizers of their own are judged by the
//! same bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use switchyard_datasets::{DataConfig, Dataset, Progress, prepare};

use super::arms::Arm;
use super::file::LoadedStudy;
use super::metric::Metric;
use crate::failure::Failure;

/// Prepares the data of every arm, asks that the study's metric can be had of it, and returns the
/// baseline's.
///
/// # Errors
/// Data that cannot be had; text whose bytes are not known where they are the metric; a question
/// that a model cannot be asked.
pub(crate) fn prepare_all(
    loaded: &LoadedStudy,
    arms: &[Arm],
    stop: &Arc<AtomicBool>,
) -> Result<Arc<Dataset>, Failure> {
    let mut prepared: BTreeMap<String, Arc<Dataset>> = BTreeMap::new();
    let mut of_arms = Vec::with_capacity(arms.len());
    for arm in arms {
        of_arms.push(prepare_once(&mut prepared, &arm.config.data, stop)?);
    }
    let in_arm = |arm: &Arm, what: String| {
        Failure::Mistake(format!("{}: arm `{}`: {what}", loaded.path.display(), arm.label))
    };
    for (arm, data) in arms.iter().zip(&of_arms) {
        let knows_bytes = data.manifest.held_out().all(|(_, split)| split.num_bytes > 0);
        if loaded.study.question.metric == Metric::BitsPerByte && !knows_bytes {
            let problem = "`question.metric` is \"bits_per_byte\", but the bytes of its data are not known";
            return Err(in_arm(arm, format!("{problem}: judge by \"nats\"")));
        }
        if let Some(questions) = &loaded.questions {
            let checked = questions.check(&data.tokenizer, &arm.plan.model);
            checked.map_err(|error| in_arm(arm, error.to_string()))?;
        }
    }
    Ok(of_arms.swap_remove(0))
}

/// The data of `config`, prepared once for all arms that have it.
fn prepare_once(
    prepared: &mut BTreeMap<String, Arc<Dataset>>,
    config: &DataConfig,
    stop: &Arc<AtomicBool>,
) -> Result<Arc<Dataset>, Failure> {
    let key = serde_json::to_string(config)?;
    if let Some(data) = prepared.get(&key) {
        return Ok(data.clone());
    }
    let data = Arc::new(prepare(config, &Progress::stderr().with_stop(stop.clone()))?);
    prepared.insert(key, data.clone());
    Ok(data)
}

//! The data of all arms, and whether a study's metric can be had of it.
//!
//! Text is split before it is tokenized, so that arms with tokenizers of their own are judged by the
//! same bytes, as long as no tokenizer throws any away.

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
/// Data that cannot be had; where bytes are the metric, text whose bytes are not known, and a tokenizer
/// beside another that does not keep all text; a question that a model cannot be asked.
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
        let has_others = arms.iter().any(|other| other.config.data.tokenizer != arm.config.data.tokenizer);
        if loaded.study.question.metric == Metric::BitsPerByte
            && has_others
            && let Some(loss) = what_is_lost(data)
        {
            let problem =
                "its tokenizer does not keep all text, so that its bytes are not those of the other arms";
            return Err(in_arm(
                arm,
                format!("{problem}: {loss}. Judge arms of one tokenizer, or use another"),
            ));
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

/// Text in several scripts, with all kinds of spaces, that a tokenizer has to give back.
const PROBES: [&str; 6] = [
    "The Cat  sat; it WAS\ton 3.14 mats.\nNext",
    "Kucing itu duduk di atas tikar",
    "جلست القطة على السجادة",
    "猫坐在垫子上。",
    "café naïve Ångström ½ ﬁ",
    "🙂👍🏽",
];

/// What of the text the tokenizer of `data` does not keep; `None` if it gives all back.
fn what_is_lost(data: &Dataset) -> Option<String> {
    let splits = data.manifest.held_out().map(|(_, split)| split).chain([&data.manifest.train]);
    let unknown: u64 = splits.map(|split| split.unknown_tokens).sum();
    if unknown > 0 {
        return Some(format!("{unknown} tokens are unknown ones"));
    }
    let lost_bytes: u64 = data.manifest.held_out().map(|(_, split)| split.lost_bytes).sum();
    if lost_bytes > 0 {
        return Some(format!("{lost_bytes} bytes have no id and are left out"));
    }
    let given_back = |probe: &str| {
        data.tokenizer.encode(probe).and_then(|ids| data.tokenizer.decode(&ids)).unwrap_or_default()
    };
    let changed = PROBES.iter().map(|probe| (*probe, given_back(probe))).find(|(probe, back)| probe != back);
    changed.map(|(probe, back)| format!("{probe:?} comes back as {back:?}"))
}

//! A study: arms that differ in what is asked about and in nothing else, over seeds, learning rates and budgets.
//!
//! | question | module |
//! |---|---|
//! | what the user wrote | [`mod@file`] |
//! | which arms that makes, held equal | [`arms`], solved in [`equality`] |
//! | which runs, and what tells them from any other | [`matrix`], [`identity`] |
//! | what it will cost | [`calibration`], [`forecast`] |
//! | run what is missing | [`execute`] |
//! | what came out | [`outcome`] (rows of the runs), [`analysis`], [`words`] and [`table`], into [`result`] |

mod analysis;
mod arms;
mod calibration;
mod equality;
mod execute;
mod file;
mod forecast;
mod identity;
mod matrix;
mod outcome;
pub(crate) mod result;
mod table;
mod words;

use std::fs;
use std::path::Path;

use crate::failure::Failure;

pub(crate) use analysis::{Evidence, analyse};
pub(crate) use arms::{Arm, RunSettings, held_equal_words, resolve_arms, written_arm};
pub(crate) use calibration::Calibration;
pub(crate) use execute::{Execution, Shard, StudyFolder, run_all, run_missing};
pub(crate) use file::{
    ArmConfig, BudgetConfig, LoadedStudy, PilotConfig, QuestionConfig, StudyFile, check_distinct, check_name,
    is_study, read_toml,
};
pub(crate) use forecast::Forecast;
pub(crate) use identity::{CodeIdentity, DataIdentities, sha256_hex};
pub(crate) use matrix::{PlannedRun, Stage, StudyMatrix};
pub(crate) use outcome::{FinishedRun, finished_runs};

/// The result in a study's folder; absent if the folder is not a study's, or it has none yet.
///
/// # Errors
/// A file that cannot be read or is no result.
pub(crate) fn read_result(folder: &Path) -> Result<Option<result::StudyResult>, Failure> {
    let path = folder.join("result.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = fs::read_to_string(&path)
        .map_err(|error| Failure::Mistake(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::Mistake(format!(
            "{}: not the result of a study: {error}; `switchyard compare STUDY` writes it anew",
            path.display()
        ))
    })
}

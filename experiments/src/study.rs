//! A study: arms that differ in what is asked about and in nothing else, over seeds, learning rates
//! and budgets.
//!
//! | question | module |
//! |---|---|
//! | what the user wrote | [`mod@file`] |
//! | which arms that makes, held equal | [`arms`], solved in [`equality`]; memory by [`measured_memory`] |
//! | which runs, and what tells them from any other | [`matrix`], [`identity`] |
//! | what it will cost | [`calibration`], [`forecast`] |
//! | what was asked and answered before | [`protocol`], [`history`] |
//! | run what is missing | [`execute`] |
//! | what the arms are judged by | [`metric`], [`questions`]; their data, [`metric_data`] |
//! | what came out | [`outcome`] (rows of the runs), [`judged`] (which losses are compared), [`analysis`], [`family`], [`trust`], [`words`] and [`table`], into [`result`] |

mod analysis;
mod arms;
mod calibration;
mod equality;
mod evidence;
mod execute;
mod family;
mod file;
mod finished;
mod forecast;
mod history;
mod identity;
mod judged;
mod matrix;
mod measured_memory;
pub(crate) mod metric;
mod metric_data;
mod outcome;
mod pairs;
mod protocol;
mod questions;
pub(crate) mod result;
mod table;
mod trust;
mod words;

use std::fs;
use std::path::{Component, Path, PathBuf};

use switchyard_ground::printable::excerpt;
use switchyard_ground::regular_file;

use crate::failure::Failure;

/// A study of thousands of runs has some megabytes.
const MAX_RESULT_BYTES: u64 = 1 << 30;

pub(crate) use analysis::analyse;
pub(crate) use arms::{Arm, RunSettings, check_groups, held_equal_words, resolve_arms, written_arm};
pub(crate) use calibration::Calibration;
pub(crate) use evidence::Evidence;
pub(crate) use execute::{Execution, Orders, Shard, StudyFolder, run_all, run_missing};
pub(crate) use file::{
    ArmConfig, BudgetConfig, LoadedStudy, PilotConfig, QuestionConfig, StudyFile, check_distinct, check_name,
    is_study, read_toml,
};
pub(crate) use forecast::Forecast;
pub(crate) use history::{History, register};
pub(crate) use identity::{CodeIdentity, DataIdentities};
pub(crate) use matrix::{PlannedRun, Stage, StudyMatrix};
pub(crate) use measured_memory::equalised;
pub(crate) use metric::Metric;
pub(crate) use metric_data::prepare_all;
pub(crate) use outcome::{FinishedRun, finished_runs};
pub(crate) use protocol::Protocol;
pub(crate) use words::small;

/// The result in a study's folder; `None` if the folder is not a study's, or it has none yet.
///
/// # Errors
/// A file that cannot be read or is no result.
pub(crate) fn read_result(folder: &Path) -> Result<Option<result::StudyResult>, Failure> {
    let path = folder.join("result.json");
    // One that is there but no file is a mistake to tell, not a folder of runs.
    if fs::symlink_metadata(&path).is_err() {
        return Ok(None);
    }
    let text = regular_file::read_to_string(&path, MAX_RESULT_BYTES)
        .map_err(|error| Failure::Mistake(format!("cannot read {}: {error}", path.display())))?;
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::Mistake(format!(
            "{}: not the result of a study: {error}; `switchyard compare STUDY` writes it anew",
            path.display()
        ))
    })
}

/// The folder of a run that the result in `folder` names.
///
/// # Errors
/// A name that leads out of the study's folder.
pub(crate) fn run_of_study(folder: &Path, run: &str) -> Result<PathBuf, Failure> {
    let is_inside =
        !run.is_empty() && Path::new(run).components().all(|part| matches!(part, Component::Normal(_)));
    if !is_inside {
        return Err(Failure::Mistake(format!(
            "{}: `{}` is no run of the study: it leads out of the folder",
            folder.join("result.json").display(),
            excerpt(run, 80)
        )));
    }
    Ok(folder.join(run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_names_runs_inside_its_study_alone() {
        let folder = Path::new("runs/quick");
        assert_eq!(run_of_study(folder, "runs/a-s0").unwrap(), folder.join("runs/a-s0"));
        for run in ["../elsewhere", "/etc", "runs/../../x", ""] {
            assert!(run_of_study(folder, run).is_err(), "{run}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_in_the_place_of_the_result_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_result(folder.path()).unwrap().is_none());
        let pipe = folder.path().join("result.json");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let Err(Failure::Mistake(message)) = read_result(folder.path()) else { panic!("a pipe was read") };
        assert!(message.contains("result.json") && message.contains("not a regular file"), "{message}");
    }
}

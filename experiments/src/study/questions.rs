//! The multiple-choice questions that a study judges its arms by, and what a run answered.
//!
//! A run is asked once it is trained, before its checkpoint is deleted; the answers stay in its
//! folder, with the hash of the questions, so that others are asked anew.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use switchyard_datasets::Tokenizer;
use switchyard_ground::digest::sha256_hex;
use switchyard_ground::regular_file;
use switchyard_model::ModelSpec;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::choices::{self, Answers};
use switchyard_trainer::device;
use switchyard_trainer::token_scores::check_causal;
use switchyard_trainer::train::with_threads;

use super::metric::Metric;
use crate::failure::Failure;
use crate::whole_file;

/// File in a run's folder that holds what it answered.
const ANSWERS: &str = "answers.json";

/// Bytes of such a file: some ten for a question.
const MAX_ANSWERS_BYTES: u64 = 1 << 30;

/// Questions and the file that they were read from.
#[derive(Debug, Clone)]
pub(crate) struct Questions {
    path: PathBuf,
    questions: Vec<choices::Question>,
    identity: QuestionsIdentity,
}

/// What tells questions from others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuestionsIdentity {
    /// SHA-256 of the questions, in hexadecimal.
    pub(crate) sha256: String,
    /// Number of questions.
    pub(crate) num_questions: usize,
    /// Those of them that an earlier one is, word for word.
    #[serde(default)]
    pub(crate) num_repeated: usize,
    /// What stands between a context and a choice.
    pub(crate) delimiter: String,
}

/// Which of the questions a run answered rightly.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunAnswers {
    questions: QuestionsIdentity,
    /// Whether the likeliest choice is right, for each question.
    is_right: Vec<bool>,
    /// Whether the likeliest choice per character is.
    is_right_norm: Vec<bool>,
}

impl Questions {
    /// Those in the JSON lines file at `path`.
    ///
    /// # Errors
    /// The file and the line.
    pub(super) fn read(path: &Path, delimiter: &str) -> Result<Self, TrainError> {
        let questions = choices::read_questions(path)?;
        let distinct: HashSet<&choices::Question> = questions.iter().collect();
        let identity = QuestionsIdentity {
            // Text, lists and numbers: nothing that JSON cannot hold.
            sha256: sha256_hex(serde_json::to_string(&questions).unwrap_or_default()),
            num_repeated: questions.len() - distinct.len(),
            num_questions: questions.len(),
            delimiter: delimiter.into(),
        };
        Ok(Self { path: path.into(), questions, identity })
    }

    /// What tells them from others.
    pub(crate) fn identity(&self) -> &QuestionsIdentity {
        &self.identity
    }

    /// Ok if a `model` can be asked all of them, before any is trained.
    ///
    /// # Errors
    /// A model that sees later tokens; the file, the question and the choice that cannot be scored.
    pub(super) fn check(&self, tokenizer: &Tokenizer, model: &ModelSpec) -> Result<(), TrainError> {
        check_causal(model)?;
        let questions = (&self.questions[..], &*self.path);
        choices::to_score(tokenizer, questions, &self.identity.delimiter, model.max_seq_len).map(|_| ())
    }

    /// Asks the trained run in `folder`, and writes its answers there.
    ///
    /// # Errors
    /// A run without its last checkpoint; if the device fails, or `stop` is set.
    pub(super) fn ask(&self, folder: &Path, num_steps: u64, stop: &AtomicBool) -> Result<(), Failure> {
        let checkpoint = find_checkpoint(folder).ok().map(|path| Checkpoint::read(&path)).transpose()?;
        let Some(checkpoint) = checkpoint.filter(|checkpoint| checkpoint.state.step == num_steps) else {
            return Err(Failure::Mistake(format!(
                "`{}` is trained, but its last checkpoint is not there to be asked the questions of {}: move the folder away or \
                 delete it, and the same command trains it anew (`keep_checkpoints = true` keeps what other questions need)",
                folder.display(),
                self.path.display()
            )));
        };
        let answers = with_threads(checkpoint.config.threads, || self.answers(&checkpoint, stop))?;
        let answers = RunAnswers {
            questions: self.identity.clone(),
            is_right: answers.iter().map(|answers| answers.chosen == answers.answer).collect(),
            is_right_norm: answers.iter().map(|answers| answers.chosen_norm == answers.answer).collect(),
        };
        let text = serde_json::to_string(&answers)? + "\n";
        whole_file::replace(&folder.join(ANSWERS), text.as_bytes()).map_err(Failure::Fault)
    }

    fn answers(&self, checkpoint: &Checkpoint, stop: &AtomicBool) -> Result<Vec<Answers>, TrainError> {
        let device = device::select(&checkpoint.config.device)?;
        let model = checkpoint.model(&device)?;
        let questions = (&self.questions[..], &*self.path);
        choices::answer(&model, &checkpoint.tokenizer, questions, &self.identity.delimiter, &device, stop)
    }

    /// What the run in `folder` answered to these questions; `None` if it was not asked them.
    ///
    /// # Errors
    /// A file that is there and cannot be read.
    pub(super) fn answers_in(&self, folder: &Path) -> Result<Option<RunAnswers>, Failure> {
        let path = folder.join(ANSWERS);
        let text = match regular_file::read_to_string(&path, MAX_ANSWERS_BYTES) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Failure::Fault(anyhow::anyhow!("cannot read {}: {error}", path.display())));
            }
        };
        let answers: RunAnswers = serde_json::from_str(&text).map_err(|error| {
            let remedy = "delete it, and the run is asked anew";
            Failure::Mistake(format!("{}: no answers of a run: {error}; {remedy}", path.display()))
        })?;
        let is_whole = [&answers.is_right, &answers.is_right_norm]
            .iter()
            .all(|right| right.len() == self.identity.num_questions);
        Ok(Some(answers).filter(|answers| answers.questions == self.identity && is_whole))
    }
}

impl RunAnswers {
    /// Whether each question was answered rightly, as a metric of questions counts it.
    pub(super) fn is_right(&self, metric: Metric) -> &[bool] {
        match metric {
            Metric::AccNorm => &self.is_right_norm,
            Metric::Acc | Metric::Nats | Metric::BitsPerByte => &self.is_right,
        }
    }

    /// Share of the questions that were.
    pub(super) fn accuracy(&self, metric: Metric) -> f64 {
        let is_right = self.is_right(metric);
        is_right.iter().filter(|is_right| **is_right).count() as f64 / is_right.len() as f64
    }
}

//! The gate scores of one step, every token against every expert: `scores-<step>.parquet`.

use std::path::{Path, PathBuf};

use super::table::{Column, Table, Values, encode};
use super::{ColumnsError, HeldFolder, file_names, read, remove, step_in_name};

/// One token against one expert of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreRow {
    /// Updates done, this one included.
    pub step: u64,
    /// Index of the Transformer block, from 0.
    pub layer: u32,
    /// Position of the token in the step's batch, from 0, in the order in which the router saw it.
    pub token: u32,
    /// The token's id in the vocabulary.
    pub token_id: u32,
    /// Domain of the document the token is from; `None` without domain tags.
    pub domain: Option<u32>,
    /// Index of the expert, from 0.
    pub expert: u32,
    /// What the gate said of the expert, before any softmax or sigmoid: jitter and noise are in it,
    /// an expert bias, groups and a balanced assignment are not. 0 if the router learns nothing.
    pub logit: f32,
    /// Place of the expert among those that the token chose, from 0; `None` if it was not chosen.
    pub rank: Option<u8>,
    /// Whether the expert took the token: chosen and not over capacity.
    pub kept: bool,
    /// Weight of the expert's output; 0 if it was not chosen.
    pub gate: f32,
}

/// Rows that are in memory at a time while a step is encoded. As rows and as columns a score takes
/// more than 100 bytes, encoded about 10.
const GROUP_ROWS: usize = 1 << 16;

/// The scores of a step as the bytes of their file.
#[derive(Debug)]
pub struct EncodedScores {
    step: u64,
    bytes: Vec<u8>,
}

impl EncodedScores {
    /// The `rows` of `step`, a part of them at a time; `None` without rows.
    ///
    /// # Errors
    /// [`ColumnsError::Unwritable`].
    ///
    /// # Panics
    /// If a row is of another step.
    pub fn new(
        folder: &Path,
        step: u64,
        mut rows: impl Iterator<Item = ScoreRow>,
    ) -> Result<Option<Self>, ColumnsError> {
        let groups = std::iter::from_fn(|| {
            let group: Vec<ScoreRow> = rows.by_ref().take(GROUP_ROWS).collect();
            let other = group.iter().find(|row| row.step != step).map(|row| row.step);
            assert!(other.is_none(), "a score of step {other:?} among those of step {step}");
            (!group.is_empty()).then(|| score_columns(&group))
        });
        let bytes = encode(groups).map_err(|error| ColumnsError::Unwritable {
            path: path_of(folder, step),
            reason: error.to_string(),
        })?;
        Ok(bytes.map(|bytes| Self { step, bytes }))
    }

    /// Writes the file, replacing an earlier recording of the step.
    ///
    /// # Errors
    /// [`ColumnsError::Io`], for example when the disk is full.
    pub fn write(&self, folder: &HeldFolder) -> Result<(), ColumnsError> {
        folder.replace(&name_of(self.step), &self.bytes)
    }
}

/// The scores recorded at `step`, in the order in which they were written.
///
/// # Errors
/// [`ColumnsError::NotRecorded`], which says at which steps there are some;
/// [`ColumnsError::Damaged`]; [`ColumnsError::Io`].
pub fn read_scores(folder: &Path, step: u64) -> Result<Vec<ScoreRow>, ColumnsError> {
    let steps = recorded_score_steps(folder)?;
    if steps.binary_search(&step).is_err() {
        return Err(ColumnsError::NotRecorded {
            folder: folder.into(),
            step,
            recorded: choice(&steps, step),
        });
    }
    read(&path_of(folder, step), score_rows)
}

/// The steps whose scores are in `folder`, ascending.
///
/// # Errors
/// [`ColumnsError::Io`].
pub fn recorded_score_steps(folder: &Path) -> Result<Vec<u64>, ColumnsError> {
    let mut steps: Vec<u64> = file_names(folder)?.into_iter().filter_map(|name| step_of(&name)).collect();
    steps.sort_unstable();
    Ok(steps)
}

/// Drops what comes after `last_step`; `None` drops everything.
pub(super) fn rewind(folder: &Path, last_step: Option<u64>) -> Result<(), ColumnsError> {
    let steps = recorded_score_steps(folder)?;
    let later = steps.into_iter().filter(|&step| last_step.is_none_or(|last_step| step > last_step));
    later.map(|step| path_of(folder, step)).try_for_each(|path| remove(&path))
}

/// The step in the name of a file of scores.
pub(super) fn step_of(name: &str) -> Option<u64> {
    step_in_name(name.strip_prefix("scores-")?.strip_suffix(".parquet")?)
}

fn path_of(folder: &Path, step: u64) -> PathBuf {
    folder.join(name_of(step))
}

fn name_of(step: u64) -> String {
    format!("scores-{step}.parquet")
}

/// What a user can ask for instead of `step`.
fn choice(steps: &[u64], step: u64) -> String {
    let nearest = steps.iter().min_by_key(|other| other.abs_diff(step));
    match (steps, nearest) {
        ([first, .., last], Some(nearest)) => {
            format!("the nearest of the {} steps recorded, {first} to {last}, is {nearest}", steps.len())
        }
        (_, Some(only)) => format!("only step {only} was recorded"),
        (_, None) => {
            "the run has recorded none; `train.flight_recorder.scores_every_steps` says how often it does"
                .into()
        }
    }
}

fn score_columns(rows: &[ScoreRow]) -> Vec<Column> {
    vec![
        Column::new("step", Values::U64(rows.iter().map(|row| row.step).collect())),
        Column::new("layer", Values::U32(rows.iter().map(|row| row.layer).collect())),
        Column::new("token", Values::U32(rows.iter().map(|row| row.token).collect())),
        Column::new("token_id", Values::U32(rows.iter().map(|row| row.token_id).collect())),
        Column::new("domain", Values::OptionalU32(rows.iter().map(|row| row.domain).collect())),
        Column::new("expert", Values::U32(rows.iter().map(|row| row.expert).collect())),
        Column::new("logit", Values::F32(rows.iter().map(|row| row.logit).collect())),
        Column::new("rank", Values::OptionalU32(rows.iter().map(|row| row.rank.map(u32::from)).collect())),
        Column::new("kept", Values::Bool(rows.iter().map(|row| row.kept).collect())),
        Column::new("gate", Values::F32(rows.iter().map(|row| row.gate).collect())),
    ]
}

fn score_rows(table: &Table) -> Result<Vec<ScoreRow>, String> {
    let (steps, layers, tokens) = (table.u64("step")?, table.u32("layer")?, table.u32("token")?);
    let (token_ids, domains) = (table.u32("token_id")?, table.optional_u32("domain")?);
    let (experts, logits, ranks) = (table.u32("expert")?, table.f32("logit")?, table.optional_u32("rank")?);
    let (kept, gates) = (table.bool("kept")?, table.f32("gate")?);
    let small = |rank: u32| u8::try_from(rank).map_err(|_| format!("a rank is {rank}, more than 255"));
    // All columns of a row group have its number of rows, or they could not have been read.
    let row = |i: usize| {
        Ok(ScoreRow {
            step: steps[i],
            layer: layers[i],
            token: tokens[i],
            token_id: token_ids[i],
            domain: domains[i],
            expert: experts[i],
            logit: logits[i],
            rank: ranks[i].map(small).transpose()?,
            kept: kept[i],
            gate: gates[i],
        })
    };
    (0..steps.len()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn record(folder: &Path, step: u64) {
        EncodedScores::new(folder, step, rows(step).into_iter())
            .unwrap()
            .unwrap()
            .write(&HeldFolder::new(folder))
            .unwrap();
    }

    #[test]
    fn many_rows_are_read_in_the_order_in_which_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let row = |token: u32| ScoreRow { token, expert: token % 4, ..rows(5).remove(0) };
        let num_rows = 2 * GROUP_ROWS as u32 + 3;
        let encoded = EncodedScores::new(folder.path(), 5, (0..num_rows).map(row)).unwrap().unwrap();
        encoded.write(&HeldFolder::new(folder.path())).unwrap();
        let read = read_scores(folder.path(), 5).unwrap();
        assert_eq!(read.len(), num_rows as usize);
        assert!(read.iter().zip(0..).all(|(read, token)| *read == row(token)));
        assert!(EncodedScores::new(folder.path(), 5, std::iter::empty()).unwrap().is_none());
    }

    /// Three tokens, four experts, two chosen.
    fn rows(step: u64) -> Vec<ScoreRow> {
        let row = |i: u32| ScoreRow {
            step,
            layer: 1,
            token: i / 4,
            token_id: 7 * (i / 4),
            domain: (i < 8).then_some(i / 4),
            expert: i % 4,
            logit: 0.1 * i as f32 - 0.5,
            rank: [Some(1), None, Some(0), None][(i % 4) as usize],
            kept: i % 4 == 2,
            gate: 1.0 / (i + 1) as f32,
        };
        (0..12).map(row).collect()
    }

    #[test]
    fn scores_are_read_back_as_written() {
        let folder = tempfile::tempdir().unwrap();
        for step in [100, 20, 300] {
            record(folder.path(), step);
        }
        assert_eq!(recorded_score_steps(folder.path()).unwrap(), [20, 100, 300]);
        assert_eq!(read_scores(folder.path(), 100).unwrap(), rows(100));
    }

    #[test]
    fn a_step_without_scores_names_the_nearest_with_some() {
        let folder = tempfile::tempdir().unwrap();
        let message = || read_scores(folder.path(), 95).unwrap_err().to_string();
        assert!(
            message().contains(
                "holds no gate scores of step 95: the run has recorded none; `train.flight_recorder"
            )
        );
        record(folder.path(), 20);
        assert!(message().ends_with("only step 20 was recorded"));
        record(folder.path(), 100);
        assert!(message().ends_with("the nearest of the 2 steps recorded, 20 to 100, is 100"));
    }

    #[test]
    fn a_resumed_run_forgets_the_scores_after_its_checkpoint() {
        let folder = tempfile::tempdir().unwrap();
        for step in [20, 40, 60] {
            record(folder.path(), step);
        }
        rewind(folder.path(), Some(40)).unwrap();
        assert_eq!(recorded_score_steps(folder.path()).unwrap(), [20, 40]);
        rewind(folder.path(), None).unwrap();
        assert!(recorded_score_steps(folder.path()).unwrap().is_empty());
    }

    #[test]
    fn other_files_are_no_recordings() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["scores-1.parquet.tmp", "scores-x.parquet", "experts-1.parquet", "notes.md"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert!(recorded_score_steps(folder.path()).unwrap().is_empty());
        super::super::rewind(folder.path(), None).unwrap();
        let left = ["experts-1.parquet", "notes.md", "scores-x.parquet"];
        assert_eq!(file_names(folder.path()).unwrap(), left);
    }

    #[test]
    #[should_panic(expected = "a score of step Some(3) among those of step 4")]
    fn a_row_of_another_step_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _ = EncodedScores::new(folder.path(), 4, rows(3).into_iter());
    }
}

//! What each expert did in each step: `experts-<first step>-<last step>.parquet`.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::table::{Column, Table, Values};
use super::{ColumnsError, HeldFolder, encoded, file_names, read, remove, step_in_name};
use switchyard_ground::aside::{Why, set_aside};

/// One expert of one layer in one step.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertRow {
    /// Updates done, this one included.
    pub step: u64,
    /// Index of the Transformer block, from 0.
    pub layer: u32,
    /// Index of the expert, from 0.
    pub expert: u32,
    /// Tokens sent to the expert, dropped ones included.
    pub tokens: u64,
    /// Those of them that were over its capacity.
    pub dropped: u64,
    /// Selection bias; `None` without one.
    pub bias: Option<f64>,
    /// Steps since the expert last got a token; 0 if it got one now.
    pub dead_steps: u64,
    /// Gradient norm of the layer's router, before clipping.
    pub router_grad_norm: f64,
    /// Weight norm of the layer's router.
    pub router_weight_norm: f64,
    /// Gradient norm of the expert's weights, before clipping; `None` if it was not measured.
    pub expert_grad_norm: Option<f64>,
    /// Norm of the expert's weights; `None` if it was not measured.
    pub expert_weight_norm: Option<f64>,
}

/// The expert rows of a run in progress. They are buffered: a killed process loses those since the
/// last flush.
#[derive(Debug)]
pub struct ExpertLog {
    folder: HeldFolder,
    steps_per_part: usize,
    num_steps: usize,
    rows: Vec<ExpertRow>,
}

impl ExpertLog {
    /// A log that writes a part after every `steps_per_part` steps to `folder`, which
    /// [`super::rewind`] has prepared.
    pub fn new(folder: &Path, steps_per_part: usize) -> Self {
        Self { folder: HeldFolder::new(folder), steps_per_part, num_steps: 0, rows: Vec::new() }
    }

    /// Adds the rows of one step; steps come in ascending order.
    ///
    /// # Errors
    /// [`ColumnsError::Io`] if a part was due and could not be written; its rows are kept for the
    /// next flush.
    pub fn append(&mut self, rows_of_step: impl IntoIterator<Item = ExpertRow>) -> Result<(), ColumnsError> {
        let num_rows = self.rows.len();
        self.rows.extend(rows_of_step);
        self.num_steps += usize::from(self.rows.len() > num_rows);
        if self.num_steps >= self.steps_per_part { self.flush() } else { Ok(()) }
    }

    /// Returns once the rows so far are on the disk itself. Call it before a checkpoint is written
    /// and when the run ends, so that a resumed run misses none.
    ///
    /// # Errors
    /// [`ColumnsError::Io`]; the rows are kept for the next flush.
    pub fn flush(&mut self) -> Result<(), ColumnsError> {
        write_part(&self.folder, &self.rows)?;
        self.rows.clear();
        self.num_steps = 0;
        Ok(())
    }
}

/// All expert rows in `folder`, by step; none if nothing was recorded.
///
/// # Errors
/// [`ColumnsError::Damaged`], [`ColumnsError::Io`].
pub fn read_experts(folder: &Path) -> Result<Vec<ExpertRow>, ColumnsError> {
    read_experts_between(folder, 0..=u64::MAX)
}

/// The expert rows of these steps, by step; parts without them are not opened.
///
/// # Errors
/// [`ColumnsError::Damaged`], [`ColumnsError::Io`].
pub fn read_experts_between(
    folder: &Path,
    steps: RangeInclusive<u64>,
) -> Result<Vec<ExpertRow>, ColumnsError> {
    let mut all: Vec<ExpertRow> = Vec::new();
    for part in parts(folder)? {
        if part.first > *steps.end() || part.last < *steps.start() {
            continue;
        }
        // A kill inside `rewind` leaves a part beside its shortened copy: no step may come twice.
        let seen = all.last().map(|row| row.step);
        let rows = read(&part.path, expert_rows)?.into_iter();
        all.extend(rows.filter(|row| steps.contains(&row.step) && seen.is_none_or(|seen| row.step > seen)));
    }
    Ok(all)
}

/// Drops what comes after `last_step`; `None` drops everything. A part that must be shortened and
/// cannot be read is set aside; returns what the user should know of it.
pub(super) fn rewind(folder: &Path, last_step: Option<u64>) -> Result<Vec<String>, ColumnsError> {
    let mut notes = Vec::new();
    // The newest go first: whenever this is cut short, the steps that remain have no gap.
    for part in parts(folder)?.into_iter().rev() {
        match last_step {
            Some(last_step) if part.last <= last_step => {}
            Some(last_step) if part.first <= last_step => match read(&part.path, expert_rows) {
                Ok(mut rows) => {
                    rows.retain(|row| row.step <= last_step);
                    write_part(&HeldFolder::new(folder), &rows)?;
                    remove(&part.path)?;
                }
                Err(ColumnsError::Damaged { path, reason }) => {
                    let aside = set_aside(&path, Why::Damaged).map_err(ColumnsError::io("rename", &path))?;
                    let (path, aside) = (path.display(), aside.display());
                    notes.push(format!("`{path}` is damaged: {reason}; it is now `{aside}`"));
                }
                Err(error) => return Err(error),
            },
            _ => remove(&part.path)?,
        }
    }
    Ok(notes)
}

/// A file of expert rows, as its name says.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Part {
    first: u64,
    last: u64,
    path: PathBuf,
}

fn parts(folder: &Path) -> Result<Vec<Part>, ColumnsError> {
    let part = |name: String| {
        let (first, last) = steps_of(&name)?;
        Some(Part { first, last, path: folder.join(&name) })
    };
    let mut parts: Vec<Part> = file_names(folder)?.into_iter().filter_map(part).collect();
    parts.sort();
    Ok(parts)
}

/// First and last step in the name of a part.
pub(super) fn steps_of(name: &str) -> Option<(u64, u64)> {
    let (first, last) = name.strip_prefix("experts-")?.strip_suffix(".parquet")?.split_once('-')?;
    Some((step_in_name(first)?, step_in_name(last)?))
}

fn write_part(folder: &HeldFolder, rows: &[ExpertRow]) -> Result<(), ColumnsError> {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return Ok(()) };
    let name = format!("experts-{}-{}.parquet", first.step, last.step);
    folder.replace(&name, &encoded(&folder.path.join(&name), &expert_columns(rows))?)
}

fn expert_columns(rows: &[ExpertRow]) -> Vec<Column> {
    vec![
        Column::new("step", Values::U64(rows.iter().map(|row| row.step).collect())),
        Column::new("layer", Values::U32(rows.iter().map(|row| row.layer).collect())),
        Column::new("expert", Values::U32(rows.iter().map(|row| row.expert).collect())),
        Column::new("tokens", Values::U64(rows.iter().map(|row| row.tokens).collect())),
        Column::new("dropped", Values::U64(rows.iter().map(|row| row.dropped).collect())),
        Column::new("bias", Values::OptionalF64(rows.iter().map(|row| row.bias).collect())),
        Column::new("dead_steps", Values::U64(rows.iter().map(|row| row.dead_steps).collect())),
        Column::new("router_grad_norm", Values::F64(rows.iter().map(|row| row.router_grad_norm).collect())),
        Column::new(
            "router_weight_norm",
            Values::F64(rows.iter().map(|row| row.router_weight_norm).collect()),
        ),
        Column::new(
            "expert_grad_norm",
            Values::OptionalF64(rows.iter().map(|row| row.expert_grad_norm).collect()),
        ),
        Column::new(
            "expert_weight_norm",
            Values::OptionalF64(rows.iter().map(|row| row.expert_weight_norm).collect()),
        ),
    ]
}

fn expert_rows(table: &Table) -> Result<Vec<ExpertRow>, String> {
    let (steps, layers, experts) = (table.u64("step")?, table.u32("layer")?, table.u32("expert")?);
    let (tokens, dropped, biases) =
        (table.u64("tokens")?, table.u64("dropped")?, table.optional_f64("bias")?);
    let dead_steps = table.u64("dead_steps")?;
    let (router_grads, router_weights) = (table.f64("router_grad_norm")?, table.f64("router_weight_norm")?);
    let (expert_grads, expert_weights) =
        (table.optional_f64("expert_grad_norm")?, table.optional_f64("expert_weight_norm")?);
    // All columns of a row group have its number of rows, or they could not have been read.
    let row = |i: usize| ExpertRow {
        step: steps[i],
        layer: layers[i],
        expert: experts[i],
        tokens: tokens[i],
        dropped: dropped[i],
        bias: biases[i],
        dead_steps: dead_steps[i],
        router_grad_norm: router_grads[i],
        router_weight_norm: router_weights[i],
        expert_grad_norm: expert_grads[i],
        expert_weight_norm: expert_weights[i],
    };
    Ok((0..steps.len()).map(row).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    /// Two experts of one layer; what is absent differs between them.
    fn rows_of_step(step: u64) -> Vec<ExpertRow> {
        let row = |expert: u32| ExpertRow {
            step,
            layer: 3,
            expert,
            tokens: 10 * step + u64::from(expert),
            dropped: u64::from(expert),
            bias: (expert == 1).then_some(-0.25),
            dead_steps: 0,
            router_grad_norm: 0.1 * step as f64,
            router_weight_norm: 2.0,
            expert_grad_norm: (expert == 0).then_some(0.5),
            expert_weight_norm: None,
        };
        (0..2).map(row).collect()
    }

    fn rows(steps: RangeInclusive<u64>) -> Vec<ExpertRow> {
        steps.flat_map(rows_of_step).collect()
    }

    fn recorded(steps: RangeInclusive<u64>, steps_per_part: usize) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        record(folder.path(), steps, steps_per_part);
        folder
    }

    fn record(folder: &Path, steps: RangeInclusive<u64>, steps_per_part: usize) {
        let mut log = ExpertLog::new(folder, steps_per_part);
        steps.for_each(|step| log.append(rows_of_step(step)).unwrap());
        log.flush().unwrap();
    }

    #[test]
    fn a_part_is_written_after_every_n_steps_and_at_a_flush() {
        let folder = recorded(1..=5, 2);
        let names = ["experts-1-2.parquet", "experts-3-4.parquet", "experts-5-5.parquet"];
        assert_eq!(file_names(folder.path()).unwrap(), names);
        assert_eq!(read_experts(folder.path()).unwrap(), rows(1..=5));
        assert_eq!(read_experts_between(folder.path(), 2..=3).unwrap(), rows(2..=3));
    }

    #[test]
    fn nothing_recorded_is_no_rows_and_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = ExpertLog::new(folder.path(), 1);
        log.append(Vec::new()).unwrap();
        log.flush().unwrap();
        assert!(read_experts(folder.path()).unwrap().is_empty());
        assert!(read_experts(&folder.path().join("missing")).unwrap().is_empty());
    }

    #[test]
    fn a_kill_between_a_shortened_part_and_the_removal_of_the_long_one_repeats_no_step() {
        let folder = recorded(1..=6, 6);
        write_part(&HeldFolder::new(folder.path()), &rows(1..=4)).unwrap();
        assert_eq!(read_experts(folder.path()).unwrap(), rows(1..=6));
        super::super::rewind(folder.path(), Some(4)).unwrap();
        assert_eq!(file_names(folder.path()).unwrap(), ["experts-1-4.parquet"]);
        assert_eq!(read_experts(folder.path()).unwrap(), rows(1..=4));
    }

    #[test]
    fn a_failed_flush_keeps_its_rows() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("flight");
        let mut log = ExpertLog::new(&folder, 1);
        let message = log.append(rows_of_step(1)).unwrap_err().to_string();
        assert!(
            message.starts_with("cannot write `") && message.contains("experts-1-1.parquet"),
            "{message}"
        );
        fs::create_dir(&folder).unwrap();
        log.flush().unwrap();
        assert_eq!(read_experts(&folder).unwrap(), rows(1..=1));
    }

    #[test]
    fn a_number_that_is_not_finite_survives() {
        let folder = tempfile::tempdir().unwrap();
        let mut row = rows_of_step(1).remove(0);
        (row.router_grad_norm, row.bias) = (f64::NAN, Some(f64::NEG_INFINITY));
        write_part(&HeldFolder::new(folder.path()), &[row]).unwrap();
        let back = read_experts(folder.path()).unwrap();
        assert!(back[0].router_grad_norm.is_nan());
        assert_eq!(back[0].bias, Some(f64::NEG_INFINITY));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// The oracle is a run that was never stopped.
        #[test]
        fn a_resumed_run_records_what_an_unbroken_one_does(
            stopped_at in 1_u64..20,
            rewound_to in 0_u64..20,
            steps_per_part in 1_usize..7,
        ) {
            let rewound_to = rewound_to.min(stopped_at);
            let folder = recorded(1..=stopped_at, steps_per_part);
            super::super::rewind(folder.path(), Some(rewound_to)).unwrap();
            prop_assert_eq!(read_experts(folder.path()).unwrap(), rows(1..=rewound_to));
            record(folder.path(), rewound_to + 1..=20, steps_per_part);
            prop_assert_eq!(read_experts(folder.path()).unwrap(), rows(1..=20));
        }

        #[test]
        fn every_bit_of_every_column_survives(
            integers in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u32>(), any::<u64>()), 1..40),
            float in prop::num::f64::NORMAL | prop::num::f64::SUBNORMAL | prop::num::f64::ZERO,
            absent in any::<[bool; 3]>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let row = |(i, &(step, layer, expert, tokens)): (usize, &(u64, u32, u32, u64))| ExpertRow {
                step,
                layer,
                expert,
                tokens,
                dropped: tokens / 2,
                bias: (!absent[0] || i % 2 == 0).then_some(float),
                dead_steps: tokens ^ step,
                router_grad_norm: float,
                router_weight_norm: float * i as f64,
                expert_grad_norm: (!absent[1]).then_some(-float),
                expert_weight_norm: (!absent[2]).then_some(float),
            };
            let rows: Vec<_> = integers.iter().enumerate().map(row).collect();
            let path = folder.path().join("experts-0-0.parquet");
            super::super::write(&path, &expert_columns(&rows)).unwrap();
            prop_assert_eq!(read(&path, expert_rows).unwrap(), rows);
        }
    }
}

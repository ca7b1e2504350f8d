//! Rows on their way to other processes.

use std::ops::Range;

use rayon::prelude::*;

use crate::dispatch::SlotMap;
use crate::matrix::Matrix;
use crate::unwritten::Unwritten;

/// Rows of one task.
const TASK_ROWS: usize = 64;

/// Some messages, one behind the other: each some rows and, if rows have values, behind them the
/// values of all its rows.
#[derive(Debug)]
pub struct Messages {
    elements: Vec<f32>,
    lens: Vec<usize>,
}

impl Messages {
    /// One message for each of these ranges, which follow one another, of the rows of tokens, each of
    /// `d` elements.
    ///
    /// # Panics
    /// If there are not as many tokens, rows or values.
    pub fn of_tokens(
        x_td: &[f32],
        d: usize,
        slots: &SlotMap,
        values: Option<&[f32]>,
        ranges: &[Range<usize>],
    ) -> Self {
        let token_offsets: Vec<usize> = slots.token_of_row().map(|token| token * d).collect();
        Self::of_matrix(Matrix::of_rows_at(x_td, d, &token_offsets), values, ranges)
    }

    /// The same of rows that are packed.
    ///
    /// # Panics
    /// If there are not as many rows or values.
    pub fn of_rows(rows: &[f32], d: usize, values: Option<&[f32]>, ranges: &[Range<usize>]) -> Self {
        Self::of_matrix(Matrix::row_major(rows, d), values, ranges)
    }

    fn of_matrix(rows: Matrix<'_>, values: Option<&[f32]>, ranges: &[Range<usize>]) -> Self {
        let d = rows.num_columns();
        let width = d + values.map_or(0, |_| 1);
        let lens: Vec<usize> = ranges.iter().map(|range| range.len() * width).collect();
        let mut elements = Unwritten::new(lens.iter().sum());
        let (mut rest, mut tasks) = (elements.whole(), Vec::new());
        for range in ranges {
            for start in range.clone().step_by(TASK_ROWS) {
                let task = start..range.end.min(start + TASK_ROWS);
                let (target, behind) = rest.split_at(task.len() * d);
                tasks.push((target, rows.rows(task)));
                rest = behind;
            }
            if let Some(values) = values {
                let (target, behind) = rest.split_at(range.len());
                target.fill(|target| target.write_copy_of_slice(&values[range.clone()]));
                rest = behind;
            }
        }
        tasks.into_par_iter().for_each(|(target, rows)| target.into_matrix(d).copy_from(rows));
        Self { elements: elements.into_values(), lens }
    }

    /// The messages.
    pub fn parts(&self) -> Vec<&[f32]> {
        let mut rest = &self.elements[..];
        let mut part_of = |&len: &usize| rest.split_off(..len).expect("as long as all messages");
        self.lens.iter().map(&mut part_of).collect()
    }
}

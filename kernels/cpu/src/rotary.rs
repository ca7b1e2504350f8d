//! The rotary position embedding, of one head.

use std::mem::MaybeUninit;

use crate::matrix::Matrix;
use crate::simd::{LANES, lanes, multiply_add, vectorised, write_lanes, write_scaled};
use crate::unwritten::UnwrittenMatrix;

/// Rows fetched ahead: those of one head lie apart.
const ROWS_AHEAD: usize = 16;

/// Cosines and sines of one head's angles, `[positions, d / 2]` each.
#[derive(Debug, Clone, Copy)]
pub struct Rotation<'a> {
    /// Cosines.
    pub cos: &'a [f32],
    /// Sines.
    pub sin: &'a [f32],
}

vectorised! {
    /// Fills the rows of `to` with `factor` times those of one head at the positions from 0 on,
    /// `[s, d]`, each turned by `sign` times its position's angles, if there are any.
    ///
    /// # Panics
    /// If the shapes differ, a row that is turned has no whole pairs, or there are fewer angles.
    pub(crate) fn write_rotated(
        to: UnwrittenMatrix<'_>,
        head: Matrix<'_>,
        rotation: Option<Rotation<'_>>,
        sign: f32,
        factor: f32,
    ) = write_rotated_rows;
}

#[inline(always)]
fn write_rotated_rows<const FUSED: bool>(
    mut to: UnwrittenMatrix<'_>,
    head: Matrix<'_>,
    rotation: Option<Rotation<'_>>,
    sign: f32,
    factor: f32,
) {
    let half = head.num_columns() / 2;
    assert!(to.shape() == head.shape(), "{head:?} into {:?}", to.shape());
    assert!(rotation.is_none() || head.num_columns() == 2 * half, "pairs of {} columns", head.num_columns());
    for position in 0..head.num_rows() {
        head.prefetch_row(position + ROWS_AHEAD);
        let (to, row) = (to.row_mut(position), head.row(position));
        match rotation {
            None => write_scaled::<FUSED>(to, row, factor),
            Some(Rotation { cos, sin }) => {
                let angles = [cos, sin].map(|table| &table[position * half..][..half]);
                write_turned::<FUSED>(to, row, angles, sign, factor);
            }
        }
    }
    // SAFETY: the loop has written each row: as long as that of `head`, and in pairs if it is
    // turned.
    unsafe { to.assume_written() };
}

/// Fills `to` with `factor` times `row`, its pairs turned by `sign` times the angles.
#[inline(always)]
fn write_turned<const FUSED: bool>(
    to: &mut [MaybeUninit<f32>],
    row: &[f32],
    [cos, sin]: [&[f32]; 2],
    sign: f32,
    factor: f32,
) {
    let (to_a, to_b) = to.split_at_mut(cos.len());
    let (a, b) = row.split_at(cos.len());
    let turned = |a: f32, b: f32, cos: f32, sin: f32| {
        let (cos, sin) = (factor * cos, sign * factor * sin);
        (multiply_add::<FUSED>(a, cos, -b * sin), multiply_add::<FUSED>(b, cos, a * sin))
    };
    let whole = cos.len() / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        let [a, b, cos, sin] = [a, b, cos, sin].map(|row| lanes(row, first));
        let turned = |i: usize| turned(a[i], b[i], cos[i], sin[i]);
        write_lanes(to_a, first, std::array::from_fn(|i| turned(i).0));
        write_lanes(to_b, first, std::array::from_fn(|i| turned(i).1));
    }
    for i in whole..cos.len() {
        let (turned_a, turned_b) = turned(a[i], b[i], cos[i], sin[i]);
        to_a[i].write(turned_a);
        to_b[i].write(turned_b);
    }
}

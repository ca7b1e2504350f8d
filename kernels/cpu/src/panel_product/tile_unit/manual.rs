//! What Intel's manual says that matrix units compute, in plain loops: for every machine, to test what
//! is around the units, and the units themselves where they are.

use super::{Step, TILE_WORDS, TILES_COLUMNS, TILES_ROWS, TileUnit};
use crate::bf16::Bf16;

#[derive(Debug, Clone, Copy)]
pub(super) struct Manual;

impl TileUnit for Manual {
    fn begin(self) {}

    unsafe fn multiply(self, step: &Step, c: *mut f32, c_stride: usize) {
        let &Step { a, a_stride, b, b_stride, num_tiles } = step;
        // SAFETY: the caller's.
        let term = |base: *const f32, stride: usize, row: usize, column: usize| unsafe {
            Bf16::from_bits(base.byte_add(row * stride).cast::<u16>().add(column).read_unaligned()).to_f32()
        };
        for (row, column) in
            (0..TILES_ROWS).flat_map(|row| (0..TILES_COLUMNS).map(move |column| (row, column)))
        {
            let mut sum = 0.0f32;
            for tile in 0..num_tiles {
                // First and second terms of the pairs are summed apart; then come both sums' sum,
                // and the sum of all tiles.
                let mut parts = [0.0f32; 2];
                for word in tile * TILE_WORDS..(tile + 1) * TILE_WORDS {
                    for (half, part) in parts.iter_mut().enumerate() {
                        let a = term(a, a_stride, row, 2 * word + half);
                        let b = term(b, b_stride, word, 2 * column + half);
                        *part = flushed(flushed(a).mul_add(flushed(b), *part));
                    }
                }
                sum = flushed(sum + flushed(parts[0] + parts[1]));
            }
            // SAFETY: the caller's.
            unsafe { c.byte_add(row * c_stride).add(column).write_unaligned(sum) };
        }
    }

    fn end(self) {}
}

/// Subnormal factors and results are zero.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

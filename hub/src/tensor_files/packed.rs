//! Packed forms of weights: numbers of a few bits with a scale for each block of them.

use super::element::Element;

/// Numbers of one block of MXFP4.
pub(super) const MXFP4_BLOCK: usize = 32;
/// The numbers that four bits stand for; the highest is the sign (OCP Microscaling Formats 1.0,
/// table 5).
const FP4: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The matrix `[in, out]` of one expert in MXFP4: blocks of 32 numbers along `in`, the low four bits
/// of a byte first, each block times 2 to the power of its scale minus 127. Every number is exact.
///
/// # Shapes
/// - `blocks`: `[out, in / 32, 16]`; `scales`: `[out, in / 32]`
pub(super) fn mxfp4(blocks: &[u8], scales: &[u8], num_inputs: usize) -> Vec<f32> {
    let num_outputs = scales.len() * MXFP4_BLOCK / num_inputs;
    let mut matrix = vec![0.0; num_inputs * num_outputs];
    for (index, (bytes, scale)) in blocks.chunks_exact(MXFP4_BLOCK / 2).zip(scales).enumerate() {
        let blocks_per_output = num_inputs / MXFP4_BLOCK;
        let (output, first) = (index / blocks_per_output, index % blocks_per_output * MXFP4_BLOCK);
        let factor = 2f32.powi(i32::from(*scale) - 127);
        let numbers = bytes.iter().flat_map(|byte| [byte & 0xf, byte >> 4]);
        for (input, bits) in (first..).zip(numbers) {
            let sign = if bits & 8 == 0 { 1.0 } else { -1.0 };
            matrix[input * num_outputs + output] = sign * FP4[usize::from(bits & 7)] * factor;
        }
    }
    matrix
}

/// A matrix of 8-bit numbers, each square block of them times its scale (DeepSeek-V3,
/// arXiv:2412.19437, section 3.3.2).
///
/// # Shapes
/// - `bytes`: `[rows, columns]`; `scales`: `[ceil(rows / side), ceil(columns / side)]`
pub(super) fn block_scaled_fp8(
    bytes: &[u8],
    scales: &[f32],
    num_columns: usize,
    [block_rows, block_columns]: [usize; 2],
) -> Vec<f32> {
    let mut values = Element::F8E4m3.decode(bytes);
    let scales_per_row = num_columns.div_ceil(block_columns);
    for (row, values) in values.chunks_exact_mut(num_columns).enumerate() {
        for (column, value) in values.iter_mut().enumerate() {
            *value *= scales[row / block_rows * scales_per_row + column / block_columns];
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_bits_come_first_and_each_block_has_its_scale() {
        // Two outputs of 32 inputs: 0.5 and -6 in the first byte, then zeros; twice as large below.
        let mut blocks = vec![0; 32];
        (blocks[0], blocks[16]) = (0xf1, 0x21);
        let matrix = mxfp4(&blocks, &[127, 128], 32);
        assert_eq!(matrix[..4], [0.5, 1.0, -6.0, 2.0]);
        assert!(matrix[4..].iter().all(|value| *value == 0.0));
    }

    #[test]
    fn a_scale_belongs_to_a_square() {
        let one = 0x38;
        let values = block_scaled_fp8(&[one; 6], &[2.0, 3.0, 5.0, 7.0], 3, [1, 2]);
        assert_eq!(values, [2.0, 2.0, 3.0, 5.0, 5.0, 7.0]);
    }
}

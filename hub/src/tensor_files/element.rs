//! Types of stored numbers, and what they are in f32.

use half::{bf16, f16};

/// The type of a stored number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Element {
    /// 64 bits; rounded to f32 when read.
    F64,
    /// 32 bits.
    F32,
    /// 16 bits, IEEE 754.
    F16,
    /// The upper 16 bits of an f32.
    Bf16,
    /// 8 bits: 1 sign, 4 exponent, 3 fraction, no infinity (arXiv:2209.05433).
    F8E4m3,
    /// A byte, of a packed form.
    U8,
    /// 64-bit integers, as in files of references.
    I64,
}

impl Element {
    /// Bytes of one.
    pub(crate) fn num_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4m3 | Self::U8 => 1,
        }
    }

    /// The numbers in `bytes`.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F64 => each(bytes, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F32 => each(bytes, f32::from_le_bytes),
            Self::F16 => each(bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F8E4m3 => each(bytes, |[byte]: [u8; 1]| f8_e4m3(byte)),
            Self::U8 => each(bytes, |[byte]: [u8; 1]| f32::from(byte)),
            Self::I64 => each(bytes, |bytes| i64::from_le_bytes(bytes) as f32),
        }
    }

    /// Appends these numbers to `bytes`, rounded to nearest.
    ///
    /// # Panics
    /// If it is no type that is written.
    pub(crate) fn encode(self, values: &[f32], bytes: &mut Vec<u8>) {
        match self {
            Self::F32 => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::F16 => bytes.extend(values.iter().flat_map(|value| f16::from_f32(*value).to_le_bytes())),
            Self::Bf16 => bytes.extend(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes())),
            Self::F64 | Self::F8E4m3 | Self::U8 | Self::I64 => panic!("{self:?} is not written"),
        }
    }
}

fn each<const N: usize>(bytes: &[u8], decode: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| decode(*bytes)).collect()
}

/// E4M3 without infinities: only `S1111111` is a NaN (arXiv:2209.05433, table 1).
fn f8_e4m3(byte: u8) -> f32 {
    let (exponent, fraction) = (i32::from(byte >> 3 & 0xf), f32::from(byte & 7));
    let magnitude = match (exponent, byte & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction / 8.0 * 2f32.powi(-6),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if byte >> 7 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bit_numbers_are_those_of_the_format() {
        // Largest, smallest normal, largest and smallest subnormal, as published.
        for (byte, expected) in [
            (0x7e, 448.0),
            (0x08, 0.015625),
            (0x07, 0.013671875),
            (0x01, 0.001953125),
            (0x80, -0.0),
            (0xb8, -1.0),
        ] {
            assert_eq!(f8_e4m3(byte), expected, "{byte:#x}");
        }
        assert!(f8_e4m3(0x7f).is_nan() && f8_e4m3(0xff).is_nan());
    }

    #[test]
    fn sixteen_bits_come_back() {
        let values = [1.0, -0.5, 3.140625, 0.0];
        for element in [Element::F32, Element::F16, Element::Bf16] {
            let mut bytes = Vec::new();
            element.encode(&values, &mut bytes);
            assert_eq!(element.decode(&bytes), values, "{element:?}");
        }
    }
}

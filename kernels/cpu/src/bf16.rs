//! bf16: the upper half of an f32, with its range and eight bits of its precision.

use std::fmt::Debug;

use serde::{Deserialize, Serialize};

/// What the factors of products are rounded to, and what may multiply them. Their sums are f32 with
/// any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compute {
    /// Factors are f32.
    #[default]
    F32,
    /// Factors are rounded to bf16, and what a backward pass reads again is kept so.
    Bf16,
    /// The same without matrix units, which have an order of summation of their own: the bits that
    /// every machine has.
    PortableBf16,
}

impl Compute {
    /// Whether factors are rounded to bf16.
    pub fn is_rounded(self) -> bool {
        match self {
            Self::F32 => false,
            Self::Bf16 | Self::PortableBf16 => true,
        }
    }
}

/// A bf16 number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Bf16(u16);

impl Bf16 {
    /// The nearest number, ties to even; those below the smallest normal f32 become zero. As the
    /// x86 instruction `vcvtneps2bf16` rounds, so that every machine has its bits.
    #[inline(always)]
    pub fn from_f32(value: f32) -> Self {
        let bits = value.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let is_subnormal = magnitude < 0x0080_0000;
        let is_nan = magnitude > 0x7f80_0000;
        let nearest = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
        let quiet = bits | 0x0040_0000;
        let bits = if is_nan { quiet } else { nearest };
        let bits = if is_subnormal { value.to_bits() & 0x8000_0000 } else { bits };
        Self((bits >> 16) as u16)
    }

    /// One of the two numbers between which `value` lies, the nearer the likelier: over all values of
    /// the lower half of `random`, the mean is `value`. What is no number stays none.
    #[inline(always)]
    pub fn from_f32_at_random(value: f32, random: u32) -> Self {
        let bits = value.to_bits();
        let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
        // Carries into the upper half as often as the lower half is large.
        let carried = bits.wrapping_add(random & 0xffff);
        let quiet = bits | 0x0040_0000;
        Self(((if is_nan { quiet } else { carried }) >> 16) as u16)
    }

    /// The same number.
    #[inline(always)]
    pub fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.0) << 16)
    }

    /// The number with these bits.
    pub fn from_bits(bits: u16) -> Self {
        Self(bits)
    }

    /// Its bits.
    #[inline(always)]
    pub fn to_bits(self) -> u16 {
        self.0
    }

    /// Numbers as their bits, in the same memory.
    pub fn into_bits(numbers: Vec<Self>) -> Vec<u16> {
        let mut numbers = std::mem::ManuallyDrop::new(numbers);
        // SAFETY: the same layout and allocation, which nobody else has.
        unsafe { Vec::from_raw_parts(numbers.as_mut_ptr().cast(), numbers.len(), numbers.capacity()) }
    }

    /// Bits as numbers, in the same memory.
    pub fn slice_of_bits(bits: &[u16]) -> &[Self] {
        // SAFETY: the same layout, for the same time; all bits are a number's.
        unsafe { &*(std::ptr::from_ref(bits) as *const [Self]) }
    }

    /// As [`Bf16::slice_of_bits`], to be written to.
    pub fn slice_of_bits_mut(bits: &mut [u16]) -> &mut [Self] {
        // SAFETY: the same layout, for the same time; all bits are a number's.
        unsafe { &mut *(std::ptr::from_mut(bits) as *mut [Self]) }
    }
}

/// What rows of products are made of in memory.
pub trait Element: Copy + Debug + Default + PartialEq + Send + Sync + Sized + 'static {
    /// Whether they are what [`Compute::is_rounded`] factors are rounded to.
    const IS_ROUNDED: bool;

    /// The nearest element.
    fn from_f32(value: f32) -> Self;

    /// The same number.
    fn to_f32(self) -> f32;

    /// The nearest bf16.
    fn to_bf16(self) -> Bf16;

    /// The values, if they are such elements already.
    fn unrounded(values: &[f32]) -> Option<&[Self]>;
}

impl Element for f32 {
    const IS_ROUNDED: bool = false;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn to_bf16(self) -> Bf16 {
        Bf16::from_f32(self)
    }

    fn unrounded(values: &[f32]) -> Option<&[Self]> {
        Some(values)
    }
}

impl Element for Bf16 {
    const IS_ROUNDED: bool = true;

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }

    #[inline(always)]
    fn to_bf16(self) -> Bf16 {
        self
    }

    fn unrounded(_: &[f32]) -> Option<&[Self]> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_number_and_ties_to_even() {
        for bits in (0..=u16::MAX).step_by(7) {
            let number = Bf16::from_bits(bits).to_f32();
            if !number.is_normal() {
                continue;
            }
            assert_eq!(Bf16::from_f32(number).to_bits(), bits, "{number} is a number of its own");
            let halfway = f32::from_bits((u32::from(bits) << 16) + 0x8000);
            let even = bits + (bits & 1);
            assert_eq!(Bf16::from_f32(halfway).to_bits(), even, "{halfway} lies between two");
            let above = f32::from_bits((u32::from(bits) << 16) + 0x8001);
            assert_eq!(Bf16::from_f32(above).to_bits(), bits + 1, "{above} lies nearer to the next");
        }
    }

    #[test]
    fn rounding_at_random_keeps_the_mean_and_what_needs_no_rounding() {
        for value in [1.0f32, -1.0, 0.1, -0.1, 3.0e-20, -7.7e30, 1e-40, 0.0, 255.3] {
            let rounded = |random: u32| Bf16::from_f32_at_random(value, random).to_f32();
            let mut sum = 0.0;
            let below = f32::from_bits(value.to_bits() & 0xffff_0000);
            let above = f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000);
            for random in 0..=0xffff {
                let one = rounded(random);
                assert!(one == below || (one == above && value != below), "{value} becomes {one}");
                sum += f64::from(one);
            }
            let mean = sum / 65536.0;
            // A sum of 65536 doubles.
            assert!((mean - f64::from(value)).abs() <= 1e-11 * f64::from(value).abs(), "{value}: {mean}");
        }
        for random in [0, 1, 0x8000, 0xffff, 0xffff_ffff] {
            for nan in [f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)] {
                assert!(Bf16::from_f32_at_random(nan, random).to_f32().is_nan());
            }
            assert_eq!(Bf16::from_f32_at_random(f32::NEG_INFINITY, random).to_f32(), f32::NEG_INFINITY);
        }
    }

    #[test]
    fn what_is_no_normal_number_stays_what_it_is_but_subnormal_numbers_are_zero() {
        assert!(Bf16::from_f32(f32::NAN).to_f32().is_nan());
        // A NaN whose upper half alone would be an infinity.
        assert!(Bf16::from_f32(f32::from_bits(0x7f80_0001)).to_f32().is_nan());
        assert_eq!(Bf16::from_f32(f32::NEG_INFINITY).to_f32(), f32::NEG_INFINITY);
        assert_eq!(Bf16::from_f32(f32::MAX).to_f32(), f32::INFINITY);
        assert_eq!(Bf16::from_f32(-1e-40).to_f32().to_bits(), (-0.0f32).to_bits());
        assert_eq!(Bf16::from_f32(-0.0).to_f32().to_bits(), (-0.0f32).to_bits());
    }
}

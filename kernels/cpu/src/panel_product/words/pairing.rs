//! What brings pairs of terms together for tiles.

#[cfg(test)]
mod portable;

use std::mem::MaybeUninit;

use super::Loads;
#[cfg(target_arch = "x86_64")]
use super::avx512bf16::Avx512Bf16;

/// What rounds terms and lays them side by side.
#[derive(Debug, Clone, Copy)]
pub(in crate::panel_product) enum Pairing {
    /// Every CPU that has matrix units has these instructions.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// Plain loops, so that what is around matrix units is tested on every machine.
    #[cfg(test)]
    Portable,
}

impl Pairing {
    /// Fills `to` with the pairs of a row; a missing second term is zero.
    pub(super) fn along<E: Loads>(self, to: &mut [MaybeUninit<f32>], row: &[E]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(cpu) => cpu.pair_along(to, row),
            #[cfg(test)]
            Self::Portable => portable::pair_along(to, row),
        }
    }

    /// Fills `to` with pairs of two rows' terms; those of a missing row are zero.
    pub(super) fn across<E: Loads>(
        self,
        to: &mut [MaybeUninit<f32>],
        first: Option<&[E]>,
        second: Option<&[E]>,
    ) {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(cpu) => cpu.pair_across(to, first, second),
            #[cfg(test)]
            Self::Portable => portable::pair_across(to, [first, second]),
        }
    }
}

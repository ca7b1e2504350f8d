//! What multiplies factors on this machine.

use serde::{Deserialize, Serialize};

#[cfg(target_arch = "x86_64")]
use super::tile_unit::amx::{self, AmxProducts};
#[cfg(target_arch = "x86_64")]
use super::words::avx512bf16::{self, Avx512Bf16};
use crate::bf16::Compute;

/// What multiplies the factors of products on one machine, and thereby which bits they have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Products {
    /// f32 instructions, factors in f32.
    F32,
    /// f32 instructions, on factors that are rounded to bf16: there are no others, or they are
    /// slower.
    RoundedF32,
    /// Instructions for pairs of bf16, AVX512-BF16: the bits of `RoundedF32`.
    Avx512Bf16,
    /// Intel's matrix units, AMX-BF16: other bits, for sums are of another order.
    Amx,
}

impl Products {
    /// What multiplies on this machine, which is found out the first time it is asked.
    pub fn of(compute: Compute) -> Self {
        if !compute.is_rounded() {
            return Self::F32;
        }
        match Unit::of(compute) {
            #[cfg(target_arch = "x86_64")]
            Unit::Amx(_) => Self::Amx,
            #[cfg(target_arch = "x86_64")]
            Unit::Avx512Bf16(_) => Self::Avx512Bf16,
            Unit::F32 => Self::RoundedF32,
        }
    }

    /// Whether the products of both have the same bits.
    pub fn has_bits_of(self, other: Self) -> bool {
        let portable = |products| match products {
            Self::Avx512Bf16 => Self::RoundedF32,
            _ => products,
        };
        portable(self) == portable(other)
    }
}

/// What multiplies rounded factors, with what proves that it is there.
pub(super) enum Unit {
    #[cfg(target_arch = "x86_64")]
    Amx(AmxProducts),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    F32,
}

impl Unit {
    /// The fastest here that has the bits that are asked for.
    pub(super) fn of(compute: Compute) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if compute == Compute::Bf16
                && let Some(units) = amx::if_faster()
            {
                return Self::Amx(units);
            }
            if let Some(cpu) = avx512bf16::if_faster() {
                return Self::Avx512Bf16(cpu);
            }
        }
        let _ = compute;
        Self::F32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matrix_units_alone_have_bits_of_their_own() {
        use Products::{Amx, Avx512Bf16, F32, RoundedF32};
        let kinds = [vec![F32], vec![RoundedF32, Avx512Bf16], vec![Amx]];
        for (i, first) in kinds.iter().enumerate() {
            for (j, second) in kinds.iter().enumerate() {
                for (&a, &b) in first.iter().flat_map(|a| second.iter().map(move |b| (a, b))) {
                    assert_eq!(a.has_bits_of(b), i == j, "{a:?} and {b:?}");
                }
            }
        }
    }

    #[test]
    fn without_matrix_units_products_have_the_bits_of_every_machine() {
        assert_eq!(Products::of(Compute::F32), Products::F32);
        assert!(Products::of(Compute::PortableBf16).has_bits_of(Products::RoundedF32));
        assert_ne!(Products::of(Compute::Bf16), Products::F32);
    }
}

//! Pairs of bf16 by the instructions of AVX512-BF16.

use std::arch::x86_64::{
    __m512, __m512i, _mm256_loadu_si256, _mm512_castsi256_si512, _mm512_castsi512_si256, _mm512_cvtne2ps_pbh,
    _mm512_dpbf16_ps, _mm512_inserti64x4, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_storeu_epi16,
    _mm512_mask_storeu_epi32, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_permutexvar_epi16,
    _mm512_storeu_si512,
};
use std::mem::{MaybeUninit, transmute, transmute_copy};
use std::sync::OnceLock;
use std::time::Duration;

use pulp::Simd;
use pulp::x86::V4;

use crate::bf16::{Bf16, Element};
use crate::panel_product::multiply::{Fused, Multiply};
use crate::panel_product::trial::shortest;

/// Lanes of a register.
const LANES: usize = 16;

/// The instructions, on a CPU that has them.
#[derive(Debug, Clone, Copy)]
pub(in crate::panel_product) struct Avx512Bf16 {
    avx512: V4,
}

impl Avx512Bf16 {
    /// The instructions, if the CPU has them.
    pub(in crate::panel_product) fn try_new() -> Option<Self> {
        let avx512 = V4::try_new()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self { avx512 })
    }

    /// Runs a product compiled with the instructions.
    pub(in crate::panel_product) fn run(self, product: impl pulp::WithSimd) {
        #[target_feature(
            enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,bmi1,bmi2,lzcnt,popcnt"
        )]
        fn with_bf16(avx512: V4, product: impl pulp::WithSimd) {
            product.with_simd(avx512);
        }
        // SAFETY: the CPU has what `V4` stands for, and AVX512-BF16.
        unsafe { with_bf16(self.avx512, product) }
    }

    /// Fills `to` with the pairs of a row; a missing second term is zero.
    pub(super) fn pair_along<E: Loads>(self, to: &mut [MaybeUninit<f32>], row: &[E]) {
        assert_eq!(to.len(), row.len().div_ceil(2), "pairs of {} terms", row.len());
        // SAFETY: the CPU has the instructions, and there is room for the pairs.
        unsafe { pair_along(to.as_mut_ptr().cast(), row) }
    }

    /// Fills `to` with pairs of two rows' terms; those of a missing row are zero.
    pub(super) fn pair_across<E: Loads>(
        self,
        to: &mut [MaybeUninit<f32>],
        first: Option<&[E]>,
        second: Option<&[E]>,
    ) {
        let [first, second] = [first, second].map(Option::unwrap_or_default);
        assert!(
            [first, second].iter().all(|row| row.is_empty() || row.len() == to.len()),
            "rows of {} and {} terms in {} pairs",
            first.len(),
            second.len(),
            to.len()
        );
        // SAFETY: the CPU has the instructions, and each row is as long as there are pairs, or empty.
        unsafe { pair_across(to, first, second) }
    }
}

/// The instructions, if the CPU has them and they multiply faster than f32 does. Some have them at a
/// quarter of the rate of f32 (measured on Emerald Rapids), others at the same (Zen 4). The bits
/// are the same, so a wrong answer costs nothing but time.
pub(in crate::panel_product) fn if_faster() -> Option<Avx512Bf16> {
    static FASTER: OnceLock<Option<Avx512Bf16>> = OnceLock::new();
    *FASTER.get_or_init(|| Avx512Bf16::try_new().filter(|cpu| cpu.is_faster_than_f32()))
}

impl Avx512Bf16 {
    fn is_faster_than_f32(self) -> bool {
        let [pairs, terms] = self.trials();
        pairs < terms
    }

    /// What as many terms as those of [`TRIAL_PAIRS`] take: by these instructions, and by f32.
    pub(in crate::panel_product) fn trials(self) -> [Duration; 2] {
        // SAFETY: the CPU has the instructions.
        let pairs = shortest(|| unsafe { chains(self.avx512, self, TRIAL_WORDS) });
        // SAFETY: as above.
        let terms = shortest(|| unsafe { chains(self.avx512, Fused, 2 * TRIAL_WORDS) });
        [pairs, terms]
    }
}

/// Words that each lane multiplies in a trial: some twenty microseconds.
const TRIAL_WORDS: usize = 2048;
/// Products of pairs in a trial.
pub(in crate::panel_product) const TRIAL_PAIRS: usize = TRIAL_WORDS * CHAINS * LANES;
/// Sums at a time, as in a tile.
const CHAINS: usize = 24;

/// Multiplies from registers, so many words in each chain.
#[target_feature(enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,bmi1,bmi2,lzcnt,popcnt")]
fn chains<M: Multiply>(avx512: V4, multiply: M, num_words: usize) {
    let [a, b] = [0.5, 0.25].map(|value| std::hint::black_box(avx512.splat_f32s(value)));
    let mut sums = [avx512.splat_f32s(0.0); CHAINS];
    for _ in 0..num_words {
        for sum in &mut sums {
            *sum = multiply.multiply_add(avx512, a, b, *sum);
        }
    }
    std::hint::black_box(sums);
}

impl Multiply for Avx512Bf16 {
    #[inline(always)]
    fn multiply_add<S: Simd>(self, _simd: S, a: S::f32s, b: S::f32s, sum: S::f32s) -> S::f32s {
        const { assert!(size_of::<S::f32s>() == size_of::<__m512>(), "only with registers of 512 bits") }
        // SAFETY: the CPU has the instructions; the registers are of the same bits.
        unsafe {
            transmute_copy(&_mm512_dpbf16_ps(transmute_copy(&sum), transmute_copy(&a), transmute_copy(&b)))
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pair_along<E: Loads>(to: *mut u16, row: &[E]) {
    let whole = row.len() / (2 * LANES) * 2 * LANES;
    // SAFETY: the parts lie within the row, and there is room for as many, rounded up to a pair.
    unsafe {
        for first in (0..whole).step_by(2 * LANES) {
            _mm512_storeu_si512(to.add(first).cast(), E::load32(row.as_ptr().add(first)));
        }
        if whole < row.len() {
            let rest = row.len() - whole;
            let terms = E::load32_part(row.as_ptr().add(whole), rest);
            _mm512_mask_storeu_epi16(to.add(whole).cast(), mask32(rest.next_multiple_of(2)), terms);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pair_across<E: Loads>(to: &mut [MaybeUninit<f32>], first: &[E], second: &[E]) {
    let len = to.len();
    let to: *mut i32 = to.as_mut_ptr().cast();
    let whole = if second.is_empty() || first.is_empty() { 0 } else { len / LANES * LANES };
    // SAFETY: the parts lie within the rows that are there, and there are as many pairs.
    unsafe {
        for start in (0..whole).step_by(LANES) {
            let pairs = E::pair16(first.as_ptr().add(start), second.as_ptr().add(start));
            _mm512_storeu_si512(to.add(start).cast(), pairs);
        }
        for start in (whole..len).step_by(LANES) {
            let lens = [first, second].map(|row| row.len().saturating_sub(start).min(LANES));
            let [first, second] = [first, second].map(|row| row.as_ptr().wrapping_add(start));
            let pairs = E::pair16_part(first, second, lens);
            _mm512_mask_storeu_epi32(to.add(start), mask16(len - start), pairs);
        }
    }
}

/// Elements that the instructions round, or take as they are.
///
/// # Safety
/// Of all methods: the CPU has AVX-512 F, BW and BF16, and the elements are there.
pub(in crate::panel_product) trait Loads: Element {
    /// 32 elements that follow one another.
    unsafe fn load32(at: *const Self) -> __m512i;

    /// The first of 32, and zeros.
    unsafe fn load32_part(at: *const Self, len: usize) -> __m512i;

    /// Sixteen elements of two rows, side by side: those of the first row in the lower halves.
    unsafe fn pair16(first: *const Self, second: *const Self) -> __m512i;

    /// The first of sixteen, as many as given for each row, and zeros.
    unsafe fn pair16_part(first: *const Self, second: *const Self, lens: [usize; 2]) -> __m512i;
}

#[inline(always)]
fn mask16(len: usize) -> u16 {
    ((1u32 << len.min(16)) - 1) as u16
}

#[inline(always)]
fn mask32(len: usize) -> u32 {
    ((1u64 << len.min(32)) - 1) as u32
}

/// Lower and upper half of a register, element by element.
#[inline(always)]
unsafe fn interleaved(halves: __m512i) -> __m512i {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 16 {
            order[2 * i] = i as u16;
            order[2 * i + 1] = 16 + i as u16;
            i += 1;
        }
        order
    };
    // SAFETY: as the trait says.
    unsafe { _mm512_permutexvar_epi16(transmute::<[u16; 32], __m512i>(ORDER), halves) }
}

#[inline(always)]
unsafe fn rounded(low: __m512, high: __m512) -> __m512i {
    // SAFETY: as the trait says.
    unsafe { transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

impl Loads for f32 {
    #[inline(always)]
    unsafe fn load32(at: *const Self) -> __m512i {
        // SAFETY: as the trait says.
        unsafe { rounded(_mm512_loadu_ps(at), _mm512_loadu_ps(at.add(LANES))) }
    }

    #[inline(always)]
    unsafe fn load32_part(at: *const Self, len: usize) -> __m512i {
        // SAFETY: as the trait says; what is masked out is not read.
        unsafe {
            let low = _mm512_maskz_loadu_ps(mask16(len), at);
            let high = _mm512_maskz_loadu_ps(mask16(len.saturating_sub(LANES)), at.wrapping_add(LANES));
            rounded(low, high)
        }
    }

    #[inline(always)]
    unsafe fn pair16(first: *const Self, second: *const Self) -> __m512i {
        // SAFETY: as the trait says.
        unsafe { interleaved(rounded(_mm512_loadu_ps(first), _mm512_loadu_ps(second))) }
    }

    #[inline(always)]
    unsafe fn pair16_part(first: *const Self, second: *const Self, lens: [usize; 2]) -> __m512i {
        // SAFETY: as the trait says; what is masked out is not read.
        unsafe {
            let first = _mm512_maskz_loadu_ps(mask16(lens[0]), first);
            let second = _mm512_maskz_loadu_ps(mask16(lens[1]), second);
            interleaved(rounded(first, second))
        }
    }
}

impl Loads for Bf16 {
    #[inline(always)]
    unsafe fn load32(at: *const Self) -> __m512i {
        // SAFETY: as the trait says.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn load32_part(at: *const Self, len: usize) -> __m512i {
        // SAFETY: as the trait says; what is masked out is not read.
        unsafe { _mm512_maskz_loadu_epi16(mask32(len), at.cast()) }
    }

    #[inline(always)]
    unsafe fn pair16(first: *const Self, second: *const Self) -> __m512i {
        // SAFETY: as the trait says.
        unsafe {
            let first = _mm512_castsi256_si512(_mm256_loadu_si256(first.cast()));
            interleaved(_mm512_inserti64x4::<1>(first, _mm256_loadu_si256(second.cast())))
        }
    }

    #[inline(always)]
    unsafe fn pair16_part(first: *const Self, second: *const Self, lens: [usize; 2]) -> __m512i {
        // SAFETY: as the trait says; what is masked out is not read.
        unsafe {
            let first = _mm512_maskz_loadu_epi16(mask32(lens[0].min(LANES)), first.cast());
            let second = _mm512_maskz_loadu_epi16(mask32(lens[1].min(LANES)), second.cast());
            interleaved(_mm512_inserti64x4::<1>(first, _mm512_castsi512_si256(second)))
        }
    }
}

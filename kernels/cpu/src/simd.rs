//! Loops compiled for the vectors of the CPU that runs them.

use std::mem::MaybeUninit;

/// Vector lanes of the loops in this crate: one AVX-512 register of `f32`, two AVX2 registers.
pub(crate) const LANES: usize = 16;

/// `a * b + c`, rounded once if `FUSED`. Without hardware support a fused operation is a slow
/// library call, so the portable version of a loop rounds twice.
#[inline(always)]
pub(crate) fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// The lanes of `row` from `first` on.
#[inline(always)]
pub(crate) fn lanes(row: &[f32], first: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&row[first..first + LANES]);
    lanes
}

/// Replaces the lanes of `row` from `first` on.
#[inline(always)]
pub(crate) fn write_lanes(row: &mut [MaybeUninit<f32>], first: usize, lanes: [f32; LANES]) {
    row[first..first + LANES].write_copy_of_slice(&lanes);
}

/// Fills `to` with `factor` times `row`.
#[inline(always)]
pub(crate) fn write_scaled<const FUSED: bool>(to: &mut [MaybeUninit<f32>], row: &[f32], factor: f32) {
    let whole = row.len() / LANES * LANES;
    for first in (0..whole).step_by(LANES) {
        write_lanes(to, first, lanes(row, first).map(|value| factor * value));
    }
    for (to, value) in to[whole..].iter_mut().zip(&row[whole..]) {
        to.write(factor * value);
    }
}

/// The largest element, lane by lane; minus infinity of an empty row. Loses NaN, which a sum of the
/// row's exponentials finds again.
#[inline(always)]
pub(crate) fn max_of_row<const FUSED: bool>(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut max_lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (max, &value) in max_lanes.iter_mut().zip(chunk) {
            // `f32::max` would compile to more instructions.
            *max = if value > *max { value } else { *max };
        }
    }
    let mut max = max_lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    for &value in rest {
        max = if value > max { value } else { max };
    }
    max
}

/// Starts to bring the line of `element` into the second-level cache; a hint, without effect on
/// some CPUs.
#[inline(always)]
pub(crate) fn prefetch<T>(element: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: prefetching reads no value and belongs to SSE, which every 64-bit x86 has.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(element).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = element;
}

/// Defines a function that runs `$body::<FUSED>` compiled for the widest vectors that the CPU has.
/// The body must be `#[inline(always)]`: it takes the instruction set of the function that it is
/// inlined into.
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident $(<$($generic:ident: $bound:path),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $out:ty)?
            = $body:ident;
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn with_avx512 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
                    $body::<$($($generic,)+)? true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn with_avx2 $(<$($generic: $bound),+>)? ($($arg: $ty),*) $(-> $out)? {
                    $body::<$($($generic,)+)? true>($($arg),*)
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the CPU has AVX-512F, the only feature that the function needs.
                    return unsafe { with_avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: the CPU has AVX2 and FMA, the only features that the function needs.
                    return unsafe { with_avx2($($arg),*) };
                }
            }
            // Every 64-bit ARM fuses in its baseline.
            $body::<$($($generic,)+)? { cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use vectorised;

vectorised! {
    /// The sum of the products of two rows.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 = dot_of_rows;
}

#[inline(always)]
fn dot_of_rows<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum = multiply_add::<FUSED>(a, b, *sum);
        }
    }
    let mut sum = sums.iter().sum();
    for (a, b) in a_rest.iter().zip(b_rest) {
        sum += a * b;
    }
    sum
}

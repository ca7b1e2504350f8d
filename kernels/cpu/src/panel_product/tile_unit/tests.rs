//! Products by matrix units, bit for bit against plain loops: by what the manual says on every machine,
//! by the machine code on any x86-64 with Linux, and by the units where they are.

use std::mem::MaybeUninit;

use proptest::prelude::*;
use pulp::{Scalar512b, Simd};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use rayon::prelude::*;

use super::manual::Manual;
use super::{Session, TileUnit};
use crate::bf16::{Bf16, Compute};
use crate::matrix::Matrix;
use crate::panel_product::target::Target;
use crate::panel_product::words::Words;
use crate::panel_product::words::pairing::Pairing;
use crate::panel_product::{Factor, MANY_REGISTERS, Product, READ_BEYOND_DIAGONAL, Stored, Tiled, Triangle};

type Multiply = fn(Product<'_>);

/// Terms whose sums are added to those of the terms before.
const BLOCK_TERMS: usize = 512;
/// Terms that are summed before they are added to a sum.
const TILE_TERMS: usize = 32;

/// What is emulated, unless this machine has the units.
const MACHINE_CODE: &str = "the machine code";

fn run_portably(unit: impl TileUnit, product: Product<'_>) {
    let (session, words) = (Session::begin(unit), Words::Tiles(Pairing::Portable));
    Simd::vectorize(Scalar512b, Tiled::<_, MANY_REGISTERS> { product, multiply: &session, words });
}

/// The product by everything that does what the units do.
fn all_ways() -> Vec<(&'static str, Multiply)> {
    let mut ways: Vec<(&'static str, Multiply)> =
        vec![("the manual", |product| run_portably(Manual, product))];
    #[cfg(target_arch = "x86_64")]
    {
        use super::amx::AmxProducts;
        use crate::panel_product::words::avx512bf16::Avx512Bf16;
        if Avx512Bf16::try_new().is_some() {
            ways.push(("the manual, words by AVX512-BF16", |product| {
                let cpu = Avx512Bf16::try_new().unwrap();
                let (session, words) = (Session::begin(Manual), Words::Tiles(Pairing::Avx512Bf16(cpu)));
                cpu.run(Tiled::<_, MANY_REGISTERS> { product, multiply: &session, words });
            }));
        }
        if AmxProducts::try_new().is_some() {
            ways.push(("the units", |product| AmxProducts::try_new().unwrap().run(product)));
        }
        #[cfg(target_os = "linux")]
        ways.push((MACHINE_CODE, |product| run_portably(super::emulated::units(), product)));
    }
    ways
}

fn irregular(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) as f32 * 0.37).sin() * 3.0).collect()
}

fn rounded(values: &[f32]) -> Vec<Bf16> {
    values.iter().map(|&value| Bf16::from_f32(value)).collect()
}

fn transposed<T: Copy>(values: &[T], [rows, columns]: [usize; 2]) -> Vec<T> {
    (0..rows * columns).map(|at| values[at % rows * columns + at / rows]).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// `c + a w`, blocks of `block_terms` added in order.
fn reference(c: Option<&[f32]>, [a, w]: [&[f32]; 2], [m, k, n]: [usize; 3], block_terms: usize) -> Vec<f32> {
    let [a, w] = [a, w].map(|x| rounded(x).into_iter().map(Bf16::to_f32).collect::<Vec<_>>());
    let element = |at: usize| {
        let (i, j) = (at / n, at % n);
        let mut total = c.map(|c| c[at]);
        for block in (0..k).step_by(block_terms) {
            let block_end = k.min(block + block_terms);
            let mut sum = 0.0f32;
            for tile in (block..block_end).step_by(TILE_TERMS) {
                let end = block_end.min(tile + TILE_TERMS);
                let part = |first: usize| {
                    (first..end).step_by(2).fold(0.0f32, |sum, p| a[i * k + p].mul_add(w[p * n + j], sum))
                };
                sum += part(tile) + part(tile + 1);
            }
            total = Some(total.map_or(sum, |total| total + sum));
        }
        total.unwrap_or(0.0)
    };
    (0..m * n).map(element).collect()
}

/// A matrix as rows and as columns, in f32 and in bf16.
struct Stores {
    values: [Vec<f32>; 2],
    rounded: [Vec<Bf16>; 2],
    shape: [usize; 2],
}

impl Stores {
    fn new(values: &[f32], shape: [usize; 2]) -> Self {
        let values = [values.to_vec(), transposed(values, shape)];
        Self { rounded: values.each_ref().map(|values| rounded(values)), values, shape }
    }

    /// Four.
    fn factors(&self) -> Vec<Factor<'_>> {
        fn both<E: Stored>([rows, columns]: &[Vec<E>; 2], [m, n]: [usize; 2]) -> [Factor<'_>; 2] {
            [
                E::factor(Matrix::strided(rows, [m, n], [n, 1])),
                E::factor(Matrix::strided(columns, [n, m], [m, 1]).transposed()),
            ]
        }
        [both(&self.values, self.shape), both(&self.rounded, self.shape)].concat()
    }
}

/// All ways, of factors in either orientation and of either type, to replace and to add to.
fn check_bits([m, k, n]: [usize; 3]) {
    let (a, w) = (irregular(m * k, 1), irregular(k * n, 2));
    let (lefts, rights) = (Stores::new(&a, [m, k]), Stores::new(&w, [k, n]));
    for add in [false, true] {
        let before = irregular(m * n, 3);
        let expected = bits(&reference(add.then_some(&before[..]), [&a, &w], [m, k, n], BLOCK_TERMS));
        for (way, multiply) in all_ways() {
            for [i, j] in (0..16).map(|pair| [pair / 4, pair % 4]) {
                if way == MACHINE_CODE && i != j {
                    // It is slow there, and sees words alone.
                    continue;
                }
                let (left, right) = (lefts.factors()[i], rights.factors()[j]);
                let mut c = before.clone();
                multiply(Product::new(Target::values(&mut c, add), left, right, Compute::Bf16));
                assert_eq!(
                    bits(&c),
                    expected,
                    "{way}, {m} x {k} x {n}, {left:?} times {right:?}, added: {add}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products_by_tiles_have_the_bits_of_the_definition(m in 1_usize..=70, k in 1_usize..=70, n in 1_usize..=150) {
        check_bits([m, k, n]);
    }
}

#[test]
fn products_by_tiles_of_several_blocks_have_the_bits_of_the_definition() {
    for shape in
        [[7, BLOCK_TERMS + 1, 17], [33, 2 * BLOCK_TERMS + 41, 70], [64, BLOCK_TERMS, 130], [32, 32, 32]]
    {
        check_bits(shape);
    }
}

/// However deep they are, so that they are rounded once.
#[test]
fn results_in_bf16_by_tiles_are_sums_of_all_terms_rounded_once() {
    for [m, k, n] in [[5, 40, 70], [39, 3 * BLOCK_TERMS + 1, 90], [2, 40_000, 33]] {
        let (a, w) = (irregular(m * k, 1), irregular(k * n, 2));
        let expected = rounded(&reference(None, [&a, &w], [m, k, n], k.next_multiple_of(TILE_TERMS)));
        for (way, multiply) in all_ways() {
            let mut c = vec![MaybeUninit::new(Bf16::from_f32(f32::NAN)); m * n];
            let [a, w] = [Matrix::row_major(&a, k), Matrix::row_major(&w, n)].map(Factor::from);
            multiply(Product::new(Target::replaced(&mut c), a, w, Compute::Bf16));
            // SAFETY: all elements were made with values.
            let c: Vec<Bf16> = c.into_iter().map(|c| unsafe { c.assume_init() }).collect();
            assert_eq!(c, expected, "{way}, {m} x {k} x {n}");
        }
    }
}

#[test]
fn rows_of_bf16_read_through_an_index_are_multiplied_by_tiles_as_their_copies() {
    for width in [34, 64] {
        let x = rounded(&irregular(10 * width, 3));
        let picks: Vec<usize> = (0..35).map(|i| i * 7 % 10).collect();
        let offsets: Vec<usize> = picks.iter().map(|row| row * width).collect();
        let copy: Vec<Bf16> = picks.iter().flat_map(|row| x[row * width..][..width].to_vec()).collect();
        let w = irregular(width * 40, 4);
        for (way, multiply) in all_ways() {
            let [read, copied] = [Matrix::of_rows_at(&x, width, &offsets), Matrix::row_major(&copy, width)]
                .map(|x| {
                    let product = |a: Factor<'_>, w: Factor<'_>| {
                        let mut c = vec![f32::NAN; a.num_rows() * w.num_columns()];
                        multiply(Product::new(Target::values(&mut c, false), a, w, Compute::Bf16));
                        bits(&c)
                    };
                    let w = Matrix::row_major(&w, 40);
                    (product(x.into(), w.into()), product(x.transposed().into(), x.into()))
                });
            assert_eq!(read, copied, "{way}");
        }
    }
}

/// Elements of a lower triangular matrix: NaN where they are not to be read, zero where they may be.
fn lower_triangular([m, keys]: [usize; 2], first: usize) -> Vec<f32> {
    let mut lower = irregular(m * keys, 1);
    for (i, row) in lower.chunks_exact_mut(keys).enumerate() {
        let seen = keys.min(first + i + 1);
        let read = keys.min(seen + READ_BEYOND_DIAGONAL);
        row[seen..read].fill(0.0);
        row[read..].fill(f32::NAN);
    }
    lower
}

#[test]
fn triangles_by_tiles_leave_out_nothing_that_counts_and_read_nothing_else() {
    for (first, m) in [(0, 1), (5, 13), (1, 64), (40, 70), (0, 600)] {
        let (keys, n) = (first + m, 24);
        let lower = lower_triangular([m, keys], first);
        let zeroed: Vec<f32> = lower.iter().map(|&x| if x.is_nan() { 0.0 } else { x }).collect();
        let by_columns = transposed(&zeroed, [m, keys]);
        let exact = rounded(&lower);
        let [lower, lower16] =
            [Factor::from(Matrix::row_major(&lower, keys)), Matrix::row_major(&exact, keys).into()];
        let cases = [
            (Triangle::Left { first }, lower, &zeroed, [m, keys, n]),
            (Triangle::Left { first }, lower16, &zeroed, [m, keys, n]),
            (Triangle::LeftTransposed { first }, lower.transposed(), &by_columns, [keys, m, n]),
            (Triangle::LeftTransposed { first }, lower16.transposed(), &by_columns, [keys, m, n]),
            (Triangle::Product { first }, Matrix::row_major(&zeroed, keys).into(), &zeroed, [m, keys, keys]),
        ];
        for (triangle, left, zeroed, [m, k, n]) in cases {
            let w = irregular(k * n, 2);
            let before = irregular(m * n, 3);
            let expected = reference(Some(&before), [zeroed, &w], [m, k, n], BLOCK_TERMS);
            let wanted = |c: &[f32]| {
                let is_wanted = |at: usize| triangle.contains(at / n, at % n);
                (0..m * n).filter(|&at| is_wanted(at)).map(|at| c[at].to_bits()).collect::<Vec<_>>()
            };
            for (way, multiply) in all_ways() {
                let mut c = before.clone();
                let w = Matrix::row_major(&w, n).into();
                let product = Product::new(Target::values(&mut c, true), left, w, Compute::Bf16);
                multiply(Product { triangle, ..product });
                assert!(wanted(&c) == wanted(&expected), "{way}, {triangle:?}, {m} x {k} x {n}");
            }
        }
    }
}

/// Finite numbers of all sizes whose sums do not overflow, many of them subnormal.
#[cfg(target_arch = "x86_64")]
fn of_all_sizes(len: usize, seed: u64) -> Vec<u16> {
    let mixed = |i: usize| (i as u64 + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24;
    (0..len)
        .map(|i| mixed(i) as u16)
        .map(|bits| (bits & 0x807f) | (((bits >> 7) & 0xff) % 160) << 7)
        .collect()
}

/// Those of the processor, where it has them.
#[cfg(target_arch = "x86_64")]
#[test]
#[expect(clippy::print_stderr, reason = "a skipped check says so")]
fn the_units_do_what_the_manual_says() {
    let Some(units) = super::amx::Amx::try_new() else {
        eprintln!("skipped: no AMX-BF16 on this machine; its machine code is emulated on Linux");
        return;
    };
    fn sums(unit: impl TileUnit, [a, b]: [&[u16]; 2]) -> Vec<u32> {
        let mut c = vec![f32::NAN; 32 * 32];
        let step = super::Step {
            a: a.as_ptr().cast(),
            a_stride: 256,
            b: b.as_ptr().cast(),
            b_stride: 128,
            num_tiles: 4,
        };
        let session = Session::begin(unit);
        // SAFETY: 32 rows of 64 words, 64 rows of 32 words, 32 rows of 32 sums.
        unsafe { session.unit.multiply(&step, c.as_mut_ptr(), 128) };
        bits(&c)
    }
    for seed in 0..200 {
        let (a, b) = (of_all_sizes(32 * 128, seed), of_all_sizes(64 * 64, seed + 1_000_000));
        assert_eq!(sums(units, [&a, &b]), sums(Manual, [&a, &b]), "seed {seed}");
    }
}

/// A linear layer as its operation cuts it: the rows of the result in tasks, on several threads, each
/// with tiles of its own.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn a_linear_layer_by_the_machine_code_is_that_by_the_manual_for_any_number_of_threads() {
    use super::emulated;

    let [t, d, f] = [96, 70, 130];
    let (x, w, dy) = (irregular(t * d, 1), irregular(d * f, 2), irregular(t * f, 3));
    let (x, w, dy) = (Matrix::row_major(&x, d), Matrix::row_major(&w, f), Matrix::row_major(&dy, f));
    let layer = |multiply: Multiply| {
        let in_tasks = |a: Matrix<'_>, w: Matrix<'_>| {
            let n = w.num_columns();
            let mut c = vec![f32::NAN; a.num_rows() * n];
            c.par_chunks_mut(40 * n).enumerate().for_each(|(task, c)| {
                let rows = task * 40..a.num_rows().min(task * 40 + 40);
                let target = Target::values(c, false);
                multiply(Product::new(target, a.rows(rows).into(), w.into(), Compute::Bf16));
            });
            bits(&c)
        };
        [in_tasks(x, w), in_tasks(dy, w.transposed()), in_tasks(x.transposed(), dy)]
    };
    let expected = layer(|product| run_portably(Manual, product));
    for num_threads in 1..=3 {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        let actual = pool.install(|| layer(|product| run_portably(emulated::units(), product)));
        assert!(actual == expected, "{num_threads} threads");
        let left = pool.broadcast(|_| emulated::is_laid_out());
        assert!(!left.contains(&true), "{num_threads} threads: tiles are given up after each product");
    }
}

/// Also where a product panics.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
#[expect(clippy::print_stderr, reason = "a skipped check says so")]
fn tiles_are_laid_out_once_for_each_product_and_given_up_after_it() {
    use super::amx::Amx;
    use super::emulated::{Counts, is_laid_out, take_counts, units};

    let units = units();
    if Amx::try_new().is_some() {
        eprintln!("skipped: this machine has matrix units, whose instructions nobody counts");
        return;
    }
    take_counts();
    let (a, w) = (irregular(40 * 600, 1), irregular(600 * 40, 2));
    let mut c = vec![0.0; 40 * 40];
    let [a, w] = [Matrix::row_major(&a, 600), Matrix::row_major(&w, 40)].map(Factor::from);
    run_portably(units, Product::new(Target::values(&mut c, false), a, w, Compute::Bf16));
    // Two times two pairs of tiles of 19 times 32 terms.
    let products = 2 * 2 * 4 * 19;
    assert_eq!(take_counts(), Counts { layouts: 1, releases: 1, products });
    let session = std::panic::catch_unwind(|| {
        let _session = Session::begin(units);
        assert!(!is_laid_out(), "they are");
    });
    assert!(session.is_err() && !is_laid_out());
}

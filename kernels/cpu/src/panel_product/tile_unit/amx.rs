//! Intel's matrix units: AMX-BF16, by inline assembly. Its intrinsics are not stable; the assembler
//! knows the instructions.

use std::arch::asm;
use std::sync::OnceLock;
use std::time::Duration;

use super::{Session, Step, Sums, TILES_COLUMNS, TileUnit};
use crate::panel_product::trial::shortest;
use crate::panel_product::words::avx512bf16::{Avx512Bf16, TRIAL_PAIRS};
use crate::panel_product::words::pairing::Pairing;
use crate::panel_product::words::{TILE_WORDS, TILES_ROWS, Words};
use crate::panel_product::{MANY_REGISTERS, Product, Tiled};

/// Rows of a tile.
const ROWS: usize = TILES_ROWS / 2;

/// The units, on a CPU that has them, in a process that may use them.
#[derive(Debug, Clone, Copy)]
pub(in crate::panel_product) struct Amx {
    /// Tells `Amx` from what anybody can make.
    permitted: (),
}

/// The units with what brings factors into order for them.
#[derive(Debug, Clone, Copy)]
pub(in crate::panel_product) struct AmxProducts {
    units: Amx,
    cpu: Avx512Bf16,
}

/// The units, if the CPU has them, the kernel permits them and they multiply faster than anything
/// else. The shortest of twenty trials decides, and the units are several times as fast as vectors:
/// so a machine has the same answer every time, and with it the same bits.
pub(in crate::panel_product) fn if_faster() -> Option<AmxProducts> {
    static FASTER: OnceLock<Option<AmxProducts>> = OnceLock::new();
    *FASTER.get_or_init(|| AmxProducts::try_new().filter(|units| units.are_faster_than_vectors()))
}

impl AmxProducts {
    pub(super) fn try_new() -> Option<Self> {
        let cpu = Avx512Bf16::try_new()?;
        Some(Self { units: Amx::try_new()?, cpu })
    }

    /// Runs a product in bf16.
    pub(in crate::panel_product) fn run(self, product: Product<'_>) {
        let session = Session::begin(self.units);
        let words = Words::Tiles(Pairing::Avx512Bf16(self.cpu));
        self.cpu.run(Tiled::<_, MANY_REGISTERS> { product, multiply: &session, words });
    }

    fn are_faster_than_vectors(self) -> bool {
        let vectors = self.cpu.trials();
        vectors.into_iter().all(|vectors| self.units.trial() < vectors)
    }
}

/// Words of a row in a trial: rows and panel fit into the first-level cache.
const TRIAL_WORDS: usize = 256;

impl Amx {
    /// The units, if the CPU has them and the kernel lets this process use them.
    pub(super) fn try_new() -> Option<Self> {
        (is_in_the_cpu() && is_permitted()).then_some(Self { permitted: () })
    }

    /// The units that a handler of illegal instructions stands for.
    ///
    /// # Safety
    /// There is such a handler.
    #[cfg(test)]
    pub(super) unsafe fn emulated() -> Self {
        Self { permitted: () }
    }

    /// What as many pairs take as [`TRIAL_PAIRS`].
    fn trial(self) -> Duration {
        let (a, b) = (vec![0.0f32; TILES_ROWS * TRIAL_WORDS], vec![0.0f32; TILES_COLUMNS * TRIAL_WORDS]);
        let mut sums = Sums([0.0; TILES_ROWS * TILES_COLUMNS]);
        let step = Step {
            a: a.as_ptr(),
            a_stride: size_of::<f32>() * TRIAL_WORDS,
            b: b.as_ptr(),
            b_stride: size_of::<f32>() * TILES_COLUMNS,
            num_tiles: TRIAL_WORDS / TILE_WORDS,
        };
        let sums = &raw mut sums.0;
        let _session = Session::begin(self);
        shortest(|| {
            for _ in 0..TRIAL_PAIRS / (TILES_ROWS * TILES_COLUMNS * TRIAL_WORDS) {
                // SAFETY: the tiles are laid out. Factors and sums are as large as the step says.
                unsafe { self.multiply(&step, sums.cast(), size_of::<f32>() * TILES_COLUMNS) };
            }
        })
    }
}

/// A trial of the units is of as many pairs as one of vectors.
const _: () = assert!(TRIAL_PAIRS.is_multiple_of(TILES_ROWS * TILES_COLUMNS * TRIAL_WORDS));

fn is_in_the_cpu() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// Bits of leaf 7: AMX-BF16 and AMX-TILE.
    const UNITS: u32 = 1 << 22 | 1 << 24;
    __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & UNITS == UNITS
}

/// Linux gives a process the 8 KB of tile registers only if it asks (since 5.16); it refuses if a
/// thread's signal stack could not hold them.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    let result: isize;
    // SAFETY: the system call changes nothing but the permission.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Layout {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    num_rows: [u8; 16],
}

/// Eight tiles of sixteen rows of 64 bytes.
static LAYOUT: Layout = Layout {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_per_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    num_rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl TileUnit for Amx {
    #[inline(never)]
    fn begin(self) {
        let Self { permitted: () } = self;
        // SAFETY: the units are there, and the layout is one that they have. What the tiles of this
        // thread held before belongs to nobody: only a session uses them.
        unsafe {
            asm!(
                "ldtilecfg [{}]",
                in(reg) &raw const LAYOUT,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, readonly),
            );
        }
    }

    #[inline(never)]
    unsafe fn multiply(self, step: &Step, c: *mut f32, c_stride: usize) {
        let &Step { a, a_stride, b, b_stride, num_tiles } = step;
        // SAFETY: the caller's.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "test {tiles}, {tiles}",
                "jz 3f",
                "2:",
                "tileloadd tmm4, [{a} + {a_stride}]",
                "tileloadd tmm6, [{b} + {b_stride}]",
                "tileloadd tmm7, [{b} + {b_stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{lower} + {a_stride}]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 64",
                "add {lower}, 64",
                "add {b}, {b_step}",
                "dec {tiles}",
                "jnz 2b",
                "3:",
                "tilestored [{c} + {c_stride}], tmm0",
                "tilestored [{c} + {c_stride} + 64], tmm1",
                "tilestored [{c_lower} + {c_stride}], tmm2",
                "tilestored [{c_lower} + {c_stride} + 64], tmm3",
                a = inout(reg) a => _,
                lower = inout(reg) a.wrapping_byte_add(ROWS * a_stride) => _,
                b = inout(reg) b => _,
                b_step = in(reg) TILE_WORDS * b_stride,
                tiles = inout(reg) num_tiles => _,
                a_stride = in(reg) a_stride,
                b_stride = in(reg) b_stride,
                c = in(reg) c,
                c_lower = in(reg) c.wrapping_byte_add(ROWS * c_stride),
                c_stride = in(reg) c_stride,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    #[inline(never)]
    fn end(self) {
        // SAFETY: the units are there.
        unsafe {
            asm!(
                "tilerelease",
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack, nomem),
            );
        }
    }
}

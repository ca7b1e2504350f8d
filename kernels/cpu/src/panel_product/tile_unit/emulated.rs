//! The machine code for matrix units on CPUs that have none: each of its instructions is illegal
//! there, and a handler of the signal does instead what Intel's manual says. This tests encodings,
//! operand order, addresses and loops, not speed.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::sync::Once;

use super::amx::Amx;

/// The units, or a handler that stands for them.
pub(super) fn units() -> Amx {
    static HANDLER: Once = Once::new();
    Amx::try_new().unwrap_or_else(|| {
        HANDLER.call_once(handle_illegal_instructions);
        // SAFETY: the handler is there.
        unsafe { Amx::emulated() }
    })
}

/// Instructions that the handler has done on this thread, by kind, since it was asked last.
pub(super) fn take_counts() -> Counts {
    // SAFETY: no instruction is being done.
    TILES.with(|tiles| std::mem::take(unsafe { &mut (*tiles.get()).counts }))
}

/// Whether the tiles of this thread are laid out.
pub(super) fn is_laid_out() -> bool {
    // SAFETY: no instruction is being done.
    TILES.with(|tiles| unsafe { (*tiles.get()).is_laid_out })
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) layouts: usize,
    pub(super) releases: usize,
    pub(super) products: usize,
}

/// What the units hold for one thread.
struct Tiles {
    is_laid_out: bool,
    /// Sixteen rows of 64 bytes each.
    tiles: [[u8; 1024]; 8],
    counts: Counts,
}

thread_local! {
    // Of a constant, without a destructor: a signal handler may use it.
    static TILES: UnsafeCell<Tiles> = const {
        UnsafeCell::new(Tiles {
            is_laid_out: false,
            tiles: [[0; 1024]; 8],
            counts: Counts { layouts: 0, releases: 0, products: 0 },
        })
    };
}

/// `struct sigaction` of Linux's C libraries.
#[repr(C)]
struct SignalAction {
    handler: usize,
    mask: [u64; 16],
    flags: c_int,
    restorer: usize,
}

const SIGILL: c_int = 4;
const SA_SIGINFO: c_int = 4;

unsafe extern "C" {
    fn sigaction(signal: c_int, action: *const SignalAction, before: *mut SignalAction) -> c_int;
}

fn handle_illegal_instructions() {
    let handler = on_illegal_instruction as *const () as usize;
    let action = SignalAction { handler, mask: [0; 16], flags: SA_SIGINFO, restorer: 0 };
    // SAFETY: the handler is a function of the kind that the flags say.
    assert_eq!(unsafe { sigaction(SIGILL, &raw const action, std::ptr::null_mut()) }, 0);
}

/// Bytes from the start of `ucontext_t` to the general registers.
const REGISTERS_OFFSET: usize = 40;
/// Where the general registers lie there, in the order of their encoding: RAX to RDI, R8 to R15.
const PLACES: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];
/// Where the instruction pointer lies.
const POINTER: usize = 16;

extern "C" fn on_illegal_instruction(_: c_int, _: *mut c_void, context: *mut c_void) {
    // SAFETY: the kernel hands over the context, whose registers nothing else changes meanwhile.
    let registers = unsafe { &mut *context.byte_add(REGISTERS_OFFSET).cast::<[u64; 17]>() };
    // SAFETY: an instruction lies there; the bytes behind it belong to the same program.
    let code = unsafe { *(registers[POINTER] as *const [u8; 7]) };
    let values = PLACES.map(|place| registers[place] as usize);
    // SAFETY: the tiles are this thread's alone, which is here.
    let done = TILES.with(|tiles| unsafe { execute(code, &values, &mut *tiles.get()) });
    match done {
        Some(len) => registers[POINTER] += len,
        // An instruction that is illegal indeed.
        None => std::process::abort(),
    }
}

/// A VEX instruction of three bytes of prefix.
struct Instruction {
    opcode: u8,
    prefix: u8,
    /// `mod` of its operands: 3 means registers.
    mode: u8,
    reg: usize,
    rm: usize,
    vvvv: usize,
    sib: u8,
    displacement: i8,
    /// 8 for each of base and index that is among the upper registers.
    high: [usize; 2],
}

impl Instruction {
    /// Of map 2, 128 bits, W 0; `None` if it is another one.
    fn decode([vex, second, third, opcode, modrm, sib, displacement]: [u8; 7]) -> Option<Self> {
        let high = |bit: u8| if second >> bit & 1 == 0 { 8 } else { 0 };
        (vex == 0xc4 && second & 0x1f == 2 && third & 0x84 == 0).then(|| Self {
            opcode,
            prefix: third & 3,
            mode: modrm >> 6,
            reg: usize::from(modrm >> 3 & 7),
            rm: usize::from(modrm & 7),
            vvvv: usize::from(!third >> 3 & 15),
            sib,
            displacement: displacement.cast_signed(),
            high: [high(5), high(6)],
        })
    }

    /// Address and step between rows of operands with base, index and perhaps a displacement, and
    /// the length of the instruction.
    fn rows(&self, values: &[usize; 16]) -> Option<(usize, usize, u64)> {
        let base = values[usize::from(self.sib & 7) + self.high[0]];
        let step = values[usize::from(self.sib >> 3 & 7) + self.high[1]] << (self.sib >> 6);
        match (self.rm, self.mode) {
            // RBP and R13 as a base would mean another displacement.
            (4, 0) if self.sib & 7 != 5 => Some((base, step, 6)),
            (4, 1) => Some((base.wrapping_add_signed(self.displacement.into()), step, 7)),
            _ => None,
        }
    }
}

/// Does one instruction. Returns its length; `None` if it is another one, or illegal in this state.
///
/// # Safety
/// What it reads and writes is there.
unsafe fn execute(code: [u8; 7], values: &[usize; 16], state: &mut Tiles) -> Option<u64> {
    let instruction = Instruction::decode(code)?;
    let Instruction { opcode, prefix, mode, reg, rm, vvvv, high, .. } = instruction;
    match (opcode, prefix, mode) {
        // tilerelease
        (0x49, 0, 3) => {
            (state.is_laid_out, state.tiles) = (false, [[0; 1024]; 8]);
            state.counts.releases += 1;
            Some(5)
        }
        // ldtilecfg
        (0x49, 0, 0) if rm != 4 && rm != 5 => {
            // SAFETY: the caller's.
            let layout = unsafe { *(values[rm + high[0]] as *const [u8; 64]) };
            let widths = layout[16..32].chunks(2).all(|bytes| bytes == [64, 0]);
            let is_known = layout[0] == 1 && widths && layout[48..56] == [16; 8];
            (state.is_laid_out, state.tiles) = (true, [[0; 1024]; 8]);
            state.counts.layouts += 1;
            is_known.then_some(5)
        }
        _ if !state.is_laid_out => None,
        // tilezero
        (0x49, 3, 3) => {
            state.tiles[reg] = [0; 1024];
            Some(5)
        }
        // tileloadd
        (0x4b, 3, _) => {
            let (base, step, len) = instruction.rows(values)?;
            for (row, to) in state.tiles[reg].chunks_mut(64).enumerate() {
                // SAFETY: the caller's.
                to.copy_from_slice(unsafe { &*((base + row * step) as *const [u8; 64]) });
            }
            Some(len)
        }
        // tilestored
        (0x4b, 2, _) => {
            let (base, step, len) = instruction.rows(values)?;
            for (row, from) in state.tiles[reg].chunks(64).enumerate() {
                // SAFETY: the caller's.
                unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), (base + row * step) as *mut u8, 64) };
            }
            Some(len)
        }
        // tdpbf16ps
        (0x5c, 2, 3) => {
            multiply(&mut state.tiles, [reg, rm, vvvv]);
            state.counts.products += 1;
            Some(5)
        }
        _ => None,
    }
}

/// Sums of first and of second terms of the pairs apart, then both, then what was there.
fn multiply(tiles: &mut [[u8; 1024]; 8], [sums, a, b]: [usize; 3]) {
    let (a, b) = (tiles[a], tiles[b]);
    let term = |tile: &[u8; 1024], row: usize, column: usize| {
        let at = 64 * row + 2 * column;
        f32::from_bits(u32::from_le_bytes([0, 0, tile[at], tile[at + 1]]))
    };
    for (row, column) in (0..16).flat_map(|row| (0..16).map(move |column| (row, column))) {
        let mut parts = [0.0f32; 2];
        for word in 0..16 {
            for (half, part) in parts.iter_mut().enumerate() {
                *part = term(&a, row, 2 * word + half).mul_add(term(&b, word, 2 * column + half), *part);
            }
        }
        let at = 64 * row + 4 * column;
        let sum = &mut tiles[sums][at..at + 4];
        let before = f32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]]);
        sum.copy_from_slice(&(before + (parts[0] + parts[1])).to_le_bytes());
    }
}

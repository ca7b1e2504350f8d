//! Memory that stays with the process.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 3: milliseconds after which freed memory goes back to the kernel.
const PURGE_DELAY: mi_option_t = 15;
const NEVER: std::ffi::c_long = -1;

/// Has the allocator mimalloc keep what is freed. A training step allocates the same buffers as the step before; given
/// back in between, each page costs a fault and is cleared anew, which was 14 % of a step's time. To be called once, by
/// a program whose global allocator is mimalloc; without effect in others.
pub fn keep_freed_memory() {
    // SAFETY: sets an integer that the allocator reads; any value of it is valid, and so is any moment.
    unsafe { mi_option_set(PURGE_DELAY, NEVER) };
}

//! The allocator, and memory that stays with the process.

use libmimalloc_sys::{mi_option_set, mi_option_t, mi_option_use_numa_nodes};

// A training step allocates and frees the same large buffers over and over; the system's allocator
// gives them back to the kernel each time and pays for it in page faults. See also
// `keep_freed_memory`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// mimalloc's `mi_option_purge_delay`: milliseconds after which freed memory goes back to the
/// operating system. The bindings do not declare it; in the header's list it comes directly before
/// this one.
const PURGE_DELAY: mi_option_t = mi_option_use_numa_nodes - 1;
/// The delay that stands for never.
const NEVER: std::ffi::c_long = -1;

/// Has the allocator keep what is freed. A training step allocates the same buffers as the step
/// before; given back in between, each page costs a fault and is cleared anew, which was 14 % of a
/// step's time. To be called once.
#[expect(unsafe_code, reason = "a C function without a safe wrapper")]
pub(crate) fn keep_freed_memory() {
    // SAFETY: sets an integer that the allocator reads; any value of it is valid, and so is any
    // moment.
    unsafe { mi_option_set(PURGE_DELAY, NEVER) };
}

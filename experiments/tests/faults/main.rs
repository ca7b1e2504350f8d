//! Faults of the system, one at a time: a process killed before, in or after its n-th file-system
//! call, a call that fails, a power cut. Each must end as the unbroken command does, or be refused
//! by name with the last checkpoint whole.
//!
//! | file | holds |
//! |---|---|
//! | `shim.c` | loaded into the program: counts its calls, writes them down, or makes one go wrong |
//! | `program` | the program, run with the shim |
//! | `scenario` | what is disturbed, and what a person does then |
//! | `prepared` | a scenario with its unbroken ending and all its calls |
//! | `call_log`, `tree`, `power_cut` | a folder in memory, on which the calls are repeated and the power is cut |
//! | `fault` | the kinds, and which fault comes when |
//! | `trial` | one fault, judged |
//! | `state` | what a command leaves, compared without clock readings |
//! | `tally` | the numbers |
//!
//! A sample runs with the tests. The whole, and a single fault again:
//!
//! ```text
//! cargo test --workspace --test faults -- --ignored --nocapture
//! SWITCHYARD_FAULTS=500 SWITCHYARD_FAULTS_SEED=2 cargo test --workspace --test faults -- --ignored --nocapture
//! SWITCHYARD_FAULT='dense kill-after 17 0' cargo test --workspace --test faults -- --ignored --nocapture
//! ```

#![cfg_attr(
    target_os = "linux",
    expect(clippy::unwrap_used, reason = "a test says what it expects by failing")
)]

#[cfg(target_os = "linux")]
mod call_log;
#[cfg(target_os = "linux")]
mod fault;
#[cfg(target_os = "linux")]
mod power_cut;
#[cfg(target_os = "linux")]
mod prepared;
#[cfg(target_os = "linux")]
mod program;
#[cfg(target_os = "linux")]
mod scenario;
#[cfg(target_os = "linux")]
mod series;
#[cfg(target_os = "linux")]
mod state;
#[cfg(target_os = "linux")]
mod tally;
#[cfg(target_os = "linux")]
mod tree;
#[cfg(target_os = "linux")]
mod trial;

#[cfg(not(target_os = "linux"))]
#[test]
fn faults_are_injected_on_linux_only() {
    switchyard_ground::say!("NOT RUN: the shim that makes file-system calls fail is written for Linux");
}

//! The `switchyard` command.

mod allocator;
mod cli;
mod commands;
mod comparison;
mod coordinates;
mod difference;
mod failure;
mod figures;
mod flatten;
mod interrupt;
mod live_view;
mod lock_file;
mod metrics_tail;
mod report;
mod run_diff;
mod run_folders;
mod run_list;
mod run_series;
mod scaling;
mod statistics;
mod study;
mod sweep;
mod whole_file;

use std::io::IsTerminal;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use clap::Parser;
use switchyard_ground::say;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;
use crate::interrupt::Interruption;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    failure::report_panics_as_errors();
    let filter = EnvFilter::try_from_env("SWITCHYARD_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    // Without `log_internal_errors(false)` a line that cannot be written is reported by
    // `eprintln!`, which panics.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .log_internal_errors(false)
        .init();
    let cli = Cli::parse();
    let interruption = Interruption::default();
    interrupt::make_large_files_an_error();
    // Nothing of the command is used after a panic, whose message the hook has printed.
    match panic::catch_unwind(AssertUnwindSafe(|| commands::run(cli.command, &interruption))) {
        // Whoever asked it to stop is told so, although it was done by then.
        Ok(Ok(())) if interruption.has_come() => ExitCode::from(interruption.exit_code()),
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            if let Some(message) = failure.message() {
                say!("{message}");
            }
            failure.exit_code(&interruption)
        }
        Err(_) => ExitCode::from(1),
    }
}

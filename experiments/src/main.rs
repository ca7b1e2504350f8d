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
mod launch;
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
use switchyard_trainer::train::dismiss;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::interrupt::Interruption;

fn main() -> ExitCode {
    allocator::keep_freed_memory();
    failure::report_panics_as_errors(launch::end_job);
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
    let interruption = Interruption::default();
    interrupt::make_large_files_an_error();
    let code = run_in_job(&interruption);
    launch::leave();
    code
}

/// Runs the command on the first process of the job that this one was started in; the others follow
/// it.
fn run_in_job(interruption: &Interruption) -> ExitCode {
    let ended = launch::join().and_then(|()| {
        let comm = launch::comm();
        if comm.rank() > 0 {
            return commands::follow(&comm, interruption).map(|()| ExitCode::SUCCESS);
        }
        let code = run_command(interruption);
        dismiss(&comm);
        Ok(code)
    });
    ended.unwrap_or_else(|failure| ended_by(&failure, interruption))
}

fn run_command(interruption: &Interruption) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help is one too. Not by `exit`, which the other processes of a job would wait for.
        Err(error) => {
            drop(error.print());
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // Nothing of the command is used after a panic, whose message the hook has printed.
    match panic::catch_unwind(AssertUnwindSafe(|| commands::run(cli.command, interruption))) {
        // Whoever asked it to stop is told so, although it was done by then.
        Ok(Ok(())) if interruption.has_come() => ExitCode::from(interruption.exit_code()),
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => ended_by(&failure, interruption),
        Err(_) => ExitCode::from(1),
    }
}

fn ended_by(failure: &Failure, interruption: &Interruption) -> ExitCode {
    if let Some(message) = failure.message() {
        say!("{message}");
    }
    failure.exit_code(interruption)
}

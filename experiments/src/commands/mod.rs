//! One file per command.

mod bench;
mod bisect;
mod compare;
mod data;
mod diff;
mod eval;
mod fit;
mod flight_report;
mod generate;
mod inspect;
mod plan;
mod replay;
mod report;
mod runs;
mod study;
mod sweep;
mod train;
mod upcycle;
mod verify;
mod watch;
mod what_if;

use std::io::Write;
use std::path::Path;

use clap::CommandFactory;
use serde::Serialize;
use switchyard_trainer::config_file::{self, LoadedConfig, Override};
use switchyard_trainer::device;
use switchyard_trainer::plan::RunPlan;

use crate::cli::{Cli, Command, ConfigArgs};
use crate::failure::Failure;

/// Do what the command line asks.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Train(args) => train::run(&args),
        Command::Upcycle(args) => upcycle::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Bisect(args) => bisect::run(&args),
        Command::WhatIf(args) => what_if::run(&args),
        Command::Data(command) => data::run(&command),
        Command::Compare(args) => compare::run(&args),
        Command::Sweep(args) => sweep::run(&args),
        Command::Fit(args) => fit::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Bench(command) => bench::run(&command),
        Command::Schema => print_json(&config_file::schema()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "switchyard", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
    }
}

/// The configuration in `file`, changed by `overrides`, and what it resolves to.
fn load(file: &Path, overrides: &[String]) -> Result<(LoadedConfig, RunPlan), Failure> {
    let overrides = overrides.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let loaded = config_file::load(file, &overrides)?;
    let plan = loaded.resolve()?;
    Ok((loaded, plan))
}

/// As [`load`], for a command that computes: the device must be there too.
fn load_to_run(file: &Path, overrides: &[String]) -> Result<(LoadedConfig, RunPlan), Failure> {
    let (loaded, plan) = load(file, overrides)?;
    device::select(&loaded.config.device)
        .map_err(|error| Failure::Mistake(format!("{}: {error}", loaded.locate("device"))))?;
    Ok((loaded, plan))
}

/// As [`load`], from the arguments of a command.
fn load_args(args: &ConfigArgs) -> Result<(LoadedConfig, RunPlan), Failure> {
    load(&args.file, &args.overrides)
}

/// Print a result for machines.
fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print_text(&text)
}

/// Print a result for people.
fn print_text(text: &str) -> Result<(), Failure> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}

//! One file per command.

mod bench;
mod bisect;
mod compare;
mod data;
mod devices;
mod diff;
mod eval;
mod export;
mod fit;
mod flight_report;
mod generate;
mod http;
mod import;
mod inspect;
mod loss_words;
mod next_command;
mod parity;
mod plan;
mod replay;
mod report;
mod runs;
mod serve;
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
use switchyard_comm::Comm;
use switchyard_ground::printable::printable;
use switchyard_trainer::config_file::{self, LoadedConfig, Override};
use switchyard_trainer::device;
use switchyard_trainer::plan::RunPlan;

use crate::cli::{Cli, Command, ConfigArgs};
use crate::failure::Failure;
use crate::interrupt::Interruption;

/// Follow the first process of the job through its runs.
pub(crate) fn follow(comm: &Comm, interruption: &Interruption) -> Result<(), Failure> {
    let stop = interruption.watch_quietly()?;
    Ok(switchyard_trainer::train::follow(comm, &stop)?)
}

/// Do what the command line asks.
pub(crate) fn run(command: Command, interruption: &Interruption) -> Result<(), Failure> {
    match command {
        Command::Train(args) => train::run(&args, interruption),
        Command::Upcycle(args) => upcycle::run(&args, interruption),
        Command::Eval(args) => eval::run(&args, interruption),
        Command::Generate(args) => generate::run(&args, interruption),
        Command::Serve(args) => serve::run(&args, interruption),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Runs(args) => runs::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Watch(args) => watch::run(&args),
        Command::Replay(args) => replay::run(&args, interruption),
        Command::Bisect(args) => bisect::run(&args),
        Command::WhatIf(args) => what_if::run(&args),
        Command::Devices { json } => devices::run(json),
        Command::Data(command) => data::run(&command, interruption),
        Command::Compare(args) => compare::run(&args, interruption),
        Command::Sweep(args) => sweep::run(&args, interruption),
        Command::Fit(args) => fit::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Verify(args) => verify::run(&args, interruption),
        Command::Bench(command) => bench::run(&command, interruption),
        Command::Schema => print_json(config_file::schema()),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "switchyard", &mut script);
            print_bytes(&script)
        }
    }
}

/// The configuration in `file`, changed by `overrides`, and what it resolves to.
fn load(file: &Path, overrides: &[String]) -> Result<(LoadedConfig, RunPlan), Failure> {
    let loaded = config_file::load(file, &parsed(overrides)?)?;
    let plan = loaded.resolve()?;
    Ok((loaded, plan))
}

/// What `--set` was given.
fn parsed(overrides: &[String]) -> Result<Vec<Override>, Failure> {
    Ok(overrides.iter().map(|text| Override::parse(text)).collect::<Result<_, _>>()?)
}

/// `overrides`, and `--device` as one more.
fn with_device(overrides: &[String], device: Option<&str>) -> Vec<String> {
    overrides.iter().cloned().chain(device.map(|device| format!("device={device}"))).collect()
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
    let text = serde_json::to_string_pretty(value)?;
    // JSON may hold control characters of C1 as they are, and terminals obey them; as escapes they
    // are the same text.
    let is_bad = |letter: char| letter.is_control() && letter != '\n';
    let escaped = text
        .chars()
        .map(|letter| if is_bad(letter) { format!("\\u{:04x}", u32::from(letter)) } else { letter.into() });
    print_bytes((if text.contains(is_bad) { escaped.collect() } else { text } + "\n").as_bytes())
}

/// Print a result for people: text of others in it, such as names in a run's files, reaches no
/// terminal as it is.
fn print_text(text: &str) -> Result<(), Failure> {
    print_bytes(printable(text).as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    // What stays in the buffer is lost without a word if the disk is full.
    Ok(stdout.write_all(bytes).and_then(|()| stdout.flush())?)
}

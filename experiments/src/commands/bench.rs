//! `switchyard bench`

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use switchyard_comm::Traffic;
use switchyard_comm::link::{Link, Measured};
use switchyard_ground::units::bytes;
use switchyard_trainer::benchmark::{
    LayerCase, LayerReport, Machine, Repetitions, StepCase, StepRatio, StepReport, Timed, benchmark_layer,
    benchmark_links, benchmark_step,
};

use super::{load_to_run, print_json, print_text};
use crate::cli::{BenchArgs, BenchCommand, BenchLayerArgs, BenchStepArgs};
use crate::failure::Failure;
use crate::interrupt::Interruption;
use crate::launch;

/// Unless a number is asked for; the help says so too.
const ENOUGH: Timed = Timed::AtLeast(5, Duration::from_secs(10));

pub(super) fn run(command: &BenchCommand, interruption: &Interruption) -> Result<(), Failure> {
    match command {
        BenchCommand::Step(args) => step(args, interruption),
        BenchCommand::Layer(args) => layer(args),
        BenchCommand::Comm { json } => comm(*json),
    }
}

fn step(args: &BenchStepArgs, interruption: &Interruption) -> Result<(), Failure> {
    let stop = interruption.watch("stopping after this step")?;
    let (loaded, plan) = load_to_run(&args.config.file, &args.config.overrides)?;
    let name = case_of(&args.config.file);
    let case = StepCase { name: &name, config: &loaded.config, plan: &plan };
    let other = match (&args.against, args.against_set.is_empty()) {
        (None, true) => None,
        (file, _) => {
            let file = file.as_ref().unwrap_or(&args.config.file);
            let overrides = [&args.config.overrides[..], &args.against_set].concat();
            let name = [&[case_of(file)], &args.against_set[..]].concat().join(" ");
            Some((name, load_to_run(file, &overrides)?))
        }
    };
    let against =
        other.as_ref().map(|(name, (loaded, plan))| StepCase { name, config: &loaded.config, plan });
    let report = benchmark_step(case, against, repetitions(&args.bench), &stop)?;
    if args.bench.json { print_json(&report) } else { print_text(&step_table(&report)) }
}

fn layer(args: &BenchLayerArgs) -> Result<(), Failure> {
    let case = LayerCase::load(&args.file)?;
    let report = benchmark_layer(&case_of(&args.file), &case, repetitions(&args.bench))?;
    if args.bench.json { print_json(&report) } else { print_text(&layer_table(&report)) }
}

fn comm(json: bool) -> Result<(), Failure> {
    let comm = launch::comm();
    if comm.size() == 1 {
        return Err(Failure::Mistake(
            "there is one process, and no message to time: start several of a `switchyard` that was built with \
             `--features mpi`, as in `mpirun -n 4 switchyard bench comm`"
                .into(),
        ));
    }
    let links = benchmark_links(&comm)?;
    if json { print_json(&links) } else { print_text(&links_table(comm.size(), &links)) }
}

/// Of the messages that a step's time goes to.
const LONG_MESSAGE_BYTES: u64 = 1 << 20;

fn links_table(num_ranks: usize, links: &[Measured]) -> String {
    let mut text = format!(
        "{num_ranks} ranks; pairs whose numbers differ by the distance swap messages of 1 B to 4 MB, all at once. A message of n \
         bytes\ntakes alpha + n beta; worst error is the furthest that a median time of the slowest pair is from that.\n\n\
         {:>8}  {:>10}  {:>13}  {:>10}  {:>11}\n",
        "distance", "alpha (us)", "beta (ns/B)", "MB/s", "worst error"
    );
    let numbers = |link: Link| (1e6 * link.alpha_secs, 1e9 * link.beta_secs_per_byte);
    for Measured { distance, link, worst_error } in links {
        let (alpha_us, beta_ns) = numbers(*link);
        let rate = 1e3 / beta_ns;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{distance:>8}  {alpha_us:>10.2}  {beta_ns:>13.4}  {rate:>10.0}  {:>9.0} %",
            100.0 * worst_error
        );
    }
    let long = Traffic { messages: 1, bytes: LONG_MESSAGE_BYTES };
    let secs = |measured: &&Measured| measured.link.secs(long);
    if let Some(slowest) = links.iter().max_by(|a, b| secs(a).total_cmp(&secs(b))) {
        let (alpha_us, beta_ns) = numbers(slowest.link);
        let _ = writeln!(text, "\nfor a plan, the slowest: --link {alpha_us:.3},{beta_ns:.5}");
    }
    text
}

/// A case is named after its file.
fn case_of(file: &Path) -> String {
    file.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn repetitions(args: &BenchArgs) -> Repetitions {
    let timed = args.steps.map_or(ENOUGH, |steps| Timed::Times(steps as usize));
    Repetitions { warmup: args.warmup, timed }
}

fn step_table(report: &StepReport) -> String {
    let mut rows = vec![
        ("step", times(report.step_ms_median, report.step_ms_min)),
        ("forward", times(report.forward_ms_median, report.forward_ms_min)),
        ("tokens/s", format!("{:.0}", report.tokens_per_sec)),
        ("rate", rate(report.gflops, report.ceiling_share, &report.machine)),
        (
            "rate in turn",
            format!("{:.0} % of that of products between the steps", 100.0 * report.ceiling_share_in_turn),
        ),
    ];
    rows.extend(report.peak_rss_bytes.map(|peak| ("peak memory", bytes(peak))));
    rows.extend(
        report.minor_page_faults_per_step.map(|faults| ("page faults", format!("{faults:.0} per step"))),
    );
    rows.extend(report.against.as_ref().map(|other| {
        let StepRatio { case, ratio_median, ratio_of_shortest, .. } = other;
        (
            "in turn",
            format!("{ratio_median:.3} times a step of {case} ({ratio_of_shortest:.3} of the shortest)"),
        )
    }));
    rows.push(("loss", format!("{:.4} to {:.4}", report.loss_first, report.loss_last)));
    table(&report.case, &rows)
}

fn layer_table(report: &LayerReport) -> String {
    let mut rows = vec![
        ("forward + backward", times(report.step_ms_median, report.step_ms_min)),
        ("forward", times(report.forward_ms_median, report.forward_ms_min)),
        ("tokens/s", format!("{:.0}", report.tokens_per_sec)),
        ("rate", rate(report.gflops, report.ceiling_share, &report.machine)),
    ];
    rows.extend(report.peak_rss_bytes.map(|peak| ("peak memory", bytes(peak))));
    rows.extend(
        report
            .busiest_expert_share
            .map(|share| ("busiest expert", format!("{:.1} % of the tokens", 100.0 * share))),
    );
    rows.extend(report.ratio_to_dense.map(|ratio| ("to dense", format!("{ratio:.3} times its time"))));
    rows.extend(
        report.forward_ratio_to_dense.map(|ratio| ("forward to dense", format!("{ratio:.3} times its time"))),
    );
    rows.extend(
        report
            .routing_share
            .map(|share| ("routing", format!("{:.1} % of forward + backward", 100.0 * share))),
    );
    rows.extend(report.skew_ratio.map(|ratio| ("to balanced", format!("{ratio:.3} times its time"))));
    table(&report.case, &rows)
}

fn times(median_ms: f64, min_ms: f64) -> String {
    format!("{median_ms:.1} ms median, {min_ms:.1} ms shortest")
}

fn rate(gflops: f64, ceiling_share: f64, machine: &Machine) -> String {
    format!(
        "{gflops:.1} GFLOP/s, {:.0} % of the {:.1} of matrix products on {} thread(s)",
        100.0 * ceiling_share,
        machine.matmul_ceiling_gflops,
        machine.threads
    )
}

fn table(case: &str, rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut text = format!("{case}\n");
    for (label, value) in rows {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{label:width$}  {value}");
    }
    text
}

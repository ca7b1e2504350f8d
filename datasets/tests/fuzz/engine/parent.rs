//! The process that starts a child for each target, under a memory limit, and says what they found.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use switchyard_ground::say;

use super::child::{self, Failure, Order, Tally};
use super::{Kind, SHARES};

/// Address space of a child. A target holds some tens of megabytes; the rest is what threads
/// reserve.
const MEMORY_LIMIT_KIB: u64 = 4 << 20;
/// Ends of its process after which a target is given up.
const MAX_RESTARTS: usize = 40;
const CHILD: &str = "SWITCHYARD_FUZZ_CHILD";
const HEADING: &str = "\
target           inputs accepted  refused  caught  failed   slowest (its index)     longest message     peak  a second";

/// What is run.
#[derive(Debug, Clone)]
pub(crate) struct Campaign {
    /// Inputs over all targets of both crates.
    pub(crate) num_inputs: u64,
    /// Number that they follow from.
    pub(crate) seed: u64,
    only: Option<(String, Option<u64>)>,
    found: PathBuf,
}

impl Campaign {
    /// As the environment says.
    pub(crate) fn from_environment() -> Self {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text}: give a number")),
            Err(_) => default,
        };
        let only = std::env::var("SWITCHYARD_FUZZ_ONLY").ok().map(|text| match text.split_once('/') {
            Some((target, index)) => (target.to_owned(), Some(index.parse().expect("target/index"))),
            None => (text, None),
        });
        let found = std::env::var_os("SWITCHYARD_FUZZ_FOUND")
            .map_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-found"), PathBuf::from);
        Self {
            num_inputs: number("SWITCHYARD_FUZZ", 1_000_000),
            seed: number("SWITCHYARD_FUZZ_SEED", 0),
            only,
            found,
        }
    }

    /// So few inputs that every run of the tests has time for them, the same each time.
    pub(crate) fn sample(num_inputs: u64) -> Self {
        let found = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz-found");
        Self { num_inputs, seed: 0, only: None, found }
    }

    fn indices(&self, kind: &Kind) -> Option<std::ops::Range<u64>> {
        match &self.only {
            Some((target, _)) if target != kind.name => None,
            Some((_, Some(index))) => Some(*index..index + 1),
            _ => Some(0..(self.num_inputs * kind.share).div_ceil(SHARES)),
        }
    }
}

/// Runs the targets one after the other and prints a table; `test` is the name of the calling test,
/// which is started again for each.
///
/// # Panics
/// If an input failed, after a list of the failures.
pub(crate) fn run(kinds: &[Kind], campaign: &Campaign, test: &str) {
    let Some(failures) = failures(kinds, campaign, test, &|line| say!("{line}")) else { return };
    failures.iter().for_each(|line| say!("{line}"));
    assert!(
        failures.is_empty(),
        "{} kinds of failures; inputs in {}",
        failures.len(),
        campaign.found.display()
    );
}

/// A line for each kind of failure; none in a child, which has done its part. The table's lines go
/// to `on_line`.
pub(crate) fn failures(
    kinds: &[Kind],
    campaign: &Campaign,
    test: &str,
    on_line: &dyn Fn(&str),
) -> Option<Vec<String>> {
    if let Ok(order) = std::env::var(CHILD) {
        let order: Order = serde_json::from_str(&order).expect("written by the parent");
        let kind = kinds.iter().find(|kind| kind.name == order.target).expect("a target");
        child::run(kind, order);
        return None;
    }
    on_line(HEADING);
    let mut failures = Vec::new();
    for kind in kinds {
        let Some(indices) = campaign.indices(kind) else { continue };
        let result = run_target(kind, campaign, indices, test);
        on_line(&result.row());
        failures.extend(result.failure_lines(campaign));
    }
    Some(failures)
}

/// What came of a target.
struct TargetResult {
    name: &'static str,
    num_inputs: u64,
    tally: Tally,
    failures: Vec<Failure>,
    elapsed: Duration,
}

fn run_target(kind: &Kind, campaign: &Campaign, indices: std::ops::Range<u64>, test: &str) -> TargetResult {
    let folder = tempfile::Builder::new().prefix("switchyard-fuzz-").tempdir_in(memory_folder());
    let folder = folder.expect("a temporary folder");
    let started = Instant::now();
    let mut order = Order {
        target: kind.name.to_owned(),
        seed: campaign.seed,
        indices: indices.clone(),
        to_save: None,
        folder: folder.path().to_owned(),
        found: campaign.found.clone(),
    };
    let mut deaths = Vec::new();
    while order.indices.start < order.indices.end && deaths.len() < MAX_RESTARTS {
        let status = start(&order, test);
        if status.success() {
            order.indices.start = order.indices.end;
            continue;
        }
        let index = Tally::read(folder.path()).index;
        let has_begun = deaths.last().is_none_or(|(last, _)| *last != index);
        deaths.push((index, death(folder.path(), status)));
        if !has_begun {
            break;
        }
        order.indices.start = index + 1;
        order.to_save = Some(index);
    }
    let mut failures = child::read_failures(folder.path());
    for (index, (likeness, message)) in deaths {
        // The watchdog has said so itself.
        if !failures.iter().any(|failure| failure.index == index) {
            failures.push(Failure { index, likeness, message });
        }
    }
    TargetResult {
        name: kind.name,
        num_inputs: order.indices.start - indices.start,
        tally: Tally::read(folder.path()),
        failures,
        elapsed: started.elapsed(),
    }
}

/// Runs a child to its end.
fn start(order: &Order, test: &str) -> ExitStatus {
    let stderr = File::create(order.folder.join("stderr")).expect("a file");
    let program = std::env::current_exe().expect("this test's path");
    let mut command = if cfg!(unix) { Command::new("sh") } else { Command::new(&program) };
    if cfg!(unix) {
        // Where the system has no such limit, all else still holds.
        let script = "ulimit -v \"$0\" 2> /dev/null; exec \"$@\"";
        command.args(["-c", script, &MEMORY_LIMIT_KIB.to_string()]).arg(&program);
    }
    command
        .args(["--exact", test, "--include-ignored", "--nocapture"])
        .env(CHILD, serde_json::to_string(order).expect("an order is JSON"))
        .stdout(Stdio::null());
    // The message of a single input is meant to be seen.
    if order.indices.end - order.indices.start > 1 {
        command.stderr(stderr);
    }
    command.status().expect("sh starts")
}

/// Likeness and message of the end of a process.
fn death(folder: &Path, status: ExitStatus) -> (String, String) {
    let stderr = fs::read(folder.join("stderr")).unwrap_or_default();
    let stderr = String::from_utf8_lossy(&stderr);
    let is_sign = |line: &&str| {
        ["memory allocation", "overflowed its stack", "panicked"].iter().any(|sign| line.contains(sign))
    };
    let lines: Vec<&str> = stderr.lines().skip_while(|line| !is_sign(line)).take(2).collect();
    let told = lines.join(" ");
    let likeness: String = told.chars().filter(|letter| !letter.is_ascii_digit()).collect();
    (format!("end of the process ({status}): {likeness}"), told)
}

/// Where files cost no disk.
fn memory_folder() -> PathBuf {
    let shared_memory = Path::new("/dev/shm");
    if shared_memory.is_dir() { shared_memory.to_owned() } else { std::env::temp_dir() }
}

impl TargetResult {
    fn row(&self) -> String {
        let Tally { accepted, refused, caught, peak_kib, .. } = self.tally;
        let longest =
            format!("{} B ({})", self.tally.longest_message_bytes, self.tally.longest_message_index);
        let slowest = format!("{} ms ({})", self.tally.slowest_micros / 1000, self.tally.slowest_index);
        format!(
            "{:14} {:>8} {accepted:>8} {refused:>8} {caught:>7} {:>7} {slowest:>19} {longest:>19} {:>5} MB {:>9.0}",
            self.name,
            self.num_inputs,
            self.failures.len(),
            peak_kib / 1024,
            self.num_inputs as f64 / self.elapsed.as_secs_f64(),
        )
    }

    /// One line for each kind of failure, with the way to see it again.
    fn failure_lines(&self, campaign: &Campaign) -> Vec<String> {
        let mut by_likeness: BTreeMap<&str, Vec<&Failure>> = BTreeMap::new();
        for failure in &self.failures {
            by_likeness.entry(&failure.likeness).or_default().push(failure);
        }
        let line = |(likeness, failures): (&&str, &Vec<&Failure>)| {
            let Failure { index, message, .. } = failures[0];
            format!(
                "{} times: {likeness}: {message}; again with SWITCHYARD_FUZZ_SEED={} SWITCHYARD_FUZZ_ONLY={}/{index}",
                failures.len(),
                campaign.seed,
                self.name
            )
        };
        by_likeness.iter().map(line).collect()
    }
}

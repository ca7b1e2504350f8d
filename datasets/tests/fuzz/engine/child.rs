//! The process that runs the inputs of one target, one after the other.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use serde::{Deserialize, Serialize};
use switchyard_ground::say;

use super::panics::{self, Panic};
use super::{Input, Kind, Random, Target, Verdict};

/// An input that takes longer hangs. Generous: the slowest take a fraction of a second on an idle
/// machine.
const TIME_LIMIT: Duration = Duration::from_secs(20);
const WATCH_INTERVAL: Duration = Duration::from_millis(100);
/// As the main thread of the program has.
const STACK_BYTES: usize = 8 << 20;
/// Inputs saved of those that fail alike.
const SAVED_ALIKE: usize = 2;

/// What a child is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Name of the target.
    pub(crate) target: String,
    /// Number that the inputs follow from.
    pub(crate) seed: u64,
    /// The inputs to run.
    pub(crate) indices: std::ops::Range<u64>,
    /// An earlier input to save without running it, because it ended the process.
    pub(crate) to_save: Option<u64>,
    /// The child's own folder: its counts, its report and its target's files.
    pub(crate) folder: PathBuf,
    /// Where failing inputs go.
    pub(crate) found: PathBuf,
}

/// An input that failed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// Its number.
    pub(crate) index: u64,
    /// Equal for inputs that fail alike: a place in the sources, or a law.
    pub(crate) likeness: String,
    /// What happened.
    pub(crate) message: String,
}

/// What was counted; in a file of fixed size, so that it survives the process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Tally {
    /// The input being run, or the last one.
    pub(crate) index: u64,
    /// Inputs taken and used.
    pub(crate) accepted: u64,
    /// Inputs refused with a message.
    pub(crate) refused: u64,
    /// Inputs with panics of other crates that our code caught.
    pub(crate) caught: u64,
    /// Time of the slowest input.
    pub(crate) slowest_micros: u64,
    /// Its number.
    pub(crate) slowest_index: u64,
    /// Bytes of the longest message.
    pub(crate) longest_message_bytes: u64,
    /// Number of its input.
    pub(crate) longest_message_index: u64,
    /// Most memory that the process ever held.
    pub(crate) peak_kib: u64,
}

impl Tally {
    /// As written by a child to `folder`; nothing if it never began.
    pub(crate) fn read(folder: &Path) -> Self {
        let mut numbers = fs::read(tally_path(folder)).unwrap_or_default().into_iter();
        let mut next = || {
            let mut bytes = [0; 8];
            bytes.fill_with(|| numbers.next().unwrap_or(0));
            u64::from_le_bytes(bytes)
        };
        Self {
            index: next(),
            accepted: next(),
            refused: next(),
            caught: next(),
            slowest_micros: next(),
            slowest_index: next(),
            longest_message_bytes: next(),
            longest_message_index: next(),
            peak_kib: next(),
        }
    }

    fn write(&self, mut file: &File) {
        let numbers = [
            self.index,
            self.accepted,
            self.refused,
            self.caught,
            self.slowest_micros,
            self.slowest_index,
            self.longest_message_bytes,
            self.longest_message_index,
            self.peak_kib,
        ];
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let written = file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&bytes));
        written.expect("the counts can be written");
    }
}

/// The failures that a child wrote to `folder`.
pub(crate) fn read_failures(folder: &Path) -> Vec<Failure> {
    let text = fs::read_to_string(failures_path(folder)).unwrap_or_default();
    text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
}

/// The generator of the input with this number.
pub(crate) fn random_of(order: &Order, index: u64) -> Random {
    let name = order
        .target
        .bytes()
        .fold(order.seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    Random::seed_from_u64(name ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// Does what `order` says.
pub(crate) fn run(kind: &Kind, order: Order) {
    let open = kind.open;
    let worker = move || Worker::new(open, order).run();
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(worker);
    thread.expect("a thread").join().expect("the harness itself does not panic");
}

fn tally_path(folder: &Path) -> PathBuf {
    folder.join("tally")
}

fn failures_path(folder: &Path) -> PathBuf {
    folder.join("failures.jsonl")
}

struct Worker {
    order: Order,
    target: Box<dyn Target>,
    tally: Tally,
    tally_file: File,
    failures: FailureLog,
    num_alike: HashMap<String, usize>,
    /// Milliseconds from the process' start to the present input's, plus one; 0 between inputs.
    busy_since: Arc<AtomicU64>,
    present: Arc<AtomicU64>,
    peak_kib: Arc<AtomicU64>,
    process_start: Instant,
}

impl Worker {
    fn new(open: fn(&Path) -> Box<dyn Target>, order: Order) -> Self {
        let files = order.folder.join("target");
        super::empty(&files);
        let target = open(&files);
        panics::watch();
        Self {
            target,
            tally: Tally { index: order.indices.start, ..Tally::read(&order.folder) },
            tally_file: File::options()
                .create(true)
                .truncate(false)
                .write(true)
                .open(tally_path(&order.folder))
                .expect("the counts can be written"),
            failures: FailureLog::open(&order.folder),
            num_alike: HashMap::new(),
            busy_since: Arc::default(),
            present: Arc::default(),
            peak_kib: Arc::default(),
            process_start: Instant::now(),
            order,
        }
    }

    fn run(mut self) {
        self.start_watchdog();
        if let Some(index) = self.order.to_save {
            self.save(index, &self.input(index));
        }
        for index in self.order.indices.clone() {
            self.tally.index = index;
            self.tally.write(&self.tally_file);
            self.run_one(index);
        }
        self.tally.peak_kib = self.tally.peak_kib.max(peak_kib());
        self.tally.write(&self.tally_file);
    }

    fn input(&self, index: u64) -> Input {
        self.target.input(index, &mut random_of(&self.order, index))
    }

    fn run_one(&mut self, index: u64) {
        let input = self.input(index);
        if self.order.indices.end - self.order.indices.start == 1 {
            self.save(index, &input);
        }
        let started = Instant::now();
        self.present.store(index, Ordering::Relaxed);
        let since = self.process_start.elapsed().as_millis() as u64 + 1;
        self.busy_since.store(since, Ordering::Relaxed);
        let outcome = catch_unwind(AssertUnwindSafe(|| self.target.run(&input)));
        self.busy_since.store(0, Ordering::Relaxed);
        let micros = started.elapsed().as_micros() as u64;
        if micros > self.tally.slowest_micros {
            (self.tally.slowest_micros, self.tally.slowest_index) = (micros, index);
        }
        self.tally.peak_kib = self.tally.peak_kib.max(self.peak_kib.load(Ordering::Relaxed));
        self.judge(index, &input, outcome.ok(), &panics::take());
    }

    fn judge(&mut self, index: u64, input: &Input, verdict: Option<Verdict>, panics: &[Panic]) {
        let is_ours = |panic: &&Panic| panic.foreign_crate.is_none();
        let to_blame = if verdict.is_none() { panics.last() } else { panics.iter().find(is_ours) };
        if let Some(Panic { place, message, foreign_crate }) = to_blame {
            let whose = foreign_crate.as_deref().unwrap_or("ours");
            let fate = if verdict.is_some() { "caught panic" } else { "panic" };
            self.fail(index, input, format!("{fate} at {place}"), format!("{message} ({whose})"));
        } else {
            self.tally.caught += u64::from(!panics.is_empty());
        }
        match verdict {
            Some(Verdict::Accepted) => self.tally.accepted += 1,
            Some(Verdict::Refused(message)) => {
                self.tally.refused += 1;
                let num_bytes = message.len() as u64;
                if num_bytes > self.tally.longest_message_bytes {
                    (self.tally.longest_message_bytes, self.tally.longest_message_index) = (num_bytes, index);
                }
                if self.order.indices.end - self.order.indices.start == 1 {
                    say!("refused: {message}");
                }
            }
            Some(Verdict::Broken(law)) => {
                let (law, what) = law.split_once(": ").unwrap_or((&law, "it does not hold"));
                self.fail(index, input, law.to_owned(), what.to_owned());
            }
            None => {}
        }
    }

    fn fail(&mut self, index: u64, input: &Input, likeness: String, message: String) {
        let num_alike = self.num_alike.entry(likeness.clone()).or_default();
        *num_alike += 1;
        if *num_alike <= SAVED_ALIKE {
            self.save(index, input);
        }
        self.failures.append(&Failure { index, likeness, message });
    }

    fn save(&self, index: u64, input: &Input) {
        let folder = self.order.found.join(&self.order.target).join(format!("{}-{index}", self.order.seed));
        super::empty(&folder);
        input.write(&folder);
    }

    /// A thread that ends the process when an input takes too long, and looks at its memory
    /// meanwhile.
    fn start_watchdog(&self) {
        let (busy_since, present) = (self.busy_since.clone(), self.present.clone());
        let (peak, process_start) = (self.peak_kib.clone(), self.process_start);
        let mut failures = FailureLog::open(&self.order.folder);
        let watch = move || {
            loop {
                std::thread::sleep(WATCH_INTERVAL);
                peak.store(peak_kib(), Ordering::Relaxed);
                let since = busy_since.load(Ordering::Relaxed);
                let now = process_start.elapsed().as_millis() as u64;
                if since > 0 && now.saturating_sub(since) > TIME_LIMIT.as_millis() as u64 {
                    let message = format!("more than {} s", TIME_LIMIT.as_secs());
                    let index = present.load(Ordering::Relaxed);
                    failures.append(&Failure { index, likeness: "hang".to_owned(), message });
                    std::process::abort();
                }
            }
        };
        // It ends with the process.
        drop(std::thread::Builder::new().spawn(watch).expect("a thread"));
    }
}

struct FailureLog(File);

impl FailureLog {
    fn open(folder: &Path) -> Self {
        let file = File::options().create(true).append(true).open(failures_path(folder));
        Self(file.expect("the report can be written"))
    }

    fn append(&mut self, failure: &Failure) {
        let line = serde_json::to_string(failure).expect("a failure is JSON") + "\n";
        self.0.write_all(line.as_bytes()).expect("the report can be written");
    }
}

/// Most memory that this process ever held, in KiB; 0 where the system does not say.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

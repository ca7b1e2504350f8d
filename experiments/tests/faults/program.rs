//! The program, run with the shim around it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the shim does to a process.
pub(crate) enum Shim<'a> {
    /// Nothing.
    Idle,
    /// Writes its calls to a log.
    Log(&'a Path),
    /// Lets a fault happen at the `at`-th call to which it can, from 1.
    Fault { kind: &'a str, at: usize },
}

/// How a process ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stderr: String,
    /// The call at which the fault happened; `None` if there was none.
    pub(crate) fired: Option<String>,
}

/// The program and its shim.
pub(crate) struct Program {
    shim: PathBuf,
}

/// A run of a few steps spends a third of a second on measuring the processor, by the clock: eight
/// looks at it are enough.
const TICK_MS: &str = "40";

/// No command of a scenario takes a second.
const PATIENCE: Duration = Duration::from_secs(60);

impl Program {
    /// Compiles the shim in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        let shim = folder.join("shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let arguments = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o"];
        let status = Command::new("cc").args(arguments).args([&shim, &source]).arg("-ldl").status();
        assert!(status.unwrap().success(), "cc cannot compile {}", source.display());
        Self { shim }
    }

    /// Runs `command` in the folder `desk`; files of the shim's go beside it.
    pub(crate) fn run(&self, desk: &Path, command: &str, shim: &Shim<'_>) -> Ended {
        let (said, fired) = (desk.with_extension("stderr"), desk.with_extension("fired"));
        drop(fs::remove_file(&fired));
        let mut process = Command::new(env!("CARGO_BIN_EXE_switchyard"));
        process.args(command.split_whitespace()).current_dir(desk).env_clear();
        // Without a search path there is no git: three processes less.
        process.env("PATH", "").env("SWITCHYARD_CACHE_DIR", "cache");
        process.env("LD_PRELOAD", &self.shim).env("FAULTS_TICK_MS", TICK_MS);
        match shim {
            Shim::Idle => {}
            Shim::Log(log) => drop(process.env("FAULTS_FOLDER", desk).env("FAULTS_LOG", log)),
            Shim::Fault { kind, at } => {
                process.env("FAULTS_FOLDER", desk).env("FAULTS_KIND", kind);
                process.env("FAULTS_AT", at.to_string()).env("FAULTS_FIRED", &fired);
            }
        }
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).unwrap());
        let mut child = process.spawn().unwrap();
        let started = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                let status = child.wait().unwrap();
                let stderr = format!("{command}: did not end in {PATIENCE:?}");
                return Ended { status, stderr, fired: None };
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let stderr = String::from_utf8_lossy(&fs::read(&said).unwrap()).into_owned();
        let fired = fs::read_to_string(&fired).ok().map(|call| call.trim().to_string());
        Ended { status, stderr, fired }
    }
}

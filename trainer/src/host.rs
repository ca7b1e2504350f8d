//! The machine that a run runs on, and the sources that the program was built from.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use switchyard_ground::digest::sha256_hex;

/// The lock file at build time: it names the exact version of every dependency in this program.
const CARGO_LOCK: &[u8] = include_bytes!("../../Cargo.lock");

/// The machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Its name, or `unknown`.
    pub hostname: String,
    /// Operating system, such as `linux`.
    pub os: String,
    /// Processor architecture, such as `x86_64`.
    pub arch: String,
    /// The processor's name.
    pub cpu_model: Option<String>,
    /// Hardware threads that this process may use.
    pub logical_cores: usize,
    /// Physical memory.
    pub memory_bytes: Option<u64>,
    /// Those vector extensions of the processor that decide the speed of the numerics.
    pub cpu_features: Vec<String>,
}

impl HostInfo {
    /// The machine that this process runs on.
    pub fn detect() -> Self {
        Self {
            hostname: hostname().unwrap_or_else(|| "unknown".into()),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            cpu_model: cpu_model(),
            logical_cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            cpu_features: cpu_features(),
        }
    }
}

/// A commit of the repository of the sources.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Commit {
    /// Its hash.
    pub hash: String,
    /// Whether tracked files differed from it.
    pub dirty: bool,
}

impl Commit {
    /// The commit of the sources that this program was built from; `None` if the sources, their
    /// repository or git are not there, or the sources were written to since.
    pub fn of_sources() -> Option<Self> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let built = std::env::current_exe().and_then(fs::metadata).and_then(|file| file.modified()).ok()?;
        Self::checked_out_in(folder).filter(|_| !has_source_after(&folder.join(".."), built))
    }

    fn checked_out_in(folder: &Path) -> Option<Self> {
        let git = |arguments: &[&str]| {
            // Without optional locks `status` writes nothing into a repository that others may be
            // using.
            let command =
                Command::new("git").arg("--no-optional-locks").arg("-C").arg(folder).args(arguments).output();
            command.ok().filter(|output| output.status.success()).map(|output| output.stdout)
        };
        // The sources may lie unpacked inside somebody else's repository.
        git(&["ls-files", "--error-unmatch", "Cargo.toml"])?;
        let hash = String::from_utf8(git(&["rev-parse", "--verify", "HEAD"])?).ok()?.trim().to_string();
        let dirty = !git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty();
        Some(Self { hash, dirty })
    }
}

/// Whether a source file below `root` that git tracks was written to after `time`, as an edit and a
/// change of the commit do.
fn has_source_after(root: &Path, time: SystemTime) -> bool {
    let mut list = Command::new("git");
    list.arg("-C").arg(root).args(["ls-files", "-z", "--", "*.rs", "*Cargo.toml", "Cargo.lock"]);
    let Ok(listed) = list.output() else { return true };
    let names = listed.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let modified = |name: &[u8]| fs::metadata(root.join(String::from_utf8_lossy(name).as_ref()))?.modified();
    !listed.status.success() || names.into_iter().any(|name| modified(name).is_ok_and(|at| at > time))
}

/// SHA-256 of the `Cargo.lock` that the program was built with, in hexadecimal.
pub fn cargo_lock_sha256() -> String {
    sha256_hex(CARGO_LOCK)
}

/// SHA-256 over what decides a run's numbers, in hexadecimal: the sources of all crates up to this
/// one, `Cargo.toml` and `Cargo.lock`, the compiler and its settings. The same wherever it is
/// built, and after changes above this crate.
pub fn training_code_sha256() -> &'static str {
    env!("SWITCHYARD_TRAINING_CODE_SHA256")
}

fn hostname() -> Option<String> {
    let from_files = ["/proc/sys/kernel/hostname", "/etc/hostname"].into_iter().find_map(first_line);
    let from_environment =
        || ["HOSTNAME", "COMPUTERNAME"].into_iter().find_map(|key| std::env::var(key).ok());
    from_files.or_else(from_environment).or_else(|| command_line("hostname", &[]))
}

fn cpu_model() -> Option<String> {
    let from_kernel = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| field(&text, "model name"));
    from_kernel
        .or_else(|| command_line("sysctl", &["-n", "machdep.cpu.brand_string"]))
        .or_else(|| std::env::var("PROCESSOR_IDENTIFIER").ok())
}

fn memory_bytes() -> Option<u64> {
    let from_kernel = || {
        let text = fs::read_to_string("/proc/meminfo").ok()?;
        let kibibytes: u64 = field(&text, "MemTotal")?.strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    from_kernel().or_else(|| command_line("sysctl", &["-n", "hw.memsize"])?.parse().ok())
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn cpu_features() -> Vec<String> {
    let features = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512dq", is_x86_feature_detected!("avx512dq")),
        ("avx512vl", is_x86_feature_detected!("avx512vl")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    features.into_iter().filter(|&(_, detected)| detected).map(|(name, _)| name.into()).collect()
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn cpu_features() -> Vec<String> {
    Vec::new()
}

/// The value of the first `key : value` line.
fn field(text: &str, key: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim().to_string())
    })
}

fn first_line(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().next().map(|line| line.trim().to_string()).filter(|line| !line.is_empty())
}

/// Standard output of a command in one line; `None` if the command is not there, fails or says
/// nothing.
fn command_line(program: &str, arguments: &[&str]) -> Option<String> {
    let output =
        Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok().map(|text| text.trim().to_string()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn git(folder: &Path, arguments: &[&str]) {
        let identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"];
        let status =
            Command::new("git").arg("-C").arg(folder).args(identity).args(arguments).output().unwrap().status;
        assert!(status.success(), "git {arguments:?}");
    }

    #[test]
    fn the_machine_has_a_name_and_cores() {
        let host = HostInfo::detect();
        assert!(!host.hostname.is_empty() && host.logical_cores > 0);
        if cfg!(target_os = "linux") {
            assert!(host.memory_bytes.unwrap() > 1 << 20, "{host:?}");
        }
    }

    #[test]
    fn a_field_is_found_by_its_whole_name() {
        let text = "model name ext : no\nmodel name\t: Xeon: big\nMemTotal:  24 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Xeon: big"));
        assert_eq!(field(text, "MemTotal").as_deref(), Some("24 kB"));
        assert_eq!(field(text, "Total"), None);
    }

    #[test]
    fn a_commit_is_dirty_once_a_tracked_file_changes() {
        if command_line("git", &["--version"]).is_none() {
            // Written past the capture of test output, so that the skip is seen.
            drop(writeln!(std::io::stderr(), "skipped: no git on this machine"));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet"]);
        fs::write(folder.path().join("Cargo.toml"), "1").unwrap();
        assert_eq!(Commit::checked_out_in(folder.path()), None, "not tracked");
        git(folder.path(), &["add", "Cargo.toml"]);
        assert_eq!(Commit::checked_out_in(folder.path()), None, "no commit yet");
        git(folder.path(), &["commit", "--quiet", "-m", "first"]);
        let clean = Commit::checked_out_in(folder.path()).unwrap();
        assert!(clean.hash.len() >= 40 && !clean.dirty, "{clean:?}");
        fs::write(folder.path().join("untracked"), "1").unwrap();
        assert_eq!(Commit::checked_out_in(folder.path()), Some(clean.clone()));
        let [before, after] = [SystemTime::UNIX_EPOCH, SystemTime::now() + std::time::Duration::from_secs(9)];
        assert_eq!([before, after].map(|time| has_source_after(folder.path(), time)), [true, false]);
        fs::write(folder.path().join("Cargo.toml"), "22").unwrap();
        assert_eq!(Commit::checked_out_in(folder.path()), Some(Commit { dirty: true, ..clean }));
    }
}

//! Runs over a real MPI: `cargo test --workspace --features switchyard/mpi --test ranks`.
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

const CONFIG: &str = r#"
name = "ranks"
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 64
num_documents = 400
document_tokens = 64
branching = 3
[train]
num_steps = 40
seq_len = 32
batch_tokens = 256
micro_batch_tokens = 64
eval_every_steps = 10
checkpoint_every_steps = 5
max_grad_norm = 0.5
[train.adamw]
learning_rate = 1e-2
[train.checkpoints]
keep_last = 100
[sample]
num_tokens = 0
[model]
num_layers = 2
d_model = 32
dropout = 0.1
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
[model.ffn.moe]
num_experts = 8
d_expert = 32
[model.ffn.moe.capacity]
factor = 1.5
[model.ffn.moe.router]
top_k = 2
jitter = 0.01
load_balancing_weight = 0.01
"#;

/// A folder with the configuration.
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("run.toml"), CONFIG).unwrap();
    folder
}

/// `switchyard` with these arguments as so many ranks in `folder`.
fn mpirun(num_ranks: usize, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args([
        "-n",
        &num_ranks.to_string(),
        "--oversubscribe",
        "--allow-run-as-root",
        "--bind-to",
        "none",
    ]);
    command.args(["--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none"]);
    command.arg(env!("CARGO_BIN_EXE_switchyard")).args(arguments).current_dir(folder);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn has_mpi() -> bool {
    let has = Command::new("mpirun").arg("--version").output().is_ok();
    if !has {
        switchyard_ground::say!("skipped: there is no `mpirun`; Debian has it in openmpi-bin");
    }
    has
}

#[track_caller]
fn succeeds(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The tensors of a checkpoint.
fn tensors(out: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = out.join(format!("checkpoints/step-{step}"));
    ["model.safetensors", "optimizer.safetensors"].map(|name| fs::read(folder.join(name)).unwrap())
}

/// The tensors of the whole run by one process.
fn of_one_process(folder: &Path) -> [Vec<u8>; 2] {
    succeeds(&mpirun(1, folder, &["train", "run.toml", "--out", "alone"]).output().unwrap());
    tensors(&folder.join("alone"), 40)
}

#[test]
fn processes_have_the_bits_of_one_and_a_study_runs_on_them() {
    if !has_mpi() {
        return;
    }
    let folder = folder();
    let alone = of_one_process(folder.path());
    for ranks in [2, 4] {
        let out = format!("on-{ranks}");
        let output = mpirun(ranks, folder.path(), &["train", "run.toml", "--out", &out]).output().unwrap();
        succeeds(&output);
        assert!(tensors(&folder.path().join(out), 40) == alone, "{ranks} ranks");
        // One of them speaks.
        assert_eq!(said(&output).matches("finished: 40 steps").count(), 1, "{}", said(&output));
    }
    let other = CONFIG.replace("num_experts = 8", "num_experts = 16").replace("\"ranks\"", "\"more\"");
    fs::write(folder.path().join("more.toml"), other).unwrap();
    let output = mpirun(2, folder.path(), &["compare", "run.toml", "more.toml"]).output().unwrap();
    succeeds(&output);
    let compared = String::from_utf8_lossy(&output.stdout);
    assert!(compared.contains("more"), "{compared}");
}

#[test]
fn a_mistake_is_said_once_and_ends_all() {
    if !has_mpi() {
        return;
    }
    let folder = folder();
    for (arguments, words) in [
        (&["train", "nowhere.toml"][..], "nowhere.toml"),
        (
            &["train", "run.toml", "--set", "train.micro_batch_tokens=256"],
            "`train.micro_batch_tokens` is 256",
        ),
        (&["no-such-command"], "unrecognized subcommand"),
    ] {
        let output = mpirun(2, folder.path(), arguments).output().unwrap();
        assert!(!output.status.success());
        assert_eq!(said(&output).matches(words).count(), 1, "{}", said(&output));
    }
}

#[test]
fn ranks_that_find_other_data_under_the_same_name_are_refused() {
    if !has_mpi() {
        return;
    }
    let folder = folder();
    let command = |others_read: &str| {
        let rank = |read: &str| {
            let place = folder.path().join(read);
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("text.txt"), format!("{read} text. ").repeat(4000)).unwrap();
            let program = env!("CARGO_BIN_EXE_switchyard").to_string();
            let arguments = "train ../run.toml --out ../out --overwrite --set data.synthetic= \
                             --set data.text.path=text.txt --set data.split.tail.validation_fraction=0.1 --set train.num_steps=2";
            let started = ["-n", "1", "--wdir"].map(str::to_string).into_iter();
            let rest = arguments.split_whitespace().map(str::to_string);
            started.chain([place.display().to_string(), program]).chain(rest).collect::<Vec<_>>()
        };
        let mut command = Command::new("mpirun");
        command.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]);
        command.args(rank("one")).arg(":").args(rank(others_read)).current_dir(folder.path());
        command
    };
    succeeds(&command("one").output().unwrap());
    let refused = command("another").output().unwrap();
    assert!(!refused.status.success());
    let said = said(&refused);
    assert!(said.contains("rank 1 reads other data than rank 0: what `data` names"), "{said}");
}

/// What happens to a rank.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    Kill,
    Stop,
    Terminate,
    /// It is rank 0 that writes.
    FillDisk,
}

/// The run folder of a run that is broken, below a folder that may be a small disk of its own.
const BROKEN: &str = "disk/broken";

/// A small disk at `disk`, as long as this lives. Needs root.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path) -> Self {
        let disk = folder.join("disk");
        fs::create_dir_all(&disk).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=32m", "tmpfs"]).arg(&disk).status();
        assert!(mounted.is_ok_and(|status| status.success()), "only root mounts a disk");
        Self(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(&self.0).status());
    }
}

/// Fills the disk of `folder`; returns the file that does.
fn fill_disk(folder: &Path) -> PathBuf {
    let path = folder.join("disk/filler");
    let mut file = fs::File::create(&path).unwrap();
    while file.write_all(&[0; 4096]).is_ok() {}
    path
}

/// Starts a run on four ranks, lets a fault happen to one of them once the log has so many rows, and
/// waits for the end of the job.
fn with_fault(folder: &Path, mode: &[&str], rank: usize, rows: usize, fault: Fault) -> (Output, Duration) {
    let arguments = [&["train", "run.toml", "--out", BROKEN], mode].concat();
    let mut job = mpirun(4, folder, &arguments).spawn().unwrap();
    let process = wait_for(&mut job, &folder.join(BROKEN).join("metrics.jsonl"), rows, rank);
    let begun = Instant::now();
    let mut filler = None;
    if let Some(process) = process {
        let send = |signal: &str| {
            drop(Command::new("kill").args([format!("-{signal}"), process.to_string()]).status());
        };
        match fault {
            Fault::Kill => send("KILL"),
            Fault::Stop => send("STOP"),
            Fault::Terminate => send("TERM"),
            Fault::FillDisk => filler = Some(fill_disk(folder)),
        }
    }
    let output = job.wait_with_output().unwrap();
    let took = begun.elapsed();
    filler.into_iter().for_each(|file| fs::remove_file(file).unwrap());
    (output, took)
}

/// The process of a rank, once the log has so many rows; `None` if the job has ended by then.
fn wait_for(job: &mut Child, log: &Path, rows: usize, rank: usize) -> Option<u32> {
    let num_rows = || fs::File::open(log).map_or(0, |file| BufReader::new(file).lines().count());
    while num_rows() < rows {
        if job.try_wait().unwrap().is_some() {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
    ranks_of(job.id()).into_iter().nth(rank)
}

/// The children of `mpirun` in the order of their ranks.
fn ranks_of(job: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{job}/task/{job}/children")).unwrap_or_default();
    let rank = |process: &u32| -> Option<usize> {
        let environment = fs::read(PathBuf::from(format!("/proc/{process}/environ"))).ok()?;
        let name = b"OMPI_COMM_WORLD_RANK=";
        let value = environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(name))?;
        std::str::from_utf8(value).ok()?.parse().ok()
    };
    let mut ranked: Vec<(usize, u32)> = children
        .split_whitespace()
        .filter_map(|process| process.parse().ok())
        .filter_map(|process| Some((rank(&process)?, process)))
        .collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, process)| process).collect()
}

/// The interrupted run goes on to the bits of an unbroken one.
#[track_caller]
fn goes_on(folder: &Path, alone: &[Vec<u8>; 2], ranks: usize) {
    let arguments = ["train", "run.toml", "--out", BROKEN, "--resume"];
    succeeds(&mpirun(ranks, folder, &arguments).output().unwrap());
    assert!(tensors(&folder.join(BROKEN), 40) == *alone);
}

#[test]
fn a_rank_that_is_killed_stopped_or_told_to_end_ends_all_and_the_run_goes_on() {
    if !has_mpi() {
        return;
    }
    let folder = folder();
    let alone = of_one_process(folder.path());
    for (fault, rank, ranks_after) in [(Fault::Kill, 2, 2), (Fault::Stop, 1, 1), (Fault::Terminate, 3, 4)] {
        drop(fs::remove_dir_all(folder.path().join(BROKEN)));
        let (output, took) = with_fault(folder.path(), &[], rank, 12, fault);
        assert!(!output.status.success(), "{fault:?}: {}", said(&output));
        assert!(took < Duration::from_secs(12), "{fault:?}: {took:?}");
        match fault {
            Fault::Kill => assert!(said(&output).contains("exited on signal 9"), "{}", said(&output)),
            Fault::Stop => {
                assert!(said(&output).contains("rank 1 has not been heard of"), "{}", said(&output))
            }
            Fault::Terminate => {
                assert!(said(&output).contains("interrupted after step"), "{}", said(&output))
            }
            Fault::FillDisk => unreachable!("it needs a disk of its own"),
        }
        goes_on(folder.path(), &alone, ranks_after);
    }
}

/// The command, as root: `cargo test --workspace --features switchyard/mpi --test ranks -- --ignored --nocapture`.
#[test]
#[ignore = "takes minutes"]
fn forty_faults_at_random_instants_lose_nothing() {
    let folder = folder();
    let _disk = SmallDisk::mount(folder.path());
    let alone = of_one_process(folder.path());
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    let mut done = 0;
    while done < 40 {
        drop(fs::remove_dir_all(folder.path().join(BROKEN)));
        for part in 0..3 {
            let fault = [Fault::Kill, Fault::Stop, Fault::Terminate, Fault::FillDisk][draw(4) as usize];
            let (rank, rows) = (draw(4) as usize, 1 + part * 12 + draw(12) as usize);
            let mode: &[&str] = if part == 0 { &[] } else { &["--resume"] };
            let (output, took) = with_fault(folder.path(), mode, rank, rows, fault);
            switchyard_ground::say!(
                "{done}: {fault:?} of rank {rank} after {rows} rows: the end came after {took:?}"
            );
            assert!(took < Duration::from_secs(10), "{fault:?}: {took:?}, {}", said(&output));
            let failed = !output.status.success();
            let names_it = said(&output).contains("No space left");
            assert!(names_it == (failed && fault == Fault::FillDisk), "{fault:?}: {}", said(&output));
            done += usize::from(failed);
        }
        goes_on(folder.path(), &alone, [1, 2, 4][draw(3) as usize]);
    }
}

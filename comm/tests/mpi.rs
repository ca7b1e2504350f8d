//! Ranks that are processes of a real MPI: this program, started again by `mpirun`.
#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod laws;

use std::env;
use std::panic;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use switchyard_comm::{Comm, link};
use switchyard_ground::say;

/// What the ranks are to do; absent in the process that starts them.
const PART: &str = "SWITCHYARD_MPI_TEST";
/// How long a rank waits for one that does not come.
const TIMEOUT: Duration = Duration::from_secs(2);

fn main() {
    let comm = || Comm::mpi().unwrap();
    match env::var(PART).as_deref() {
        Ok("laws") => laws::hold(&comm()),
        Ok("links") => say_links(&comm()),
        Ok("late") => sum_without_rank_3(&comm(), || thread::sleep(Duration::from_secs(60))),
        Ok("stopped") => sum_without_rank_3(&comm(), || signal_self("STOP")),
        Ok("killed") => sum_without_rank_3(&comm(), || signal_self("KILL")),
        Ok("panicking") => panic_while_another_thread_waits(comm()),
        Ok(part) => panic!("no part {part}"),
        Err(_) => start_ranks(),
    }
}

fn start_ranks() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        say!("skipped: there is no `mpirun`; Debian has it in openmpi-bin");
        return;
    }
    for size in [1, 2, 3, 4, 5, 8] {
        for longest in ["1000", "1000000"] {
            let output = mpirun(size, "laws").env("SWITCHYARD_LONGEST_MESSAGE", longest).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{size} ranks, messages of {longest} bytes: {said}");
        }
    }
    assert!(mpirun(3, "links").output().unwrap().status.success());
    let waited = "waited for rank 3 in `ordered_sum`";
    for (part, words) in [
        ("late", waited),
        ("stopped", waited),
        // What the launcher says of it.
        ("killed", "exited on signal 9 (Killed)"),
        ("panicking", "rank 3: panicked"),
    ] {
        ends_soon_and_says(part, words);
    }
    say!("every law holds on 1 to 5 and 8 ranks of MPI, and a rank that does not come or panics is named");
}

/// A job of four ranks whose rank 3 does not do its part.
fn ends_soon_and_says(part: &str, words: &str) {
    let begun = Instant::now();
    let output = mpirun(4, part).output().unwrap();
    let took = begun.elapsed();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(words), "{part}: {said}");
    assert!(took < TIMEOUT + Duration::from_secs(5), "{part}: {took:?}");
}

fn mpirun(size: usize, part: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &size.to_string(), "--oversubscribe", "--allow-run-as-root"]);
    // No network, and no shared memory that the kernel would have to let one process read of another.
    command.args(["--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none"]);
    command.arg(env::current_exe().unwrap()).env(PART, part);
    command
}

/// The ranks 1 and 2 wait for rank 3, and rank 0 for rank 2.
fn sum_without_rank_3(comm: &Comm, elsewhere: impl Fn()) {
    let comm = comm.clone().with_timeout(TIMEOUT);
    comm.barrier().unwrap();
    if comm.rank() == 3 {
        elsewhere();
    }
    comm.ordered_sum(&mut [1.0; 100]).unwrap();
}

/// A shell can send what is unsafe code here.
fn signal_self(signal: &str) {
    let command = format!("kill -{signal} {}", std::process::id());
    Command::new("sh").args(["-c", &command]).status().unwrap();
}

fn panic_while_another_thread_waits(comm: Comm) {
    if comm.rank() == 3 {
        let (waiting, of_hook) = (comm.clone(), comm);
        panic::set_hook(Box::new(move |panic| of_hook.abort(&panic.to_string())));
        thread::spawn(move || waiting.barrier());
        thread::sleep(Duration::from_millis(300));
        panic!("no such luck");
    }
    thread::sleep(Duration::from_secs(60));
}

fn say_links(comm: &Comm) {
    for measured in link::measure(comm).unwrap() {
        if comm.rank() == 0 {
            say!("{measured:?}");
        }
    }
}

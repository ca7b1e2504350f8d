//! Ranks that are processes of a real MPI: this program, started again by `mpirun`.
#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod laws;

use std::env;
use std::hint;
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
        Ok("frozen") => barrier_without_rank_3(&watched(comm()), || signal_self("STOP")),
        Ok("frozen elsewhere") => stop_while_others_compute(&watched(comm())),
        Ok("frozen last") => stop_when_others_have_left(watched(comm())),
        Ok("leaving") => leave_while_others_wait(watched(comm())),
        Ok("unwinding") => barrier_without_rank_3(&watched(comm()), || panic!("no such luck")),
        Ok("one by one") => leave_one_by_one(&watched(comm())),
        Ok("busy") => compute_and_gather_on_all_cores(&watched(comm())),
        // What `scripts/check-two-hosts` starts.
        Ok("sums") => sum_for_a_minute(&watched(comm())),
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
    for part in ["one by one", "busy"] {
        let output = mpirun(4, part).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{part}: {said}");
    }
    let waited = "waited for rank 3 in `ordered_sum`";
    let frozen = "rank 0: rank 3 has not been heard of for 2.";
    for (part, words) in [
        ("late", waited),
        ("stopped", waited),
        // What the launcher says of it.
        ("killed", "exited on signal 9 (Killed)"),
        ("panicking", "rank 3: panicked"),
        ("unwinding", "rank 3: it panicked"),
        ("frozen", frozen),
        ("frozen", "s, while `barrier` waits: its process was stopped"),
        ("frozen elsewhere", frozen),
        ("frozen last", frozen),
        ("leaving", "rank 3: it has done its part, but rank"),
    ] {
        ends_soon_and_says(part, words);
    }
    say!(
        "every law holds on 1 to 5 and 8 ranks of MPI, and a rank that is stopped, missing or panics is named"
    );
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

/// Its processes may be silent for as long as its collectives wait in other tests.
fn watched(comm: Comm) -> Comm {
    comm.watch(TIMEOUT);
    comm
}

fn barrier_without_rank_3(comm: &Comm, elsewhere: impl Fn()) {
    comm.barrier().unwrap();
    if comm.rank() == 3 {
        elsewhere();
    }
    comm.barrier().unwrap();
}

fn sum_for_a_minute(comm: &Comm) {
    for _ in 0..6000 {
        let mut values = vec![comm.rank() as f32 + 1.0; 5000];
        comm.ordered_sum(&mut values).unwrap();
        assert_eq!(values, [(1..=comm.size()).sum::<usize>() as f32; 5000]);
        thread::sleep(Duration::from_millis(10));
    }
}

fn stop_while_others_compute(comm: &Comm) {
    comm.barrier().unwrap();
    if comm.rank() == 3 {
        signal_self("STOP");
    }
    thread::sleep(Duration::from_secs(60));
}

fn stop_when_others_have_left(comm: Comm) {
    if comm.rank() == 3 {
        signal_self("STOP");
    }
    drop(comm);
}

fn leave_while_others_wait(comm: Comm) {
    if comm.rank() == 3 {
        drop(comm);
    } else {
        comm.barrier().unwrap();
    }
}

/// The last one works for longer than it may be silent when the others have nothing left to do.
fn leave_one_by_one(comm: &Comm) {
    let order = (comm.rank() + 2) % comm.size();
    thread::sleep(TIMEOUT.mul_f64(0.7 * order as f64));
}

/// As many threads as cores in each process, and collectives one right after another.
fn compute_and_gather_on_all_cores(comm: &Comm) {
    let begun = Instant::now();
    let cores = thread::available_parallelism().unwrap().get();
    let secs = env::var("SWITCHYARD_BUSY_SECS").map_or(6, |secs| secs.parse().unwrap());
    let is_over = || begun.elapsed() > Duration::from_secs(secs);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while !is_over() {
                    hint::spin_loop();
                }
            });
        }
        while comm.all_gather(&[u8::from(is_over())]).unwrap().iter().all(|over| *over == [0]) {}
    });
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

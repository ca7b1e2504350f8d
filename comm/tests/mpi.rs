//! Ranks that are processes of a real MPI: this program, started again by `mpirun`.
#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod laws;

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use switchyard_comm::{Comm, link};
use switchyard_ground::say;

/// What the ranks are to do; absent in the process that starts them.
const PART: &str = "SWITCHYARD_MPI_TEST";

fn main() {
    match env::var(PART).as_deref() {
        Ok("laws") => laws::hold(&Comm::mpi().unwrap()),
        Ok("links") => say_links(&Comm::mpi().unwrap()),
        Ok("late") => wait_for_one_that_does_not_come(),
        Ok(part) => panic!("no part {part}"),
        Err(_) => start_ranks(),
    }
}

fn start_ranks() {
    if Command::new("mpirun").arg("--version").output().is_err() {
        say!("skipped: there is no `mpirun`; Debian has it in openmpi-bin");
        return;
    }
    for size in 1..=5 {
        for longest in ["1000", "1000000"] {
            let output = mpirun(size, "laws").env("SWITCHYARD_LONGEST_MESSAGE", longest).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{size} ranks, messages of {longest} bytes: {said}");
        }
    }
    let begun = Instant::now();
    let output = mpirun(3, "late").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && begun.elapsed() < Duration::from_secs(20), "{said}");
    assert!(said.contains("waited for rank 1 in `barrier`"), "{said}");
    say!("every law holds on 1 to 5 ranks of MPI, and a rank that does not come is named");
}

fn mpirun(size: usize, part: &str) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["-n", &size.to_string(), "--oversubscribe", "--allow-run-as-root"]);
    // No network, and no shared memory that the kernel would have to let one process read of another.
    command.args(["--mca", "btl", "self,vader", "--mca", "btl_vader_single_copy_mechanism", "none"]);
    command.arg(env::current_exe().unwrap()).env(PART, part);
    command
}

fn wait_for_one_that_does_not_come() {
    let comm = Comm::mpi().unwrap().with_timeout(Duration::from_secs(1));
    if comm.rank() == 1 {
        std::thread::sleep(Duration::from_secs(60));
    }
    comm.barrier().unwrap();
}

fn say_links(comm: &Comm) {
    for measured in link::measure(comm).unwrap() {
        if comm.rank() == 0 {
            say!("{measured:?}");
        }
    }
}

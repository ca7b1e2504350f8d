//! The processes of one job that an MPI launcher started: `mpirun`, `srun --mpi=pmix`, an MPIJob.

use std::env;
use std::ffi::OsString;
use std::process::Command;
#[cfg(feature = "mpi")]
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
#[cfg(feature = "mpi")]
use std::{thread, time::Duration};

use switchyard_comm::Comm;
#[cfg(feature = "mpi")]
use switchyard_ground::say;

use crate::failure::Failure;

/// Variables by which launchers tell a process how many there are: Open MPI; MPICH, Intel MPI and
/// Slurm.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];
/// A variable by which PMIx tells a process which it is, but not how many there are, and the one by
/// which Slurm says that.
const PMIX_RANK: &str = "PMIX_RANK";
const SLURM_SIZE: &str = "SLURM_NTASKS";

/// The job's processes; `None` for one alone. MPI ends with the last of its ends, which therefore may
/// not stay here.
static JOB: Mutex<Option<Comm>> = Mutex::new(None);

/// Processes of the job as its launcher says; `None` without a launcher.
fn launched() -> Option<usize> {
    let number = |name: &str| env::var(name).ok()?.parse().ok();
    let of_pmix = || env::var_os(PMIX_RANK).map(|_| number(SLURM_SIZE).unwrap_or(1));
    SIZES.iter().find_map(|name| number(name)).or_else(of_pmix)
}

/// Joins the job that this process was started in.
///
/// # Errors
/// If there are others that it cannot reach: each would do the whole of the work.
pub(crate) fn join() -> Result<(), Failure> {
    let Some(size) = launched() else { return Ok(()) };
    let comm = world(size)?;
    *JOB.lock().unwrap_or_else(PoisonError::into_inner) = comm;
    Ok(())
}

/// How long the processes of a job may take to find each other.
#[cfg(feature = "mpi")]
const START: Duration = Duration::from_secs(60);

#[cfg(feature = "mpi")]
fn world(size: usize) -> Result<Option<Comm>, Failure> {
    let (started, waits) = mpsc::channel::<()>();
    // Before there are signs of life nobody can tell who is missing, and MPI waits for ever.
    thread::spawn(move || {
        if waits.recv_timeout(START) == Err(RecvTimeoutError::Timeout) {
            let secs = START.as_secs();
            say!(
                "error: the {size} processes of the job have not found each other in {secs} s: one was stopped, or its \
                 machine is not reachable"
            );
            std::process::abort();
        }
    });
    let comm = Comm::mpi();
    drop(started);
    comm.map(Some).map_err(|error| Failure::Fault(anyhow::Error::new(error)))
}

#[cfg(not(feature = "mpi"))]
fn world(size: usize) -> Result<Option<Comm>, Failure> {
    if size > 1 {
        return Err(Failure::Mistake(format!(
            "a launcher started {size} processes, but this `switchyard` was built without MPI, so each would do the whole \
             run: build it with `--features mpi`, or start one process"
        )));
    }
    Ok(None)
}

/// This process's end of the job; that of one alone where there is no other.
pub(crate) fn comm() -> Comm {
    JOB.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_else(Comm::single)
}

/// Has a process that is to be started know nothing of the job: it would take this one's place in it.
pub(crate) fn leave_out_of_job(command: &mut Command) {
    const PREFIXES: [&str; 4] = ["OMPI_", "PMI_", "PMIX_", "PRTE_"];
    let of_launcher =
        |name: &OsString| PREFIXES.iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
    for name in env::vars_os().map(|(name, _)| name).filter(of_launcher) {
        command.env_remove(name);
    }
}

/// Says `message` and ends all processes of the job, if there are others.
pub(crate) fn end_job(message: &str) {
    let comm = comm();
    if comm.size() > 1 {
        comm.abort(message);
    }
}

/// Leaves the job, once nobody has another end of it.
pub(crate) fn leave() {
    drop(JOB.lock().unwrap_or_else(PoisonError::into_inner).take());
}

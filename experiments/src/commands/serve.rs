//! `switchyard serve`: completions over HTTP, for programs on this machine.

mod engine;
mod listen;
mod refusal;
mod request;
mod until;

use std::io::{Write, stdout};
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use switchyard_ground::say;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::completion::LoadedModel;
use switchyard_trainer::moved_data::{MayChange, changed_config};
use switchyard_trainer::run_folder::RunPaths;
use switchyard_trainer::train::with_threads;

use super::{parsed, with_device};
use crate::cli::ServeArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;
use engine::Engine;
use listen::{Door, Job, Reply, accept_all};
use request::Limits;

/// How often it is looked whether the command is to end.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long the last answers may take to leave.
const FAREWELL: Duration = Duration::from_secs(1);

pub(super) fn run(args: &ServeArgs, interruption: &Interruption) -> Result<(), Failure> {
    if args.queue == 0 {
        return Err(Failure::Mistake("--queue 0: no request could be taken; use 1 at least".into()));
    }
    let overrides = parsed(&with_device(&args.overrides, args.device.as_deref()))?;
    let stop = interruption.watch("stopping after the token in work")?;
    let mut checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let written = RunPaths::new(&checkpoint.path).config();
    checkpoint.config = changed_config(&checkpoint.config, &written, &overrides, MayChange::Places)?;
    let port = args.port;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
        Failure::Mistake(format!("--port {port}: {error}; choose another port, or 0 for a free one"))
    })?;
    listener.set_nonblocking(true)?;
    with_threads(checkpoint.config.threads, || serve(&checkpoint, listener, args.queue, &stop))?;
    Err(Failure::Interrupted("stopped: nothing is served any more".into()))
}

/// Loads the model and answers until `stop` is set.
fn serve(
    checkpoint: &Checkpoint,
    listener: TcpListener,
    queue: usize,
    stop: &Arc<AtomicBool>,
) -> Result<(), TrainError> {
    let failed = |source| TrainError::Output { source };
    let model = LoadedModel::of(checkpoint)?;
    let limits = Limits { vocab_size: model.vocab_size(), max_seq_len: model.max_seq_len() };
    let name = checkpoint.config.name.clone();
    let (sender, jobs) = sync_channel(queue);
    let door = Arc::new(Door::new(model.tokenizer().clone(), limits, name.clone(), sender, stop.clone()));
    let engine = Engine { model, name, num_answers: AtomicU64::new(0) };
    let port = listener.local_addr().map_err(failed)?.port();
    let address = format!("http://127.0.0.1:{port}/v1/completions\n");
    let mut output = stdout().lock();
    output.write_all(address.as_bytes()).and_then(|()| output.flush()).map_err(failed)?;
    drop(output);
    say!("serving {} until Ctrl-C", checkpoint.path.display());
    let of_thread = door.clone();
    let accept = move || accept_all(&of_thread, &listener);
    thread::Builder::new().name("accept".into()).spawn(accept).map_err(failed)?;
    work(&engine, jobs, stop);
    let farewell = Instant::now();
    while door.num_open() > 0 && farewell.elapsed() < FAREWELL {
        thread::sleep(LOOK_EVERY / 10);
    }
    Ok(())
}

/// Does the jobs, one after the other. Those that still wait at the end are dropped, which their
/// connections notice.
fn work(engine: &Engine, jobs: Receiver<Job>, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let job = match jobs.recv_timeout(LOOK_EVERY) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => continue,
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let Job { request, reply, stop: of_job } = job;
        let mut send = |piece| {
            // A client that has gone needs no more tokens.
            if reply.send(Reply::Piece(piece)).is_err() {
                of_job.store(true, Ordering::SeqCst);
            }
        };
        let answer = engine.answer(&request, &of_job, &mut send);
        drop(reply.send(Reply::End(answer)));
    }
}

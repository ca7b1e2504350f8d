//! The connections: a thread each reads a request, has it answered, and writes the answer.
//!
//! Only requests to a name of this machine are answered, and only those whose content is said to be
//! JSON: a page of another site that a browser shows can send neither unasked.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TrySendError, channel};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use switchyard_datasets::Tokenizer;

use super::super::http::{
    Posted, Response, Unreadable, drain, read_posted, write_piece, write_response, write_stream_head,
};
use super::refusal::Refusal;
use super::request::{CompletionRequest, Limits};

/// How long a client may take to ask, and again to take a piece of the answer.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_BODY_BYTES: usize = 8 << 20;
/// More connections than these are refused.
const MAX_CONNECTIONS: usize = 128;
/// Pause where no connection waits.
const PAUSE: Duration = Duration::from_millis(2);
/// How often a waiting connection looks whether its client is still there.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a refused client may go on sending.
const DRAIN: Duration = Duration::from_millis(500);

const HEADERS: [(&str, &str); 2] = [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff")];
const STOPPING: &str = "the server is stopping";

/// A request for the model.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) request: CompletionRequest,
    pub(super) reply: Sender<Reply>,
    /// Set when nobody waits for the answer any more.
    pub(super) stop: Arc<AtomicBool>,
}

/// What the model says to a job.
#[derive(Debug)]
pub(super) enum Reply {
    /// A part of a streamed answer.
    Piece(Value),
    /// The answer.
    End(Result<Value, Refusal>),
}

/// What all connections share.
#[derive(Debug)]
pub(super) struct Door {
    tokenizer: Tokenizer,
    limits: Limits,
    name: String,
    jobs: SyncSender<Job>,
    stop: Arc<AtomicBool>,
    num_open: AtomicUsize,
}

/// What a request gets.
enum Route {
    Now(Response),
    Complete(CompletionRequest),
}

/// Answers the connections of `listener`, which does not block, until the door's `stop` is set.
pub(super) fn accept_all(door: &Arc<Door>, listener: &TcpListener) {
    while !door.stop.load(Ordering::SeqCst) {
        let Ok((stream, _)) = listener.accept() else {
            thread::sleep(PAUSE);
            continue;
        };
        if stream.set_nonblocking(false).is_err() {
            continue;
        }
        // A chunk of a stream is sent when it is there.
        drop(stream.set_nodelay(true));
        let of_thread = door.clone();
        if door.num_open.fetch_add(1, Ordering::SeqCst) >= MAX_CONNECTIONS {
            let refusal =
                Refusal::new(503, format!("{MAX_CONNECTIONS} connections are open: try again later"));
            drop(write_response(&stream, &refusal.response(), &HEADERS, true, PAUSE));
            door.num_open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let answer = move || {
            of_thread.answer(&stream);
            of_thread.num_open.fetch_sub(1, Ordering::SeqCst);
        };
        // Without a thread the connection is dropped, and with it closed.
        if thread::Builder::new().spawn(answer).is_err() {
            door.num_open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

impl Door {
    pub(super) fn new(
        tokenizer: Tokenizer,
        limits: Limits,
        name: String,
        jobs: SyncSender<Job>,
        stop: Arc<AtomicBool>,
    ) -> Self {
        Self { tokenizer, limits, name, jobs, stop, num_open: AtomicUsize::new(0) }
    }

    /// Connections that are not answered yet.
    pub(super) fn num_open(&self) -> usize {
        self.num_open.load(Ordering::SeqCst)
    }

    /// Reads the request of a connection and answers it. A client that goes away is no error.
    fn answer(&self, stream: &TcpStream) {
        let refusal = match read_posted(stream, PATIENCE, MAX_BODY_BYTES) {
            Ok(posted) => match self.route(&posted) {
                Ok(Route::Now(response)) => {
                    drop(write_response(stream, &response, &HEADERS, true, PATIENCE));
                    return;
                }
                Ok(Route::Complete(request)) => {
                    drop(self.complete(stream, request));
                    return;
                }
                Err(refusal) => refusal,
            },
            Err(Unreadable::Gone) => return,
            Err(unreadable) => unreadable_refusal(unreadable),
        };
        drop(write_response(stream, &refusal.response(), &HEADERS, true, PATIENCE));
        drain(stream, DRAIN);
    }

    fn route(&self, posted: &Posted) -> Result<Route, Refusal> {
        let Posted { request, content_type, body } = posted;
        if !matches!(&request.hosts[..], [host] if is_this_machine(host)) {
            return Err(Refusal::new(403, "this server is for 127.0.0.1 alone"));
        }
        let path = request.target.split('?').next().unwrap_or_default();
        let (wanted, answer): (&str, &dyn Fn() -> Result<Route, Refusal>) = match path {
            "/health" => ("GET", &|| Ok(now(&json!({ "status": "ok" })))),
            "/v1/models" => ("GET", &|| {
                let model =
                    json!({ "id": self.name, "object": "model", "created": 0, "owned_by": "switchyard" });
                Ok(now(&json!({ "object": "list", "data": [model] })))
            }),
            "/v1/completions" => ("POST", &|| {
                let kind = content_type.as_deref().unwrap_or_default();
                let media_type = kind.split(';').next().unwrap_or_default().trim();
                if !media_type.eq_ignore_ascii_case("application/json") {
                    return Err(Refusal::new(415, "send the header `Content-Type: application/json`"));
                }
                CompletionRequest::parse(body, &self.tokenizer, self.limits).map(Route::Complete)
            }),
            _ => {
                let routes = "there are POST /v1/completions, GET /v1/models and GET /health";
                return Err(Refusal::new(404, routes));
            }
        };
        if request.method != wanted {
            return Err(Refusal::new(405, format!("{path} takes {wanted} alone")));
        }
        answer()
    }

    /// Has `request` answered.
    fn complete(&self, stream: &TcpStream, request: CompletionRequest) -> io::Result<()> {
        let (reply, replies) = channel();
        let (streamed, stop) = (request.stream, Arc::new(AtomicBool::new(false)));
        let refusal = match self.jobs.try_send(Job { request, reply, stop: stop.clone() }) {
            Ok(()) if streamed => return self.pass_on(stream, &replies, &stop),
            Ok(()) => match self.next(stream, &replies, &stop) {
                Some(Reply::End(Ok(answer))) => {
                    return write_response(stream, &ok(&answer), &HEADERS, true, PATIENCE);
                }
                Some(Reply::End(Err(refusal))) => refusal,
                _ => Refusal::new(503, STOPPING),
            },
            Err(TrySendError::Full(_)) => {
                Refusal::new(503, "too many requests wait already: try again later")
            }
            Err(TrySendError::Disconnected(_)) => Refusal::new(503, STOPPING),
        };
        write_response(stream, &refusal.response(), &HEADERS, true, PATIENCE)
    }

    /// Writes each piece of a streamed answer as it comes, as a server-sent event.
    fn pass_on(&self, stream: &TcpStream, replies: &Receiver<Reply>, stop: &AtomicBool) -> io::Result<()> {
        let mut has_begun = false;
        let mut begin = || match std::mem::replace(&mut has_begun, true) {
            false => write_stream_head(stream, "text/event-stream", &HEADERS, PATIENCE),
            true => Ok(()),
        };
        let event =
            |value: &dyn std::fmt::Display| write_piece(stream, &format!("data: {value}\n\n"), PATIENCE);
        loop {
            match self.next(stream, replies, stop) {
                Some(Reply::Piece(piece)) => begin().and_then(|()| event(&piece))?,
                Some(Reply::End(Ok(_))) => return begin().and_then(|()| event(&"[DONE]")),
                other => {
                    let refusal = match other {
                        Some(Reply::End(Err(refusal))) => refusal,
                        _ => Refusal::new(503, STOPPING),
                    };
                    return begin().and_then(|()| event(&refusal.json()));
                }
            }
        }
    }

    /// The next reply; none once nobody replies any more. Sets `stop` when the client has gone or
    /// the command is to end.
    fn next(&self, stream: &TcpStream, replies: &Receiver<Reply>, stop: &AtomicBool) -> Option<Reply> {
        loop {
            // Also while replies come without a pause.
            if self.stop.load(Ordering::SeqCst) {
                stop.store(true, Ordering::SeqCst);
            }
            match replies.recv_timeout(LOOK_EVERY) {
                Ok(reply) => return Some(reply),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) if has_gone(stream) => stop.store(true, Ordering::SeqCst),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// Whether the other side has closed the connection.
fn has_gone(stream: &TcpStream) -> bool {
    if stream.set_read_timeout(Some(Duration::from_millis(1))).is_err() {
        return true;
    }
    match stream.peek(&mut [0]) {
        Ok(num_bytes) => num_bytes == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
    }
}

fn ok(value: &Value) -> Response {
    Response { status: 200, content_type: "application/json", body: value.to_string() }
}

fn now(value: &Value) -> Route {
    Route::Now(ok(value))
}

fn unreadable_refusal(unreadable: Unreadable) -> Refusal {
    match unreadable {
        Unreadable::TimedOut => {
            Refusal::new(408, format!("the request did not come within {} seconds", PATIENCE.as_secs()))
        }
        Unreadable::TooLarge => Refusal::new(431, "the request's header is too large"),
        Unreadable::NoLength => Refusal::new(411, "send the header `Content-Length`, and no chunks"),
        Unreadable::BodyTooLarge => {
            Refusal::new(413, format!("the body is too large: send {MAX_BODY_BYTES} bytes at most"))
        }
        Unreadable::Malformed | Unreadable::Gone => Refusal::new(400, "this is no request"),
    }
}

/// Whether a `Host` header names this machine, whatever the port: a tunnel may have another.
fn is_this_machine(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    ["127.0.0.1", "localhost"].contains(&name)
}

//! `switchyard watch --serve`: the run's page for a browser on this machine.
//!
//! Nothing but the loopback address is listened on, nothing but reading is answered, and only under
//! a name that is this machine's: a page from elsewhere whose name is made to point here (DNS
//! rebinding) sends its own name as the host.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use switchyard_ground::say;

use super::super::http::{Request, Response, Unreadable, read_request, write_response};
use super::super::print_text;
use crate::failure::Failure;

/// How long a client may take to ask, and again to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// More connections than these end the oldest.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection that could not be accepted, as when the process has no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

/// Has a browser ask again after these seconds. A header, so that the page stays as it is when it
/// is saved.
const REFRESH: (&str, &str) = ("Refresh", "5");

/// Sent with every answer.
const HEADERS: [(&str, &str); 3] =
    [("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"), ("Allow", "GET, HEAD")];

const TEXT: &str = "text/plain; charset=utf-8";

/// The page as it is now.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) html: String,
    /// Whether it will change: a page that will not is not loaded again, which would forget what
    /// the reader has unfolded.
    pub(super) will_change: bool,
}

/// Serves what `page` makes of the run until the process is stopped; port 0 is any free one.
///
/// # Errors
/// A port that cannot be listened on.
pub(super) fn serve(run: &Path, port: u16, page: fn(&Path) -> anyhow::Result<Page>) -> Result<(), Failure> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
        Failure::Mistake(format!(
            "--serve {port}: {error}; choose another port, or leave it out for a free one"
        ))
    })?;
    let port = listener.local_addr()?.port();
    print_text(&format!("http://127.0.0.1:{port}/\n"))?;
    say!("serving {} until Ctrl-C", run.display());
    Server::new(port, || page(run)).answer_all(&listener)
}

/// What answers.
struct Server<Make> {
    port: u16,
    /// One at a time: it costs more than all the rest.
    make_page: Mutex<Make>,
    /// The oldest first.
    connections: Mutex<VecDeque<Arc<Connection>>>,
    one_has_ended: Condvar,
}

struct Connection {
    stream: TcpStream,
    /// Whether its request has come.
    has_asked: AtomicBool,
    /// Whether it was ended to make room.
    is_ended: AtomicBool,
}

impl<Make: Fn() -> anyhow::Result<Page> + Send> Server<Make> {
    fn new(port: u16, make_page: Make) -> Self {
        let (make_page, connections) = (Mutex::new(make_page), Mutex::new(VecDeque::new()));
        Self { port, make_page, connections, one_has_ended: Condvar::new() }
    }

    /// Answers until the process ends: one connection, one thread, one answer.
    fn answer_all(&self, listener: &TcpListener) -> ! {
        thread::scope(|scope| {
            loop {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(PAUSE);
                    continue;
                };
                let connection = self.admit(stream);
                let answering = Answering { server: self, connection };
                // Without a thread the connection is dropped, and with it closed.
                if thread::Builder::new().spawn_scoped(scope, move || answering.answer()).is_err() {
                    thread::sleep(PAUSE);
                }
            }
        })
    }

    /// Takes the connection in once there is room for it. Room is made by ending the oldest that
    /// has not asked yet, else the oldest of all: whoever asks at once is answered, however many
    /// others say nothing.
    fn admit(&self, stream: TcpStream) -> Arc<Connection> {
        let mut connections = lock(&self.connections);
        while connections.len() >= MAX_CONNECTIONS {
            let is_idle = |connection: &&Arc<Connection>| !connection.has_asked.load(Ordering::Relaxed);
            let mut candidates = connections.iter().filter(|c| !c.is_ended.load(Ordering::Relaxed));
            if let Some(oldest) = candidates.clone().find(is_idle).or_else(|| candidates.next()) {
                oldest.is_ended.store(true, Ordering::Relaxed);
                // It may have been closed by the other side.
                drop(oldest.stream.shutdown(Shutdown::Both));
            }
            connections =
                self.one_has_ended.wait_timeout(connections, PAUSE).unwrap_or_else(PoisonError::into_inner).0;
        }
        let connection = Arc::new(Connection {
            stream,
            has_asked: AtomicBool::new(false),
            is_ended: AtomicBool::new(false),
        });
        connections.push_back(connection.clone());
        connection
    }

    /// The answer to a request, and whether the browser asks again.
    fn response_to(&self, request: &Request) -> (Response, bool) {
        match Answer::to(request, self.port) {
            Answer::Page => {
                let make_page = lock(&self.make_page);
                match make_page() {
                    Ok(Page { html, will_change }) => {
                        let content_type = "text/html; charset=utf-8";
                        (Response { status: 200, content_type, body: html }, will_change)
                    }
                    // What cannot be read now, as in a run that is overwritten, may be readable
                    // soon.
                    Err(error) => (refusal(500, &format!("{error:#}")), true),
                }
            }
            Answer::Refusal(status, reason) => (refusal(status, reason), false),
        }
    }
}

/// A connection while its thread lives; it leaves the server's list whichever way that ends.
struct Answering<'a, Make> {
    server: &'a Server<Make>,
    connection: Arc<Connection>,
}

impl<Make: Fn() -> anyhow::Result<Page> + Send> Answering<'_, Make> {
    fn answer(self) {
        let stream = &self.connection.stream;
        let request = read_request(stream, PATIENCE);
        self.connection.has_asked.store(true, Ordering::Relaxed);
        let (response, asks_again) = match &request {
            Ok(request) => self.server.response_to(request),
            Err(Unreadable::Gone) => return,
            Err(Unreadable::TimedOut) => (refusal(408, "the request did not come within 2 seconds"), false),
            Err(Unreadable::TooLarge) => (refusal(431, "the request's header is too large"), false),
            Err(Unreadable::Malformed | Unreadable::NoLength | Unreadable::BodyTooLarge) => {
                (refusal(400, "this is no request"), false)
            }
        };
        let headers: Vec<_> = HEADERS.into_iter().chain(asks_again.then_some(REFRESH)).collect();
        let with_body = !request.is_ok_and(|request| request.method == "HEAD");
        // A browser that went away is no reason to stop.
        drop(write_response(stream, &response, &headers, with_body, PATIENCE));
    }
}

impl<Make> Drop for Answering<'_, Make> {
    fn drop(&mut self) {
        lock(&self.server.connections).retain(|other| !Arc::ptr_eq(other, &self.connection));
        self.server.one_has_ended.notify_one();
    }
}

/// What a mutex holds, whoever panicked while it was locked: nothing here is left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refusal(status: u16, reason: &str) -> Response {
    Response { status, content_type: TEXT, body: format!("{reason}\n") }
}

/// What a request gets.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Page,
    /// Status and reason.
    Refusal(u16, &'static str),
}

impl Answer {
    fn to(request: &Request, port: u16) -> Self {
        let is_ours = matches!(&request.hosts[..], [host] if is_this_machine(host, port));
        if !is_ours {
            return Self::Refusal(403, "this page is for 127.0.0.1 alone");
        }
        if !["GET", "HEAD"].contains(&request.method.as_str()) {
            return Self::Refusal(405, "this page can only be read");
        }
        match request.target.split('?').next() {
            Some("/") => Self::Page,
            _ => Self::Refusal(404, "there is one page: /"),
        }
    }
}

/// Whether a `Host` header is one that a browser on this machine sends for this server; it leaves
/// out port 80.
fn is_this_machine(host: &str, port: u16) -> bool {
    ["127.0.0.1", "localhost"]
        .iter()
        .any(|name| host == format!("{name}:{port}") || (port == 80 && host == *name))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::time::Instant;

    use anyhow::anyhow;

    use super::*;

    fn status(method: &str, target: &str, hosts: &[&str]) -> u16 {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        match Answer::to(&Request { method: method.into(), target: target.into(), hosts }, 8080) {
            Answer::Page => 200,
            Answer::Refusal(status, _) => status,
        }
    }

    #[test]
    fn the_page_is_there_for_this_machine() {
        for host in ["127.0.0.1:8080", "localhost:8080"] {
            for method in ["GET", "HEAD"] {
                assert_eq!(status(method, "/", &[host]), 200);
                assert_eq!(status(method, "/?x=1", &[host]), 200);
            }
        }
        assert!(is_this_machine("localhost", 80) && is_this_machine("localhost:80", 80));
    }

    #[test]
    fn a_name_from_elsewhere_that_points_here_is_refused() {
        for host in [
            "evil.example:8080",
            "evil.example",
            "127.0.0.1",
            "127.0.0.1:80",
            "127.0.0.1:+8080",
            "127.0.0.1:08080",
            "localhost.evil.example:8080",
            "",
        ] {
            assert_eq!(status("GET", "/", &[host]), 403, "{host}");
        }
        assert_eq!(status("GET", "/", &[]), 403);
        assert_eq!(status("GET", "/", &["localhost:8080", "evil.example"]), 403);
    }

    #[test]
    fn only_reading_the_one_page_is_answered() {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "get", ""] {
            assert_eq!(status(method, "/", &["localhost:8080"]), 405);
        }
        for target in ["/run.json", "/../run.json", "//", "/favicon.ico", "", "*", "http://localhost:8080/"] {
            assert_eq!(status("GET", target, &["localhost:8080"]), 404, "{target}");
        }
    }

    /// A server of this page; it ends with the tests.
    fn start(page: fn() -> anyhow::Result<Page>) -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || Server::new(port, page).answer_all(&listener));
        port
    }

    fn connect(port: u16) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// What the server says to these bytes.
    fn said(port: u16, bytes: &str) -> String {
        let mut stream = connect(port);
        write!(stream, "{}", bytes.replace("PORT", &port.to_string())).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        said
    }

    const PAGE: fn() -> anyhow::Result<Page> =
        || Ok(Page { html: "<p>a page</p>".into(), will_change: true });
    const GET: &str = "GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\n\r\n";

    #[track_caller]
    fn assert_page_at_once(port: u16) {
        let started = Instant::now();
        let said = said(port, GET);
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("\r\n\r\n<p>a page</p>"), "{said}");
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    }

    #[test]
    fn a_browser_is_told_to_ask_again_as_long_as_the_page_will_change() {
        let said = said(start(PAGE), GET);
        assert!(said.starts_with("HTTP/1.1 200 OK\r\n"), "{said}");
        assert!(said.contains("Refresh: 5\r\n") && said.contains("Content-Length: 13\r\n"), "{said}");
        assert!(said.contains("Content-Type: text/html; charset=utf-8\r\n"), "{said}");
        let ended = start(|| Ok(Page { html: "<p>a page</p>".into(), will_change: false }));
        assert_eq!(self::said(ended, GET), said.replace("Refresh: 5\r\n", ""));
    }

    #[test]
    fn the_answer_to_head_is_that_to_get_without_its_body() {
        let port = start(PAGE);
        let (get, head) = (said(port, GET), said(port, &GET.replace("GET", "HEAD")));
        assert_eq!(format!("{head}<p>a page</p>"), get);
        let refused = said(port, &GET.replace("GET / ", "HEAD /run.json "));
        assert!(refused.starts_with("HTTP/1.1 404") && refused.ends_with("\r\n\r\n"), "{refused}");
    }

    #[test]
    fn a_page_that_cannot_be_made_is_an_error_in_words() {
        let said = said(start(|| Err(anyhow!("the run is gone"))), GET);
        assert!(said.starts_with("HTTP/1.1 500") && said.contains("the run is gone"), "{said}");
    }

    #[test]
    fn a_body_that_never_comes_is_not_waited_for_however_long_it_is_said_to_be() {
        let port = start(PAGE);
        for length in ["18446744073709551615", "9223372036854775808", "1000000000000", "100000000", "-1", "x"]
        {
            let started = Instant::now();
            for (method, answer) in [("GET", "200"), ("POST", "405")] {
                let request = format!(
                    "{method} / HTTP/1.1\r\nHost: localhost:PORT\r\nContent-Length: {length}\r\n\r\n"
                );
                let said = said(port, &request);
                assert!(said.starts_with(&format!("HTTP/1.1 {answer}")), "{length}: {said}");
            }
            assert!(started.elapsed() < PATIENCE, "{length}");
        }
        let chunked =
            said(port, "GET / HTTP/1.1\r\nHost: localhost:PORT\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert!(chunked.starts_with("HTTP/1.1 200"), "{chunked}");
    }

    #[test]
    fn what_is_no_request_is_refused_and_the_next_one_is_answered() {
        let port = start(PAGE);
        for bytes in [
            "\r\n\r\n\0",
            "nonsense\r\n\r\n",
            "GET / SPDY/3\r\n\r\n",
            "GET /\u{1} HTTP/1.1\r\n\r\n",
            "\u{16}\u{3}\u{1}",
        ] {
            let said = said(port, bytes);
            assert!(said.starts_with("HTTP/1.1 400"), "{bytes:?}: {said}");
        }
        drop(connect(port));
        assert_page_at_once(port);
    }

    #[test]
    fn a_header_without_end_is_refused_at_8_kilobytes() {
        let port = start(PAGE);
        let mut stream = connect(port);
        stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
        // The server may close before all of it is sent.
        let _ = stream.write_all(&[b'x'; 8 << 10][..(8 << 10) - 19]);
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.starts_with("HTTP/1.1 431"), "{said}");
        assert_page_at_once(port);
    }

    #[test]
    fn a_client_that_dribbles_is_cut_off_after_two_seconds_in_all() {
        let port = start(PAGE);
        let (started, mut stream) = (Instant::now(), connect(port));
        for byte in GET.bytes() {
            if stream.write_all(&[byte]).is_err() || started.elapsed() > PATIENCE * 2 {
                break;
            }
            thread::sleep(Duration::from_millis(300));
        }
        let mut said = Vec::new();
        // After an answer to what it has not read, the system may report a reset.
        let _ = stream.read_to_end(&mut said);
        assert!(String::from_utf8_lossy(&said).starts_with("HTTP/1.1 408") || said.is_empty());
        assert!(started.elapsed() < PATIENCE * 3, "{:?}", started.elapsed());
        assert_page_at_once(port);
    }

    #[test]
    fn hundreds_of_connections_that_say_nothing_hold_nobody_up() {
        let port = start(PAGE);
        let silent: Vec<TcpStream> = (0..500)
            .map(|index| {
                let mut stream = connect(port);
                if index % 2 == 0 {
                    stream.write_all(b"GET / HTTP/1.1\r\nHost: ").unwrap();
                }
                stream
            })
            .collect();
        assert_page_at_once(port);
        drop(silent);
        assert_page_at_once(port);
    }

    #[test]
    fn many_at_once_are_all_answered() {
        let port = start(PAGE);
        let clients: Vec<_> = (0..MAX_CONNECTIONS).map(|_| thread::spawn(move || said(port, GET))).collect();
        for client in clients {
            let said = client.join().unwrap();
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        }
    }
}

//! As much of HTTP/1.1 as a server for one machine needs: a request is read, a response is written,
//! the connection is closed. What follows a header is read by [`read_posted`] only, and as far as
//! its length is given and allowed.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// A browser's is a tenth of it.
const MAX_HEADER_BYTES: usize = 8 << 10;
const MAX_HEADER_LINES: usize = 64;

/// What a request says, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// What is asked for, such as `/`.
    pub(super) target: String,
    /// The values of all `Host` headers.
    pub(super) hosts: Vec<String>,
}

/// Why there is no request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// The other side has closed the connection.
    Gone,
    TimedOut,
    TooLarge,
    Malformed,
    /// A body without a length, as of one in chunks.
    NoLength,
    /// A body longer than is allowed.
    BodyTooLarge,
}

/// A request with what follows its header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Posted {
    pub(super) request: Request,
    pub(super) content_type: Option<String>,
    pub(super) body: Vec<u8>,
}

/// A header, and what it says about what follows it.
#[derive(Debug, PartialEq, Eq)]
struct Head {
    request: Request,
    /// Bytes of the header.
    len: usize,
    content_type: Option<String>,
    /// The values of all `Content-Length` headers.
    lengths: Vec<String>,
    is_in_chunks: bool,
    /// Whether the client waits for a word before it sends the body.
    waits: bool,
}

/// A request's answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) body: String,
}

/// The request at the start of what `stream` sends, if its header has come within `patience`.
///
/// # Errors
/// [`Unreadable`].
pub(super) fn read_request(stream: &TcpStream, patience: Duration) -> Result<Request, Unreadable> {
    let mut stream = Timed { stream, deadline: Instant::now() + patience };
    read_head(&mut stream).map(|(head, _)| head.request)
}

/// The request that `stream` sends with its body of `max_body_bytes` at most, if all has come within
/// `patience`.
///
/// # Errors
/// [`Unreadable`].
pub(super) fn read_posted(
    stream: &TcpStream,
    patience: Duration,
    max_body_bytes: usize,
) -> Result<Posted, Unreadable> {
    let mut stream = Timed { stream, deadline: Instant::now() + patience };
    let (head, mut body) = read_head(&mut stream)?;
    let body_len = head.body_len(max_body_bytes)?;
    if head.waits && body.len() < body_len {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").map_err(|_| Unreadable::Gone)?;
    }
    let mut piece = [0; MAX_HEADER_BYTES];
    while body.len() < body_len {
        let num_read = read_some(&mut stream, &mut piece)?;
        body.extend_from_slice(&piece[..num_read]);
    }
    body.truncate(body_len);
    Ok(Posted { request: head.request, content_type: head.content_type, body })
}

/// The header, and what has come after it.
fn read_head(stream: &mut Timed<'_>) -> Result<(Head, Vec<u8>), Unreadable> {
    let (mut bytes, mut num_read) = ([0; MAX_HEADER_BYTES], 0);
    loop {
        if num_read == bytes.len() {
            return Err(Unreadable::TooLarge);
        }
        num_read += read_some(stream, &mut bytes[num_read..])?;
        if let Some(head) = parse(&bytes[..num_read])? {
            let rest = bytes[head.len..num_read].to_vec();
            return Ok((head, rest));
        }
    }
}

/// As many bytes as are there: one at least.
fn read_some(stream: &mut Timed<'_>, bytes: &mut [u8]) -> Result<usize, Unreadable> {
    loop {
        match stream.read(bytes) {
            Ok(0) => return Err(Unreadable::Gone),
            Ok(num_read) => return Ok(num_read),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => return Err(Unreadable::TimedOut),
            Err(_) => return Err(Unreadable::Gone),
        }
    }
}

/// The header in `bytes`; none while it is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<Head>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Unreadable::TooLarge),
        Err(_) => return Err(Unreadable::Malformed),
    };
    let values = |name: &str| -> Vec<String> {
        let named = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| String::from_utf8_lossy(header.value).into_owned()).collect()
    };
    let request = Request {
        method: parsed.method.unwrap_or_default().into(),
        target: parsed.path.unwrap_or_default().into(),
        hosts: values("host"),
    };
    Ok(Some(Head {
        request,
        len,
        content_type: values("content-type").pop(),
        lengths: values("content-length"),
        is_in_chunks: !values("transfer-encoding").is_empty(),
        waits: !values("expect").is_empty(),
    }))
}

impl Head {
    /// Bytes of the body; 0 for a request that is said to have none.
    fn body_len(&self, max_body_bytes: usize) -> Result<usize, Unreadable> {
        if self.is_in_chunks {
            return Err(Unreadable::NoLength);
        }
        let length = match &self.lengths[..] {
            [] if self.request.method == "POST" => return Err(Unreadable::NoLength),
            [] => return Ok(0),
            [length] => length.trim(),
            _ => return Err(Unreadable::Malformed),
        };
        if length.is_empty() || !length.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Unreadable::Malformed);
        }
        let allowed = length.parse().ok().filter(|length| *length <= max_body_bytes);
        allowed.ok_or(Unreadable::BodyTooLarge)
    }
}

/// Begins an answer of unknown length, whose end is that of the connection.
///
/// # Errors
/// As [`write_response`].
pub(super) fn write_stream_head(
    stream: &TcpStream,
    content_type: &str,
    headers: &[(&str, &str)],
    patience: Duration,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    write_piece(stream, &text, patience)
}

/// Writes `text` within `patience`.
///
/// # Errors
/// As [`write_response`].
pub(super) fn write_piece(stream: &TcpStream, text: &str, patience: Duration) -> io::Result<()> {
    Timed { stream, deadline: Instant::now() + patience }.write_all(text.as_bytes())
}

/// Takes what the other side still sends, for `patience` at most: a connection that is closed before
/// may take the answer with it.
pub(super) fn drain(stream: &TcpStream, patience: Duration) {
    drop(stream.shutdown(Shutdown::Write));
    let mut stream = Timed { stream, deadline: Instant::now() + patience };
    let mut piece = [0; MAX_HEADER_BYTES];
    while read_some(&mut stream, &mut piece).is_ok() {}
}

/// Writes `response` with these `headers` within `patience`; without its body if only the header
/// was asked for.
///
/// # Errors
/// A reader that has gone, or reads too slowly.
pub(super) fn write_response(
    stream: &TcpStream,
    response: &Response,
    headers: &[(&str, &str)],
    with_body: bool,
    patience: Duration,
) -> io::Result<()> {
    let Response { status, content_type, body } = response;
    let mut text = format!(
        "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\nConnection: close\r\n",
        reason(*status),
        body.len()
    );
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("\r\n");
    if with_body {
        text.push_str(body);
    }
    let mut stream = Timed { stream, deadline: Instant::now() + patience };
    stream.write_all(text.as_bytes())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        415 => "Unsupported Media Type",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

/// A stream whose reads and writes all end at one moment, however many there are.
struct Timed<'a> {
    stream: &'a TcpStream,
    deadline: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Systems differ in what they call it.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_request_once_its_empty_line_is_there() {
        let text =
            b"GET /?x=1 HTTP/1.1\r\nhOST: localhost:80\r\nContent-Length: 18446744073709551615\r\n\r\nrest";
        let end = text.len() - "rest".len();
        for len in 0..end {
            assert_eq!(parse(&text[..len]), Ok(None), "{len}");
        }
        let request =
            Request { method: "GET".into(), target: "/?x=1".into(), hosts: vec!["localhost:80".into()] };
        let head = parse(&text[..end]).unwrap().unwrap();
        assert_eq!((head.request, head.len), (request, end));
        assert!(parse(text).unwrap().is_some(), "what follows is not looked at");
    }

    #[test]
    fn what_is_no_request_is_told_from_what_is_none_yet() {
        for text in
            ["GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "\0\0\0\0", "GET / HTTP/1.1\r\nno colon\r\n\r\n"]
        {
            assert_eq!(parse(text.as_bytes()), Err(Unreadable::Malformed), "{text:?}");
        }
        let many = "a: b\r\n".repeat(MAX_HEADER_LINES + 1);
        assert_eq!(parse(format!("GET / HTTP/1.1\r\n{many}").as_bytes()), Err(Unreadable::TooLarge));
    }

    #[test]
    fn a_body_has_the_length_that_its_header_gives() {
        let head = |lines: &str| {
            let text = format!("POST / HTTP/1.1\r\n{lines}\r\n");
            parse(text.as_bytes()).unwrap().unwrap().body_len(100)
        };
        assert_eq!(head("Content-Length: 100\r\n"), Ok(100));
        assert_eq!(head(""), Err(Unreadable::NoLength));
        assert_eq!(head("Transfer-Encoding: chunked\r\n"), Err(Unreadable::NoLength));
        for large in ["101", "18446744073709551616"] {
            assert_eq!(head(&format!("Content-Length: {large}\r\n")), Err(Unreadable::BodyTooLarge));
        }
        for bad in ["Content-Length: -1", "Content-Length: +1", "Content-Length: 1\r\nContent-Length: 2"] {
            assert_eq!(head(&format!("{bad}\r\n")), Err(Unreadable::Malformed), "{bad}");
        }
    }
}

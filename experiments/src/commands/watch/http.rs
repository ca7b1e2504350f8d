//! As much of HTTP/1.1 as one page needs: the header of a request is read, a response is written,
//! the connection is closed. What follows the header is never read, whatever length it is said to
//! have.

use std::io::{self, Read, Write};
use std::net::TcpStream;
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
    let (mut bytes, mut num_read) = ([0; MAX_HEADER_BYTES], 0);
    loop {
        if num_read == bytes.len() {
            return Err(Unreadable::TooLarge);
        }
        match stream.read(&mut bytes[num_read..]) {
            Ok(0) => return Err(Unreadable::Gone),
            Ok(more) => num_read += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if is_timeout(&error) => return Err(Unreadable::TimedOut),
            Err(_) => return Err(Unreadable::Gone),
        }
        if let Some(request) = parse(&bytes[..num_read])? {
            return Ok(request);
        }
    }
}

/// The request in `bytes`; none while its header is incomplete.
fn parse(bytes: &[u8]) -> Result<Option<Request>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADER_LINES];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Unreadable::TooLarge),
        Err(_) => return Err(Unreadable::Malformed),
    }
    let hosts = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    Ok(Some(Request {
        method: parsed.method.unwrap_or_default().into(),
        target: parsed.path.unwrap_or_default().into(),
        hosts: hosts.map(|header| String::from_utf8_lossy(header.value).into_owned()).collect(),
    }))
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
        431 => "Request Header Fields Too Large",
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
        assert_eq!(parse(&text[..end]), Ok(Some(request)));
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
}

//! `switchyard watch --serve`: the run's page for a browser on this machine.
//!
//! Nothing but the loopback address is listened on, nothing but reading is answered, and only under a name that is this
//! machine's: a page from elsewhere whose name is made to point here (DNS rebinding) sends its own name as the host.

use std::net::Ipv4Addr;
use std::path::Path;
use switchyard_ground::say;

use anyhow::anyhow;
use tiny_http::{Header, Method, Request, Response, Server};

use super::super::print_text;
use crate::failure::Failure;

/// Seconds after which a browser asks again. It is a header, so that the page stays as it is when it is saved.
const REFRESH_SECS: &str = "5";

const TEXT: &str = "text/plain; charset=utf-8";

/// Serves what `page` makes of the run until the process is stopped; port 0 is any free one.
///
/// # Errors
/// A port that cannot be listened on.
pub(super) fn serve(run: &Path, port: u16, page: fn(&Path) -> anyhow::Result<String>) -> Result<(), Failure> {
    let server = Server::http((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
        Failure::Mistake(format!(
            "--serve {port}: {error}; choose another port, or leave it out for a free one"
        ))
    })?;
    let address = server.server_addr().to_ip();
    let port = address.ok_or_else(|| Failure::Fault(anyhow!("the server has no address")))?.port();
    print_text(&format!("http://127.0.0.1:{port}/\n"))?;
    say!("serving {} until Ctrl-C", run.display());
    for request in server.incoming_requests() {
        // A browser that went away is no reason to stop.
        drop(respond(request, port, || page(run)));
    }
    Ok(())
}

fn respond(
    request: Request,
    port: u16,
    page: impl FnOnce() -> anyhow::Result<String>,
) -> std::io::Result<()> {
    let host = request.headers().iter().find(|header| header.field.equiv("Host"));
    let host = host.map(|header| header.value.as_str());
    let (status, content_type, body) = match Answer::to(request.method(), request.url(), host, port) {
        Answer::Page => match page() {
            Ok(page) => (200, "text/html; charset=utf-8", page),
            Err(error) => (500, TEXT, format!("{error:#}\n")),
        },
        Answer::Refusal(status, reason) => (status, TEXT, format!("{reason}\n")),
    };
    let mut response = Response::from_string(body).with_status_code(status);
    let headers = [
        ("Content-Type", content_type),
        ("Refresh", REFRESH_SECS),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    ];
    for (name, value) in headers {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    request.respond(response)
}

/// What a request gets.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Page,
    /// Status and reason.
    Refusal(u16, &'static str),
}

impl Answer {
    fn to(method: &Method, url: &str, host: Option<&str>, port: u16) -> Self {
        if !host.is_some_and(|host| is_this_machine(host, port)) {
            return Self::Refusal(403, "this page is for 127.0.0.1 alone");
        }
        if *method != Method::Get {
            return Self::Refusal(405, "this page can only be read");
        }
        match url.split('?').next() {
            Some("/") => Self::Page,
            _ => Self::Refusal(404, "there is one page: /"),
        }
    }
}

/// Whether a `Host` header is one that a browser on this machine sends for this server; it leaves out port 80.
fn is_this_machine(host: &str, port: u16) -> bool {
    let (name, named_port) = host.rsplit_once(':').unwrap_or((host, "80"));
    ["127.0.0.1", "localhost"].contains(&name) && named_port.parse::<u16>() == Ok(port)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::thread;

    use super::*;

    fn status(method: &Method, url: &str, host: Option<&str>) -> u16 {
        match Answer::to(method, url, host, 8080) {
            Answer::Page => 200,
            Answer::Refusal(status, _) => status,
        }
    }

    #[test]
    fn the_page_is_there_for_this_machine() {
        for host in ["127.0.0.1:8080", "localhost:8080"] {
            assert_eq!(status(&Method::Get, "/", Some(host)), 200);
            assert_eq!(status(&Method::Get, "/?x=1", Some(host)), 200);
        }
        assert!(is_this_machine("localhost", 80));
    }

    #[test]
    fn a_name_from_elsewhere_that_points_here_is_refused() {
        for host in [
            "evil.example:8080",
            "evil.example",
            "127.0.0.1",
            "127.0.0.1:80",
            "localhost.evil.example:8080",
            "",
        ] {
            assert_eq!(status(&Method::Get, "/", Some(host)), 403, "{host}");
        }
        assert_eq!(status(&Method::Get, "/", None), 403);
    }

    #[test]
    fn only_reading_the_one_page_is_answered() {
        let host = Some("localhost:8080");
        for method in [Method::Post, Method::Put, Method::Delete, Method::Head, Method::Options] {
            assert_eq!(status(&method, "/", host), 405);
        }
        for url in ["/run.json", "/../run.json", "//", "/favicon.ico", ""] {
            assert_eq!(status(&Method::Get, url, host), 404, "{url}");
        }
    }

    /// What a server says to one request, whose page is this.
    fn said(request: &str, page: fn() -> anyhow::Result<String>) -> String {
        let server = Server::http((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.server_addr().to_ip().unwrap().port();
        let answering = thread::spawn(move || respond(server.recv().unwrap(), port, page).unwrap());
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        write!(stream, "{}", request.replace("PORT", &port.to_string())).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        answering.join().unwrap();
        said
    }

    #[test]
    fn a_browser_is_told_to_ask_again() {
        let request = "GET / HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nConnection: close\r\n\r\n";
        let said = said(request, || Ok("<p>a page</p>".into()));
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        assert!(said.contains("Refresh: 5\r\n") && said.contains("<p>a page</p>"), "{said}");
        assert!(said.contains("Content-Type: text/html; charset=utf-8\r\n"), "{said}");
    }

    #[test]
    fn a_page_that_cannot_be_made_is_an_error_in_words() {
        let request = "GET / HTTP/1.1\r\nHost: localhost:PORT\r\nConnection: close\r\n\r\n";
        let said = said(request, || Err(anyhow!("the run is gone")));
        assert!(said.starts_with("HTTP/1.1 500") && said.contains("the run is gone"), "{said}");
    }
}

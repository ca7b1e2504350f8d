//! Files of the Hugging Face hub, from a hub of a few files on this machine.
//!
//! ```text
//! cargo test --workspace --locked --features switchyard-ground/hub --test hub_path
//! ```

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use switchyard_ground::hub_path::local;

const FILES: [(&str, &str); 4] =
    [("config.json", "{}"), ("model.safetensors", "tensors"), ("data/a.txt", "one"), ("data/b.txt", "two")];
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Answers as the hub does: what a repository holds, and parts of its files.
fn answer(stream: TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
    let path = request.split(' ').nth(1)?;
    let reply = |status: &str, more: &str, body: &str| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n{body}",
            body.len()
        );
        (&stream).write_all(head.as_bytes()).ok()
    };
    if path.starts_with("/api/") {
        let names = FILES.map(|(name, _)| format!("{{\"rfilename\": \"{name}\"}}")).join(", ");
        return reply("200 OK", "", &format!("{{\"sha\": \"{COMMIT}\", \"siblings\": [{names}]}}"));
    }
    let file = FILES.iter().find(|(name, _)| path.ends_with(&format!("/resolve/main/{name}")));
    let Some((name, content)) = file else { return reply("404 Not Found", "", "") };
    let range = headers
        .iter()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("range: bytes=").map(str::to_owned))?;
    let (start, end) = range.split_once('-')?;
    let (start, len) = (start.parse::<usize>().ok()?, content.len());
    let end = end.parse().map_or(len, |end: usize| end + 1);
    let etag = name.replace('/', "-");
    let more = format!(
        "ETag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\nContent-Range: bytes {start}-{}/{len}\r\n",
        end - 1
    );
    reply("206 Partial Content", &more, &content[start..end])
}

/// The environment decides where the hub is and where its files are kept: each case is a process of
/// its own, this test again.
fn in_process(case: &str, endpoint: &str, home: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program)
        .args(["one_case", "--exact", "--ignored", "--nocapture"])
        .envs([("HF_ENDPOINT", endpoint), ("HUB_CASE", case)])
        .env("HF_HOME", home)
        .output()
        .unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
#[ignore = "a part of the other test, which runs it with its environment"]
fn one_case() {
    let case = std::env::var("HUB_CASE").unwrap();
    let found = local(Path::new(&case), |_, name| name.ends_with(".txt"));
    let shown = match found {
        Ok(path) if path.is_dir() => {
            let mut names: Vec<String> = path
                .read_dir()
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            format!("folder of {names:?}")
        }
        Ok(path) => format!("file of {:?}", std::fs::read_to_string(path).unwrap()),
        Err(error) => format!("error: {error}"),
    };
    switchyard_ground::say!("{shown}");
}

#[test]
fn files_and_folders_are_fetched_once_and_what_fails_says_why() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer(stream);
        }
    });
    let home = tempfile::tempdir().unwrap();
    let fetched = |case: &str| in_process(case, &endpoint, home.path());
    assert!(fetched("hf://datasets/a/b/data/a.txt").contains("file of \"one\""));
    assert!(fetched("hf://datasets/a/b/data").contains("folder of [\"a.txt\", \"b.txt\"]"));
    assert!(fetched("hf://datasets/a/b/none.txt").contains("names none of the 4 files"));
    // Nobody listens there.
    let away = |case: &str| in_process(case, "http://127.0.0.1:9", home.path());
    assert!(away("hf://datasets/a/b/data/a.txt").contains("file of \"one\""), "it lies here");
    let refused = away("hf://datasets/a/b/data");
    assert!(
        refused.contains("`hf://datasets/a/b/data` cannot be fetched") && refused.contains("network"),
        "{refused}"
    );
}

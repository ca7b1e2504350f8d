//! `switchyard serve` as its clients meet it: completions, hostile requests, a full queue, its end.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_switchyard");

const CONFIG: &str = r#"
name = "tiny"
seed = 3
threads = 1
[data.synthetic]
num_domains = 2
vocab_size = 32
num_documents = 200
document_tokens = 40
branching = 3
[train]
num_steps = 4
seq_len = 16
batch_tokens = 64
[train.adamw]
learning_rate = 1e-2
[sample]
num_tokens = 0
[model]
num_layers = 1
d_model = 16
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
[model.ffn.moe]
num_experts = 4
d_expert = 8
[model.ffn.moe.router]
top_k = 2
"#;

/// A server of a run; it ends with its test.
struct Server {
    folder: TempDir,
    process: Child,
    port: u16,
}

impl Server {
    fn start(queue: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("tiny.toml"), CONFIG).unwrap();
        let trained = program(&folder, &["train", "tiny.toml", "--out", "run"]).output().unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        let mut process = program(&folder, &["serve", "run", "--port", "0", "--queue", queue])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut address = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut address).unwrap();
        let port = address.trim().strip_prefix("http://127.0.0.1:").unwrap();
        let port = port.strip_suffix("/v1/completions").unwrap().parse().unwrap();
        Self { folder, process, port }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream
    }

    /// A connection that has sent `bytes`.
    fn sent(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect();
        // The server may refuse before all of it is sent.
        let _ = stream.write_all(bytes);
        stream
    }

    /// Status and body of the answer to `bytes`.
    fn said(&self, bytes: &[u8]) -> (u16, String) {
        let mut said = Vec::new();
        let _ = self.sent(bytes).read_to_end(&mut said);
        let said = String::from_utf8(said).unwrap();
        let status = said.split(' ').nth(1).and_then(|status| status.parse().ok());
        let body = said.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        (status.unwrap_or_else(|| panic!("{said:?}")), body.unwrap())
    }

    fn post(&self, body: &Value) -> (u16, String) {
        self.said(&posted(&body.to_string()))
    }

    fn completion(&self, body: &Value) -> Value {
        let (status, answer) = self.post(body);
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(&answer).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

fn program(folder: &TempDir, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).current_dir(folder.path()).stdin(Stdio::null());
    command.env("SWITCHYARD_CACHE_DIR", folder.path().join("cache"));
    command
}

fn posted(body: &str) -> Vec<u8> {
    let head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn numbers(values: &Value) -> Vec<f64> {
    values.as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

#[test]
fn echoed_prompts_have_the_log_likelihoods_of_eval() {
    let server = Server::start("8");
    let line = r#"{"context": "1 2 7", "choices": ["3 4", "5"], "answer": 0}"#;
    fs::write(server.folder.path().join("questions.jsonl"), line).unwrap();
    let arguments = ["eval", "run", "--choices", "questions.jsonl", "--json"];
    let evaluated = program(&server.folder, &arguments).output().unwrap();
    let result: Value = serde_json::from_slice(&evaluated.stdout).unwrap();
    let expected = numbers(&result["answers"][0]["log_likelihoods"]);
    let request = json!({
        "prompt": [[1, 2, 7, 3, 4], [1, 2, 7, 5]], "echo": true, "logprobs": 2, "max_tokens": 1, "temperature": 0,
    });
    let answer = server.completion(&request);
    for (choice, expected) in answer["choices"].as_array().unwrap().iter().zip(expected) {
        let log = &choice["logprobs"];
        assert_eq!(log["token_logprobs"][0], Value::Null);
        // As lm-evaluation-harness reads it: without the context's tokens and the generated one.
        let all = numbers(&log["token_logprobs"]);
        let found: f64 = all[2..all.len() - 1].iter().sum();
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        let last = log["top_logprobs"].as_array().unwrap().last().unwrap();
        let best = last.as_object().unwrap().values().filter_map(Value::as_f64).fold(f64::MIN, f64::max);
        assert_eq!(best, *all.last().unwrap(), "temperature 0 takes the likeliest");
    }
    assert_eq!(answer["usage"]["completion_tokens"], 2);
    let scored =
        server.completion(&json!({ "prompt": "1 2 7", "echo": true, "logprobs": 1, "max_tokens": 0 }));
    assert_eq!(scored["choices"][0]["text"], "1 2 7");
    assert_eq!(scored["choices"][0]["logprobs"]["text_offset"], json!([0, 1, 3]));
}

#[test]
fn a_stream_has_what_the_whole_answer_has_and_stops_end_both() {
    let server = Server::start("8");
    let request = |stream: bool, stop: &Value| {
        json!({
            "prompt": "1 2", "max_tokens": 12, "seed": 4, "stream": stream, "stop": stop, "echo": true, "logprobs": 2,
        })
    };
    let answer = |stop: &Value| {
        let mut answer = server.completion(&request(false, stop));
        let mut choice = answer["choices"][0].take();
        (choice["text"].as_str().unwrap().to_owned(), choice["logprobs"].take())
    };
    let (whole, whole_log) = answer(&Value::Null);
    assert!(whole.starts_with("1 2 "), "{whole}");
    let stop = json!([whole[8..10]]);
    let (cut, cut_log) = answer(&stop);
    assert!(whole.starts_with(&cut) && cut.len() < whole.len(), "{cut:?} {whole:?}");
    for (stop, expected, expected_log) in [(Value::Null, whole, whole_log), (stop, cut, cut_log)] {
        let (status, events) = server.post(&request(true, &stop));
        assert_eq!(status, 200);
        let mut lines: Vec<&str> = events.split("\n\n").filter(|event| !event.is_empty()).collect();
        assert_eq!(lines.pop(), Some("data: [DONE]"));
        let pieces: Vec<Value> = lines
            .iter()
            .map(|line| serde_json::from_str(line.strip_prefix("data: ").unwrap()).unwrap())
            .collect();
        let joined: String =
            pieces.iter().map(|piece| piece["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!(joined, expected);
        for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let of_pieces = pieces.iter().filter_map(|piece| piece["choices"][0]["logprobs"][key].as_array());
            assert_eq!(Value::Array(of_pieces.flatten().cloned().collect()), expected_log[key], "{key}");
        }
        assert!(pieces.last().unwrap()["choices"][0]["finish_reason"].is_string());
    }
}

#[test]
fn hostile_requests_are_refused_in_words_and_hold_nobody_up() {
    let server = Server::start("8");
    let head = |rest: &str| format!("POST /v1/completions HTTP/1.1\r\n{rest}\r\n").into_bytes();
    let json_head = "Host: localhost\r\nContent-Type: application/json\r\n";
    // One that says nothing, one that says half, one whose body ends early.
    let silent = [server.connect(), server.sent(b"POST /v1"), server.sent(&posted("{}")[..80])];
    drop(server.sent(&head(&format!("{json_head}Content-Length: 100\r\n"))));
    let cases: [(u16, Vec<u8>); 10] = [
        (413, head(&format!("{json_head}Content-Length: 99999999999999999999\r\n"))),
        (411, head(&format!("{json_head}Transfer-Encoding: chunked\r\n"))),
        (411, head(json_head)),
        (415, head("Host: localhost\r\nContent-Length: 0\r\n")),
        (403, head("Host: evil.example\r\nContent-Type: application/json\r\nContent-Length: 0\r\n")),
        (404, b"GET /v1/chat HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        (405, b"GET /v1/completions HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec()),
        (400, b"\0\0\0\0\r\n\r\n".to_vec()),
        (431, [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 9000]].concat()),
        (400, posted(&"[".repeat(100_000))),
    ];
    for (expected, bytes) in cases {
        let started = Instant::now();
        let (status, body) = server.said(&bytes);
        assert_eq!(status, expected, "{body}");
        let error: Value = serde_json::from_str(&body).unwrap();
        assert!(error["error"]["message"].is_string(), "{body}");
        assert!(started.elapsed() < Duration::from_secs(5));
    }
    let (status, body) = server.post(&json!({ "prompt": [1, 99] }));
    let error: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &error["error"]["param"]), (400, &json!("prompt")));
    assert!(body.contains("99") && body.contains("0..32"), "{body}");
    let (status, body) = server.said(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");
    assert_eq!((status, body.as_str()), (200, "{\"status\":\"ok\"}"));
    let (_, models) = server.said(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert!(models.contains("\"id\":\"tiny\""), "{models}");
    drop(silent);
}

#[test]
fn a_full_queue_refuses_and_a_signal_ends_what_is_in_work() {
    let mut server = Server::start("1");
    // At temperature 0 the model goes in a circle, and comes to no end mark.
    let prompts = ["1"; 8];
    let endless = json!({ "prompt": prompts, "max_tokens": 65536, "temperature": 0, "stream": true });
    let endless = posted(&endless.to_string());
    let first = server.sent(&endless);
    // The first is in work once its first piece is there.
    let mut piece = String::new();
    BufReader::new(first.try_clone().unwrap()).read_line(&mut piece).unwrap();
    assert!(piece.contains("200"), "{piece}");
    let waiting = server.sent(&endless);
    thread::sleep(Duration::from_millis(300));
    let (status, body) = server.post(&json!({ "prompt": "1" }));
    assert!(status == 503 && body.contains("try again later"), "{status} {body}");
    // Clients that have gone leave the model to others.
    drop((first, waiting));
    let started = Instant::now();
    while server.post(&json!({ "prompt": "1", "max_tokens": 1 })).0 == 503 {
        assert!(started.elapsed() < Duration::from_secs(20), "the model works for nobody");
        thread::sleep(Duration::from_millis(100));
    }
    let _in_work = server.sent(&endless);
    thread::sleep(Duration::from_millis(300));
    let started = Instant::now();
    let signalled = Command::new("kill").args(["-TERM", &server.process.id().to_string()]).status().unwrap();
    assert!(signalled.success());
    assert_eq!(server.process.wait().unwrap().code(), Some(143));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
}

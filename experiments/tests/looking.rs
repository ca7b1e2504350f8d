//! Runs looked at, listed and compared, also those that somebody else made, moved or broke.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A small run on a text; a test puts in a name, a path and what else it needs.
const RECIPE: &str = r#"
name = "NAME"
threads = 1
[data.text]
path = "PATH"
[data.split.tail]
validation_fraction = 0.2
[train]
num_steps = 3
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
d_ff = 16
"#;

/// Longer than any of these commands takes on a busy machine, and shorter than for ever.
const PATIENCE: Duration = Duration::from_secs(60);

struct Desk {
    folder: TempDir,
}

impl Desk {
    fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A text whose lines are told from another's by `word`.
    fn write_text(&self, name: &str, word: &str) {
        let text: String = (0..400).map(|line| format!("{word} {line} and so on\n")).collect();
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), text).unwrap();
    }

    fn write_recipe(&self, file: &str, name: &str, path: &str) {
        fs::write(self.path(file), RECIPE.replace("NAME", name).replace("PATH", path)).unwrap();
    }

    /// Trains on the text at `path` into `runs/FOLDER`.
    fn train(&self, folder: &str, name: &str, path: &str, more: &[&str]) {
        self.write_recipe("recipe.toml", name, path);
        let out = format!("runs/{folder}");
        let arguments = [&["train", "recipe.toml", "--out", &out][..], more].concat();
        self.ok(&arguments);
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchyard"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("SWITCHYARD_CACHE_DIR", self.path("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// What a command says, which must end by itself.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        let started = Instant::now();
        // Little is printed: the pipes hold it.
        while child.try_wait().unwrap().is_none() {
            if started.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("{arguments:?} does not end");
            }
            thread::sleep(Duration::from_millis(10));
        }
        child.wait_with_output().unwrap()
    }

    /// Standard output and standard error of a command that must succeed.
    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> (String, String) {
        let output = self.run(arguments);
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {stderr}");
        (stdout, stderr)
    }

    /// Changes `run.json` of a run.
    fn edit(&self, folder: &str, change: impl FnOnce(&mut Value)) {
        let path = self.path(&format!("runs/{folder}/run.json"));
        let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut manifest);
        fs::write(&path, manifest.to_string()).unwrap();
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.ok(arguments).0).unwrap()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn data_is_judged_by_its_content_wherever_it_lies() {
    let desk = Desk::new();
    desk.write_text("here.txt", "rain");
    desk.train("a", "tiny", "here.txt", &[]);
    desk.write_text("there/moved.txt", "rain");
    desk.train("b", "tiny", "there/moved.txt", &[]);
    desk.write_text("here.txt", "snow");
    desk.train("c", "tiny", "here.txt", &[]);

    let diff = desk.json(&["diff", "runs/a", "runs/b", "--json"]);
    assert_eq!(
        (&diff["data"]["relation"], &diff["config"], &diff["notes"]),
        (&json!("same"), &json!([]), &json!([]))
    );
    assert_eq!(diff["data"]["places"][0]["key"], "data.text.path");
    let (page, _) = desk.ok(&["diff", "runs/a", "runs/b"]);
    assert!(page.contains("data: the same content") && page.contains("there/moved.txt"), "{page}");

    let diff = desk.json(&["diff", "runs/a", "runs/c", "--json"]);
    assert_eq!((&diff["data"]["relation"], &diff["data"]["places"]), (&json!("different"), &json!([])));
    let (page, _) = desk.ok(&["diff", "runs/a", "runs/c"]);
    assert!(page.contains("data: different content") && page.contains("cannot be compared"), "{page}");

    let (table, _) = desk.ok(&["compare", "runs/a", "runs/b"]);
    assert!(table.contains("tiny (a)") && table.contains("tiny (b)"), "{table}");
    assert!(!table.contains("cannot be compared"), "{table}");
    let (table, _) = desk.ok(&["compare", "runs/a", "runs/c"]);
    assert!(
        table.contains("differ in the content of `data`") && table.contains("cannot be compared"),
        "{table}"
    );
    assert_eq!(comparisons(&desk).len(), 2, "each pair has a folder of its own");
    for (other, differs) in [("runs/b", false), ("runs/c", true)] {
        let (_, said) = desk.ok(&["report", "runs/a", other, "--out", "page"]);
        let page = fs::read_to_string(desk.path("page/report.html")).unwrap();
        assert_eq!(
            (said.contains("cannot be compared"), page.contains("cannot be compared")),
            (differs, differs),
            "{other}"
        );
    }

    // A run of an earlier version tells by its checkpoint, and one without any is not judged.
    desk.edit("b", |manifest| drop(manifest.as_object_mut().unwrap().remove("data_key")));
    assert_eq!(desk.json(&["diff", "runs/a", "runs/b", "--json"])["data"]["relation"], "same");
    fs::remove_dir_all(desk.path("runs/b/checkpoints")).unwrap();
    assert_eq!(desk.json(&["diff", "runs/a", "runs/b", "--json"])["data"]["relation"], "unknown");
    let (table, _) = desk.ok(&["compare", "runs/a", "runs/b"]);
    assert!(table.contains("have the same data is not known"), "{table}");
}

fn comparisons(desk: &Desk) -> Vec<String> {
    let names = fs::read_dir(desk.path("runs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("compare-")).collect()
}

#[test]
fn configurations_that_have_not_run_differ_in_their_paths_and_no_more_is_claimed() {
    let desk = Desk::new();
    desk.write_text("x.txt", "rain");
    desk.write_text("y.txt", "rain");
    desk.write_recipe("a.toml", "t", "x.txt");
    desk.write_recipe("b.toml", "t", "y.txt");
    let (page, _) = desk.ok(&["diff", "a.toml", "b.toml"]);
    assert!(page.contains("data: at other places; whether the content is the same is not known"), "{page}");
    assert!(page.contains("x.txt") && page.contains("configuration: no difference"), "{page}");
    assert!(desk.ok(&["diff", "a.toml", "a.toml"]).0.contains("data: no difference"));
}

#[test]
fn whatever_makes_losses_incomparable_is_noted() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("short", "short", "a.txt", &["--set", "train.seq_len=8"]);
    desk.train("long", "long", "a.txt", &["--set", "train.seq_len=32", "--set", "data.mask_documents=true"]);
    for page in
        [desk.ok(&["compare", "runs/short", "runs/long"]).0, desk.ok(&["diff", "runs/short", "runs/long"]).0]
    {
        assert!(page.contains("sequences of 8 and 32 tokens") && page.contains("masks documents"), "{page}");
    }
}

/// Escape codes that would write to the clipboard, clear the screen and colour it, in C0 and C1.
const HOSTILE: &str = "\u{1b}]52;c;cHduZWQ=\u{7}\u{9b}31m\u{1b}[2J\r\u{b}";

#[test]
fn nothing_that_a_runs_files_say_reaches_a_terminal_or_a_file_as_an_escape_code() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    desk.train("b", "tiny", "a.txt", &[]);
    desk.edit("a", |manifest| {
        manifest["config"]["name"] = HOSTILE.into();
        manifest["error"] = HOSTILE.into();
        manifest["device"] = HOSTILE.into();
        manifest["started_at"] = HOSTILE.into();
        manifest["data_key"] = HOSTILE.into();
        manifest["config"][HOSTILE] = HOSTILE.into();
    });
    fs::create_dir_all(desk.path("runs/a/flight")).unwrap();
    let alarm = json!({ "kind": "dead_expert", "step": 1, "since_step": 1, "layer": 0, "expert": 0, "value": 0.0,
                        "threshold": 0.0, "message": HOSTILE });
    fs::write(desk.path("runs/a/flight/alarms.jsonl"), format!("{alarm}\n")).unwrap();
    let commands: [&[&str]; 10] = [
        &["runs", "runs"],
        &["runs", "runs", "--json"],
        &["inspect", "runs/a"],
        &["inspect", "runs/a", "--json"],
        &["inspect", "runs/a", "--figures", "figures"],
        &["watch", "runs/a", "--once"],
        &["diff", "runs/a", "runs/b"],
        &["diff", "runs/a", "runs/b", "--json"],
        &["compare", "runs/a", "runs/b"],
        &["report", "runs/a", "--out", "report"],
    ];
    for arguments in commands {
        let (stdout, stderr) = desk.ok(arguments);
        assert_no_control(&stdout, arguments);
        assert_no_control(&stderr, arguments);
    }
    for folder in ["figures", "report"] {
        for entry in fs::read_dir(desk.path(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension != "png") {
                assert_no_control(&fs::read_to_string(&path).unwrap(), &[path.to_str().unwrap()]);
            }
        }
    }
}

#[track_caller]
fn assert_no_control(text: &str, from: &[&str]) {
    let bad = text.chars().find(|letter| letter.is_control() && !"\n\t".contains(*letter));
    assert_eq!(bad, None, "{from:?}: {text:?}");
}

#[test]
fn a_name_from_a_file_leads_nowhere() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    desk.train("b", "tiny", "a.txt", &[]);
    desk.edit("a", |manifest| manifest["config"]["name"] = "x/../../../pwned/".into());
    let before = fs::read_dir(desk.folder.path()).unwrap().count();
    desk.ok(&["compare", "runs/a", "runs/b"]);
    assert_eq!(fs::read_dir(desk.folder.path()).unwrap().count(), before);
    assert!(!desk.folder.path().parent().unwrap().join("pwned").exists());
    assert_eq!(comparisons(&desk).len(), 1);
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_folders_in_the_place_of_files_end_in_a_message() {
    use std::os::unix::fs::symlink;
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    desk.train("b", "tiny", "a.txt", &[]);
    fs::create_dir_all(desk.path("runs/a/flight")).unwrap();
    for name in ["run.json", "metrics.jsonl", "flight/alarms.jsonl", "flight/saturation.jsonl", "result.json"]
    {
        for replacement in ["pipe", "device", "folder"] {
            let path = desk.path("runs/a").join(name);
            let kept = fs::read(&path).ok();
            let _ = fs::remove_file(&path);
            match replacement {
                "pipe" => assert!(Command::new("mkfifo").arg(&path).status().unwrap().success()),
                "device" => symlink("/dev/zero", &path).unwrap(),
                _ => fs::create_dir(&path).unwrap(),
            }
            let commands: [&[&str]; 8] = [
                &["runs", "runs"],
                &["inspect", "runs/a"],
                &["diff", "runs/a", "runs/b"],
                &["compare", "runs/a", "runs/b", "--out", "compared"],
                &["report", "runs/a", "--out", "report"],
                &["report", "runs", "--out", "report"],
                &["watch", "runs/a", "--once"],
                &["fit", "runs/a", "--bootstrap", "1"],
            ];
            for arguments in commands {
                let output = desk.run(arguments);
                let message = text(&output.stderr);
                let code = output.status.code();
                assert!(
                    code.is_some_and(|code| code <= 2),
                    "{name} as a {replacement}, {arguments:?}: {message}"
                );
                assert!(!message.contains("a bug in switchyard"), "{message}");
            }
            let (listed, _) = desk.ok(&["runs", "runs"]);
            assert!(
                listed.contains("runs/a") && listed.contains("runs/b"),
                "{name} as a {replacement}: {listed}"
            );
            if replacement == "folder" {
                fs::remove_dir(&path).unwrap()
            } else {
                fs::remove_file(&path).unwrap()
            }
            if let Some(bytes) = kept {
                fs::write(&path, bytes).unwrap();
            }
        }
    }
}

#[test]
fn a_run_that_cannot_be_read_hides_none_of_the_others() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    fs::create_dir_all(desk.path("runs/torn")).unwrap();
    fs::write(desk.path("runs/torn/run.json"), "{\"status\": \"fin").unwrap();
    let (listed, _) = desk.ok(&["runs", "runs"]);
    assert!(listed.contains("runs/a") && listed.contains("unreadable: `runs/torn/run.json`"), "{listed}");
    let (_, said) = desk.ok(&["report", "runs", "--out", "report"]);
    assert!(said.contains("`runs/torn` is left out"), "{said}");
    let alone = desk.run(&["report", "runs/torn", "--out", "report"]);
    assert_eq!(alone.status.code(), Some(2), "{}", text(&alone.stderr));
}

#[cfg(unix)]
#[test]
fn a_folder_of_links_lists_the_runs_that_they_lead_to() {
    use std::os::unix::fs::symlink;
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    fs::create_dir(desk.path("links")).unwrap();
    symlink(desk.path("runs/a"), desk.path("links/a")).unwrap();
    symlink(desk.path("links"), desk.path("links/circle")).unwrap();
    let listed = desk.json(&["runs", "links", "--json"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["path"], "links/a");
}

#[test]
fn a_place_where_nothing_can_be_written_is_the_users_to_mend() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    desk.train("b", "tiny", "a.txt", &[]);
    fs::write(desk.path("file"), "").unwrap();
    for out in ["file/below", "/dev/null/below"] {
        let commands: [&[&str]; 3] = [
            &["report", "runs/a", "--out", out],
            &["compare", "runs/a", "runs/b", "--out", out],
            &["inspect", "runs/a", "--figures", out],
        ];
        for arguments in commands {
            let output = desk.run(arguments);
            let message = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
            assert!(message.contains(out), "{arguments:?}: {message}");
        }
    }
}

#[cfg(unix)]
#[test]
fn a_report_that_was_killed_leaves_nothing_that_the_next_one_does_not_take() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.train("a", "tiny", "a.txt", &[]);
    desk.ok(&["report", "runs/a", "--out", "report"]);
    let names = || {
        let entries = fs::read_dir(desk.path("report")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let whole = names();
    for delay_ms in (0..120).step_by(8) {
        let mut child: Child = desk.command(&["report", "runs/a", "--out", "report"]).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay_ms));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    desk.ok(&["report", "runs/a", "--out", "report"]);
    assert_eq!(names(), whole);
}

#[test]
fn two_comparisons_of_the_same_configurations_at_once_train_each_once() {
    let desk = Desk::new();
    desk.write_text("a.txt", "rain");
    desk.write_recipe("one.toml", "one", "a.txt");
    desk.write_recipe("two.toml", "two", "a.txt");
    let start = || desk.command(&["compare", "one.toml", "two.toml"]).spawn().unwrap();
    let outputs = [start(), start(), start()].map(|child| child.wait_with_output().unwrap());
    for output in &outputs {
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    }
    assert_eq!(comparisons(&desk), ["compare-one-vs-two"]);
    assert_eq!(fs::read_dir(desk.path("runs")).unwrap().count(), 3, "two runs, one comparison, no lock");
}

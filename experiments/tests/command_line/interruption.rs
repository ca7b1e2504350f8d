//! A run that is asked to stop, by whatever signal, and whoever is left to read what it says.
//!
//! By hand, with a terminal that closes:
//! `python3 -c 'import pty, os, sys, time; pid, terminal = pty.fork(); pid or os.execvp(sys.argv[1], sys.argv[1:]); time.sleep(5); os.close(terminal); print(os.waitpid(pid, 0))' switchyard train ...`

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::Child;

use super::signals::{has_checkpoint, signal, wait_for};
use super::*;

/// `sh` with `script`, whose `$0` and `$@` are the program and its arguments.
fn in_shell(desk: &Desk, script: &str, arguments: &[&str]) -> Command {
    let mut command = desk.on_the_desk("sh");
    command.args(["-c", script, PROGRAM]).args(arguments);
    command
}

/// Arguments of a run that ends when it is told to.
fn endless(out: &str) -> Vec<&str> {
    vec!["train", "moe.toml", "--out", out, "--set", "train.num_steps=1000000"]
}

/// A process that is killed with its test.
struct Process(Child);

impl Process {
    fn start(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        signal(&self.0, name);
    }

    /// Exit code, which it must have within a minute.
    fn code(&mut self) -> Option<i32> {
        let mut status = None;
        wait_for("the process to end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// `run` says that it was interrupted, and its last step is in the log and in a checkpoint.
fn assert_saved(desk: &Desk, run: &str) {
    let manifest = desk.json(&format!("{run}/run.json"));
    assert_eq!(manifest["status"], "interrupted", "{manifest}");
    let last = manifest["steps_done"].as_u64().unwrap();
    assert_eq!(desk.rows(run).last().unwrap()["step"], last, "the log ends with the checkpoint");
    assert!(desk.path(&format!("{run}/checkpoints/step-{last}/manifest.json")).is_file());
}

#[test]
fn each_signal_ends_a_run_with_a_checkpoint_and_its_own_exit_code() {
    let desk = Desk::new();
    for (name, code) in [("-INT", 130), ("-TERM", 143), ("-HUP", 129)] {
        let run = format!("run{name}");
        let mut process = Process::start(desk.command(&endless(&run)).stderr(Stdio::null()));
        wait_for("a checkpoint", || has_checkpoint(&desk.path(&run)));
        process.signal(name);
        assert_eq!(process.code(), Some(code), "{name}");
        assert_saved(&desk, &run);
    }
}

#[test]
fn the_command_after_an_interrupted_one_does_not_start() {
    let desk = Desk::new();
    let script = "\"$0\" \"$@\" & echo $! > pid; wait $! && echo next";
    let out = File::create(desk.path("out")).unwrap();
    let mut shell =
        Process::start(in_shell(&desk, script, &endless("run")).stdout(out).stderr(Stdio::null()));
    wait_for("a checkpoint", || has_checkpoint(&desk.path("run")));
    let pid = fs::read_to_string(desk.path("pid")).unwrap();
    assert!(Command::new("kill").args(["-TERM", pid.trim()]).status().unwrap().success());
    assert_eq!(shell.code(), Some(143));
    assert_saved(&desk, "run");
    assert_eq!(fs::read_to_string(desk.path("out")).unwrap(), "");
}

#[test]
fn one_request_that_arrives_twice_is_one_request() {
    let desk = Desk::new();
    for names in [["-TERM", "-TERM"], ["-HUP", "-HUP"], ["-INT", "-HUP"]] {
        let run = format!("run{}{}", names[0], names[1]);
        let mut process = Process::start(desk.command(&endless(&run)).stderr(Stdio::null()));
        wait_for("a checkpoint", || has_checkpoint(&desk.path(&run)));
        let pid = process.0.id();
        let script = format!("kill {} {pid}; kill {} {pid}; true", names[0], names[1]);
        assert!(Command::new("sh").args(["-c", &script]).stderr(Stdio::null()).status().unwrap().success());
        let code = process.code();
        // Which of two signals a process is given first is the system's choice.
        let is_named = |(name, expected): (&str, i32)| names.contains(&name) && code == Some(expected);
        assert!(
            [("-INT", 130), ("-TERM", 143), ("-HUP", 129)].into_iter().any(is_named),
            "{names:?}: {code:?}"
        );
        assert_saved(&desk, &run);
    }
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let desk = Desk::new();
    // A step of many minutes.
    let set = ["--set", "train.batch_tokens=64000000", "--set", "train.micro_batch_tokens=64"];
    let arguments = [&["train", "moe.toml", "--out", "run"], &set[..]].concat();
    let mut process = Process::start(desk.command(&arguments).stderr(Stdio::piped()));
    let mut said = BufReader::new(process.0.stderr.take().unwrap()).lines().map_while(Result::ok);
    wait_for("the run to begin", || desk.path("run/config.toml").exists());
    process.signal("-INT");
    assert!(
        said.any(|line| line.contains("stopping after this step, with a checkpoint; press Ctrl-C again"))
    );
    std::thread::sleep(Duration::from_millis(600));
    process.signal("-INT");
    assert_eq!(process.code(), Some(130));
    assert_eq!(desk.json("run/run.json")["status"], "running", "nothing was waited for");
}

#[test]
fn a_log_whose_reader_has_gone_costs_no_work() {
    let desk = Desk::new();
    let mut process = Process::start(desk.command(&endless("run")).stderr(Stdio::piped()));
    let mut reader = BufReader::new(process.0.stderr.take().unwrap());
    reader.read_line(&mut String::new()).unwrap();
    drop(reader);
    wait_for("a checkpoint", || has_checkpoint(&desk.path("run")));
    process.signal("-TERM");
    assert_eq!(process.code(), Some(143));
    assert_saved(&desk, "run");
}

#[test]
fn ctrl_c_ends_the_log_s_reader_and_the_run_saves_its_work() {
    let desk = Desk::new();
    // As a terminal does it: the signal goes to all of the pipeline at once. The inner shell lives
    // on to note the code.
    let script = "{ trap : INT; \"$0\" \"$@\"; echo $? > code; } 2>&1 | tee log";
    let mut shell =
        Process::start(in_shell(&desk, script, &endless("run")).process_group(0).stdout(Stdio::null()));
    wait_for("a checkpoint", || has_checkpoint(&desk.path("run")));
    let group = format!("-{}", shell.0.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
    shell.code();
    wait_for("the exit code", || {
        fs::read_to_string(desk.path("code")).is_ok_and(|code| code.ends_with('\n'))
    });
    assert_eq!(fs::read_to_string(desk.path("code")).unwrap(), "130\n");
    assert_saved(&desk, "run");
}

/// Length of the names of prepared corpora.
const LEFTOVER_LEN: usize = 16;

#[test]
fn nobody_reading_changes_nothing_about_how_a_command_ends() {
    let desk = Desk::new();
    // A full disk, closed streams, a reader that goes after a line, one that was never there.
    let redirections = [
        ("2>/dev/full", 0),
        (">/dev/full 2>/dev/full", 0),
        ("2>&- >&-", 0),
        ("2>&1 | head -n 1", 0),
        ("2>&1 | true", 0),
    ];
    let commands: [&[&str]; 4] = [
        &["train", "moe.toml", "--overwrite", "--out", "run"],
        &["data", "prepare", "moe.toml"],
        &["upcycle", "dense", "up.toml", "--overwrite", "--out", "up"],
        &["compare", "dense.toml", "moe.toml", "--set", "train.num_steps=2"],
    ];
    desk.write(
        "up.toml",
        &TINY.replace("\"tiny\"", "\"up\"").add(&MOE.replace("d_expert = 8", "d_expert = 16")),
    );
    desk.ok(&["train", "dense.toml", "--out", "dense"]);
    for (redirection, expected) in redirections {
        for arguments in commands {
            drop(fs::remove_dir_all(desk.path("cache")));
            // What another preparation left and nobody can lock: a warning.
            for leftover in ["tmp", "lock"] {
                fs::create_dir_all(desk.path(&format!("cache/{}.{leftover}", "a".repeat(LEFTOVER_LEN))))
                    .unwrap();
            }
            let script = format!("{{ \"$0\" \"$@\"; echo $? > code; }} {redirection}");
            let status = in_shell(&desk, &script, arguments).output().unwrap();
            let code: i32 = fs::read_to_string(desk.path("code")).unwrap().trim().parse().unwrap();
            let writes_result = matches!(arguments[0], "data" | "compare");
            // A result that could not be written is no success.
            let expected = if writes_result && redirection.starts_with(">/dev/full") { 2 } else { expected };
            assert_eq!(code, expected, "{arguments:?} {redirection}: {status:?}");
        }
        assert_eq!(desk.json("run/run.json")["status"], "finished", "{redirection}");
    }
}

#[test]
fn a_mistake_keeps_its_exit_code_without_a_reader() {
    let desk = Desk::new();
    for redirection in ["2>/dev/full", "2>&-", "2>&1 | true"] {
        let script = format!("{{ \"$0\" \"$@\"; echo $? > code; }} {redirection}");
        for arguments in
            [&["train", "absent.toml"][..], &["train"], &["train", "moe.toml", "--set", "seed=x"]]
        {
            drop(in_shell(&desk, &script, arguments).output().unwrap());
            assert_eq!(fs::read_to_string(desk.path("code")).unwrap(), "2\n", "{arguments:?} {redirection}");
        }
    }
}

/// `nohup`, and shells that start a job in the background, have it ignore signals.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let desk = Desk::new();
    for (ignored, sent) in [("HUP", "-HUP"), ("INT", "-INT")] {
        let run = format!("run-{ignored}");
        let script = format!("trap '' {ignored}; exec \"$0\" \"$@\"");
        let mut process = Process::start(in_shell(&desk, &script, &endless(&run)).stderr(Stdio::null()));
        wait_for("a checkpoint", || has_checkpoint(&desk.path(&run)));
        process.signal(sent);
        let steps = || fs::read_to_string(desk.path(&run).join("metrics.jsonl")).unwrap().lines().count();
        let before = steps();
        wait_for("more steps", || steps() > before + 100);
        process.signal("-TERM");
        assert_eq!(process.code(), Some(143));
        assert_saved(&desk, &run);
    }
}

#[test]
fn data_that_is_being_prepared_is_dropped_and_no_checkpoint_is_spoken_of() {
    let desk = Desk::new();
    let set = "data.synthetic.num_documents=100000000";
    for (arguments, name, code) in [
        (&["data", "prepare", "moe.toml", "--set", set][..], "-INT", 130),
        (&["data", "stats", "moe.toml", "--set", set], "-TERM", 143),
        (&["train", "moe.toml", "--out", "run", "--set", set], "-HUP", 129),
        (&["verify", "moe.toml", "--set", set], "-TERM", 143),
    ] {
        let mut process = Process::start(desk.command(arguments).stderr(Stdio::piped()));
        wait_for("the preparation", || desk.path("cache").exists());
        process.signal(name);
        assert_eq!(process.code(), Some(code), "{arguments:?}");
        let mut said = String::new();
        process.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(said.contains("nothing half-made was kept"), "{said}");
        assert!(arguments[0] == "train" || !said.contains("checkpoint"), "{said}");
        assert!(!desk.path("run").exists());
        fs::remove_dir_all(desk.path("cache")).unwrap();
    }
}

#[test]
fn every_command_that_works_for_long_can_be_stopped() {
    let desk = Desk::new();
    desk.ok(&["train", "moe.toml", "--out", "run", "--set", "sample.num_tokens=0"]);
    desk.write("study.toml", STUDY);
    desk.write("sweep.toml", SWEEP);
    let endless = ["--set", "train.num_steps=1000000"];
    let cases: [(&[&str], &str); 7] = [
        (&["generate", "run", "--num-tokens", "100000000", "--past-end"], "out"),
        (&["compare", "dense.toml", "moe.toml", endless[0], endless[1]], "runs"),
        (&["compare", "study.toml", "--out", "study"], "study/runs"),
        (&["sweep", "sweep.toml", "--out", "sweep"], "sweep/runs"),
        (&["verify", "moe.toml", "--steps", "1000000"], "at once"),
        (&["bench", "step", "moe.toml", "--steps", "1000000"], "at once"),
        (&["sweep", "sweep.toml", "--out", "timing"], "said"),
    ];
    for (arguments, sign) in cases {
        drop(fs::remove_file(desk.path("out")));
        let (out, said) = (File::create(desk.path("out")).unwrap(), File::create(desk.path("said")).unwrap());
        let mut process = Process::start(desk.command(arguments).stdout(out).stderr(said));
        let has_begun = || match sign {
            "at once" => true,
            "out" => fs::metadata(desk.path("out")).unwrap().len() > 20,
            "said" => fs::read_to_string(desk.path("said")).unwrap().contains("timing some steps"),
            runs => fs::read_dir(desk.path(runs))
                .is_ok_and(|runs| runs.flatten().any(|run| run.path().join("metrics.jsonl").exists())),
        };
        wait_for("the work to begin", has_begun);
        std::thread::sleep(Duration::from_millis(300));
        process.signal("-INT");
        let code = process.code();
        let said = fs::read_to_string(desk.path("said")).unwrap();
        assert_eq!(code, Some(130), "{arguments:?}: {said}");
        assert!(said.contains("interrupted") && !said.contains("bug"), "{arguments:?}: {said}");
    }
    // It did not wait for the seconds that timing takes.
    let files = fs::read_dir(desk.path("timing")).unwrap().map(|file| file.unwrap().file_name());
    let timed: Vec<_> = files.filter(|name| name.to_string_lossy().ends_with(".json")).collect();
    assert!(timed.is_empty(), "{timed:?}");
}

const STUDY: &str = r#"
name = "endless"
base = "dense.toml"
held_equal = "active_flops"
seeds = [1, 2, 3]
[budget]
num_steps = [1000000]
[[arms]]
label = "dense"
[[arms]]
label = "other"
set = ["model.ffn.d_ff=17"]
"#;

const SWEEP: &str = r#"
name = "endless"
base = "dense.toml"
num_steps = 1000000
seeds = [1]
[grid]
"train.adamw.learning_rate" = [1e-3, 1e-2]
"#;

/// A terminal of its own for the program, by Python, whose standard library makes one: the
/// arguments are the seconds to wait after the file `$SIGN` is there, whether to ignore SIGHUP, and
/// the command. The terminal is then closed, and what became of the program printed.
const TERMINAL: &str = r#"
import os, pty, signal, sys, time
ignores = sys.argv[1] == "ignore"
pid, terminal = pty.fork()
if pid == 0:
    if ignores:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.execv(sys.argv[2], sys.argv[2:])
os.set_blocking(terminal, False)
def drain():
    try:
        while os.read(terminal, 65536): pass
    except (BlockingIOError, OSError): pass
deadline = time.time() + 60
while not os.path.exists(os.environ["SIGN"]) and time.time() < deadline:
    drain()
    time.sleep(0.01)
os.close(terminal)
if ignores:
    time.sleep(1.0)
    os.kill(pid, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"#;

#[test]
fn a_terminal_that_closes_costs_no_work() {
    let desk = Desk::new();
    if Command::new("python3").args(["-c", "import pty"]).stderr(Stdio::null()).status().is_err() {
        // Past the capture of passing tests' output: a skip is seen.
        drop(std::io::Write::write_all(
            &mut std::io::stderr(),
            b"skipped: no `python3` to make a terminal\n",
        ));
        return;
    }
    // The second has SIGHUP ignored, goes on without its terminal, and is then told to stop.
    for (hangup, run, code) in [("obey", "closed", "129\n"), ("ignore", "kept", "143\n")] {
        if hangup == "ignore" && cfg!(not(target_os = "linux")) {
            continue; // See `Interruption::watch`.
        }
        let mut command = desk.on_the_desk("python3");
        command.args(["-c", TERMINAL, hangup, PROGRAM]).args(endless(run));
        command.env("SIGN", desk.path(run).join("checkpoints/latest/manifest.json"));
        let output = command.output().unwrap();
        assert_eq!(text(&output.stdout), code, "{}", text(&output.stderr));
        assert_saved(&desk, run);
    }
}

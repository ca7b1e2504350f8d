//! A command that is printed to be run next works as it is printed, through a shell.

#![cfg(unix)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::process::Child;

use super::signals::{has_checkpoint, signal, wait_for};
use super::*;

/// What follows `label` on its line in `said`.
fn printed(said: &str, label: &str) -> String {
    let (_, rest) = said.split_once(label).unwrap_or_else(|| panic!("{label:?} is not in {said}"));
    rest.lines().next().unwrap().trim().to_string()
}

/// Runs a printed line as it is.
fn in_shell(desk: &Desk, line: &str) -> Output {
    desk.on_the_desk("sh").args(["-c", line]).output().unwrap()
}

fn interrupted(desk: &Desk, mut process: Child, run: &Path) -> String {
    wait_for("a checkpoint", || has_checkpoint(run));
    signal(&process, "-INT");
    process.wait().unwrap();
    fs::read_to_string(desk.path("said")).unwrap()
}

/// Each is forced to the disk: with one every few steps, nearly all of the time goes there.
const RARELY: [&str; 4] =
    ["--set", "train.checkpoint_every_steps=300", "--set", "train.eval_every_steps=2000"];

fn start(desk: &Desk, arguments: &[&str]) -> Child {
    let said = fs::File::create(desk.path("said")).unwrap();
    let mut command = desk
        .command(&[&["train", "moe.toml", "--set", "train.num_steps=4000"], &RARELY[..], arguments].concat());
    command.stderr(said).spawn().unwrap()
}

#[test]
fn an_interrupted_run_goes_on_as_it_was_begun_by_the_printed_line() {
    let desk = Desk::new();
    for out in ["run", "it's a run; rm $HOME", "\"a\" & b", "-run", "ü/*"] {
        let process = start(&desk, &[&format!("--out={out}"), "--set", "seed=5"]);
        let line = printed(&interrupted(&desk, process, &desk.path(out)), "continue with: ");
        let output = in_shell(&desk, &line);
        assert_eq!(output.status.code(), Some(0), "{line}: {}", text(&output.stderr));
        let run = desk.json(&format!("{out}/run.json"));
        assert_eq!((&run["status"], &run["steps_done"]), (&"finished".into(), &4000.into()), "{line}");
        assert_eq!(
            (&run["config"]["seed"], run["resumed_from_steps"].as_array().unwrap().len()),
            (&5.into(), 1)
        );
        // What a finished run names next works too.
        let next = printed(&text(&output.stderr), "next: ");
        let (inspect, generate) = next.split_once("    ").unwrap();
        assert_eq!(in_shell(&desk, inspect).status.code(), Some(0), "{inspect}");
        let generated = in_shell(&desk, &generate.replace("TEXT", "'1 2'"));
        assert!(text(&generated.stdout).starts_with("1 2"), "{generate}: {}", text(&generated.stderr));
    }
}

#[test]
fn an_interrupted_run_in_the_default_folder_goes_on_there() {
    let desk = Desk::new();
    // The folder is named after the changed configuration, which the printed line need not repeat.
    let process = start(&desk, &["--set", "name=other"]);
    let run = || fs::read_dir(desk.path("runs")).ok()?.next()?.ok().map(|run| run.path());
    wait_for("the folder", || run().is_some());
    let line = printed(&interrupted(&desk, process, &run().unwrap()), "continue with: ");
    assert_eq!(in_shell(&desk, &line).status.code(), Some(0), "{line}");
    assert_eq!(fs::read_dir(desk.path("runs")).unwrap().count(), 1);
    let manifest: Value =
        serde_json::from_slice(&fs::read(run().unwrap().join("run.json")).unwrap()).unwrap();
    assert_eq!(manifest["status"], "finished");
}

#[test]
fn an_alarm_s_and_an_upcycle_s_next_command_work_as_printed() {
    let desk = Desk::new();
    let alarms = "train.flight_recorder.alarms";
    let sets = [
        format!("{alarms}.window_steps=2"),
        format!("{alarms}.max_violation=0.001"),
        format!("{alarms}.stop_on=[\"max_violation\"]"),
    ];
    let mut arguments = vec!["train", "moe.toml", "--out", "my run"];
    sets.iter().for_each(|set| arguments.extend(["--set", set]));
    let output = desk.run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let line = printed(&text(&output.stderr), "go on all the same with: ");
    in_shell(&desk, &line);
    let run = desk.json("my run/run.json");
    assert!(!run["resumed_from_steps"].as_array().unwrap().is_empty(), "{run}");
    assert_eq!(run["config"]["train"]["flight_recorder"]["alarms"]["window_steps"], 2);

    desk.ok(&["train", "dense.toml", "--out", "dense"]);
    let output = desk.run(&[
        "upcycle",
        "dense",
        "moe.toml",
        "--out",
        "up 'cycled'",
        "--set",
        "model.ffn.moe.d_expert=16",
        "--set",
        "train.num_steps=3",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let line = printed(&text(&output.stderr), "next: ");
    assert_eq!(in_shell(&desk, &line).status.code(), Some(0), "{line}");
    assert_eq!(desk.json("up 'cycled'/run.json")["steps_done"], 3);
}

/// Not every file system takes such a name; where none can be made there is nothing to test.
#[test]
fn a_folder_whose_name_is_not_utf8_breaks_no_command() {
    let desk = Desk::new();
    let name = OsStr::from_bytes(b"run-\xff\xe9");
    if fs::create_dir(desk.path("").join(name)).is_err() {
        drop(std::io::Write::write_all(
            &mut std::io::stderr(),
            b"skipped: no such names on this file system\n",
        ));
        return;
    }
    let run = |arguments: &[&str]| {
        let (before, after) = arguments.split_at(arguments.iter().position(|a| *a == "RUN").unwrap());
        let mut command = desk.command(before);
        let output = command.arg(name).args(&after[1..]).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {said}");
        assert!(!said.contains("bug in switchyard"), "{said}");
        text(&output.stdout)
    };
    run(&["train", "dense.toml", "--out", "RUN"]);
    let answer: Value = serde_json::from_str(&run(&["eval", "RUN", "--json"])).unwrap();
    assert!(answer["checkpoint"].as_str().unwrap().contains('\u{fffd}'), "{answer}");
    for arguments in [
        &["eval", "RUN"][..],
        &["inspect", "RUN", "--json"],
        &["inspect", "RUN"],
        &["generate", "RUN", "--num-tokens", "1"],
        &["replay", "RUN", "--step", "2", "--json"],
        &["runs", "RUN", "--json"],
        &["watch", "RUN", "--once"],
        &["report", "RUN"],
        &["diff", "RUN", "dense.toml", "--json"],
        &["upcycle", "RUN", "moe.toml", "--out", "up", "--set", "model.ffn.moe.d_expert=16"],
    ] {
        run(arguments);
    }
    assert_eq!(desk.json("up/run.json")["upcycled_from"]["step"], 8);
}

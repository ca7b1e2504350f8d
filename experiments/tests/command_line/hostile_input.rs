//! Arguments and files that are not what they should be: one short message at once, and nothing
//! obeyed that is in them.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_configuration_that_is_no_small_file_is_refused_at_once() {
    let desk = Desk::new();
    assert!(Command::new("mkfifo").arg(desk.path("pipe.toml")).status().unwrap().success());
    fs::create_dir(desk.path("folder.toml")).unwrap();
    fs::File::create(desk.path("huge.toml")).unwrap().set_len(1 << 30).unwrap();
    fs::write(desk.path("latin.toml"), b"name = \"caf\xe9\"\n").unwrap();
    symlink("/dev/zero", desk.path("zero.toml")).unwrap();
    let started = Instant::now();
    for (file, part) in [
        ("pipe.toml", "not a regular file"),
        ("zero.toml", "not a regular file"),
        ("folder.toml", "it is a folder"),
        ("huge.toml", "more than the 1048576 bytes"),
        ("latin.toml", "not UTF-8 at byte 11"),
    ] {
        for command in
            [&["plan"][..], &["train"], &["data", "prepare"], &["bench", "layer"], &["bench", "step"]]
        {
            let message = desk.mistake(&[command, &[file]].concat());
            assert!(message.contains(part) && message.contains(file), "{command:?} {file}: {message}");
        }
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

#[test]
fn files_with_very_many_or_very_deep_keys_are_answered_soon() {
    let desk = Desk::new();
    let many: String = (0..70_000).map(|key| format!("k{key} = 1\n")).collect();
    let nested = |open: &str, close: &str| format!("a = {}1{}\n", open.repeat(50_000), close.repeat(50_000));
    for (name, content) in [
        ("many", many.clone()),
        ("one-line", format!("a = {{{}}}\n", many.trim_end().replace('\n', ","))),
        ("long-table", format!("[{}]\n{}", "x".repeat(300_000), &many[..600_000])),
        ("dotted", format!("{} = 1\n", ["a"; 100_000].join("."))),
        ("header", format!("[{}]\n", ["a"; 100_000].join("."))),
        ("lists", nested("[", "]")),
        ("tables", nested("{a=", "}")),
    ] {
        desk.write("bomb.toml", &content);
        let started = Instant::now();
        let message = desk.mistake(&["plan", "bomb.toml"]);
        assert!(message.len() < 2_000, "{name}: {} bytes: {}", message.len(), &message[..300]);
        assert!(message.contains("bomb.toml"), "{name}: {message}");
        assert!(started.elapsed() < Duration::from_secs(20), "{name}: {:?}", started.elapsed());
    }
}

#[test]
fn an_override_without_end_is_refused_with_an_excerpt() {
    let desk = Desk::new();
    for argument in [
        format!("{}=1", ["a"; 60_000].join(".")),
        format!("{}=", ["a"; 60_000].join(".")),
        format!("train.{}=1", "x".repeat(100_000)),
        format!("seed={}", "9".repeat(60_000)),
        format!("name={}", "x".repeat(60_000)),
        format!("seed={}", "[".repeat(60_000)),
        format!("device={}", "x".repeat(60_000)),
        format!("name=[{}1]", "1,".repeat(30_000)),
        "x".repeat(120_000),
    ] {
        let message = desk.mistake(&["train", "moe.toml", "--set", &argument]);
        assert!(message.len() < 1_500, "{} bytes: {}", message.len(), &message[..300]);
    }
}

#[test]
fn a_name_that_is_too_long_for_a_folder_is_said_to_be() {
    let desk = Desk::new();
    let long = "a".repeat(300);
    let message = desk.mistake(&["train", "moe.toml", "--set", &format!("name={long}")]);
    assert!(message.contains("1 to 100 letters") && message.len() < 600, "{message}");
    let message = desk.mistake(&["train", "moe.toml", "--out", &long]);
    assert!(message.contains("shorter name") && !message.contains("free space"), "{message}");
}

#[test]
fn numbers_are_read_as_people_write_them() {
    let desk = Desk::new();
    let rate = |text: &str| -> Value {
        let set = format!("train.adamw.learning_rate={text}");
        let plan: Value =
            serde_json::from_str(&desk.ok(&["plan", "moe.toml", "--json", "--set", &set])).unwrap();
        plan["schedule"]["peak_learning_rate"].clone()
    };
    assert_eq!((rate(".001"), rate("1."), rate("5.e-4")), (0.001.into(), 1.0.into(), 0.0005.into()));
}

#[test]
fn a_text_to_continue_may_begin_with_a_hyphen() {
    let desk = Desk::new();
    let bytes = text_config("corpus.txt")
        .replace("[train]\n", "[data.split.tail]\nvalidation_fraction = 0.1\n[train]\n");
    desk.write("corpus.txt", &"-5 degrees and - a dash\n".repeat(100));
    desk.write("text.toml", &bytes);
    desk.ok(&["train", "text.toml", "--out", "run"]);
    for prompt in ["-5 degrees", "--json", "-"] {
        assert!(desk.ok(&["generate", "run", "--num-tokens", "3", "--prompt", prompt]).starts_with(prompt));
    }
    for (arguments, part) in [
        (["--temperature", "-0.5"], "`temperature` is -0.5"),
        (["--top-p", "-1"], "`top_p` is -1"),
        (["--num-tokens", "-3"], "-3"),
        (["--seed", "-1"], "-1"),
    ] {
        let message = desk.mistake(&[&["generate", "run"], &arguments[..]].concat());
        assert!(message.contains(part) && !message.contains("use '-- "), "{message}");
    }
}

#[test]
fn what_is_refused_prints_no_prompt_first() {
    let desk = Desk::new();
    desk.ok(&["train", "moe.toml", "--out", "run"]);
    let output = desk.run(&["generate", "run", "--prompt", "no id"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    let choice = "model.ffn.moe.router.selection.expert_choice={}";
    let set = ["--set", choice, "--set", "model.ffn.moe.router.load_balancing_weight="];
    let more = ["--set", "sample.num_tokens=0", "--out", "choice"];
    let trained = desk.run(&[&["train", "moe.toml"], &set[..], &more[..]].concat());
    assert_eq!(trained.status.code(), Some(0), "{}", text(&trained.stderr));
    let output = desk.run(&["generate", "choice", "--prompt", "1 2"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(2), String::new()),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn escape_codes_of_others_reach_no_terminal() {
    let desk = Desk::new();
    desk.ok(&["train", "dense.toml", "--out", "run"]);
    // Set the title, fill the clipboard, the one-character introducer of C1.
    let evil = "\u{1b}]0;owned\u{7}\u{1b}]52;c;eA==\u{7}\u{9b}31m";
    let escaped = serde_json::to_string(evil).unwrap();
    let manifest = fs::read_to_string(desk.path("run/run.json")).unwrap();
    let manifest = manifest.replacen("\"finished\"", &format!("\"failed\", \"error\": {escaped}"), 1);
    desk.write("run/run.json", &manifest.replacen("\"tiny-dense\"", &escaped, 1));
    let toml = format!("name = {escaped}\n").replace("\\u001b", "\\u001B");
    desk.write("evil.toml", &toml);
    desk.write("path.toml", &text_config("missing\\u001b]52;c;eA==\\u0007.txt"));
    let file = format!("{evil}.toml");
    for arguments in [
        &["inspect", "run"][..],
        &["inspect", "run", "--json"],
        &["runs", "."],
        &["runs", ".", "--json"],
        &["diff", "run", "dense.toml"],
        &["plan", "evil.toml"],
        &["plan", &file],
        &["train", "path.toml"],
        &["train", "moe.toml", "--set", &file],
        &["generate", "run", "--prompt", evil],
    ] {
        let output = desk.run(arguments);
        for stream in [text(&output.stdout), text(&output.stderr)] {
            let is_bad = |letter: char| letter.is_control() && letter != '\n' && letter != '\t';
            assert!(!stream.contains(is_bad), "{arguments:?}: {stream:?}");
        }
    }
    let inspected: Value = serde_json::from_str(&desk.ok(&["inspect", "run", "--json"])).unwrap();
    assert!(inspected.to_string().contains("owned"), "a machine gets the text itself");
}

#[test]
fn a_place_where_nothing_can_be_written_is_the_user_s_mistake() {
    let desk = Desk::new();
    desk.ok(&["train", "dense.toml", "--out", "run"]);
    desk.write("file", "");
    for out in ["/dev/null", "/dev/null/x", "file/x", "/proc/none/x"] {
        for command in [
            &["train", "dense.toml", "--out", out][..],
            &["report", "run", "--out", out],
            &["compare", "run", "run", "--out", out],
            &["inspect", "run", "--figures", out],
            &["upcycle", "run", "moe.toml", "--set", "model.ffn.moe.d_expert=16", "--out", out],
        ] {
            let message = desk.mistake(command);
            assert!(message.contains(out.split('/').nth(1).unwrap_or(out)), "{command:?}: {message}");
        }
    }
}

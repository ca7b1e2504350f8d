//! Data that lies elsewhere than when its run was trained: the content decides, not the path.

use switchyard_ground::units::grouped;

use super::*;

const STORY: &str =
    "The cat sat on the mat and looked at the moon, which was round and said nothing at all.\n";

/// A desk with a run on `corpus.txt`, which `change` may alter the configuration of.
fn trained(change: impl Fn(String) -> String) -> Desk {
    let desk = Desk::new();
    let lines: String = (0..200).map(|line| format!("{line}: {STORY}")).collect();
    desk.write("corpus.txt", &lines);
    desk.write("tale.txt", &lines.replace("moon", "sun"));
    let split = "[data.split.tail]\nvalidation_fraction = 0.1\n[train]\n";
    let config = text_config("corpus.txt").replace("[train]\n", split).replace("prompt = \"1 2\"\n", "");
    desk.write("text.toml", &change(config));
    desk.ok(&["train", "text.toml", "--out", "run"]);
    desk
}

fn evaluation(desk: &Desk, more: &[&str]) -> Value {
    serde_json::from_str(&desk.ok(&[&["eval", "run", "--json"], more].concat())).unwrap()
}

#[test]
fn a_run_whose_data_moved_is_used_by_saying_where_it_is() {
    let desk = trained(|config| config);
    let before = evaluation(&desk, &[]);
    fs::create_dir(desk.path("elsewhere")).unwrap();
    fs::rename(desk.path("corpus.txt"), desk.path("elsewhere/renamed.txt")).unwrap();
    for arguments in
        [&["eval", "run"][..], &["replay", "run", "--step", "3"], &["data", "stats", "text.toml"]]
    {
        let message = desk.mistake(arguments);
        for part in ["`corpus.txt`", "It was looked for from the folder `/", "--set data.text.path=PATH"] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
    }
    let moved = ["--set", "data.text.path=elsewhere/renamed.txt"];
    let after = evaluation(&desk, &moved);
    assert_eq!(before["cross_entropy_nats"], after["cross_entropy_nats"]);
    assert_eq!((&before["same_data"], &after["same_data"]), (&true.into(), &true.into()));
    let replayed = desk.ok(&[&["replay", "run", "--step", "3"], &moved[..]].concat());
    assert!(replayed.contains("bit for bit"), "{replayed}");
    desk.ok(&[&["generate", "run", "--num-tokens", "2"], &moved[..]].concat());
}

#[test]
fn other_data_is_evaluated_only_if_that_is_asked_for_and_then_said() {
    let desk = trained(|config| config);
    desk.write("other.txt", &"An entirely different text, on foxes and dogs that jump.\n".repeat(300));
    let other = ["--set", "data.text.path=other.txt"];
    let own = evaluation(&desk, &[]);
    for command in
        [&["eval", "run"][..], &["replay", "run", "--step", "3"], &["replay", "run", "--step", "7"]]
    {
        let message = desk.mistake(&[command, &other[..]].concat());
        assert_eq!(message.contains("`--other-data`"), command[0] == "eval", "{message}");
        let then = own["data_key"].as_str().unwrap();
        assert!(
            message.contains(then) && message.contains("`data.text.path` = `other.txt` gives "),
            "{message}"
        );
    }
    let answer = evaluation(&desk, &[&["--other-data"], &other[..]].concat());
    assert_eq!(answer["same_data"], false);
    assert_ne!(answer["data_key"], own["data_key"]);
    assert!(answer["cross_entropy_nats"].as_f64() > own["cross_entropy_nats"].as_f64(), "{answer} {own}");
    let said = desk.ok(&[&["eval", "run", "--other-data"], &other[..]].concat());
    assert!(said.contains("on data that is not the run's"), "{said}");
    assert!(!desk.ok(&["eval", "run", "--other-data"]).contains("not the run's"));
    // Nearly all of it.
    let more = ["--other-data", other[0], other[1], "--set", "data.split.tail.validation_fraction=0.9"];
    assert!(evaluation(&desk, &more)["num_tokens"].as_u64() > answer["num_tokens"].as_u64());
}

#[test]
fn other_data_is_read_with_the_model_s_own_tokenizer() {
    let desk = trained(|config| {
        config.replace("[data.split", "[data.tokenizer.bpe]\nvocab_size = 300\n[data.split")
    });
    desk.write("other.txt", &"An entirely different text, on foxes and dogs that jump.\n".repeat(300));
    let other = ["--other-data", "--set", "data.text.path=other.txt"];
    let answer = evaluation(&desk, &other);
    assert_eq!(answer["same_data"], false);
    assert!(answer["bits_per_byte"].as_f64().unwrap() > 0.0);
    // Ids of something else mean nothing to the model.
    let ids = ["--set", "data.text=", "--set", "data.synthetic.num_domains=2"];
    let more = ["vocab_size=300", "num_documents=200", "document_tokens=40", "branching=3"];
    let more: Vec<String> = more.iter().map(|set| format!("data.synthetic.{set}")).collect();
    let mut arguments = [&["eval", "run", "--other-data"], &ids[..]].concat();
    arguments.extend(["--set", "data.split="]);
    more.iter().for_each(|set| arguments.extend(["--set", set]));
    let message = desk.mistake(&arguments);
    assert!(message.contains("the model was trained on text"), "{message}");
}

#[test]
fn only_places_may_change_and_the_message_names_them() {
    let desk = trained(|config| config);
    for (set, parts) in [
        (
            "train.num_steps=3",
            &["`train.num_steps` is part of what was trained", "data.text.path", "threads"][..],
        ),
        ("model.d_model=32", &["`model.d_model`"]),
        ("data.text.jsonl_key=x", &["`data.text.jsonl_key`", "--other-data"]),
        ("data.tokenizer.bytes={}", &["`data.tokenizer.bytes`"]),
        ("data={}", &["`data` is part of"]),
        ("data.text.pth=x", &["`data.text.pth` is not a key", "`path`"]),
        ("device=toaster", &["toaster", "cpu"]),
        ("threads=none", &["threads", "a whole number"]),
    ] {
        for command in [&["eval", "run"][..], &["generate", "run"], &["replay", "run", "--step", "2"]] {
            let message = desk.mistake(&[command, &["--set", set]].concat());
            for part in parts {
                assert!(message.contains(part), "{command:?} {set}: {part:?} is not in {message}");
            }
        }
    }
    let message = desk.mistake(&["eval", "run", "--other-data", "--set", "data.tokenizer.bytes={}"]);
    assert!(message.contains("`data.tokenizer.bytes`"), "{message}");
    let ids = "data.tokens={ train = \"a.bin\", vocab_size = 300 }";
    let message = desk.mistake(&["eval", "run", "--other-data", "--set", "data.text=", "--set", ids]);
    assert!(message.contains("the model was trained on text"), "{message}");
    assert_eq!(evaluation(&desk, &["--set", "threads=2"])["same_data"], true);
}

#[test]
fn an_evaluation_says_in_bits_per_byte_what_it_covers() {
    let desk = trained(|config| config);
    let answer = evaluation(&desk, &[]);
    let (nats, bits) =
        (answer["cross_entropy_nats"].as_f64().unwrap(), answer["bits_per_byte"].as_f64().unwrap());
    assert!((bits * std::f64::consts::LN_2 - nats).abs() < 1e-12, "one byte is one token: {answer}");
    let (done, all) = (answer["num_tokens"].as_u64().unwrap(), answer["num_split_targets"].as_u64().unwrap());
    assert!(done == all && done % 16 != 0, "a shorter window ends the split: {answer}");
    let said = desk.ok(&["eval", "run"]);
    assert!(
        said.contains("bits per byte")
            && said.contains(&format!("all {} targets in 1 document of the validation split", grouped(all))),
        "{said}"
    );
    let part = desk.ok(&["eval", "run", "--max-tokens", "32"]);
    assert!(part.contains("over the first 32 of ") && !part.contains(" document"), "{part}");
    let run = desk.run(&["train", "text.toml", "--out", "again"]);
    let said = text(&run.stderr);
    assert!(said.contains("bits per byte") && said.contains("validated on all "), "{said}");
}

#[test]
fn one_of_several_sources_that_moved_is_named_by_its_name_or_its_place() {
    let desk = trained(|config| {
        let text = "[data.text]\npath = \"corpus.txt\"\n";
        let sources = "[[data.sources]]\nname = \"story\"\nweight = 1\ntext.path = \"corpus.txt\"\n\
                       [[data.sources]]\nname = \"tale\"\nweight = 2\ntext.path = \"tale.txt\"\n";
        config.replace(text, "") + sources
    });
    let before = evaluation(&desk, &[]);
    // The losses of the sources make that of the whole.
    let of = |source: &str, key: &str| before["sources"][source][key].as_f64().unwrap();
    let nats = |source: &str| of(source, "cross_entropy_nats") * of(source, "num_tokens");
    let all = before["cross_entropy_nats"].as_f64().unwrap() * before["num_tokens"].as_f64().unwrap();
    assert!(((nats("story") + nats("tale")) / all - 1.0).abs() < 0.02, "{before}");
    fs::rename(desk.path("tale.txt"), desk.path("elsewhere.txt")).unwrap();
    let message = desk.mistake(&["eval", "run"]);
    assert!(message.contains("--set data.sources.tale.text.path=PATH"), "{message}");
    for entry in ["tale", "1"] {
        let moved = format!("data.sources.{entry}.text.path=elsewhere.txt");
        let after = evaluation(&desk, &["--set", &moved]);
        assert_eq!(before["cross_entropy_nats"], after["cross_entropy_nats"]);
    }
    let moved = "data.sources.tale.text.path=elsewhere.txt";
    desk.ok(&[
        "train",
        "text.toml",
        "--out",
        "run",
        "--resume",
        "--set",
        "train.num_steps=12",
        "--set",
        moved,
    ]);
    let message = desk.mistake(&["eval", "run", "--set", "data.sources.tale.weight=3"]);
    assert!(message.contains("part of what was trained"), "{message}");
}

#[test]
fn a_run_that_begins_with_a_model_has_its_tokenizer_and_never_deletes_it() {
    let desk = trained(|config| {
        config.replace("[data.text]", "[data.tokenizer]\nbpe = { vocab_size = 280 }\n[data.text]")
    });
    let onward = |tokenizer: &str| {
        let config = text_config("corpus.txt").replace("prompt = \"1 2\"\n", "");
        let [before, _] = config.split("[model]").collect::<Vec<_>>()[..] else { panic!("{config}") };
        let split = "[data.split.tail]\nvalidation_fraction = 0.1\n[train]\n";
        before.replace("[train]\n", split) + tokenizer + "[start]\nfrom = \"run\"\n"
    };
    desk.write("bytes.toml", &onward(""));
    let message = desk.mistake(&["train", "bytes.toml", "--out", "other"]);
    for part in [
        "`data.tokenizer` makes the model one of 256 ids, against 280 of the tokenizer of \"run\"",
        "step-8/tokenizer.json",
    ] {
        assert!(message.contains(part), "{part:?} is not in {message}");
    }
    assert!(!desk.path("other").exists());
    // As many ids, of other text.
    let other = onward("[data.tokenizer]\nbpe = { vocab_size = 280 }\n").replace("corpus.txt", "tale.txt");
    desk.write("other.toml", &other);
    let message = desk.mistake(&["train", "other.toml", "--out", "other"]);
    assert!(message.contains("gives other ids than the tokenizer of \"run\""), "{message}");
    let own = "[data.tokenizer.file]\npath = \"run/checkpoints/step-8/tokenizer.json\"\n";
    desk.write("own.toml", &onward(own));
    let message = desk.mistake(&["train", "own.toml", "--out", "run", "--overwrite"]);
    assert!(message.contains("which `--overwrite` would empty"), "{message}");
    let said = text(&desk.run(&["train", "own.toml", "--out", "onward"]).stderr);
    assert!(said.contains("begins with the parameters of `run`") && said.contains("finished"), "{said}");
    assert!(desk.ok(&["inspect", "run"]).contains("every file verified"));
    fs::write(desk.path("run/checkpoints/step-8/model.safetensors"), "damaged").unwrap();
    assert!(desk.mistake(&["inspect", "run"]).contains("model.safetensors"));
}

//! Studies that are judged by something else than nats per token.

use serde_json::Value;

use super::Desk;

/// Documents of unequal length in three alphabets, and one to cut short.
fn documents() -> String {
    let words = ["switch", "yard", "ruter", "pakar", "موجه", "خبير", "路由", "专家", "the", "of"];
    (0..160_usize)
        .map(|document| {
            let text: Vec<&str> =
                (0..20 + document % 7).map(|at| words[(document * 7 + at * at) % words.len()]).collect();
            format!("{{\"text\": \"{}\"}}\n", text.join(" "))
        })
        .collect()
}

const BASE: &str = r#"
name = "tiny"
threads = 1
[data.text]
path = "documents.jsonl"
[data.split.by_document_hash]
validation_fraction = 0.2
[train]
num_steps = 6
seq_len = 32
batch_tokens = 128
[train.adamw]
learning_rate = 1e-2
[model]
num_layers = 1
d_model = 16
[model.attention]
num_heads = 2
[model.ffn]
activation = "swiglu"
d_ff = 32
"#;

fn desk(study: &str) -> Desk {
    let desk = Desk::new();
    desk.write("documents.jsonl", &documents());
    desk.write("base.toml", BASE);
    desk.write("study.toml", study);
    desk
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// The runs of an arm by seed, each with its `run.json`.
fn manifests(desk: &Desk, result: &Value, arm: usize) -> Vec<Value> {
    let runs = result["arms"][arm]["runs"].as_array().unwrap();
    runs.iter().map(|run| desk.json(&format!("out/{}/run.json", run["run"].as_str().unwrap()))).collect()
}

fn on_axis<'a>(result: &'a Value, axis: &str) -> &'a Value {
    let axes = result["comparisons"][0]["axes"].as_array().unwrap();
    axes.iter().find(|on| on["axis"] == axis).unwrap()
}

const TOKENIZERS: &str = r#"
name = "tokenizers"
base = "base.toml"
held_equal = "tokens"
seeds = [0, 1]
[budget]
num_steps = [6]
evaluations = 3
[question]
axis = "tokens"
metric = "bits_per_byte"
[[arms]]
label = "bytes"
[[arms]]
label = "bpe"
set = ["data.tokenizer={ bpe = { vocab_size = 300 } }"]
"#;

#[test]
fn arms_with_tokenizers_of_their_own_are_judged_by_the_same_bytes() {
    let desk = desk(TOKENIZERS);
    let (verdict, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    for told in ["bits per byte of validation text", "tokenizers of their own", "bits per byte (95%"] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    assert!(!verdict.contains("nats of"), "{verdict}");
    let result = desk.json("out/result.json");
    assert_eq!(result["question"]["metric"], "bits_per_byte");
    let on = on_axis(&result, "tokens");
    let key = "final_validation_bits_per_byte";
    let (mine, theirs) = (manifests(&desk, &result, 1), manifests(&desk, &result, 0));
    // Nats over all tokens are bits over all bytes.
    let bytes = |arm: usize, seed: usize| {
        let run = &result["arms"][arm]["runs"][seed];
        let documents = super::documents(&desk, run["run"].as_str().unwrap(), "validation");
        let nats: f64 = documents.iter().map(|document| number(&document["nats"])).sum();
        nats / std::f64::consts::LN_2 / number(&run["final_bits_per_byte"])
    };
    for seed in 0..2 {
        // But for the first token, which is no target.
        assert!((bytes(1, seed) / bytes(0, seed) - 1.0).abs() < 2e-3);
        let expected = number(&mine[seed][key]) - number(&theirs[seed][key]);
        assert!((number(&on["difference"]["differences"][seed]) - expected).abs() < 1e-12);
        // In nats per token the sign is another: a longer token says more.
        let nats = "final_validation_cross_entropy_nats";
        assert!(number(&mine[seed][nats]) > number(&theirs[seed][nats]), "or the test shows nothing");
    }
    assert!(on["documents"].is_null(), "the bytes of a document are not counted");

    // Per token the two cannot be compared.
    desk.write("study.toml", &TOKENIZERS.replace("metric = \"bits_per_byte\"\n", ""));
    assert_refused(&desk, "arm `bpe`: `data` is not the baseline's");
}

/// The study's command must refuse with `reason`.
fn assert_refused(desk: &Desk, reason: &str) {
    let output = desk.run(&["compare", "study.toml", "--out", "elsewhere"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{message}");
    assert!(message.contains(reason), "{reason}: {message}");
}

#[test]
fn arms_with_one_tokenizer_have_their_bits_over_documents_too() {
    let study = TOKENIZERS.replace("data.tokenizer={ bpe = { vocab_size = 300 } }", "model.ffn.d_ff=48");
    let desk = desk(&study);
    desk.ok(&["compare", "study.toml", "--out", "out"]);
    let result = desk.json("out/result.json");
    let on = on_axis(&result, "tokens");
    let documents = &on["documents"];
    assert!(number(&documents["num_documents"]) > 20.0);
    let middle = 0.5 * (number(&documents["interval"]["low"]) + number(&documents["interval"]["high"]));
    let mean = number(&on["difference"]["mean"]);
    assert!((middle - mean).abs() < 1e-5 * mean.abs() + 1e-7, "{middle}, not {mean}");
}

const QUESTIONS: &str = r#"
name = "questions"
base = "base.toml"
held_equal = "tokens"
seeds = [0, 1]
keep_checkpoints = true
[budget]
num_steps = [6]
evaluations = 2
[question]
axis = "tokens"
metric = "acc_norm"
choices = "questions.jsonl"
[[arms]]
label = "narrow"
[[arms]]
label = "wide"
set = ["model.ffn.d_ff=64"]
"#;

/// `count` questions whose right answer is the next word of a document.
fn questions(count: usize) -> String {
    let question = |index: usize| {
        let (choices, answer) = (["ruter", "pakar yang lain", "x"], index % 3);
        format!("{}\n", serde_json::json!({"context": "switch yard", "choices": choices, "answer": answer}))
    };
    (0..count).map(question).collect()
}

#[test]
fn arms_are_judged_by_the_questions_that_they_answer_at_their_end() {
    let desk = desk(QUESTIONS);
    desk.write("questions.jsonl", &questions(40));
    let (verdict, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    for told in [
        "error (1 - acc_norm)",
        "The verdict is of 40 question(s)",
        "37 of them repeat an earlier one",
        "by seed: 0.",
    ] {
        assert!(verdict.contains(told), "{told}: {verdict}");
    }
    let result = desk.json("out/result.json");
    // As `eval` counts them, run by run.
    let accuracy = |arm: usize, seed: usize| {
        let run = result["arms"][arm]["runs"][seed]["run"].as_str().unwrap().to_owned();
        let (answer, _) = desk.ok(&["eval", &format!("out/{run}"), "--choices", "questions.jsonl", "--json"]);
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(result["arms"][arm]["runs"][seed]["acc"], answer["acc"]);
        assert_eq!(result["arms"][arm]["runs"][seed]["acc_norm"], answer["acc_norm"]);
        number(&answer["acc_norm"])
    };
    let on = on_axis(&result, "tokens");
    assert_eq!((&on["split"], &on["documents"]["num_documents"]), (&"questions".into(), &40.into()));
    for seed in 0..2 {
        let expected = accuracy(0, seed) - accuracy(1, seed);
        assert!((number(&on["difference"]["differences"][seed]) - expected).abs() < 1e-12);
    }

    // Other questions are asked of the checkpoints that are there; without them the folder is named.
    desk.write("questions.jsonl", &questions(7));
    let (_, again) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(again.contains("saved"), "{again}");
    let result = desk.json("out/result.json");
    assert_eq!(on_axis(&result, "tokens")["documents"]["num_documents"], 7);
    let notes = result["notes"].to_string();
    assert!(notes.contains("40 questions") && notes.contains("7 questions"), "{notes}");
    let run = desk.path(&format!("out/{}", result["arms"][1]["runs"][1]["run"].as_str().unwrap()));
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    desk.write("questions.jsonl", &questions(8));
    let output = desk.run(&["compare", "study.toml", "--out", "out"]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("its last checkpoint is not there to be asked"), "{message}");
    assert_eq!(output.status.code(), Some(2), "{message}");
}

/// A byte-level model without merges: a token for each byte, named as GPT-2 names it.
fn byte_model() -> Value {
    let is_printed = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others = (0..256).filter(|byte| !is_printed(*byte));
    let named = others.zip(256..).chain((0..256).filter(|byte| is_printed(*byte)).map(|byte| (byte, byte)));
    let vocab: serde_json::Map<String, Value> =
        named.map(|(byte, char)| (char::from_u32(char).unwrap().to_string(), byte.into())).collect();
    serde_json::json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": []})
}

#[test]
fn one_question_claims_nothing() {
    let study = QUESTIONS.replace("seeds = [0, 1]", "seeds = [0, 1, 2, 3, 4, 5]").replace("acc_norm", "acc");
    let desk = desk(&study.replace("\"model.ffn.d_ff=64\"", "\"train.num_steps=6\""));
    desk.write("questions.jsonl", &questions(1));
    let (verdict, _) = desk.ok(&["compare", "study.toml", "--out", "out"]);
    assert!(verdict.contains("is the same in all 6 pairs") && verdict.contains("undecided"), "{verdict}");
}

#[test]
fn what_a_metric_needs_is_asked_before_anything_is_trained() {
    let desk = desk(QUESTIONS);
    assert_refused(&desk, "questions.jsonl");
    desk.write("questions.jsonl", &questions(3).replace("\"x\"", "\"\""));
    assert_refused(&desk, "`choices[2]` is empty");
    let long = serde_json::json!({"context": "a", "choices": ["b".repeat(40), "c"], "answer": 0});
    desk.write("questions.jsonl", &long.to_string());
    assert_refused(&desk, "41 tokens, and the model 32 positions");
    for (from, to, reason) in [
        ("choices = \"questions.jsonl\"\n", "", "`question.choices` is not given"),
        ("\"acc_norm\"", "\"nats\"", "`question.choices` is questions.jsonl"),
        ("\"acc_norm\"", "\"f1\"", "unknown variant `f1`"),
        ("choices =", "margin_nats = 0.01\nchoices =", "`question.margin_nats` is 0.01"),
        ("choices =", "margin = 1.5\nchoices =", "`question.margin` is 1.5"),
        ("choices = \"questions.jsonl\"", "choices = \"\"", "`question.choices`, relative to this file"),
    ] {
        desk.write("study.toml", &QUESTIONS.replace(from, to));
        assert_refused(&desk, reason);
    }
    let router =
        "{ num_experts = 4, router = { top_k = 2, selection = { expert_choice = {} } }, d_expert = 16 }";
    let wide = format!("\"model.ffn.d_ff=\", \"model.ffn.moe={router}\"");
    desk.write("questions.jsonl", &questions(3));
    desk.write("study.toml", &QUESTIONS.replace("\"model.ffn.d_ff=64\"", &wide));
    assert_refused(&desk, "experts that take their best tokens need the later");
    // A tokenizer that lowers capitals keeps fewer bytes than it is judged by.
    let plain = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let lowering = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {"type": "Lowercase"}, "pre_tokenizer": plain, "post_processor": null, "decoder": plain,
        "model": byte_model()
    });
    desk.write("lowering.json", &lowering.to_string());
    let lowers = TOKENIZERS
        .replace("{ bpe = { vocab_size = 300 } }", "{ file = { path = \"lowering.json\" } }")
        .replace("\"data.tokenizer", "'data.tokenizer")
        .replace("} }\"]", "} }']");
    desk.write("study.toml", &lowers);
    assert_refused(&desk, "its tokenizer does not keep all text");
    desk.write("base.toml", super::BASE);
    desk.write(
        "study.toml",
        &TOKENIZERS.replace("data.tokenizer={ bpe = { vocab_size = 300 } }", "threads=1"),
    );
    assert_refused(&desk, "the bytes of its data are not known");
}

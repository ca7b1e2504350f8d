//! The tokenizers that the law is tried on.

use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::{AddedToken, ModelWrapper};

use super::TEXT;
use crate::seams::Seams;
use Seams::{Nowhere, Spaces, Words};

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const O200K: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true, "use_regex": use_regex})
}

fn split(pattern: &str, behavior: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": false})
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

fn metaspace(scheme: &str, split: bool) -> Value {
    json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": split})
}

fn sequence(of: &str, steps: &[Value]) -> Value {
    let kind = if of == "decoders" || of == "normalizers" || of == "pretokenizers" { "Sequence" } else { of };
    json!({"type": kind, of: steps})
}

fn kind(name: &str) -> Value {
    json!({"type": name})
}

fn llama_2_decoder() -> Value {
    let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
    sequence("decoders", &[replace("\u{2581}", " "), kind("ByteFallback"), kind("Fuse"), strip])
}

/// A `tokenizer.json` with these parts and an untrained model.
fn untrained(
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: impl Into<ModelWrapper>,
) -> Value {
    let model = serde_json::to_value(model.into()).unwrap();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model,
    })
}

/// The same, trained on [`TEXT`] by the crate's own trainer.
fn trained(file: &Value, trainer: TrainerWrapper) -> Value {
    let mut tokenizer: tokenizers::Tokenizer = file.to_string().parse().unwrap();
    let mut trainer = trainer;
    tokenizer.train(&mut trainer, [TEXT.repeat(3)].iter().map(String::as_str)).unwrap();
    serde_json::to_value(&tokenizer).unwrap()
}

fn bpe_trainer(bytes: bool) -> TrainerWrapper {
    let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
    let builder = BpeTrainer::builder().show_progress(false).vocab_size(700).min_frequency(2);
    builder
        .initial_alphabet(if bytes { alphabet.into_iter().collect() } else { Default::default() })
        .build()
        .into()
}

fn trained_byte_level(normalizer: Value, pre_tokenizer: Value) -> Value {
    let file = untrained(normalizer, pre_tokenizer, byte_level(true, true), BPE::default());
    trained(&file, bpe_trainer(true))
}

/// A BPE after SentencePiece: words are trained apart, and unknown characters become bytes.
fn sentencepiece_bpe(normalizer: Value, pre_tokenizer: Value, byte_fallback: bool) -> Value {
    let file = untrained(Value::Null, metaspace("always", true), Value::Null, BPE::default());
    let mut file = trained(&file, bpe_trainer(false));
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    let first = vocab.len();
    vocab.insert("<unk>".to_owned(), json!(first));
    if byte_fallback {
        for byte in 0..256 {
            vocab.insert(format!("<0x{byte:02X}>"), json!(first + 1 + byte));
        }
    }
    file["model"]["unk_token"] = json!("<unk>");
    file["model"]["fuse_unk"] = json!(true);
    file["model"]["byte_fallback"] = json!(byte_fallback);
    file["normalizer"] = normalizer;
    file["pre_tokenizer"] = pre_tokenizer;
    file["decoder"] = llama_2_decoder();
    file
}

fn unigram(normalizer: Value, pre_tokenizer: Value) -> Value {
    let file =
        untrained(normalizer, metaspace("always", true), metaspace("always", true), Unigram::default());
    let trainer = UnigramTrainer::builder()
        .show_progress(false)
        .vocab_size(400)
        .unk_token(Some("<unk>".to_owned()))
        .special_tokens(vec![AddedToken::from("<unk>", true)])
        .build()
        .unwrap();
    let mut file = trained(&file, trainer.into());
    file["pre_tokenizer"] = pre_tokenizer;
    file
}

fn word_piece(normalizer: Value, pre_tokenizer: Value) -> Value {
    let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let file = untrained(normalizer, pre_tokenizer, decoder, WordPiece::default());
    let unknown = vec![AddedToken::from("[UNK]", true)];
    trained(
        &file,
        WordPieceTrainer::builder()
            .show_progress(false)
            .vocab_size(500)
            .special_tokens(unknown)
            .build()
            .into(),
    )
}

fn word_level(pre_tokenizer: Value) -> Value {
    let model = WordLevel::builder().unk_token("<unk>".to_owned()).build().unwrap();
    let file = untrained(Value::Null, pre_tokenizer, Value::Null, model);
    let unknown = vec![AddedToken::from("<unk>", true)];
    let trainer = WordLevelTrainer::builder()
        .show_progress(false)
        .vocab_size(300)
        .special_tokens(unknown)
        .build()
        .unwrap();
    trained(&file, trainer.into())
}

fn with_added(mut file: Value, tokens: &[(&str, Value)]) -> Value {
    let mut tokenizer: tokenizers::Tokenizer = file.to_string().parse().unwrap();
    let first = tokenizer.get_vocab_size(true);
    for (index, (content, extra)) in tokens.iter().enumerate() {
        let mut token = json!({
            "id": first + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": false,
        });
        token.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        file["added_tokens"].as_array_mut().unwrap().push(token);
    }
    tokenizer = file.to_string().parse().unwrap();
    serde_json::to_value(&tokenizer).unwrap()
}

fn bert_normalizer() -> Value {
    json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true})
}

/// A kind of tokenizer: its name, the seams that it is to have, and its file.
type KindOfTokenizer = (&'static str, Seams, Value);

/// Every kind of tokenizer in use, and odd ones; with the seams that it is to have.
pub(super) fn tokenizers_of_each_kind() -> Vec<KindOfTokenizer> {
    [of_bytes(), of_pieces(), of_words()].concat()
}

fn steps(steps: &[Value]) -> Value {
    sequence("pretokenizers", steps)
}

fn normalizers(steps: &[Value]) -> Value {
    sequence("normalizers", steps)
}

fn digits() -> Value {
    json!({"type": "Digits", "individual_digits": true})
}

/// SentencePiece's normalizer, as converted files have it.
fn legacy() -> Value {
    normalizers(&[json!({"type": "Prepend", "prepend": "\u{2581}"}), replace(" ", "\u{2581}")])
}

/// GPT-2's kind.
pub(super) fn gpt_2() -> Value {
    trained_byte_level(Value::Null, byte_level(false, true))
}

/// Llama 3's kind.
pub(super) fn llama_3() -> Value {
    trained_byte_level(Value::Null, as_llama_3_splits())
}

fn as_llama_3_splits() -> Value {
    steps(&[split(LLAMA_3, "Isolated"), byte_level(false, false)])
}

/// Byte-level byte-pair encodings.
fn of_bytes() -> Vec<KindOfTokenizer> {
    let null = Value::Null;
    vec![
        ("GPT-2", Words, gpt_2()),
        ("GPT-2 with a space in front", Spaces, trained_byte_level(null.clone(), byte_level(true, true))),
        ("GPT-2 with added tokens", Spaces, with_added(gpt_2(), &[("<mark>", json!({})), ("  ", json!({}))])),
        ("GPT-2 with an added word", Nowhere, with_added(gpt_2(), &[("fox", json!({"rstrip": true}))])),
        ("GPT-2 with an added phrase", Nowhere, with_added(gpt_2(), &[("the lazy", json!({}))])),
        (
            "GPT-2 with stripping tokens",
            Spaces,
            with_added(gpt_2(), &[("[X]", json!({"lstrip": true, "rstrip": true}))]),
        ),
        ("GPT-2 with single words", Nowhere, with_added(gpt_2(), &[(" fo", json!({"single_word": true}))])),
        (
            "GPT-2 with special tokens",
            Words,
            with_added(gpt_2(), &[("<s>", json!({"special": true, "normalized": true}))]),
        ),
        ("Llama 3", Words, llama_3()),
        ("Qwen", Words, trained_byte_level(kind("NFC"), as_llama_3_splits())),
        (
            "GPT-4o",
            Words,
            trained_byte_level(null.clone(), steps(&[split(O200K, "Isolated"), byte_level(false, false)])),
        ),
        ("StarCoder", Words, trained_byte_level(null.clone(), steps(&[digits(), byte_level(false, true)]))),
        (
            "an expression of its own",
            Nowhere,
            trained_byte_level(
                null.clone(),
                steps(&[split(r"\w+ \w+|\s+|.", "Isolated"), byte_level(false, false)]),
            ),
        ),
        (
            "an expression that looks behind",
            Nowhere,
            trained_byte_level(
                null.clone(),
                steps(&[split(r"(?<=\w) ?\w+|\s", "Isolated"), byte_level(false, false)]),
            ),
        ),
        (
            "an expression merged with what is in front",
            Nowhere,
            trained_byte_level(
                null.clone(),
                steps(&[split(r"\s+", "MergedWithPrevious"), byte_level(false, false)]),
            ),
        ),
        ("bytes without a split", Nowhere, {
            let mut file = gpt_2();
            file["pre_tokenizer"] = byte_level(false, false);
            file
        }),
    ]
}

/// Byte-pair encodings of SentencePiece's kind.
fn of_pieces() -> Vec<KindOfTokenizer> {
    let null = Value::Null;
    let llama_2 = || sentencepiece_bpe(legacy(), null.clone(), true);
    let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let mut crossing = llama_2();
    crossing["model"]["vocab"]["x\u{2581}"] = json!(5000);
    crossing["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["x", "\u{2581}"]));
    let mut ignoring = llama_2();
    ignoring["model"]["ignore_merges"] = json!(true);
    vec![
        ("Llama 2", Spaces, llama_2()),
        (
            "Llama 2 with added tokens",
            Spaces,
            with_added(llama_2(), &[("<mark>", json!({})), ("[X]", json!({"lstrip": true, "rstrip": true}))]),
        ),
        ("Llama 2 with an added word", Nowhere, with_added(llama_2(), &[("fox", json!({}))])),
        ("Llama 2 with a merge across words", Nowhere, crossing),
        ("Llama 2 that ignores merges", Nowhere, ignoring),
        ("Mistral", Spaces, sentencepiece_bpe(null.clone(), metaspace("first", false), true)),
        ("Gemma", Spaces, sentencepiece_bpe(replace(" ", "\u{2581}"), gemma, true)),
        ("Metaspace first", Spaces, sentencepiece_bpe(null.clone(), metaspace("first", true), false)),
        ("Metaspace always", Spaces, sentencepiece_bpe(null.clone(), metaspace("always", true), false)),
        ("Metaspace never", Spaces, sentencepiece_bpe(null.clone(), metaspace("never", true), false)),
        (
            "Metaspace with added tokens",
            Spaces,
            with_added(
                sentencepiece_bpe(null.clone(), metaspace("first", true), false),
                &[("<mark>", json!({})), ("[X]", json!({}))],
            ),
        ),
    ]
}

/// Unigram models, and vocabularies of words.
fn of_words() -> Vec<KindOfTokenizer> {
    let null = Value::Null;
    let quotes = normalizers(&[
        replace("``", "\""),
        replace("''", "\""),
        kind("NFKD"),
        kind("StripAccents"),
        kind("Lowercase"),
    ]);
    let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    vec![
        (
            "T5",
            Spaces,
            unigram(
                normalizers(&[kind("Nmt"), kind("NFKC"), runs]),
                steps(&[kind("WhitespaceSplit"), metaspace("always", true)]),
            ),
        ),
        ("ALBERT", Spaces, unigram(quotes, steps(&[kind("WhitespaceSplit"), metaspace("always", true)]))),
        ("unigram", Spaces, unigram(null.clone(), metaspace("first", true))),
        ("unigram over all words", Nowhere, unigram(null.clone(), metaspace("always", false))),
        ("unigram without a splitter", Nowhere, unigram(legacy(), null.clone())),
        ("BERT", Spaces, word_piece(bert_normalizer(), kind("BertPreTokenizer"))),
        (
            "BERT with added tokens of normal form",
            Nowhere,
            with_added(
                word_piece(bert_normalizer(), kind("BertPreTokenizer")),
                &[("Foo", json!({"normalized": true}))],
            ),
        ),
        (
            "WordPiece that strips",
            Nowhere,
            word_piece(
                json!({"type": "Strip", "strip_left": true, "strip_right": true}),
                kind("WhitespaceSplit"),
            ),
        ),
        ("words", Spaces, word_level(kind("Whitespace"))),
        ("words of scripts", Nowhere, word_level(kind("UnicodeScripts"))),
        (
            "words between dashes",
            Nowhere,
            word_level(json!({"type": "CharDelimiterSplit", "delimiter": "-"})),
        ),
        ("words between spaces", Spaces, word_level(json!({"type": "CharDelimiterSplit", "delimiter": " "}))),
        (
            "words and punctuation",
            Spaces,
            word_level(steps(&[
                json!({"type": "Punctuation", "behavior": "MergedWithPrevious"}),
                digits(),
                kind("Whitespace"),
            ])),
        ),
        ("characters", Nowhere, word_level(split(".", "Isolated"))),
        ("pieces of five", Nowhere, word_level(json!({"type": "FixedLength", "length": 5}))),
    ]
}

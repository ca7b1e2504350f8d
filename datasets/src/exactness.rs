//! The law of this crate's tokenizers: the ids of a text are those that the crate `tokenizers` gives
//! it in one call, whatever the tokenizer and however long the text. Both sides share the loaded file
//! only; here texts are cut after a few bytes, so that every kind of place is met.

use proptest::prelude::*;
use serde_json::{Value, json};
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::models::unigram::{Unigram, UnigramTrainer};
use tokenizers::models::wordlevel::{WordLevel, WordLevelTrainer};
use tokenizers::models::wordpiece::{WordPiece, WordPieceTrainer};
use tokenizers::{AddedToken, ModelWrapper};

use crate::config::OnTrouble;
use crate::seams::Seams;
use crate::tokenizer::Tokenizer;
use crate::vocabulary::Vocabulary;

/// Text of many scripts, to train on and to take words from.
const TEXT: &str = "The quick brown fox jumps over the lazy dog, and it's 1234 times faster than we'd think. \
    Rubah cokelat yang cepat melompati anjing malas; harganya Rp 15.000 saja, kan? \
    الثعلب البني السريع يقفز فوق الكلب الكسول، والعدد ١٢٣٤ هنا. Быстрая лиса прыгает через ленивую собаку. \
    敏捷的棕色狐狸跳过了懒狗。数据，和更多的数据！ 日本語の文章もあります。 빠른 갈색 여우가 게으른 개를 뛰어넘는다. \
    तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है। e\u{301}te\u{301} na\u{308}ive ﬁne Å ½ ＡＢＣ \
    👩\u{200d}👩\u{200d}👧 🏳\u{fe0f}\u{200d}🌈 🇮🇩🇩🇪 fn main() { let x = 10; }\n\tif (a == b)\r\n        return;\n\n";

/// What texts are made of: words, and all that is odd between them.
fn word() -> impl Strategy<Value = String> {
    let of_text: Vec<String> = TEXT.split(' ').map(str::to_owned).collect();
    prop_oneof![
        8 => proptest::sample::select(of_text),
        2 => "[a-zA-Z0-9]{1,8}",
        1 => "\\PC{1,4}",
        1 => proptest::sample::select(vec![
            "\r\n", "\n\n", "\t", "\0", "\u{a0}", "\u{3000}", "\u{2581}", "\u{2581}the", "<mark>", "x<mark>", "<s>",
            "[X]y", "don't", "DON'T", "''", "``", "</s>", "\u{301}", "\u{200d}", "é", "数据，数据。", "a1b2", "1 2 3",
            "ⅣⅫ", "\u{feff}", "\u{fffd}", "ｶﾞ", "İ", "ß",
        ]).prop_map(str::to_owned),
        1 => "[a-c]{40,90}",
        1 => "[数据和的]{10,30}",
    ]
}

fn text() -> impl Strategy<Value = String> {
    let separator =
        prop_oneof![12 => Just(" "), 1 => Just("  "), 1 => Just("   \n "), 1 => Just(""), 1 => Just("\n")];
    proptest::collection::vec((word(), separator), 0..60).prop_map(|words| {
        words.into_iter().flat_map(|(word, separator)| [word, separator.to_owned()]).collect()
    })
}

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

/// Every kind of tokenizer in use, and odd ones; with the seams that it is to have.
#[expect(clippy::too_many_lines, reason = "a table")]
fn tokenizers_of_each_kind() -> Vec<(&'static str, Seams, Value)> {
    use Seams::{Nowhere, Spaces, Words};
    let null = Value::Null;
    let steps = |steps: &[Value]| sequence("pretokenizers", steps);
    let normalizers = |steps: &[Value]| sequence("normalizers", steps);
    let legacy =
        || normalizers(&[json!({"type": "Prepend", "prepend": "\u{2581}"}), replace(" ", "\u{2581}")]);
    let quotes = || {
        normalizers(&[
            replace("``", "\""),
            replace("''", "\""),
            kind("NFKD"),
            kind("StripAccents"),
            kind("Lowercase"),
        ])
    };
    let runs = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "});
    let gpt_2 = || trained_byte_level(null.clone(), byte_level(false, true));
    let llama_3 = || steps(&[split(LLAMA_3, "Isolated"), byte_level(false, false)]);
    let llama_2 = || sentencepiece_bpe(legacy(), null.clone(), true);
    let digits = json!({"type": "Digits", "individual_digits": true});
    let gemma = json!({"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": false});
    let mut crossing = llama_2();
    crossing["model"]["vocab"]["x\u{2581}"] = json!(5000);
    crossing["model"]["merges"].as_array_mut().unwrap().insert(0, json!(["x", "\u{2581}"]));
    let mut ignoring = llama_2();
    ignoring["model"]["ignore_merges"] = json!(true);
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
        ("Llama 3", Words, trained_byte_level(null.clone(), llama_3())),
        ("Qwen", Words, trained_byte_level(kind("NFC"), llama_3())),
        (
            "GPT-4o",
            Words,
            trained_byte_level(null.clone(), steps(&[split(O200K, "Isolated"), byte_level(false, false)])),
        ),
        (
            "StarCoder",
            Words,
            trained_byte_level(null.clone(), steps(&[digits.clone(), byte_level(false, true)])),
        ),
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
        (
            "T5",
            Spaces,
            unigram(
                normalizers(&[kind("Nmt"), kind("NFKC"), runs]),
                steps(&[kind("WhitespaceSplit"), metaspace("always", true)]),
            ),
        ),
        ("ALBERT", Spaces, unigram(quotes(), steps(&[kind("WhitespaceSplit"), metaspace("always", true)]))),
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
                digits,
                kind("Whitespace"),
            ])),
        ),
        ("characters", Nowhere, word_level(split(".", "Isolated"))),
        ("pieces of five", Nowhere, word_level(json!({"type": "FixedLength", "length": 5}))),
    ]
}

/// The vocabulary of `file`, and the crate's own tokenizer with what the vocabulary switches off
/// switched off.
fn both(file: &Value) -> (Vocabulary, tokenizers::Tokenizer) {
    let json = file.to_string();
    let mut oracle: tokenizers::Tokenizer = json.parse().unwrap();
    oracle.set_encode_special_tokens(true);
    (Vocabulary::from_json(json.into_bytes(), file.clone()).unwrap(), oracle)
}

/// Compares the ids of `text` cut after `min_piece_bytes` with the crate's; returns the number of
/// pieces.
fn agrees(
    name: &str,
    vocabulary: &Vocabulary,
    oracle: &tokenizers::Tokenizer,
    text: &str,
) -> Result<usize, TestCaseError> {
    let pieces: Vec<_> = vocabulary.pieces(text).collect();
    let whole = oracle.encode(text, false);
    let cut = vocabulary.encode(text);
    let together = vocabulary.encode_all(&pieces);
    match (whole, cut, together) {
        (Ok(whole), Ok(cut), Ok(together)) => {
            prop_assert!(cut == whole.get_ids(), "{name}: {text:?} in {:?}", pieces);
            let together: Vec<u32> = together.into_iter().flat_map(|encoded| encoded.ids).collect();
            prop_assert!(together == cut, "{name}: {text:?}");
            prop_assert_eq!(vocabulary.decode(&cut).unwrap(), oracle.decode(&cut, false).unwrap());
        }
        // Text without an id is an error here; the crate leaves it out in silence.
        (_, Err(_), Err(_)) => {}
        (whole, cut, _) => prop_assert!(false, "{name}: {text:?}: {:?} {:?}", whole.err(), cut.err()),
    }
    Ok(pieces.len())
}

#[test]
fn any_tokenizer_gives_a_text_the_ids_that_the_crate_gives_it_in_one_call() {
    for (name, seams, file) in tokenizers_of_each_kind() {
        let (vocabulary, oracle) = both(&file);
        assert_eq!(vocabulary.seams(), seams, "{name}");
        let vocabulary = vocabulary.with_min_piece_bytes(1);
        let cuts = std::cell::Cell::new(0);
        let config = ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() };
        let result = proptest::test_runner::TestRunner::new(config).run(&text(), |text| {
            cuts.set(cuts.get() + agrees(name, &vocabulary, &oracle, &text)? - usize::from(!text.is_empty()));
            Ok(())
        });
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        agrees(name, &vocabulary, &oracle, &TEXT.repeat(4)).unwrap();
        assert_eq!(cuts.get() > 100, seams != Seams::Nowhere, "{name}: {} cuts", cuts.get());
    }
}

/// Texts that a tokenizer of bytes brings back, or the crate's own decoder says what of them is left.
const ROUND_TRIPS: [&str; 12] = [
    "The quick brown fox, it's 1234.",
    "Rubah cokelat yang cepat; harganya Rp 15.000 saja.",
    "الثعلب البني السريع، ١٢٣٤.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "👩\u{200d}👩\u{200d}👧\u{200d}👦 🏳\u{fe0f}\u{200d}🌈 🇮🇩🇩🇪 👍🏽",
    "mixed смесь 混合 مزيج mixed",
    "e\u{301}\u{301}\u{323} na\u{308}ive z\u{335}\u{322}algo",
    "one\r\ntwo\r\n\r\nthree\r",
    "a\0b\0\0",
    "  leading and trailing  ",
    "<s> </s> <|endoftext|> \u{2581}mark",
    "\u{feff}\u{10ffff}\u{fffd}",
];

#[test]
fn lossless_tokenizers_bring_every_text_back() {
    let gpt_2 = trained_byte_level(Value::Null, byte_level(false, true));
    let split = sequence("pretokenizers", &[split(LLAMA_3, "Isolated"), byte_level(false, false)]);
    for file in [gpt_2, trained_byte_level(Value::Null, split)] {
        let (vocabulary, _) = both(&file);
        let vocabulary = vocabulary.with_min_piece_bytes(1);
        let long_words = ["x".repeat(70_000), "数".repeat(30_000), "é1".repeat(20_000)];
        for text in ROUND_TRIPS.map(str::to_owned).iter().chain(&long_words) {
            let ids = vocabulary.encode(text).unwrap();
            assert_eq!(&vocabulary.decode(&ids).unwrap(), text);
        }
    }
}

#[test]
fn streamed_text_is_the_crates_own_decoding() {
    for (name, _, file) in tokenizers_of_each_kind() {
        let (vocabulary, oracle) = both(&file);
        let tokenizer = Tokenizer::Vocabulary(vocabulary);
        for text in ROUND_TRIPS {
            let Ok(ids) = tokenizer.encode(text) else { continue };
            let whole = oracle.decode(&ids, false).unwrap();
            assert_eq!(tokenizer.decode(&ids).unwrap(), whole, "{name}");
            let mut stream = tokenizer.decode_stream();
            let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
            streamed += &stream.finish().unwrap();
            assert_eq!(streamed, whole, "{name}: {text:?}");
        }
    }
}

/// Where a regular expression gives up, the crate stops splitting: a text with that much white space
/// is handed to it whole.
#[test]
fn long_runs_of_white_space_change_nothing() {
    let gpt_2 = trained_byte_level(Value::Null, byte_level(false, true));
    let split = sequence("pretokenizers", &[split(LLAMA_3, "Isolated"), byte_level(false, false)]);
    for file in [gpt_2, trained_byte_level(Value::Null, split)] {
        let (vocabulary, oracle) = both(&file);
        for len in [1_000, 70_000, 1_100_000] {
            let text =
                format!("the fox {}jumps over the dog {}", " ".repeat(len), "and it's quick ".repeat(10));
            agrees("a long blank", &vocabulary, &oracle, &text).unwrap();
        }
    }
}

#[test]
fn text_that_is_left_out_on_request_is_what_the_crate_leaves_out() {
    let mut file = trained_byte_level(Value::Null, byte_level(false, true));
    file["model"]["vocab"].as_object_mut().unwrap().remove("Ð");
    file["model"]["merges"].as_array_mut().unwrap().retain(|merge| !merge.to_string().contains('Ð'));
    file["model"]["vocab"].as_object_mut().unwrap().retain(|token, _| !token.contains('Ð'));
    let (vocabulary, oracle) = both(&file);
    let text = TEXT.repeat(3);
    assert!(vocabulary.encode(&text).is_err());
    let lenient = vocabulary.on_unknown_text(OnTrouble::Skip).with_min_piece_bytes(1);
    agrees("without a byte", &lenient, &oracle, &text).unwrap();
}

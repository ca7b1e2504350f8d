//! The law of this crate's tokenizers: the ids of a text are those that the crate `tokenizers` gives
//! it in one call, whatever the tokenizer and however long the text. Both sides share the loaded file
//! only; here texts are cut after a few bytes, so that every kind of place is met.

mod kinds;

use proptest::prelude::*;
use serde_json::Value;

use kinds::{gpt_2, llama_3, tokenizers_of_each_kind};

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
    for file in [gpt_2(), llama_3()] {
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
    for file in [gpt_2(), llama_3()] {
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
    let mut file = gpt_2();
    file["model"]["vocab"].as_object_mut().unwrap().remove("Ð");
    file["model"]["merges"].as_array_mut().unwrap().retain(|merge| !merge.to_string().contains('Ð'));
    file["model"]["vocab"].as_object_mut().unwrap().retain(|token, _| !token.contains('Ð'));
    let (vocabulary, oracle) = both(&file);
    let text = TEXT.repeat(3);
    assert!(vocabulary.encode(&text).is_err());
    let lenient = vocabulary.on_unknown_text(OnTrouble::Skip).with_min_piece_bytes(1);
    agrees("without a byte", &lenient, &oracle, &text).unwrap();
}

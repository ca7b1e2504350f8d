//! Damaged `tokenizer.json` files, and odd texts and ids through those that load.

use std::path::Path;

use rand::RngExt;
use switchyard_datasets::Tokenizer;

use crate::engine::json::JsonSeeds;
use crate::engine::mutation::{self, pick};
use crate::engine::{Input, Random, Seed, Target, Verdict, corpus};

/// A text of each kind that has been trouble for some tokenizer.
const TEXTS: [&str; 16] = [
    "",
    " ",
    "the cat's hat, and 123 bats.\n",
    "\r\n\t\u{b}\u{c}\u{85}\u{a0}\u{2028}",
    "\0\u{1}\u{1b}[31m\u{7f}",
    "\u{feff}hello",
    "e\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}\u{301}x",
    "ﬁ Ⅳ ½ Å ＡＢＣ ẛ̣",
    "漢字かな交じり文 한국어 ไทย",
    "👩‍👩‍👧‍👦🏳️‍🌈🇩🇪\u{fe0f}",
    "שלום \u{202e}abc\u{202c} مرحبا",
    "<|endoftext|></s><s>[CLS][MASK]<unk><mark> <mark>",
    "▁▁the▁cat Ġthe ##s <0x41><0xFF>",
    "--a--b----",
    "\u{10ffff}\u{e000}\u{fffd}\u{d7ff}",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!",
];
/// Repetitions of a text that is to be long.
const LONG: usize = 40;

pub(crate) struct TokenizerFiles {
    seeds: Vec<Seed>,
    json: JsonSeeds,
}

/// Opens the target.
pub(crate) fn open(_: &Path) -> Box<dyn Target> {
    let seeds = corpus(&crate::corpus_folder("tokenizer"));
    let json = JsonSeeds::of(&seeds);
    Box::new(TokenizerFiles { seeds, json })
}

impl TokenizerFiles {
    /// A tokenizer file that is damaged blindly, along its structure, or both.
    fn damaged(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = if random.random_range(0..4) > 0 {
            let mut value = pick(&self.json.values, random).clone();
            self.json.mutate(&mut value, random);
            value.to_string().into_bytes()
        } else {
            pick(&self.seeds, random).bytes.clone()
        };
        if random.random_range(0..4) == 0 {
            mutation::mutate(&mut bytes, &self.seeds, &self.json.words, random);
        }
        bytes
    }
}

impl Target for TokenizerFiles {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let json = match self.seeds.get(index as usize) {
            Some(seed) => seed.bytes.clone(),
            None => self.damaged(random),
        };
        let mut text = (*pick(&TEXTS, random)).to_owned();
        if random.random_range(0..8) == 0 {
            text = text.repeat(LONG);
        }
        if random.random_range(0..4) == 0 {
            let mut bytes = text.into_bytes();
            mutation::mutate(&mut bytes, &[], &self.json.words, random);
            text = String::from_utf8_lossy(&bytes).into_owned();
        }
        Input { files: vec![("tokenizer.json".to_owned(), json), ("text.txt".to_owned(), text.into_bytes())] }
    }

    fn run(&self, input: &Input) -> Verdict {
        let [(_, json), (_, text)] = input.files.as_slice() else { unreachable!("two files") };
        let text = String::from_utf8_lossy(text);
        let tokenizer = match Tokenizer::from_json(json.clone()) {
            Ok(tokenizer) => tokenizer,
            Err(message) => return Verdict::Refused(message),
        };
        if let Err(law) = obeys_laws(&tokenizer) {
            return Verdict::Broken(law);
        }
        for text in [&text, TEXTS[2]] {
            let ids = match tokenizer.encode(text) {
                Ok(ids) => ids,
                Err(error) => return Verdict::Refused(error.to_string()),
            };
            if let Some(id) = ids.iter().find(|id| **id as usize >= tokenizer.vocab_size()) {
                return Verdict::Broken(format!("an id is outside of the vocabulary: {id}"));
            }
            if let Err(error) = decodes(&tokenizer, &ids) {
                return Verdict::Refused(error);
            }
        }
        let largest = u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
        let wild = [0, largest.wrapping_sub(1), largest, u32::MAX, 0, 1, 2, 3, 255, 256, 300];
        Verdict::of(&decodes(&tokenizer, &wild))
    }
}

/// What holds for every tokenizer that loads.
fn obeys_laws(tokenizer: &Tokenizer) -> Result<(), String> {
    if let Some(end) = tokenizer.end_of_document()
        && end as usize >= tokenizer.vocab_size()
    {
        return Err(format!("the end mark is outside of the vocabulary: {end}"));
    }
    let again = Tokenizer::from_json(tokenizer.to_json())
        .map_err(|error| format!("what a tokenizer writes cannot be read: {error}"))?;
    if again.hash() != tokenizer.hash() || again.vocab_size() != tokenizer.vocab_size() {
        return Err("a tokenizer that was written and read is another".to_owned());
    }
    Ok(())
}

/// Decodes `ids` at once and one by one.
fn decodes(tokenizer: &Tokenizer, ids: &[u32]) -> Result<(), String> {
    tokenizer.decode(ids).map_err(|error| error.to_string())?;
    let mut stream = tokenizer.decode_stream();
    for id in ids.iter().take(64) {
        stream.push(*id).map_err(|error| error.to_string())?;
    }
    stream.finish().map(|_| ()).map_err(|error| error.to_string())
}

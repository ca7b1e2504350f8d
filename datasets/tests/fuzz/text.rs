//! Damaged text files through `[data.text]`: JSON lines, and what is compressed.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use rand::RngExt;

use crate::engine::json::JsonSeeds;
use crate::engine::mutation::{self, pick};
use crate::engine::{Input, Random, Seed, Target, Verdict, corpus};
use crate::prepared::Place;

/// The keys that are asked for.
const KEYS: [Option<&str>; 4] = [None, Some("body"), Some("meta.text"), Some("")];

/// Plain text and JSON lines to damage, and to compress.
struct TextSeeds {
    seeds: Vec<Seed>,
    lines: JsonSeeds,
}

impl TextSeeds {
    fn open() -> Self {
        let seeds = corpus(&crate::corpus_folder("text"));
        let lines = seeds.iter().flat_map(|seed| seed.bytes.split(|byte| *byte == b'\n'));
        let lines =
            JsonSeeds::of_values(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect());
        Self { seeds, lines }
    }

    /// Some lines, each JSON and most with a text under `key`, a few of them changed, the whole
    /// sometimes damaged.
    fn lines(&self, key: Option<&str>, random: &mut Random) -> Vec<u8> {
        let path = format!("/{}", key.unwrap_or("text").replace('.', "/"));
        let mut text = String::new();
        for _ in 0..random.random_range(1..6) {
            let mut line = pick(&self.lines.values, random).clone();
            if let Some(text) = line.pointer_mut(&path)
                && random.random_range(0..16) > 0
            {
                *text = "a text \u{e9}".into();
            }
            if random.random_range(0..4) == 0 {
                self.lines.mutate(&mut line, random);
            }
            text += &line.to_string();
            text += *pick(&["\n", "\n", "\r\n", "\n\n", " \n", ""], random);
        }
        let mut bytes = text.into_bytes();
        if random.random_range(0..4) == 0 {
            mutation::mutate(&mut bytes, &self.seeds, &self.lines.words, random);
        }
        bytes
    }

    fn plain(&self, random: &mut Random) -> Vec<u8> {
        let mut bytes = pick(&self.seeds, random).bytes.clone();
        if random.random() {
            mutation::mutate(&mut bytes, &self.seeds, &self.lines.words, random);
        }
        bytes
    }
}

/// A configuration that reads the folder of an input, with some of the keys that change how.
fn data_toml(jsonl_key: Option<&str>, random: &mut Random) -> String {
    let mut toml =
        "cache_dir = '@/cache'\nsplit.tail.validation_fraction = 0.5\ntext.path = '@/corpus'\n".to_owned();
    if let Some(key) = jsonl_key {
        toml += &format!("text.jsonl_key = '{key}'\n");
    }
    let options = [
        "",
        "",
        "text.on_bad_line = 'skip'\n",
        "text.separator = 'a'\n",
        "text.max_document_bytes = 1000\n",
        "text.max_document_bytes = 9223372036854775807\ntext.on_bad_line = 'skip'\n",
    ];
    toml + *pick(&options, random)
}

/// An input of one file of text and its configuration.
fn input(name: &str, bytes: Vec<u8>, toml: String) -> Input {
    Input { files: vec![(format!("corpus/{name}"), bytes), (Place::CONFIG.to_owned(), toml.into_bytes())] }
}

struct Lines {
    seeds: TextSeeds,
    place: Place,
}

/// Opens the target of JSON lines.
pub(crate) fn open_lines(folder: &Path) -> Box<dyn Target> {
    Box::new(Lines { seeds: TextSeeds::open(), place: Place::new(folder) })
}

impl Target for Lines {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let key = *pick(&KEYS, random);
        let bytes = match self.seeds.seeds.get(index as usize) {
            Some(seed) => seed.bytes.clone(),
            None => self.seeds.lines(key, random),
        };
        let toml = data_toml(key, random);
        input("a.jsonl", bytes, toml)
    }

    fn run(&self, input: &Input) -> Verdict {
        self.place.prepare(input)
    }
}

struct Compressed {
    seeds: TextSeeds,
    words: Vec<String>,
    place: Place,
}

/// Opens the target of compressed files.
pub(crate) fn open_compressed(folder: &Path) -> Box<dyn Target> {
    // Magic numbers: gzip, zstd and its skippable frames.
    let words = ["\u{1f}", "\u{8}", "(", "P*M\u{18}"].map(str::to_owned).to_vec();
    Box::new(Compressed { seeds: TextSeeds::open(), words, place: Place::new(folder) })
}

impl Target for Compressed {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let lines = random.random();
        let mut text = if lines { self.seeds.lines(None, random) } else { self.seeds.plain(random) };
        if random.random_range(0..16) == 0 {
            // A few megabytes from a few hundred bytes.
            text = text.repeat((1 << random.random_range(16..22)) / text.len().max(1));
        }
        let is_gzip = random.random();
        let mut bytes = if is_gzip { gzip(&text, random) } else { zstandard(&text, random) };
        // Some stay sound, so that the inside is reached.
        if index > 16 && random.random_range(0..3) > 0 {
            mutation::mutate(&mut bytes, &self.seeds.seeds, &self.words, random);
        }
        let kind = if lines { "jsonl" } else { "txt" };
        let compression = if is_gzip { "gz" } else { "zst" };
        let toml = data_toml(None, random);
        input(&format!("a.{kind}.{compression}"), bytes, toml)
    }

    fn run(&self, input: &Input) -> Verdict {
        self.place.prepare(input)
    }
}

/// As one member or several, with a name and comment or without.
fn gzip(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts(text, random) {
        let level = Compression::new(random.random_range(0..10));
        let mut builder = flate2::GzBuilder::new();
        if random.random() {
            builder = builder.filename("name").comment("comment").extra(vec![0; 5]);
        }
        let mut encoder: GzEncoder<Vec<u8>> = builder.write(Vec::new(), level);
        encoder.write_all(part).expect("memory can be written");
        bytes.extend(encoder.finish().expect("memory can be written"));
    }
    bytes
}

/// As one frame or several, with checksum and size or without.
fn zstandard(text: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts(text, random) {
        let mut encoder = zstd::Encoder::new(Vec::new(), random.random_range(1..4)).expect("an encoder");
        encoder.include_checksum(random.random()).expect("a flag");
        encoder.write_all(part).expect("memory can be written");
        bytes.extend(encoder.finish().expect("memory can be written"));
    }
    bytes
}

/// `text`, or both its halves.
fn parts<'a>(text: &'a [u8], random: &mut Random) -> Vec<&'a [u8]> {
    if random.random() {
        return vec![text];
    }
    let (head, tail) = text.split_at(text.len() / 2);
    vec![head, tail]
}

//! Damaged corpora: prepared folders in the cache, and files of ids. What opens is read to the end.

use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use switchyard_datasets::{
    DataConfig, Dataset, DatasetError, DatasetStatistics, EvaluationWindows, Loader, LoaderConfig, Manifest,
    Packing, Progress, TokenStore, prepare,
};

use crate::engine::json::JsonSeeds;
use crate::engine::mutation::{self, BOUNDARY_NUMBERS, pick};
use crate::engine::{Input, Random, Seed, Target, Verdict, corpus, empty};

const SEQ_LEN: usize = 4;
/// Part of a shard's header that its checksum covers, and where that stands.
const CHECKED_HEADER: std::ops::Range<usize> = 0..72;
const CHECKSUM: std::ops::Range<usize> = 72..104;
const HEADER_BYTES: usize = 128;
/// How llm.c's files of ids begin: magic number, version and number of ids.
const LLM_C_HEADER: [u8; 12] = [0xd8, 0xb4, 0x34, 1, 1, 0, 0, 0, 9, 0, 0, 0];

/// Goes over all that a run and `switchyard data stats` read of `dataset`.
pub(crate) fn read_everything(dataset: &Dataset) -> Verdict {
    for store in [&dataset.train, &dataset.validation] {
        match ids(store) {
            Ok(ids) => {
                let is_known =
                    |id: &&i32| usize::try_from(**id).is_ok_and(|id| id < dataset.manifest.vocab_size);
                if let Some(id) = ids.iter().find(|id| !is_known(id)) {
                    return Verdict::Broken(format!("an id is outside of the vocabulary: {id}"));
                }
            }
            Err(error) => return Verdict::Refused(error.to_string()),
        }
        for position in (0..store.len()).step_by(1 + store.len() / 64) {
            store.document_index(position);
            store.domain(position);
        }
    }
    Verdict::of(&read_batches(dataset))
}

fn ids(store: &TokenStore) -> Result<Vec<i32>, DatasetError> {
    let mut ids = vec![0; store.len()];
    if !store.is_empty() {
        store.read(0, &mut ids)?;
    }
    Ok(ids)
}

fn read_batches(dataset: &Dataset) -> Result<(), DatasetError> {
    DatasetStatistics::compute(dataset)?;
    let windows = EvaluationWindows::new(dataset.validation.clone(), SEQ_LEN)?;
    for batch in windows.with_max_tokens(256).with_document_masking(true).batches(3) {
        batch?;
    }
    let config = LoaderConfig {
        seq_len: SEQ_LEN,
        sequences_per_batch: 2,
        seed: 3,
        mask_documents: true,
        packing: Packing::default(),
        num_streams: None,
    };
    let mut loader = Loader::new(dataset.train.clone(), config, 0)?;
    loader.next_batch()?;
    Ok(())
}

/// The configuration that the TOML `text` states; `@` in it stands for `folder`.
fn data_config(text: &str, folder: &Path) -> Result<DataConfig, String> {
    toml::from_str(&text.replace('@', &folder.display().to_string())).map_err(|error| error.to_string())
}

/// A folder for one input at a time and its cache.
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// The file of an input that holds its configuration, in which `@` stands for the folder of its
    /// files.
    pub(crate) const CONFIG: &str = "data.toml";

    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Prepares what `input` says and reads all of it.
    pub(crate) fn prepare(&self, input: &Input) -> Verdict {
        empty(&self.folder);
        input.write(&self.folder);
        let text = fs::read_to_string(self.folder.join(Self::CONFIG)).expect("a configuration");
        let prepared = data_config(&text, &self.folder)
            .and_then(|config| prepare(&config, &Progress::silent()).map_err(|error| error.to_string()));
        match prepared {
            Ok(dataset) => read_everything(&dataset),
            Err(message) => Verdict::Refused(message),
        }
    }
}

/// A corpus as it was prepared, in memory.
struct Prepared {
    config: DataConfig,
    folder: PathBuf,
    files: Vec<Seed>,
    dataset: Dataset,
    tokens: Vec<Vec<i32>>,
}

impl Prepared {
    fn new(config: DataConfig) -> Self {
        let dataset = prepare(&config, &Progress::silent()).expect("a sound corpus");
        let folder = dataset.folder.clone().expect("a prepared folder");
        let (files, tokens) = (corpus(&folder), tokens(&dataset));
        Self { config, folder, files, dataset, tokens }
    }

    /// Whether `dataset` is what was prepared.
    fn equals(&self, dataset: &Dataset) -> bool {
        dataset.manifest == self.dataset.manifest
            && dataset.tokenizer.hash() == self.dataset.tokenizer.hash()
            && tokens(dataset) == self.tokens
    }
}

fn tokens(dataset: &Dataset) -> Vec<Vec<i32>> {
    [&dataset.train, &dataset.validation]
        .map(|store| ids(store).expect("tokens that were just opened"))
        .into()
}

/// Prepared folders; the first file of an input, `how`, says which, and whether its checksums were
/// made to fit.
struct Cache {
    corpora: Vec<Prepared>,
    json: JsonSeeds,
    words: Vec<String>,
}

/// Opens the target of prepared folders.
pub(crate) fn open_cache(folder: &Path) -> Box<dyn Target> {
    let texts = folder.join("texts");
    empty(&texts);
    for index in 0..6 {
        let text = format!("Document {index} of some, the end.\n");
        fs::write(texts.join(format!("{index}.txt")), text).expect("a text");
    }
    let corpora: Vec<Prepared> = [
        "text.path = '@/texts'\ntokenizer.bpe.vocab_size = 270",
        "text.path = '@/texts/0.txt'",
        "[synthetic]\nnum_domains = 3\nvocab_size = 300\nnum_documents = 12\ndocument_tokens = 6\nbranching = 2",
    ]
    .map(|source| {
        let head = "cache_dir = '@/cache'\nsplit.tail.validation_fraction = 0.4";
        Prepared::new(data_config(&format!("{head}\n{source}"), folder).expect("a configuration"))
    })
    .into();
    let json = JsonSeeds::of(&corpora.iter().flat_map(|prepared| prepared.files.clone()).collect::<Vec<_>>());
    let words = BOUNDARY_NUMBERS.map(str::to_owned).to_vec();
    Box::new(Cache { corpora, json, words })
}

impl Target for Cache {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let which = random.random_range(0..self.corpora.len());
        let mut files: Vec<(String, Vec<u8>)> =
            self.corpora[which].files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        let is_consistent = random.random();
        if index > 0 {
            for _ in 0..random.random_range(1..3) {
                let at = random.random_range(0..files.len());
                let (name, bytes) = &mut files[at];
                self.damage(name, bytes, is_consistent, random);
            }
        }
        if is_consistent {
            make_consistent(&mut files);
        }
        let how = format!("{which} {}", if is_consistent { "consistent" } else { "stale" });
        files.insert(0, ("how".to_owned(), how.into_bytes()));
        Input { files }
    }

    fn run(&self, input: &Input) -> Verdict {
        let how = String::from_utf8_lossy(&input.files[0].1);
        let (which, checksums) = how.split_once(' ').expect("two words");
        let prepared = &self.corpora[which.parse::<usize>().expect("a number")];
        empty(&prepared.folder);
        Input { files: input.files[1..].to_vec() }.write(&prepared.folder);
        let dataset = match prepare(&prepared.config, &Progress::silent()) {
            Ok(dataset) => dataset,
            Err(error) => return Verdict::Refused(error.to_string()),
        };
        if checksums == "stale" && !prepared.equals(&dataset) {
            return Verdict::Broken("damage was not noticed".to_owned());
        }
        read_everything(&dataset)
    }
}

impl Cache {
    fn damage(&self, name: &str, bytes: &mut Vec<u8>, is_consistent: bool, random: &mut Random) {
        if name.ends_with(".shard") && is_consistent && random.random() {
            return damage_fields(bytes, random);
        }
        if let Ok(mut value) = serde_json::from_slice::<Value>(bytes)
            && random.random_range(0..4) > 0
        {
            self.json.mutate(&mut value, random);
            *bytes = value.to_string().into_bytes();
            return;
        }
        mutation::mutate(bytes, &[], &self.words, random);
    }
}

/// Sets numbers of the header and of the tables of a shard.
fn damage_fields(bytes: &mut [u8], random: &mut Random) {
    let table = HEADER_BYTES..bytes.len().saturating_sub(8).max(HEADER_BYTES + 1);
    for _ in 0..mutation::num_changes(random) {
        let at = match random.random_range(0..3) {
            0 => 8 * random.random_range(1..5),
            1 => table.start + (random.random_range(table.clone()) - table.start) / 8 * 8,
            _ => random.random_range(table.clone()),
        };
        let number: u64 = match random.random_range(0..4) {
            0 => 0,
            1 => random.random_range(0..40),
            2 => u64::MAX >> random.random_range(0..64),
            _ => 1 << random.random_range(0..64),
        };
        let width = if random.random() { 8 } else { 4 };
        bytes
            .iter_mut()
            .skip(at)
            .zip(number.to_le_bytes())
            .take(width)
            .for_each(|(byte, fresh)| *byte = fresh);
    }
}

/// Makes checksums fit to what the files hold now, as far as there is a place for them.
fn make_consistent(files: &mut [(String, Vec<u8>)]) {
    let mut sums = Vec::new();
    for (name, bytes) in files.iter_mut().filter(|(name, _)| name != "manifest.json") {
        let sum = if name.ends_with(".shard") { seal(bytes) } else { Some(hex(&Sha256::digest(&*bytes))) };
        sums.extend(sum.map(|sum| (name.clone(), sum)));
    }
    let Some((_, json)) = files.iter_mut().find(|(name, _)| name == "manifest.json") else { return };
    let Ok(mut stored) = serde_json::from_slice::<Value>(json) else { return };
    let Some(manifest) = stored.get_mut("manifest") else { return };
    for (name, sum) in sums {
        if name == "tokenizer.json" {
            set(manifest, "/tokenizer_hash", &sum);
        }
        for split in ["train", "validation"] {
            for index in 0..2 {
                let shard = format!("/{split}/shards/{index}");
                if manifest.pointer(&format!("{shard}/file")).and_then(Value::as_str) == Some(&name) {
                    set(manifest, &format!("{shard}/sha256"), &sum);
                }
            }
        }
    }
    // Its own checksum is of the bytes that the program would write.
    let Ok(manifest) = serde_json::from_value::<Manifest>(manifest.take()) else { return };
    let Ok(bytes) = serde_json::to_vec(&manifest) else { return };
    let sealed = Stored { manifest, sha256: hex(&Sha256::digest(bytes)) };
    *json = serde_json::to_vec_pretty(&sealed).expect("a manifest is JSON");
}

/// The content of `manifest.json`.
#[derive(Serialize)]
struct Stored {
    manifest: Manifest,
    sha256: String,
}

/// Writes the checksum into a shard; returns it.
fn seal(bytes: &mut [u8]) -> Option<String> {
    let mut hasher = Sha256::new();
    hasher.update(bytes.get(HEADER_BYTES..)?);
    hasher.update(&bytes[CHECKED_HEADER]);
    let sum = hasher.finalize();
    bytes[CHECKSUM].copy_from_slice(&sum);
    Some(hex(&sum))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn set(value: &mut Value, pointer: &str, text: &str) {
    if let Some(place) = value.pointer_mut(pointer) {
        *place = Value::from(text);
    }
}

/// Files of ids.
struct TokenIds(Place);

/// Opens the target of files of ids.
pub(crate) fn open_token_ids(folder: &Path) -> Box<dyn Target> {
    Box::new(TokenIds(Place::new(folder)))
}

impl Target for TokenIds {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let head: &[u8] = if random.random() { &[] } else { &LLM_C_HEADER };
        let width = *pick(&[2, 4], random);
        let ids = |random: &mut Random| {
            let ids = 0..random.random_range(0..64_u32);
            let mut bytes = head.to_vec();
            bytes.extend(ids.flat_map(|id| (id * 7).to_le_bytes()[..width].to_vec()));
            if index > 0 {
                mutation::mutate(&mut bytes, &[], &[], random);
            }
            bytes
        };
        let mut files = vec![("train.bin".to_owned(), ids(random))];
        let mut toml = "tokens.train = '@/train.bin'\n".to_owned();
        if random.random() {
            files.push(("validation.bin".to_owned(), ids(random)));
            toml += "tokens.validation = '@/validation.bin'\n";
        } else {
            let fraction = pick(&["0.5", "0.1", "0.999999", "1e-300"], random);
            toml += &format!("split.tail.validation_fraction = {fraction}\n");
        }
        let size = pick(&["65536", "512", "50257", "1", "0", "65537", "9223372036854775807"], random);
        toml += &format!("tokens.vocab_size = {size}\n");
        if let Some(dtype) = pick(&[None, None, Some("u16"), Some("u32")], random) {
            toml += &format!("tokens.dtype = '{dtype}'\n");
        }
        files.push((Place::CONFIG.to_owned(), toml.into_bytes()));
        Input { files }
    }

    fn run(&self, input: &Input) -> Verdict {
        self.0.prepare(input)
    }
}

//! Damaged checkpoints, with hashes that tell and with hashes made to fit, as somebody with ill
//! intent would.

use std::path::{Path, PathBuf};

use burn::tensor::Device;
use rand::RngExt;
use serde_json::{Value, json};
use switchyard_trainer::checkpoint::{
    Checkpoint, CheckpointError, MANIFEST_FILE, find_checkpoint, read_state,
};
use switchyard_trainer::device;
use switchyard_trainer::generate::{GenerationSettings, generate};
use switchyard_trainer::sampling::SamplingSettings;

use crate::engine::json::JsonSeeds;
use crate::engine::mutation::{self, pick};
use crate::engine::{Input, Random, Seed, Target, Verdict, corpus};
use crate::tiny_run;

/// The file of an input that says whether its hashes were made to fit.
const HOW: &str = "how";
const CONSISTENT: &str = "consistent";
/// Names for files that a manifest has no business to list.
const NAMES: [&str; 6] = ["../../../../etc/passwd", "/dev/zero", "..", "", "a/b", "model.safetensors/x"];

struct Checkpoints {
    files: Vec<Seed>,
    json: JsonSeeds,
    tokenizers: Vec<Seed>,
    /// Where the damaged checkpoint lies: the name must be that of its step.
    folder: PathBuf,
    device: Device,
}

/// Opens the target.
pub(crate) fn open(folder: &Path) -> Box<dyn Target> {
    let run = tiny_run::make(folder);
    let name = tiny_run::checkpoint_name();
    let files = corpus(&run.join(&name));
    let tokenizers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/tests/fuzz/corpus/tokenizer");
    let mut json = JsonSeeds::of(&files);
    json.words.extend(NAMES.map(str::to_owned));
    Box::new(Checkpoints {
        json,
        files,
        tokenizers: corpus(&tokenizers),
        folder: folder.join("damaged").join(name),
        device: device::select("cpu").expect("the CPU"),
    })
}

impl Target for Checkpoints {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let mut files: Vec<(String, Vec<u8>)> =
            self.files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        let is_consistent = random.random_range(0..4) > 0;
        if index > 0 {
            // One file where the hashes tell, so that no other damage can be what was noticed.
            for _ in 0..if is_consistent { random.random_range(1..3) } else { 1 } {
                let at = random.random_range(0..files.len());
                let (name, bytes) = &mut files[at];
                self.damage(name, bytes, random);
            }
        }
        if is_consistent {
            tiny_run::make_consistent(&mut files);
        }
        let how = if is_consistent { CONSISTENT } else { "stale" };
        files.push((HOW.to_owned(), how.into()));
        Input { files }
    }

    fn run(&self, input: &Input) -> Verdict {
        let is_consistent =
            input.files.iter().any(|(name, bytes)| name == HOW && bytes == CONSISTENT.as_bytes());
        let files: Vec<(String, Vec<u8>)> =
            input.files.iter().filter(|(name, _)| name != HOW).cloned().collect();
        tiny_run::overwrite(&self.folder, &files);
        let result = self.use_checkpoint();
        let is_damaged = self
            .files
            .iter()
            .zip(&files)
            .any(|(file, (name, bytes))| name != MANIFEST_FILE && file.bytes != *bytes);
        if result.is_ok() && is_damaged && !is_consistent {
            return Verdict::Broken("damage was not noticed".to_owned());
        }
        Verdict::of(&result)
    }
}

impl Checkpoints {
    /// Does what `eval`, `generate`, `inspect` and `train --resume` do with a checkpoint.
    fn use_checkpoint(&self) -> Result<(), String> {
        let step_folder = find_checkpoint(&self.folder).map_err(text)?;
        read_state(&step_folder).map_err(text)?;
        let checkpoint = Checkpoint::read(&step_folder).map_err(text)?;
        let model = checkpoint.model(&self.device).map_err(text)?;
        checkpoint.optimizer(&model).map_err(text)?;
        checkpoint.parameters().map_err(text)?;
        let settings =
            GenerationSettings { seed: 1, ..GenerationSettings::new(2, SamplingSettings::new(1.0)) };
        generate(&model, &checkpoint.tokenizer, &settings, &self.device, |_| Ok(()))
            .map(drop)
            .map_err(|error| error.to_string())
    }

    fn damage(&self, name: &str, bytes: &mut Vec<u8>, random: &mut Random) {
        if name == "tokenizer.json" && random.random() {
            *bytes = pick(&self.tokenizers, random).bytes.clone();
        } else if name.ends_with(".safetensors") && random.random_range(0..4) > 0 {
            self.damage_tensors(bytes, random);
        } else if name.ends_with(".toml") && random.random_range(0..4) > 0 {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let mut value: Value = toml::from_str(&text).unwrap_or_default();
            self.json.mutate(&mut value, random);
            *bytes = toml::to_string(&value).unwrap_or(text).into_bytes();
        } else if let Ok(mut value) = serde_json::from_slice::<Value>(bytes)
            && random.random_range(0..8) > 0
        {
            self.json.mutate(&mut value, random);
            *bytes = value.to_string().into_bytes();
        } else {
            mutation::mutate(bytes, &self.files, &self.json.words, random);
        }
    }

    /// Changes the header of a safetensors file, and writes its length anew; rarely that is wrong
    /// too.
    fn damage_tensors(&self, bytes: &mut Vec<u8>, random: &mut Random) {
        let Some((head, rest)) = bytes.split_first_chunk::<8>() else { return };
        let header_len = u64::from_le_bytes(*head) as usize;
        let Some((header, data)) = rest.split_at_checked(header_len) else { return };
        let mut header: Value = serde_json::from_slice(header).unwrap_or_else(|_| json!({}));
        self.json.mutate(&mut header, random);
        let header = header.to_string();
        let mut changed = (header.len() as u64).to_le_bytes().to_vec();
        changed.extend_from_slice(header.as_bytes());
        changed.extend_from_slice(data);
        *bytes = changed;
        if random.random_range(0..8) == 0 {
            mutation::mutate(bytes, &[], &[], random);
        }
    }
}

fn text(error: CheckpointError) -> String {
    error.to_string()
}

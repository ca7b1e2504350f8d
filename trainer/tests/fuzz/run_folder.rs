//! Damaged run folders, through all that reads them: `runs`, `inspect`, `diff`, `bisect`,
//! `what-if`, reports; and resumed.

use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt;
use serde_json::Value;
use switchyard_flight::RunStep;
use switchyard_flight::columns::{read_experts, read_scores, recorded_score_steps};
use switchyard_flight::diagnosis::{DiagnosisSettings, diagnose};
use switchyard_flight::divergence::first_divergence;
use switchyard_trainer::flight::question::{AskedCapacity, RunQuestion, ask};
use switchyard_trainer::flight::{read_alarms, read_probes, read_saturation};
use switchyard_trainer::metrics::{Record, read_metrics};
use switchyard_trainer::run_folder::{OpenMode, RunPaths};

use crate::engine::json::JsonSeeds;
use crate::engine::mutation;
use crate::engine::{Input, Random, Seed, Target, Verdict, empty};
use crate::tiny_run::{self, is_json};

struct RunFolders {
    files: Vec<Seed>,
    json: JsonSeeds,
    /// Rows of the sound run.
    steps: Vec<RunStep>,
    folder: PathBuf,
    /// What is done with a damaged folder.
    use_run: fn(&RunFolders, &Path) -> Result<(), String>,
}

/// Opens the target of run folders that are read.
pub(crate) fn open(folder: &Path) -> Box<dyn Target> {
    Box::new(RunFolders::new(folder, |name| !name.starts_with("checkpoints"), RunFolders::read))
}

/// Opens the target of run folders that are resumed.
pub(crate) fn open_resumed(folder: &Path) -> Box<dyn Target> {
    Box::new(RunFolders::new(folder, |_| true, RunFolders::resume))
}

impl RunFolders {
    fn new(
        folder: &Path,
        is_wanted: fn(&str) -> bool,
        use_run: fn(&RunFolders, &Path) -> Result<(), String>,
    ) -> Self {
        let run = tiny_run::make(folder);
        let files = tiny_run::files(&run, is_wanted);
        let values = files.iter().filter(|file| is_json(&file.name)).flat_map(|file| {
            file.bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok())
        });
        let mut json = JsonSeeds::of_values(values.collect());
        json.values.extend(JsonSeeds::of(&files).values);
        let steps = steps(&read_metrics(&RunPaths::new(&run).metrics()).expect("a log"));
        Self { files, json, steps, folder: folder.join("damaged"), use_run }
    }

    fn read(&self, folder: &Path) -> Result<(), String> {
        let run = RunPaths::new(folder);
        let reading = run.read().map_err(|error| error.to_string());
        let records = read_metrics(&run.metrics()).map_err(|error| error.to_string());
        let alarms = read_alarms(&run).map_err(|error| error.to_string());
        let probes = read_probes(&run).map_err(|error| error.to_string());
        let saturation = read_saturation(&run).map_err(|error| error.to_string());
        let experts = read_experts(&run.flight()).map_err(|error| error.to_string());
        if let (Ok(records), Ok(experts)) = (&records, &experts) {
            let steps = steps(records);
            diagnose(&steps, experts, &DiagnosisSettings::default());
            first_divergence(&steps, &self.steps);
            first_divergence(&self.steps, &steps);
        }
        let scores = recorded_score_steps(&run.flight())
            .and_then(|steps| steps.iter().try_for_each(|step| read_scores(&run.flight(), *step).map(drop)));
        let questions = [
            RunQuestion::default(),
            RunQuestion { top_k: Some(1), capacity: Some(AskedCapacity::Dropless), ..RunQuestion::default() },
            RunQuestion { capacity: Some(AskedCapacity::Factor(0.5)), ..RunQuestion::default() },
        ];
        let answers =
            questions.map(|question| ask(folder, &question).map(drop).map_err(|error| error.to_string()));
        // All of them are read before the first mistake is told.
        reading?;
        records?;
        alarms?;
        probes?;
        saturation?;
        experts?;
        scores.map_err(|error| error.to_string())?;
        answers.into_iter().collect()
    }

    fn resume(&self, folder: &Path) -> Result<(), String> {
        let base = self.folder.parent().expect("the target's folder");
        tiny_run::resume_or_start(base, folder, OpenMode::Resume)
    }

    fn damage(&self, name: &str, bytes: &mut Vec<u8>, random: &mut Random) {
        if !is_json(name) || random.random_range(0..4) == 0 {
            return mutation::mutate(bytes, &self.files, &self.json.words, random);
        }
        if let Ok(mut value) = serde_json::from_slice::<Value>(bytes) {
            self.json.mutate(&mut value, random);
            *bytes = value.to_string().into_bytes();
            return;
        }
        let mut lines: Vec<Vec<u8>> = bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
        let at = random.random_range(0..lines.len());
        match random.random_range(0..4) {
            0 => drop(lines.remove(at)),
            1 => lines.insert(at, lines[at].clone()),
            _ => {
                if let Ok(mut value) = serde_json::from_slice::<Value>(&lines[at]) {
                    self.json.mutate(&mut value, random);
                    lines[at] = value.to_string().into_bytes();
                }
            }
        }
        *bytes = lines.join(&b'\n');
    }
}

impl Target for RunFolders {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let mut files: Vec<(String, Vec<u8>)> =
            self.files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        if index > 0 {
            for _ in 0..random.random_range(1..3) {
                let at = random.random_range(0..files.len());
                let (name, bytes) = &mut files[at];
                self.damage(name, bytes, random);
            }
            if random.random_range(0..16) == 0 {
                files.swap_remove(random.random_range(0..files.len()));
            }
        }
        Input { files }
    }

    fn run(&self, input: &Input) -> Verdict {
        empty(&self.folder);
        tiny_run::overwrite(&self.folder, &input.files);
        let result = (self.use_run)(self, &self.folder);
        let _ = fs::remove_dir_all(&self.folder);
        Verdict::of(&result)
    }
}

fn steps(records: &[Record]) -> Vec<RunStep> {
    records.iter().filter_map(Record::as_step).map(RunStep::from).collect()
}

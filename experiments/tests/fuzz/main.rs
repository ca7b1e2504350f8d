//! Damaged study and sweep files through the program itself: planned as far as the data, which are
//! not there. How, and which variables there are: [`engine`].
//!
//! ```text
//! SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture
//! ```

#[path = "../../../datasets/tests/fuzz/engine/mod.rs"]
#[expect(dead_code, reason = "what the other crates' targets need besides")]
mod engine;
#[path = "../../../trainer/tests/fuzz/toml_text.rs"]
mod toml_text;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use engine::parent::{Campaign, run};
use engine::{Input, Kind, Random, Target, Verdict};
use rand::RngExt;
use toml_text::TomlSeeds;

const KINDS: [Kind; 1] = [Kind { name: "study", share: 1, open }];

/// The files of an input: a study or a sweep, and the recipe that it starts from.
const STUDY: &str = "studies/study.toml";
const BASE: &str = "base.toml";
/// How the program ends when it refuses.
const REFUSED: i32 = 2;

struct Studies {
    studies: TomlSeeds,
    recipes: TomlSeeds,
    folder: PathBuf,
}

fn open(folder: &Path) -> Box<dyn Target> {
    let experiments = Path::new(env!("CARGO_MANIFEST_DIR"));
    let without_data = |text: &str| {
        let text = text
            .replace("../quickstart-dense.toml", "../base.toml")
            .replace("../quickstart.toml", "../base.toml");
        let is_data = |line: &&str| !line.contains("\"data.synthetic=");
        text.lines()
            .filter(is_data)
            .collect::<Vec<_>>()
            .join("\n")
            .replace("data.crates=", "data.crates.max_bytes=9")
    };
    let studies = TomlSeeds::open_changed(&experiments.join("studies"), |_| true, without_data);
    let recipes = TomlSeeds::open(experiments, |name| name.starts_with("quickstart"));
    Box::new(Studies { studies, recipes, folder: folder.to_owned() })
}

impl Target for Studies {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let sound = self.studies.files.get(index as usize).map(|file| file.bytes.clone());
        let base = if sound.is_none() && random.random_range(0..4) == 0 {
            self.recipes.damaged(random)
        } else {
            self.recipes.files[0].bytes.clone()
        };
        let study = sound.unwrap_or_else(|| self.studies.damaged(random));
        Input { files: vec![(STUDY.to_owned(), study), (BASE.to_owned(), base)] }
    }

    fn run(&self, input: &Input) -> Verdict {
        engine::empty(&self.folder);
        input.write(&self.folder);
        let is_study = String::from_utf8_lossy(&input.files[0].1).contains("arms");
        let output = Command::new(env!("CARGO_BIN_EXE_switchyard"))
            .current_dir(&self.folder)
            .args([if is_study { "compare" } else { "sweep" }, STUDY, "--dry-run"])
            // No archives, so that nothing is prepared and trained.
            .env("CARGO_HOME", self.folder.join("nothing"))
            .env("SWITCHYARD_CACHE_DIR", self.folder.join("cache"))
            .stdin(Stdio::null())
            .output()
            .expect("the program starts");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.code() {
            _ if message.contains("a bug in switchyard") => Verdict::Broken(format!("panic: {message}")),
            Some(0) => Verdict::Accepted,
            // As far as it could get.
            Some(REFUSED) if message.contains("crate archives of the default corpus") => Verdict::Accepted,
            Some(REFUSED) => Verdict::Refused(message),
            _ => Verdict::Broken(format!("{}: {message}", output.status)),
        }
    }
}

#[test]
fn a_sample_of_damaged_studies_is_refused_or_planned_without_a_panic() {
    run(
        &KINDS,
        &Campaign::sample(40_000),
        "a_sample_of_damaged_studies_is_refused_or_planned_without_a_panic",
    );
}

#[test]
#[ignore = "takes minutes: `SWITCHYARD_FUZZ=1000000 cargo test --workspace --test fuzz -- --ignored --nocapture`"]
fn damaged_studies_are_refused_or_planned_without_a_panic() {
    run(&KINDS, &Campaign::from_environment(), "damaged_studies_are_refused_or_planned_without_a_panic");
}

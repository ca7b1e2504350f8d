//! The sweep file: what the user wrote.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use switchyard_ground::key_error::KeyError;
use switchyard_trainer::config_file::{ConfigError, Override};
use toml::Value;

use crate::failure::Failure;
use crate::study::result::HeldEqual;
use crate::study::{
    BudgetConfig, LoadedStudy, PilotConfig, QuestionConfig, StudyFile, check_distinct, check_name, read_toml,
};

/// More candidates than anyone means.
const MAX_CANDIDATES: usize = 10_000;

/// Keys that a sweep decides itself, so that a value given for them would be without effect.
const OWN_KEYS: [(&str, &str); 6] = [
    ("name", "the sweep names its runs"),
    ("seed", "use the sweep's `seeds`"),
    ("train.num_steps", "use the sweep's `num_steps` and `[halving]`"),
    ("train.eval_every_steps", "use the sweep's `evaluations`"),
    ("train.eval.max_tokens", "a sweep evaluates on the whole validation split"),
    ("train.checkpoints", "use the sweep's `keep_checkpoints`"),
];

/// A sweep, as written. The candidates of `grid`, `list` and `random` are joined.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SweepFile {
    /// Name of the sweep. Letters, digits, `-`, `_` and `.`.
    pub(crate) name: String,
    /// The recipe that all candidates start from, relative to the sweep file.
    pub(crate) base: PathBuf,
    /// Changes to the recipe that all candidates have, `key=value` as for `--set`.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    /// Seeds of initial values and data order; a candidate is judged by its mean over them.
    pub(crate) seeds: Vec<u64>,
    /// Optimizer steps at full length. The recipe's warm-up and decay steps are those of this
    /// length.
    pub(crate) num_steps: u64,
    /// Evaluations of a run, evenly spaced; default 10.
    #[serde(default = "default_evaluations")]
    pub(crate) evaluations: u64,
    /// Keep the last checkpoint of each run; default false, since any run can be repeated bit for
    /// bit.
    #[serde(default)]
    pub(crate) keep_checkpoints: bool,
    /// Values of keys, each with each. A key is quoted:
    /// `"train.adamw.learning_rate" = [0.001, 0.003]`.
    #[serde(default)]
    pub(crate) grid: BTreeMap<String, Vec<Value>>,
    /// Candidates written out.
    #[serde(default)]
    pub(crate) list: Vec<ListEntry>,
    /// Candidates drawn at random.
    pub(crate) random: Option<RandomConfig>,
    /// Early stopping; absent trains every candidate at full length.
    pub(crate) halving: Option<HalvingConfig>,
}

/// One of `[[list]]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListEntry {
    /// Name in the result; absent shows the changes alone.
    pub(crate) label: Option<String>,
    /// Changes to the recipe, `key=value` as for `--set`; none is the recipe itself.
    #[serde(default)]
    pub(crate) set: Vec<String>,
}

/// `[random]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RandomConfig {
    /// Candidates to draw.
    pub(crate) count: usize,
    /// Seed of the draws; it has nothing to do with the runs' seeds.
    pub(crate) seed: u64,
    /// What is drawn, by key.
    pub(crate) keys: BTreeMap<String, Distribution>,
}

/// `[random.keys."key"]`: exactly one of these.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Distribution {
    /// Uniform in the logarithm, from the first to the second.
    LogUniform([f64; 2]),
    /// Uniform, from the first to the second.
    Uniform([f64; 2]),
    /// A whole number from the first to the second, both included.
    Integer([i64; 2]),
    /// One of these, all equally likely.
    Choice(Vec<Value>),
}

/// `[halving]`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct HalvingConfig {
    /// After a rung one of this many candidates goes on, to a run this many times as long;
    /// default 3.
    #[serde(default = "default_factor")]
    pub(crate) factor: usize,
    /// Optimizer steps of the first rung.
    pub(crate) first_steps: u64,
}

fn default_evaluations() -> u64 {
    10
}

fn default_factor() -> usize {
    3
}

/// A sweep and the place it was read from.
#[derive(Debug, Clone)]
pub(crate) struct LoadedSweep {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its bytes.
    pub(crate) text: String,
    /// What it says.
    pub(crate) sweep: SweepFile,
    /// The base recipe's path, as reachable from here.
    pub(crate) base: PathBuf,
}

impl LoadedSweep {
    /// The sweep in the file at `path`.
    ///
    /// # Errors
    /// The file, the key, the value and what is allowed.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let (text, sweep) = read_toml::<SweepFile>(path, "sweep")?;
        sweep.check().map_err(|error| Failure::Mistake(format!("{}: {error}", path.display())))?;
        let base = path.parent().unwrap_or(Path::new("")).join(&sweep.base);
        Ok(Self { path: path.into(), text, sweep, base })
    }

    /// The sweep as the study that runs would be part of: a run of a sweep is configured as one of
    /// a study is.
    pub(crate) fn to_study(&self) -> LoadedStudy {
        let SweepFile { name, base, set, seeds, num_steps, evaluations, keep_checkpoints, .. } =
            self.sweep.clone();
        let budget = BudgetConfig { num_steps: vec![num_steps], warmup_fraction: None, evaluations };
        let study = StudyFile {
            name,
            base,
            set,
            held_equal: HeldEqual::Tokens,
            budget,
            seeds,
            learning_rates: Vec::new(),
            pilot: PilotConfig::default(),
            question: QuestionConfig::default(),
            price_per_device_hour: None,
            noise_repeats: 0,
            crossed_seeds: 0,
            new_corpus_per_seed: false,
            width_multiple: 1,
            keep_checkpoints,
            arms: Vec::new(),
        };
        LoadedStudy {
            path: self.path.clone(),
            text: self.text.clone(),
            study,
            base: self.base.clone(),
            questions: None,
        }
    }
}

impl SweepFile {
    /// Candidates as written, before those that are the same are joined.
    pub(crate) fn num_written(&self) -> usize {
        let product =
            self.grid.values().fold(1_usize, |product, values| product.saturating_mul(values.len()));
        let grid = if self.grid.is_empty() { 0 } else { product };
        let random = self.random.as_ref().map_or(0, |random| random.count);
        grid.saturating_add(self.list.len()).saturating_add(random)
    }

    /// The first rule that is broken.
    fn check(&self) -> Result<(), KeyError> {
        check_name("name", &self.name)?;
        check_distinct("seeds", &self.seeds)?;
        at_least_one("num_steps", self.num_steps)?;
        at_least_one("evaluations", self.evaluations)?;
        self.set.iter().try_for_each(|text| check_override("set", text))?;
        self.check_grid()?;
        self.check_list()?;
        self.random.as_ref().map_or(Ok(()), RandomConfig::check)?;
        self.check_halving()?;
        match self.num_written() {
            0 => Err(KeyError::new("", "there is no candidate", "give `[grid]`, `[[list]]` or `[random]`")),
            many if many > MAX_CANDIDATES => {
                let problem = format!("there are {many} candidates");
                Err(KeyError::new("", problem, format!("use at most {MAX_CANDIDATES}")))
            }
            _ => Ok(()),
        }
    }

    fn check_grid(&self) -> Result<(), KeyError> {
        for (key, values) in &self.grid {
            check_key("grid", key)?;
            if values.is_empty() {
                return Err(KeyError::new(format!("grid.\"{key}\""), "is empty", "give at least one value"));
            }
        }
        Ok(())
    }

    fn check_list(&self) -> Result<(), KeyError> {
        for (index, entry) in self.list.iter().enumerate() {
            let place = format!("list[{index}]");
            entry.label.as_ref().map_or(Ok(()), |label| check_name(&format!("{place}.label"), label))?;
            entry.set.iter().try_for_each(|text| check_override(&format!("{place}.set"), text))?;
            if entry.label.is_some() && self.list[..index].iter().any(|earlier| earlier.label == entry.label)
            {
                return Err(KeyError::new(
                    format!("{place}.label"),
                    "is that of an earlier entry",
                    "give each a label of its own",
                ));
            }
        }
        Ok(())
    }

    fn check_halving(&self) -> Result<(), KeyError> {
        let Some(HalvingConfig { factor, first_steps }) = self.halving else { return Ok(()) };
        if factor < 2 {
            return Err(KeyError::new("halving.factor", format!("is {factor}"), "use at least 2"));
        }
        if !(1..=self.num_steps).contains(&first_steps) {
            return Err(KeyError::new(
                "halving.first_steps",
                format!("is {first_steps}, but `num_steps` is {}", self.num_steps),
                "use 1 to that",
            ));
        }
        Ok(())
    }
}

impl RandomConfig {
    fn check(&self) -> Result<(), KeyError> {
        at_least_one("random.count", self.count as u64)?;
        if self.keys.is_empty() {
            return Err(KeyError::new(
                "random.keys",
                "is empty",
                "name at least one key, as in `[random.keys.\"train.adamw.beta_2\"]`",
            ));
        }
        for (key, distribution) in &self.keys {
            check_key("random.keys", key)?;
            distribution.check().map_err(|error| error.under(&format!("random.keys.\"{key}\"")))?;
        }
        Ok(())
    }
}

impl Distribution {
    fn check(&self) -> Result<(), KeyError> {
        let is_range = |[low, high]: [f64; 2]| low.is_finite() && high.is_finite() && low < high;
        match self {
            Self::LogUniform(range @ [low, high]) if !is_range(*range) || *low <= 0.0 => {
                unordered("log_uniform", low, high, "use two numbers above 0, the smaller first")
            }
            Self::Uniform(range @ [low, high]) if !is_range(*range) => {
                unordered("uniform", low, high, "use two numbers, the smaller first")
            }
            Self::Integer([low, high]) if low >= high => {
                unordered("integer", low, high, "use two whole numbers, the smaller first")
            }
            Self::Choice(values) if values.is_empty() => {
                Err(KeyError::new("choice", "is empty", "give at least one value"))
            }
            _ => Ok(()),
        }
    }
}

fn unordered(key: &str, low: impl Display, high: impl Display, remedy: &str) -> Result<(), KeyError> {
    Err(KeyError::new(key, format!("is [{low}, {high}]"), remedy))
}

fn at_least_one(key: &str, value: u64) -> Result<(), KeyError> {
    if value == 0 { Err(KeyError::new(key, "is 0", "use at least 1")) } else { Ok(()) }
}

fn not_a_change(place: &str, error: ConfigError) -> KeyError {
    KeyError::new(place, "cannot be applied", error.to_string())
}

fn check_override(place: &str, text: &str) -> Result<(), KeyError> {
    let parsed = Override::parse(text).map_err(|error| not_a_change(place, error))?;
    check_key(place, parsed.key())
}

/// Whether `key` is a path of words that the sweep does not decide itself; the recipe knows whether
/// there is such a key.
fn check_key(place: &str, key: &str) -> Result<(), KeyError> {
    Override::parse(&format!("{key}=0")).map_err(|error| not_a_change(place, error))?;
    let is_own = |own: &str| key == own || key.strip_prefix(own).is_some_and(|rest| rest.starts_with('.'));
    match OWN_KEYS.iter().find(|(own, _)| is_own(own)) {
        Some((_, instead)) => {
            Err(KeyError::new(place, format!("has `{key}`, which a sweep sets itself"), *instead))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SWEEP: &str = r#"
name = "rates"
base = "tiny.toml"
seeds = [0, 1]
num_steps = 200
[grid]
"train.adamw.learning_rate" = [0.001, 0.01]
"model.num_layers" = [1, 2, 3]
[[list]]
label = "recipe"
[random]
count = 5
seed = 7
[random.keys."train.adamw.learning_rate"]
log_uniform = [1e-4, 1e-1]
[halving]
first_steps = 20
"#;

    fn check(text: &str) -> Result<SweepFile, String> {
        let sweep: SweepFile = toml::from_str(text).map_err(|error| error.message().to_string())?;
        sweep.check().map(|()| sweep).map_err(|error| error.to_string())
    }

    fn mistake(from: &str, to: &str) -> String {
        assert!(SWEEP.contains(from), "{from}");
        check(&SWEEP.replace(from, to)).unwrap_err()
    }

    #[test]
    fn what_is_not_written_has_its_documented_default() {
        let sweep = check(SWEEP).unwrap();
        assert_eq!((sweep.evaluations, sweep.keep_checkpoints), (10, false));
        assert_eq!(sweep.halving.unwrap().factor, 3);
    }

    #[test]
    fn grid_list_and_random_are_counted_together() {
        assert_eq!(check(SWEEP).unwrap().num_written(), 2 * 3 + 1 + 5);
    }

    #[test]
    fn a_broken_rule_is_named_with_its_key_and_its_value() {
        assert_eq!(mistake("num_steps = 200", "num_steps = 0"), "`num_steps` is 0: use at least 1");
        assert_eq!(mistake("[0, 1]", "[1, 1]"), "`seeds` has 1 twice: give each once");
        assert_eq!(
            mistake("[1, 2, 3]", "[]"),
            "`grid.\"model.num_layers\"` is empty: give at least one value"
        );
        assert_eq!(
            mistake("[1e-4, 1e-1]", "[0, 1]"),
            "`random.keys.\"train.adamw.learning_rate\".log_uniform` is [0, 1]: use two numbers above 0, the smaller first"
        );
        assert_eq!(
            mistake("first_steps = 20", "first_steps = 201"),
            "`halving.first_steps` is 201, but `num_steps` is 200: use 1 to that"
        );
        assert_eq!(
            mistake("first_steps = 20", "first_steps = 20\nfactor = 1"),
            "`halving.factor` is 1: use at least 2"
        );
    }

    #[test]
    fn a_key_that_the_sweep_decides_is_refused_and_its_place_named() {
        assert_eq!(
            mistake("\"model.num_layers\"", "\"seed\""),
            "`grid` has `seed`, which a sweep sets itself: use the sweep's `seeds`"
        );
        assert_eq!(
            mistake("label = \"recipe\"", "set = [\"train.num_steps=5\"]"),
            "`list[0].set` has `train.num_steps`, which a sweep sets itself: use the sweep's `num_steps` and `[halving]`"
        );
        assert!(check(&SWEEP.replace("\"model.num_layers\"", "\"train.seq_len\"")).is_ok());
    }

    #[test]
    fn two_distributions_of_one_key_are_refused() {
        let both = SWEEP.replace("log_uniform = [1e-4, 1e-1]", "log_uniform = [1e-4, 1e-1]\nchoice = [1]");
        assert!(check(&both).is_err());
        assert!(mistake("log_uniform", "normal").contains("unknown variant `normal`"));
    }

    #[test]
    fn a_sweep_without_candidates_is_refused() {
        let bare = "name = \"a\"\nbase = \"b.toml\"\nseeds = [0]\nnum_steps = 5\n";
        assert!(check(bare).unwrap_err().starts_with("there is no candidate"));
    }
}

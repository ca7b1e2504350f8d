//! The study file: what the user wrote.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use switchyard_ground::key_error::KeyError;
use switchyard_ground::regular_file;

use super::metric::Metric;
use super::questions::Questions;
use super::result::{Axis, HeldEqual, Question};
use crate::failure::Failure;

/// Bytes of a file that a person wrote.
const MAX_STUDY_BYTES: u64 = 16 << 20;

/// A study, as written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StudyFile {
    /// Name of the study. Letters, digits, `-`, `_` and `.`.
    pub(crate) name: String,
    /// The recipe that all arms start from, relative to the study file.
    pub(crate) base: PathBuf,
    /// Changes to the recipe that all arms have, `key=value` as for `--set`.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    /// What the arms have in common besides the training tokens.
    pub(crate) held_equal: HeldEqual,
    /// How long the runs are.
    pub(crate) budget: BudgetConfig,
    /// Seeds of initial values and data order; each arm runs with all of them, so that differences
    /// are paired.
    pub(crate) seeds: Vec<u64>,
    /// Peak learning rates to choose from, for each arm apart; absent takes the recipe's.
    #[serde(default)]
    pub(crate) learning_rates: Vec<f64>,
    /// How the learning rate is chosen.
    #[serde(default)]
    pub(crate) pilot: PilotConfig,
    /// What decides.
    #[serde(default)]
    pub(crate) question: QuestionConfig,
    /// Runs of each arm that repeat the first seed at the largest budget from initial values that
    /// differ in their last bits; default 0. They show how much of a difference the last bits
    /// decide.
    #[serde(default)]
    pub(crate) noise_repeats: u64,
    /// The first so many seeds are crossed at the largest budget: each arm also runs with the initial
    /// values of each and the data order of every other; default 0. They show how much of a
    /// difference the initial values decide, and how much the order of the data.
    #[serde(default)]
    pub(crate) crossed_seeds: u64,
    /// Synthetic data: every seed has a corpus of its own, so that the interval speaks of such
    /// corpora and not of one; default false.
    #[serde(default)]
    pub(crate) new_corpus_per_seed: bool,
    /// Price of an hour of the device, in any currency; absent leaves the cost out.
    pub(crate) price_per_device_hour: Option<f64>,
    /// Solved widths are multiples of this; default 8.
    #[serde(default = "default_width_multiple")]
    pub(crate) width_multiple: usize,
    /// Keep the last checkpoint of each run; default false, since any run can be repeated bit for
    /// bit.
    #[serde(default)]
    pub(crate) keep_checkpoints: bool,
    /// The arms, the baseline first.
    pub(crate) arms: Vec<ArmConfig>,
}

/// `[budget]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BudgetConfig {
    /// Optimizer steps of a run, one budget or several; the gauge needs four.
    pub(crate) num_steps: Vec<u64>,
    /// Warm-up as a share of the steps; absent keeps the recipe's number of steps.
    pub(crate) warmup_fraction: Option<f64>,
    /// Evaluations of a run, evenly spaced; default 20. They are the points of the loss curves.
    #[serde(default = "default_evaluations")]
    pub(crate) evaluations: u64,
}

/// `[pilot]`: short runs that choose the learning rate of each arm.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PilotConfig {
    /// Seed of the pilot runs; default 1000003, or the next number that is none of `seeds`, so that
    /// no run is judged on a seed that it was chosen by, and more seeds choose nothing anew.
    pub(crate) seed: Option<u64>,
    /// Steps of the pilot runs; default the smallest budget.
    pub(crate) num_steps: Option<u64>,
}

/// `[question]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct QuestionConfig {
    /// Axis of the verdict; default active FLOPs.
    pub(crate) axis: Axis,
    /// What the arms are judged by; default nats per token.
    pub(crate) metric: Metric,
    /// Differences up to this many of the metric's units do not matter; default 0.
    pub(crate) margin: Option<f64>,
    /// The same where the metric is nats.
    pub(crate) margin_nats: Option<f64>,
    /// JSON lines file of the questions of a metric of questions, relative to the study file.
    pub(crate) choices: Option<PathBuf>,
    /// What stands between a question's context and a choice; default a space.
    pub(crate) delimiter: String,
    /// Confidence level of the intervals; default 0.95.
    pub(crate) confidence: f64,
}

/// One of `[[arms]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArmConfig {
    /// Name of the arm. Letters, digits, `-`, `_` and `.`.
    pub(crate) label: String,
    /// Changes to the recipe, `key=value` as for `--set`.
    #[serde(default)]
    pub(crate) set: Vec<String>,
    /// Key whose value is solved for; default the width of the experts, or of the dense block. A
    /// key that `set` names is left as it is.
    pub(crate) solve: Option<String>,
    /// Learning rates of this arm in place of the study's.
    pub(crate) learning_rates: Option<Vec<f64>>,
    /// The rate of another arm in place of a choice of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) learning_rate: Option<TransferConfig>,
}

/// `learning_rate = { transfer_from = "LABEL" }` of an arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(
    deny_unknown_fields,
    expecting = "{ transfer_from = \"LABEL\" } (rates of an arm's own are `learning_rates = [...]`)"
)]
pub(crate) struct TransferConfig {
    /// The arm whose rate is taken, as its pilots choose it. This arm's `model.parametrisation` has the
    /// shape of that arm as its base, or the same base.
    pub(crate) transfer_from: String,
}

impl Default for QuestionConfig {
    fn default() -> Self {
        Self {
            axis: Axis::ActiveFlops,
            metric: Metric::Nats,
            margin: None,
            margin_nats: None,
            choices: None,
            delimiter: " ".into(),
            confidence: 0.95,
        }
    }
}

impl QuestionConfig {
    /// Differences up to this many of the metric's units do not matter.
    fn margin(&self) -> f64 {
        self.margin.or(self.margin_nats).unwrap_or(0.0)
    }

    /// The first rule that is broken.
    fn check(&self) -> Result<(), KeyError> {
        in_range("question.margin", self.margin.unwrap_or(0.0), 0.0..=f64::MAX)?;
        in_range("question.margin_nats", self.margin_nats.unwrap_or(0.0), 0.0..=f64::MAX)?;
        in_range("question.confidence", self.confidence, 0.5..=0.9999)?;
        if let Some(nats) = self.margin_nats.filter(|_| self.metric != Metric::Nats || self.margin.is_some())
        {
            let problem = format!("is {nats}, and so a margin of nats");
            return Err(KeyError::new(
                "question.margin_nats",
                problem,
                "give `question.margin` alone, in the metric's unit",
            ));
        }
        if self.metric.is_of_questions() && self.margin() >= 1.0 {
            let problem = format!("is {}, and no two shares differ by more than 1", self.margin());
            return Err(KeyError::new("question.margin", problem, "use a number below 1"));
        }
        if self.choices.is_none() && self.delimiter != QuestionConfig::default().delimiter {
            let problem = format!("is {:?}, but there are no `question.choices`", self.delimiter);
            return Err(KeyError::new("question.delimiter", problem, "leave it out"));
        }
        match &self.choices {
            None if self.metric.is_of_questions() => Err(KeyError::new(
                "question.choices",
                "is not given, and `question.metric` is of questions",
                "name their JSON lines file",
            )),
            Some(path) if !self.metric.is_of_questions() => Err(KeyError::new(
                "question.choices",
                format!("is {}, and `question.metric` is of text", path.display()),
                "judge by \"acc\" or \"acc_norm\", or leave it out",
            )),
            _ => Ok(()),
        }
    }
}

fn default_width_multiple() -> usize {
    8
}

fn default_evaluations() -> u64 {
    20
}

/// A study and the place it was read from.
#[derive(Debug, Clone)]
pub(crate) struct LoadedStudy {
    /// The file.
    pub(crate) path: PathBuf,
    /// Its bytes.
    pub(crate) text: String,
    /// What it says.
    pub(crate) study: StudyFile,
    /// The base recipe's path, as reachable from here.
    pub(crate) base: PathBuf,
    /// The questions of a metric of questions.
    pub(crate) questions: Option<Questions>,
}

/// Whether the file at `path` is a study rather than a recipe: it has arms.
///
/// # Errors
/// If it is there and cannot be read.
pub(crate) fn is_study(path: &Path) -> Result<bool, Failure> {
    let text = match regular_file::read_to_string(path, MAX_STUDY_BYTES) {
        Ok(text) => text,
        Err(error) if is_no_text(&error) => return Ok(false),
        Err(error) => {
            return Err(Failure::Fault(anyhow::anyhow!("cannot read {}: {error}", path.display())));
        }
    };
    Ok(text.parse::<toml::Table>().is_ok_and(|table| table.contains_key("arms")))
}

/// Whether `error` says what lies at a path, rather than that it cannot be looked at now.
fn is_no_text(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, InvalidData, InvalidInput, IsADirectory, NotADirectory, NotFound};
    matches!(
        error.kind(),
        FileTooLarge | InvalidData | InvalidInput | IsADirectory | NotADirectory | NotFound
    )
}

/// The text of the TOML file at `path`, a `what`, and what it says.
///
/// # Errors
/// The file, the line and the mistake.
pub(crate) fn read_toml<T: DeserializeOwned>(path: &Path, what: &str) -> Result<(String, T), Failure> {
    let text = regular_file::read_to_string(path, MAX_STUDY_BYTES).map_err(|error| {
        Failure::Mistake(format!("cannot read the {what} `{}`: {error}; name a TOML file", path.display()))
    })?;
    let mistake = |key: &str, error: &toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        let message = error.message().trim().replace('\n', ", ");
        // serde names keys that are unknown or missing, but not those whose value is wrong.
        let is_named = key == "." || message.contains("field `");
        let key = if is_named { String::new() } else { format!("`{key}`: ") };
        Failure::Mistake(format!("{}:{line}: {key}{message}", path.display()))
    };
    let value = toml::Deserializer::parse(&text).map_err(|error| mistake(".", &error)).and_then(|file| {
        serde_path_to_error::deserialize(file)
            .map_err(|error| mistake(&error.path().to_string(), error.inner()))
    })?;
    Ok((text, value))
}

impl LoadedStudy {
    /// The study in the file at `path`.
    ///
    /// # Errors
    /// The file, the key, the value and what is allowed.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let (text, study) = read_toml::<StudyFile>(path, "study")?;
        study.check().map_err(|error| Failure::Mistake(format!("{}: {error}", path.display())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let base = folder.join(&study.base);
        let QuestionConfig { choices, delimiter, .. } = &study.question;
        let read = |choices: &PathBuf| {
            Questions::read(&folder.join(choices), delimiter).map_err(|error| {
                Failure::Mistake(format!(
                    "{}: `question.choices`, relative to this file: {error}",
                    path.display()
                ))
            })
        };
        let questions = choices.as_ref().map(read).transpose()?;
        Ok(Self { path: path.into(), text, study, base, questions })
    }

    /// What the study asks.
    pub(crate) fn question(&self) -> Question {
        let config = &self.study.question;
        Question {
            axis: config.axis,
            metric: config.metric,
            margin: config.margin(),
            confidence: config.confidence,
            questions: self.questions.as_ref().map(|questions| questions.identity().clone()),
        }
    }
}

/// Seed of the pilots unless the study names one: far from those that people give.
const PILOT_SEED: u64 = 1_000_003;
/// Repeats beyond these would change more than last bits.
const MOST_NOISE_REPEATS: u64 = 64;

impl StudyFile {
    /// Seed of the pilot runs.
    pub(crate) fn pilot_seed(&self) -> u64 {
        let is_free = |seed: &u64| !self.seeds.contains(seed);
        self.pilot.seed.unwrap_or_else(|| (PILOT_SEED..).find(is_free).unwrap_or(PILOT_SEED))
    }

    /// Steps of the pilot runs.
    pub(crate) fn pilot_steps(&self) -> u64 {
        let smallest = || self.budget.num_steps.iter().min().copied().unwrap_or(1);
        self.pilot.num_steps.unwrap_or_else(smallest)
    }

    /// The first rule that is broken.
    fn check(&self) -> Result<(), KeyError> {
        check_name("name", &self.name)?;
        self.check_arms()?;
        check_distinct("seeds", &self.seeds)?;
        check_distinct("budget.num_steps", &self.budget.num_steps)?;
        if self.budget.num_steps.contains(&0) || self.pilot.num_steps == Some(0) {
            let key = if self.budget.num_steps.contains(&0) { "budget.num_steps" } else { "pilot.num_steps" };
            return Err(KeyError::new(key, "has 0 steps", "use at least 1"));
        }
        if self.budget.evaluations == 0 {
            return Err(KeyError::new("budget.evaluations", "is 0", "use at least 1"));
        }
        in_range("budget.warmup_fraction", self.budget.warmup_fraction.unwrap_or(0.0), 0.0..=1.0)?;
        self.question.check()?;
        in_range("price_per_device_hour", self.price_per_device_hour.unwrap_or(0.0), 0.0..=f64::MAX)?;
        if self.noise_repeats > MOST_NOISE_REPEATS {
            let remedy = format!("use at most {MOST_NOISE_REPEATS}");
            return Err(KeyError::new("noise_repeats", format!("is {}", self.noise_repeats), remedy));
        }
        if self.crossed_seeds == 1 || self.crossed_seeds > self.seeds.len() as u64 {
            let problem = format!("is {}, and `seeds` has {}", self.crossed_seeds, self.seeds.len());
            return Err(KeyError::new("crossed_seeds", problem, "use 0, or 2 up to as many as there are"));
        }
        if self.width_multiple == 0 {
            return Err(KeyError::new("width_multiple", "is 0", "use at least 1"));
        }
        if let Some(seed) = self.pilot.seed.filter(|seed| self.seeds.contains(seed)) {
            return Err(KeyError::new(
                "pilot.seed",
                format!("is {seed}, which is one of `seeds`"),
                "give another: a run would be judged on the seed that its learning rate was chosen by",
            ));
        }
        check_learning_rates("learning_rates", &self.learning_rates)
    }

    fn check_arms(&self) -> Result<(), KeyError> {
        if self.arms.len() < 2 {
            let problem = format!("has {}", self.arms.len());
            return Err(KeyError::new("arms", problem, "give the baseline and at least one more"));
        }
        for (index, arm) in self.arms.iter().enumerate() {
            check_name(&format!("arms[{index}].label"), &arm.label)?;
            check_learning_rates(
                &format!("arms[{index}].learning_rates"),
                arm.learning_rates.as_deref().unwrap_or(&[]),
            )?;
            self.check_transfer(index, arm)?;
            if self.arms[..index].iter().any(|earlier| earlier.label == arm.label) {
                let problem = format!("is `{}`, as an earlier arm's", arm.label);
                let key = format!("arms[{index}].label");
                return Err(KeyError::new(key, problem, "give each a label of its own"));
            }
        }
        Ok(())
    }
}

impl StudyFile {
    /// Ok if the arm whose rate this one takes is there, and chooses one.
    fn check_transfer(&self, index: usize, arm: &ArmConfig) -> Result<(), KeyError> {
        let Some(TransferConfig { transfer_from: label }) = &arm.learning_rate else { return Ok(()) };
        let key = format!("arms[{index}].learning_rate.transfer_from");
        if arm.learning_rates.is_some() {
            let problem = format!("is `{label}`, beside `learning_rates` to choose from");
            return Err(KeyError::new(key, problem, "keep one of them"));
        }
        let rate_key = "train.adamw.learning_rate";
        if arm.set.iter().any(|text| text.split('=').next().map(str::trim) == Some(rate_key)) {
            let problem = format!("is `{label}`, beside `{rate_key}` in the arm's `set`");
            return Err(KeyError::new(key, problem, "keep one of them"));
        }
        let (problem, remedy) = match self.arms.iter().find(|other| other.label == *label) {
            None => ("which is no arm", "name one of the arms"),
            Some(other) if other.learning_rate.is_some() => {
                ("which has none of its own either", "name the arm that chooses")
            }
            Some(_) => return Ok(()),
        };
        Err(KeyError::new(key, format!("is `{label}`, {problem}"), remedy))
    }
}

/// Names become names of folders.
pub(crate) fn check_name(key: &str, name: &str) -> Result<(), KeyError> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.starts_with('.') || name.len() > 64 || !name.chars().all(is_allowed) {
        return Err(KeyError::new(
            key,
            format!("is \"{name}\""),
            "use at most 64 letters, digits, `-`, `_` and `.`, not beginning with `.`",
        ));
    }
    Ok(())
}

pub(crate) fn check_distinct(key: &str, values: &[u64]) -> Result<(), KeyError> {
    if values.is_empty() {
        return Err(KeyError::new(key, "is empty", "give at least one"));
    }
    let twice = values.iter().enumerate().find(|(index, value)| values[..*index].contains(value));
    twice.map_or(Ok(()), |(_, value)| Err(KeyError::new(key, format!("has {value} twice"), "give each once")))
}

fn check_learning_rates(key: &str, values: &[f64]) -> Result<(), KeyError> {
    let bad = values.iter().find(|value| !(value.is_finite() && **value > 0.0));
    bad.map_or(Ok(()), |value| Err(KeyError::new(key, format!("has {value}"), "use numbers above 0")))
}

fn in_range(key: &str, value: f64, range: std::ops::RangeInclusive<f64>) -> Result<(), KeyError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let allowed = if *high == f64::MAX { format!("at least {low}") } else { format!("{low} to {high}") };
    Err(KeyError::new(key, format!("is {value}"), format!("use {allowed}")))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    pub(crate) const STUDY: &str = r#"
name = "quick"
base = "quickstart.toml"
held_equal = "active_flops"
seeds = [0, 1, 2]
[budget]
num_steps = [60]
[[arms]]
label = "dense"
set = ["model.ffn.moe=", "model.ffn.d_ff=384"]
[[arms]]
label = "e8k2"
"#;

    fn parse(text: &str) -> Result<StudyFile, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("study.toml");
        fs::write(&path, text).unwrap();
        let message = |failure: Failure| {
            failure.message().unwrap().replace(&format!("error: {}", path.display()), "study.toml")
        };
        LoadedStudy::read(&path).map(|loaded| loaded.study).map_err(message)
    }

    #[test]
    fn what_is_not_written_has_its_documented_default() {
        let study = parse(STUDY).unwrap();
        assert_eq!((study.pilot_seed(), study.pilot_steps(), study.budget.evaluations), (PILOT_SEED, 60, 20));
        assert_eq!((study.question.axis, study.question.confidence), (Axis::ActiveFlops, 0.95));
        assert_eq!((study.width_multiple, study.keep_checkpoints), (8, false));
    }

    #[test]
    fn a_mistake_is_named_with_its_line_or_its_key() {
        let changed = |from: &str, to: &str| parse(&STUDY.replace(from, to)).unwrap_err();
        assert_eq!(
            changed("held_equal = \"active_flops\"", "held_equal = \"luck\""),
            "study.toml:4: `held_equal`: unknown variant `luck`, expected one of `active_flops`, `total_params`, `memory`, `wall_clock`, \
             `tokens`"
        );
        assert!(
            changed("seeds =", "seed =").starts_with("study.toml:5: unknown field `seed`, expected one of")
        );
        assert_eq!(changed("[0, 1, 2]", "[0, 1, 0]"), "study.toml: `seeds` has 0 twice: give each once");
        assert_eq!(
            changed("\"e8k2\"", "\"dense\""),
            "study.toml: `arms[1].label` is `dense`, as an earlier arm's: give each a label of its own"
        );
        assert_eq!(
            changed("\"e8k2\"", "\"../e8k2\""),
            "study.toml: `arms[1].label` is \"../e8k2\": use at most 64 letters, digits, `-`, `_` and `.`, not beginning \
             with `.`"
        );
        assert_eq!(
            changed("num_steps = [60]", "num_steps = [60]\nevaluations = 0"),
            "study.toml: `budget.evaluations` is 0: use at least 1"
        );
        assert_eq!(
            changed("[budget]", "[question]\nconfidence = 95.0\n[budget]"),
            "study.toml: `question.confidence` is 95: use 0.5 to 0.9999"
        );
    }

    #[test]
    fn a_recipe_is_not_taken_for_a_study() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("recipe.toml");
        fs::write(&path, "name = \"a\"\n[model]\n").unwrap();
        assert!(!is_study(&path).unwrap() && !is_study(&folder.path().join("missing.toml")).unwrap());
        fs::write(&path, STUDY).unwrap();
        assert!(is_study(&path).unwrap());
    }
}

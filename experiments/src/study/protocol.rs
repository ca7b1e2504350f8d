//! All that decides what a result of a study means.

use serde::{Deserialize, Serialize};

use super::arms::Arm;
use super::file::LoadedStudy;
use super::identity::placeless_hash;
use super::result::{HeldEqual, Question};

/// All that decides what a result means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Protocol {
    /// What is asked.
    pub(crate) question: Question,
    /// What the arms have in common.
    pub(crate) held_equal: HeldEqual,
    /// Steps of the budgets.
    pub(crate) num_steps: Vec<u64>,
    /// Seeds.
    pub(crate) seeds: Vec<u64>,
    /// The arms, the baseline first.
    pub(crate) arms: Vec<ProtocolArm>,
    /// How it is asked; `None` in protocols of earlier versions, which leave it open.
    #[serde(default)]
    pub(crate) procedure: Option<Procedure>,
}

/// How a study is done beside its question.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Procedure {
    /// Evaluations of a run.
    pub(crate) evaluations: u64,
    /// Warm-up as a share of the steps.
    pub(crate) warmup_fraction: Option<f64>,
    /// Seed of the pilots.
    pub(crate) pilot_seed: u64,
    /// Steps of the pilots.
    pub(crate) pilot_steps: u64,
    /// Repeats for the last bits.
    pub(crate) noise_repeats: u64,
    /// Seeds that are crossed.
    pub(crate) crossed_seeds: u64,
    /// Whether every seed has a corpus of its own.
    pub(crate) new_corpus_per_seed: bool,
}

/// An arm of a protocol.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProtocolArm {
    /// Name.
    pub(crate) label: String,
    /// What it changes in the recipe, solved keys included.
    pub(crate) overrides: Vec<String>,
    /// Learning rates to choose from.
    pub(crate) learning_rates: Vec<f64>,
    /// The arm whose choice of a rate is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transfers_from: Option<String>,
    /// SHA-256 of its whole recipe, without the places of the data; `None` in protocols of earlier
    /// versions.
    #[serde(default)]
    pub(crate) recipe_sha256: Option<String>,
}

impl ProtocolArm {
    /// In what it differs from `before`, in words; nothing if it does not.
    fn change_since(&self, before: &Self) -> Option<&'static str> {
        if self.overrides != before.overrides
            || self.learning_rates != before.learning_rates
            || self.transfers_from != before.transfers_from
        {
            return Some("changed");
        }
        let recipes = self.recipe_sha256.as_ref().zip(before.recipe_sha256.as_ref());
        recipes.is_some_and(|(now, before)| now != before).then_some("its base recipe was changed")
    }
}

impl Protocol {
    /// That of `loaded`, whose arms are solved.
    pub(crate) fn of(loaded: &LoadedStudy, arms: &[Arm]) -> Self {
        let study = &loaded.study;
        Self {
            question: loaded.question(),
            held_equal: study.held_equal,
            num_steps: study.budget.num_steps.clone(),
            seeds: study.seeds.clone(),
            arms: arms
                .iter()
                .map(|arm| ProtocolArm {
                    label: arm.label.clone(),
                    overrides: arm.overrides.clone(),
                    learning_rates: arm.learning_rates.clone(),
                    transfers_from: arm.transfers_from.map(|source| arms[source].label.clone()),
                    recipe_sha256: Some(placeless_hash(&arm.config)),
                })
                .collect(),
            procedure: Some(Procedure {
                evaluations: study.budget.evaluations,
                warmup_fraction: study.budget.warmup_fraction,
                pilot_seed: study.pilot_seed(),
                pilot_steps: study.pilot_steps(),
                noise_repeats: study.noise_repeats,
                crossed_seeds: study.crossed_seeds,
                new_corpus_per_seed: study.new_corpus_per_seed,
            }),
        }
    }

    /// What is different here from `before`, in words.
    pub(super) fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let mut note = |what: &str, differs: bool, before: String, now: String| {
            if differs {
                changes.push(format!("{what}: {before} before, {now} now"));
            }
        };
        let question = |question: &Question| {
            let Question { axis, metric, margin, confidence, questions } = question;
            let questions = questions.as_ref().map_or(String::new(), |questions| {
                let (count, delimiter) = (questions.num_questions, &questions.delimiter);
                format!(", {count} questions {}, delimiter {delimiter:?}", &questions.sha256[..12])
            });
            format!("{axis:?}, {metric:?}, margin {margin}, confidence {confidence}{questions}")
        };
        note(
            "question",
            self.question != before.question,
            question(&before.question),
            question(&self.question),
        );
        let differs = self.held_equal != before.held_equal;
        note("held equal", differs, format!("{:?}", before.held_equal), format!("{:?}", self.held_equal));
        let differs = self.num_steps != before.num_steps;
        note("budgets", differs, format!("{:?}", before.num_steps), format!("{:?}", self.num_steps));
        let differs = self.seeds != before.seeds;
        note("seeds", differs, format!("{:?}", before.seeds), format!("{:?}", self.seeds));
        for arm in &self.arms {
            match before.arms.iter().find(|other| other.label == arm.label) {
                None => changes.push(format!("arm `{}`: new", arm.label)),
                Some(other) => {
                    let change = arm.change_since(other);
                    changes.extend(change.map(|change| format!("arm `{}`: {change}", arm.label)));
                }
            }
        }
        let is_gone = |other: &&ProtocolArm| !self.arms.iter().any(|arm| arm.label == other.label);
        changes.extend(before.arms.iter().filter(is_gone).map(|arm| format!("arm `{}`: gone", arm.label)));
        let procedures = self.procedure.as_ref().zip(before.procedure.as_ref());
        changes.extend(procedures.into_iter().flat_map(|(now, before)| now.changes_since(before)));
        changes
    }

    /// Whether `later` is judged by some of the same runs, and by others: seeds were added, dropped
    /// or exchanged. What the arms are called does not matter.
    pub(super) fn shares_seeds_with(&self, later: &Self) -> bool {
        let same = (self.held_equal, &self.num_steps, self.question.axis)
            == (later.held_equal, &later.num_steps, later.question.axis);
        let shares_some = self.seeds.iter().any(|seed| later.seeds.contains(seed));
        let shares_all =
            self.seeds.len() == later.seeds.len() && self.seeds.iter().all(|seed| later.seeds.contains(seed));
        same && shares_some && !shares_all
    }
}

impl Procedure {
    fn changes_since(&self, before: &Self) -> Vec<String> {
        let values = |of: &Self| {
            [
                ("evaluations", of.evaluations.to_string()),
                ("warm-up", of.warmup_fraction.map_or("the recipe's".into(), |share| share.to_string())),
                ("pilot seed", of.pilot_seed.to_string()),
                ("pilot steps", of.pilot_steps.to_string()),
                ("noise repeats", of.noise_repeats.to_string()),
                ("crossed seeds", of.crossed_seeds.to_string()),
                ("new corpus per seed", of.new_corpus_per_seed.to_string()),
            ]
        };
        values(before)
            .into_iter()
            .zip(values(self))
            .filter(|((_, before), (_, now))| before != now)
            .map(|((what, before), (_, now))| format!("{what}: {before} before, {now} now"))
            .collect()
    }
}

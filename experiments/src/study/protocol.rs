//! All that decides what a result of a study means.

use serde::{Deserialize, Serialize};

use super::arms::Arm;
use super::file::LoadedStudy;
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
}

impl Protocol {
    /// That of `loaded`, whose arms are solved.
    pub(crate) fn of(loaded: &LoadedStudy, arms: &[Arm]) -> Self {
        let study = &loaded.study;
        Self {
            question: Question::from(&study.question),
            held_equal: study.held_equal,
            num_steps: study.budget.num_steps.clone(),
            seeds: study.seeds.clone(),
            arms: arms
                .iter()
                .map(|arm| ProtocolArm {
                    label: arm.label.clone(),
                    overrides: arm.overrides.clone(),
                    learning_rates: arm.learning_rates.clone(),
                })
                .collect(),
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
            format!(
                "{:?}, margin {}, confidence {}",
                question.axis, question.margin_nats, question.confidence
            )
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
                Some(other) if other != arm => changes.push(format!("arm `{}`: changed", arm.label)),
                Some(_) => {}
            }
        }
        let is_gone = |other: &&ProtocolArm| !self.arms.iter().any(|arm| arm.label == other.label);
        changes.extend(before.arms.iter().filter(is_gone).map(|arm| format!("arm `{}`: gone", arm.label)));
        changes
    }

    /// Whether `later` asks the same with more seeds.
    pub(super) fn is_extended_by(&self, later: &Self) -> bool {
        let same = Self { seeds: later.seeds.clone(), ..self.clone() } == *later;
        let has_all = self.seeds.iter().all(|seed| later.seeds.contains(seed));
        same && has_all && later.seeds.len() > self.seeds.len()
    }
}

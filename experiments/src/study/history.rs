//! What a study was asked and what it ever answered: `history.jsonl` in its folder, which only grows,
//! and `protocol.json`, what was registered before the first run.
//!
//! A result that is shown next to those that came before it cannot be the one that was liked best.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use switchyard_ground::{durable, regular_file};
use switchyard_trainer::host::Commit;
use switchyard_trainer::run_folder::now_rfc3339;

use super::metric::JudgedSplit;
use super::protocol::Protocol;
use super::result::StudyResult;
use crate::failure::Failure;
use crate::statistics::{Interval, Verdict};

/// Bytes of a history that are read.
const MAX_BYTES: u64 = 256 << 20;

/// A protocol that was registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Registration {
    /// When, RFC 3339.
    pub(crate) at: String,
    /// SHA-256 of the study file.
    pub(crate) study_sha256: String,
    /// What was registered.
    pub(crate) protocol: Protocol,
}

/// A line of the history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Entry {
    /// The study was begun, or goes on with another protocol.
    Planned {
        /// When, RFC 3339.
        at: String,
        /// Commit of the program.
        commit: Option<String>,
        /// What was planned.
        protocol: Protocol,
        /// What is different from the protocol before.
        changes: Vec<String>,
    },
    /// A result was printed.
    Result {
        /// When, RFC 3339.
        at: String,
        /// Commit of the program.
        commit: Option<String>,
        /// What it answers.
        protocol: Protocol,
        /// Runs that were missing.
        num_missing: usize,
        /// The verdict.
        verdict: Verdict,
        /// Its first sentence.
        headline: String,
        /// What each arm showed on the question's axis.
        arms: Vec<ArmOutcome>,
    },
}

/// What an arm showed on the question's axis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ArmOutcome {
    /// Name.
    pub(crate) arm: String,
    /// Seeds with a difference.
    pub(crate) seeds: Vec<u64>,
    /// Mean difference, in the unit of the question's metric.
    pub(crate) mean: f64,
    /// The interval of it that decided.
    pub(crate) interval: Option<Interval>,
    /// The text that it is of; `None` in entries of earlier versions.
    #[serde(default)]
    pub(crate) split: Option<JudgedSplit>,
    /// The verdict.
    pub(crate) verdict: Verdict,
}

/// The history of a study's folder.
#[derive(Debug)]
pub(crate) struct History {
    path: PathBuf,
    entries: Vec<Entry>,
    registration: Option<Registration>,
    /// What is odd about the file itself.
    oddities: Vec<String>,
}

impl History {
    /// That of the study in `folder`.
    ///
    /// # Errors
    /// A file that cannot be read or is no history.
    pub(crate) fn read(folder: &Path) -> Result<Self, Failure> {
        let path = folder.join("history.jsonl");
        let text = read_if_there(&path)?.unwrap_or_default();
        // A line without an end was torn by a kill: it was never printed.
        let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
        let entry = |(index, line): (usize, &str)| {
            serde_json::from_str(line).map_err(|error| {
                Failure::Mistake(format!(
                    "{} line {}: not an entry of a study's history: {error}. Move the file away to begin a new one",
                    path.display(),
                    index + 1
                ))
            })
        };
        let entries: Vec<Entry> = whole.lines().enumerate().map(entry).collect::<Result<_, _>>()?;
        let registration = read_registration(folder)?;
        let mut oddities = Vec::new();
        if whole.len() < text.len() {
            oddities.push(
                "The last line of history.jsonl is torn: what it held of an earlier plan or result is lost."
                    .into(),
            );
        }
        let has_result = entries.iter().any(|entry| matches!(entry, Entry::Result { .. }));
        if !has_result && folder.join("result.json").exists() {
            oddities.push(
                "There was a result.json before this result, and history.jsonl knows of none: it was removed or cut.".into(),
            );
        }
        Ok(Self { path, entries, registration, oddities })
    }

    /// Whether the seeds of `protocol` were chosen after a result of some of them was seen.
    pub(crate) fn has_seeds_chosen_late(&self, protocol: &Protocol) -> bool {
        self.entries.iter().any(|entry| {
            matches!(entry, Entry::Result { protocol: before, arms, .. }
                if !arms.is_empty() && before.shares_seeds_with(protocol))
        })
    }

    /// Notes that `protocol` is what is planned now, unless that was the last word.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn plan(&mut self, protocol: &Protocol) -> Result<(), Failure> {
        let last = self.entries.last().map(|entry| match entry {
            Entry::Planned { protocol, .. } | Entry::Result { protocol, .. } => protocol,
        });
        if last == Some(protocol) {
            return Ok(());
        }
        let changes = last.map_or_else(Vec::new, |before| protocol.changes_since(before));
        let (at, commit) = (now_rfc3339(), commit());
        self.append(Entry::Planned { at, commit, protocol: protocol.clone(), changes })
    }

    /// Notes a result, unless it is the last one once more.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn record(
        &mut self,
        protocol: &Protocol,
        result: &StudyResult,
        num_missing: usize,
    ) -> Result<(), Failure> {
        let outcomes: Vec<ArmOutcome> = result
            .comparisons
            .iter()
            .filter_map(|comparison| {
                let on = comparison.on(result.question.axis)?;
                Some(ArmOutcome {
                    arm: comparison.arm.clone(),
                    seeds: on.seeds.clone(),
                    mean: on.difference.mean,
                    interval: on.difference.interval(result.stopping).copied(),
                    split: Some(on.split),
                    verdict: on.verdict,
                })
            })
            .collect();
        let is_repeated =
            self.results().last().is_some_and(|(_, before, arms)| before == protocol && *arms == outcomes);
        if is_repeated {
            return Ok(());
        }
        self.append(Entry::Result {
            at: now_rfc3339(),
            commit: commit(),
            protocol: protocol.clone(),
            num_missing,
            verdict: result.verdict,
            headline: result.headline.clone(),
            arms: outcomes,
        })
    }

    /// What a reader of the next result must know of those before it.
    pub(crate) fn notes(&self, protocol: &Protocol) -> Vec<String> {
        let mut notes = self.oddities.clone();
        if let Some(Registration { at, study_sha256, protocol: registered }) = &self.registration {
            let changes = protocol.changes_since(registered);
            let kept = if changes.is_empty() {
                "and is what was run".to_owned()
            } else {
                format!("and was changed afterwards ({})", changes.join("; "))
            };
            notes.push(format!(
                "The protocol was registered at {at} (study {}), {kept}.",
                study_sha256.get(..12).unwrap_or(study_sha256)
            ));
        }
        let earlier: Vec<String> = self
            .results()
            .map(|(at, before, arms)| {
                let changes = protocol.changes_since(before);
                let asked = if changes.is_empty() { "the same question".into() } else { changes.join("; ") };
                let answers: Vec<String> = arms.iter().map(ArmOutcome::words).collect();
                format!("{at} ({asked}): {}", answers.join(", "))
            })
            .collect();
        if !earlier.is_empty() {
            notes.push(format!(
                "Results printed before in this folder, {} in all: {}. To keep the one that is liked best is no evidence.",
                earlier.len(),
                earlier.join(". ")
            ));
        }
        notes
    }

    /// Results that were printed before.
    pub(crate) fn num_results(&self) -> usize {
        self.results().count()
    }

    fn results(&self) -> impl DoubleEndedIterator<Item = (&str, &Protocol, &Vec<ArmOutcome>)> {
        self.entries.iter().filter_map(|entry| match entry {
            Entry::Result { at, protocol, arms, .. } => Some((at.as_str(), protocol, arms)),
            Entry::Planned { .. } => None,
        })
    }

    fn append(&mut self, entry: Entry) -> Result<(), Failure> {
        let mut line = serde_json::to_string(&entry)?;
        line.push('\n');
        let written = append_line(&self.path, line.as_bytes());
        written.map_err(|error| {
            Failure::Fault(anyhow::anyhow!("cannot write {}: {error}", self.path.display()))
        })?;
        self.entries.push(entry);
        Ok(())
    }
}

impl ArmOutcome {
    fn words(&self) -> String {
        let interval = self
            .interval
            .map_or(String::new(), |interval| format!(" [{:+.4}, {:+.4}]", interval.low, interval.high));
        let (num_seeds, verdict) = (self.seeds.len(), self.verdict.word());
        let text = self.split.map_or(String::new(), |split| match split {
            JudgedSplit::Questions => " on questions".into(),
            JudgedSplit::Validation | JudgedSplit::Test => format!(" on {} text", split.name()),
        });
        format!("`{}` {:+.4}{interval}{text} over {num_seeds} seeds, {verdict}", self.arm, self.mean)
    }
}

/// Adds a line in one write; what a kill left of an earlier one is ended first.
fn append_line(path: &Path, line: &[u8]) -> io::Result<()> {
    let torn = match regular_file::read(path, MAX_BYTES) {
        Ok(bytes) => bytes.last().is_some_and(|&byte| byte != b'\n').then_some(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    if let Some(bytes) = torn {
        let end = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        durable::replace(path, &bytes[..end])?;
    }
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(line)?;
    file.sync_data()
}

fn commit() -> Option<String> {
    Commit::of_sources().map(|commit| commit.hash + if commit.dirty { "-dirty" } else { "" })
}

fn read_if_there(path: &Path) -> Result<Option<String>, Failure> {
    match regular_file::read_to_string(path, MAX_BYTES) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Mistake(format!("cannot read {}: {error}", path.display()))),
    }
}

fn read_registration(folder: &Path) -> Result<Option<Registration>, Failure> {
    let path = folder.join("protocol.json");
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::Mistake(format!(
            "{}: not a registered protocol: {error}. Move the file away to go on without it",
            path.display()
        ))
    })
}

/// Writes `protocol` down before anything has run; says what was registered.
///
/// # Errors
/// If another protocol is registered there, or a result was printed already; a file that cannot be
/// read or written.
pub(crate) fn register(folder: &Path, protocol: &Protocol, study_sha256: &str) -> Result<String, Failure> {
    let path = folder.join("protocol.json");
    let history = History::read(folder)?;
    if let Some(before) = &history.registration {
        let changes = protocol.changes_since(&before.protocol);
        if changes.is_empty() {
            return Ok(format!("registered already, at {}: {}", before.at, path.display()));
        }
        return Err(Failure::Mistake(format!(
            "{}: another protocol was registered at {} ({}): give another question another folder by --out",
            path.display(),
            before.at,
            changes.join("; ")
        )));
    }
    if history.results().next().is_some() {
        return Err(Failure::Mistake(format!(
            "{}: a result of this study was printed already, and what is registered now would not be before it: give --out \
             another folder",
            history.path.display()
        )));
    }
    let registration =
        Registration { at: now_rfc3339(), study_sha256: study_sha256.into(), protocol: protocol.clone() };
    let text = serde_json::to_string_pretty(&registration)? + "\n";
    durable::replace(&path, text.as_bytes())
        .map_err(|error| Failure::Fault(anyhow::anyhow!("cannot write {}: {error}", path.display())))?;
    Ok(format!("registered: {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::protocol::ProtocolArm;
    use super::*;
    use crate::study::result::{Axis, HeldEqual, Question};

    fn protocol(seeds: &[u64]) -> Protocol {
        Protocol {
            question: Question::of_nats(Axis::Tokens, 0.005),
            held_equal: HeldEqual::Tokens,
            num_steps: vec![100],
            seeds: seeds.to_vec(),
            arms: vec![ProtocolArm {
                label: "dense".into(),
                overrides: Vec::new(),
                learning_rates: vec![0.1],
                transfers_from: None,
                recipe_sha256: Some("a".into()),
            }],
            procedure: None,
        }
    }

    fn result_entry(protocol: &Protocol) -> Entry {
        Entry::Result {
            at: "2026-01-01T00:00:00Z".into(),
            commit: None,
            protocol: protocol.clone(),
            num_missing: 0,
            verdict: Verdict::Undecided,
            headline: String::new(),
            arms: vec![ArmOutcome {
                arm: "e8".into(),
                seeds: protocol.seeds.clone(),
                mean: -0.02,
                interval: None,
                split: None,
                verdict: Verdict::Undecided,
            }],
        }
    }

    #[test]
    fn seeds_added_after_a_result_are_noticed_and_other_changes_are_another_question() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::read(folder.path()).unwrap();
        assert!(!history.has_seeds_chosen_late(&protocol(&[0, 1, 2])));
        history.append(result_entry(&protocol(&[0, 1]))).unwrap();
        let history = History::read(folder.path()).unwrap();
        assert!(history.has_seeds_chosen_late(&protocol(&[0, 1, 2])));
        assert!(!history.has_seeds_chosen_late(&protocol(&[0, 1])), "the same seeds once more");
        assert!(!history.has_seeds_chosen_late(&protocol(&[2, 3, 4])), "other seeds");
        assert!(history.has_seeds_chosen_late(&protocol(&[0, 2])), "one exchanged");
        assert!(history.has_seeds_chosen_late(&protocol(&[0])), "one dropped");
        let mut renamed = protocol(&[0, 1, 2]);
        renamed.arms[0].label = "other".into();
        assert!(history.has_seeds_chosen_late(&renamed));
        let other = Protocol { num_steps: vec![200], ..protocol(&[0, 1, 2]) };
        assert!(!history.has_seeds_chosen_late(&other));
        let notes = history.notes(&other);
        assert!(
            notes[0].contains("1 in all") && notes[0].contains("budgets: [100] before, [200] now"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_line_that_a_kill_tore_is_dropped_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::read(folder.path()).unwrap();
        history.plan(&protocol(&[0])).unwrap();
        history.plan(&protocol(&[0])).unwrap();
        let path = folder.path().join("history.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1, "the same plan is noted once");
        fs::write(&path, format!("{text}{{\"event\": \"resu")).unwrap();
        let mut history = History::read(folder.path()).unwrap();
        history.plan(&protocol(&[0, 1])).unwrap();
        assert_eq!(History::read(folder.path()).unwrap().entries.len(), 2);
        fs::write(&path, "{}\n").unwrap();
        let Err(Failure::Mistake(message)) = History::read(folder.path()) else { panic!("read") };
        assert!(message.contains("history.jsonl line 1: not an entry"), "{message}");
    }

    #[test]
    fn what_is_registered_comes_before_the_first_result_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let first = protocol(&[0, 1]);
        assert!(register(folder.path(), &first, &"a".repeat(64)).unwrap().starts_with("registered: "));
        assert!(register(folder.path(), &first, "b").unwrap().starts_with("registered already"));
        let Err(Failure::Mistake(message)) = register(folder.path(), &protocol(&[0, 1, 2]), "b") else {
            panic!("registered")
        };
        assert!(message.contains("seeds: [0, 1] before, [0, 1, 2] now"), "{message}");
        let mut edited = first.clone();
        edited.arms[0].recipe_sha256 = Some("b".into());
        let notes = History::read(folder.path()).unwrap().notes(&edited);
        assert!(notes[0].contains("arm `dense`: its base recipe was changed"), "{notes:?}");
        let notes = History::read(folder.path()).unwrap().notes(&protocol(&[0, 1, 2]));
        assert!(notes[0].contains("changed afterwards (seeds: "), "{notes:?}");
        let late = tempfile::tempdir().unwrap();
        History::read(late.path()).unwrap().append(result_entry(&first)).unwrap();
        assert!(register(late.path(), &first, "b").is_err());
    }
}

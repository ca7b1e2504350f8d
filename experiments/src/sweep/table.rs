//! A sweep's result for the terminal.

use std::fmt::Write;
use std::path::Path;

use super::candidate_result::CandidateResult;
use super::result::SweepResult;

impl CandidateResult {
    /// What a person calls it: its label, what it changes, or the recipe itself.
    pub(crate) fn title(&self) -> String {
        match (&self.label, self.overrides.as_slice()) {
            (Some(label), _) => format!("`{label}`"),
            (None, []) => "the recipe as it is".into(),
            (None, overrides) => overrides.join(" "),
        }
    }
}

impl SweepResult {
    /// The table, the best first; what a reader must know; the command that trains the best from
    /// the recipe at `base`.
    pub(crate) fn to_text(&self, base: &Path) -> String {
        let mut text =
            format!("{}\n\n{:>5}  {:>10}  {:>7}  candidate\n", self.headline, "", "loss, nats", "steps");
        for (index, candidate) in self.candidates.iter().enumerate() {
            text.push_str(&candidate_line(index + 1, candidate));
        }
        text.push('\n');
        for line in self.early_stopping.iter().chain(&self.notes) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "- {line}");
        }
        if self.best.is_some() {
            let arguments: Vec<String> =
                self.best_arguments.iter().map(|argument| quoted(argument)).collect();
            let base = quoted(&base.display().to_string());
            let _ = writeln!(text, "\nthe best: switchyard train {base} {}", arguments.join(" "));
        }
        text
    }
}

fn candidate_line(place: usize, candidate: &CandidateResult) -> String {
    let last = candidate.rungs.last();
    let loss =
        last.and_then(|rung| rung.mean_loss_nats).map_or("diverged".into(), |nats| format!("{nats:.4}"));
    let steps = last.map_or(0, |rung| rung.num_steps);
    let stopped = candidate.stopped.as_ref().map_or(String::new(), |reason| format!("   ({reason})"));
    format!("{place:>5}  {loss:>10}  {steps:>7}  {}{stopped}\n", candidate.title())
}

/// `argument` as a shell takes it for one word.
fn quoted(argument: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=+:,".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.into();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sweep::result::tests::planted;

    #[test]
    fn the_table_begins_with_the_best_and_ends_with_the_command_that_trains_it() {
        let text = planted().to_text(Path::new("tiny.toml"));
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[0].starts_with("Best of 4 candidates: train.adamw.learning_rate=0.001 with 2.0000 nats"),
            "{text}"
        );
        assert_eq!(lines[3], "    1      2.0000      200  train.adamw.learning_rate=0.001");
        assert_eq!(
            lines[5],
            "    3      4.0000       20  train.adamw.learning_rate=0.01   (stopped after 20 steps: 3rd of 4, the best 2 went on)"
        );
        assert_eq!(
            lines[lines.len() - 1],
            "the best: switchyard train tiny.toml --set train.adamw.learning_rate=0.001 --set train.num_steps=200"
        );
    }

    #[test]
    fn what_a_shell_would_take_apart_is_quoted() {
        assert_eq!(quoted("a.b=1e-3"), "a.b=1e-3");
        assert_eq!(quoted("a={ b = 1 }"), "'a={ b = 1 }'");
        assert_eq!(quoted("a=it's"), r"'a=it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}

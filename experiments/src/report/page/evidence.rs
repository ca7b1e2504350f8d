//! The last part of the page: what the runs cost, their alarms, each of them, and where the numbers
//! come from.

use maud::html;

use switchyard_ground::units::{duration, grouped, scaled};

use super::{Section, table_or};
use crate::report::content::{Content, RunRow};
use crate::report::numbers::{ABSENT, nats, or_absent};
use crate::report::table::Table;
use crate::study::result::{Provenance, StudyResult};

/// Alarms on the page; all are in the CSV file.
const MAX_ALARMS: usize = 50;

/// What each arm cost.
pub(super) fn cost(content: &Content) -> Section {
    let rows = content.run_rows();
    let body = html! {
        (table_or(&costs(content, &rows), "No run to count."))
        p {
            "Sums over all runs of an arm. Energy is what the processor reports (RAPL), for its packages, whoever used them; money is \
             the study's price per hour times the seconds, in the currency of the price."
        }
    };
    Section { id: "cost", heading: "Cost", body }
}

fn costs(content: &Content, rows: &[RunRow]) -> Table {
    let head = ["arm", "runs", "tokens", "compute", "time", "energy", "money"];
    let of_arm = |arm: &&str| {
        let runs: Vec<&RunRow> = rows.iter().filter(|row| row.arm == **arm).collect();
        let sum_of = |of: fn(&RunRow) -> Option<f64>| total(runs.iter().map(|run| of(run)));
        vec![
            arm.to_string(),
            runs.len().to_string(),
            sum_of(|run| run.tokens.map(|tokens| tokens as f64)).text(|tokens| scaled(tokens, "")),
            sum_of(|run| run.active_flops).text(|flops| scaled(flops, "FLOP")),
            sum_of(|run| run.train_secs).text(duration),
            sum_of(|run| run.energy_joules).text(|joules| scaled(joules, "J")),
            sum_of(|run| run.cost).text(|cost| format!("{cost:.4}")),
        ]
    };
    Table::new("Cost of each arm, all runs together", 1, &head).with_rows(content.arms().iter().map(of_arm))
}

/// A sum, and how many of the values there were.
struct Total {
    sum: f64,
    num_known: usize,
    num_all: usize,
}

fn total(values: impl Iterator<Item = Option<f64>>) -> Total {
    let none = Total { sum: 0.0, num_known: 0, num_all: 0 };
    values.fold(none, |Total { sum, num_known, num_all }, value| Total {
        sum: sum + value.unwrap_or(0.0),
        num_known: num_known + usize::from(value.is_some()),
        num_all: num_all + 1,
    })
}

impl Total {
    fn text(&self, text: impl FnOnce(f64) -> String) -> String {
        match self.num_known {
            0 => "not measured".into(),
            known if known < self.num_all => format!("{} ({known} of {} runs)", text(self.sum), self.num_all),
            _ => text(self.sum),
        }
    }
}

/// What the flight recorder raised.
pub(super) fn alarms(content: &Content) -> Section {
    let rows = content.runs.iter().flat_map(|run| {
        run.alarms.iter().map(|alarm| {
            vec![run.label.clone(), alarm.name.clone(), alarm.message.clone(), grouped(alarm.step)]
        })
    });
    let num_alarms = rows.clone().count();
    let head = ["run", "alarm", "what was seen", "step"];
    let table = Table::new("Alarms of the flight recorder", 3, &head).with_rows(rows.take(MAX_ALARMS));
    let body = html! {
        (table_or(&table, "No run raised an alarm."))
        @if num_alarms > MAX_ALARMS {
            p { "And " (num_alarms - MAX_ALARMS) " more: alarms.csv has them all." }
        }
    };
    Section { id: "alarms", heading: "Alarms", body }
}

/// Every run.
pub(super) fn runs(content: &Content) -> Section {
    let rows = content.run_rows();
    let table = table_or(&run_table(&rows), "There is no run.");
    let body = html! {
        @if rows.len() > 12 {
            details { summary { "All " (rows.len()) " runs" } (table) }
        } @else {
            (table)
        }
    };
    Section { id: "runs", heading: "Runs", body }
}

fn run_table(rows: &[RunRow]) -> Table {
    type Cell = fn(&RunRow) -> String;
    let columns: [(&str, Cell); 17] = [
        ("run", |run| run.run.clone()),
        ("arm", |run| run.arm.clone()),
        ("seed", |run| run.seed.to_string()),
        ("steps", |run| grouped(run.num_steps)),
        ("final loss (nats)", |run| or_absent(run.final_loss_nats, nats)),
        ("test loss (nats)", |run| or_absent(run.final_test_loss_nats, nats)),
        ("bits per byte", |run| or_absent(run.final_bits_per_byte, nats)),
        ("test bits per byte", |run| or_absent(run.final_test_bits_per_byte, nats)),
        ("acc", |run| or_absent(run.acc, nats)),
        ("acc_norm", |run| or_absent(run.acc_norm, nats)),
        ("tokens", |run| or_absent(run.tokens, |tokens| scaled(tokens as f64, ""))),
        ("passes over the data", |run| or_absent(run.data_passes, |passes| format!("{passes:.2}"))),
        ("compute", |run| or_absent(run.active_flops, |flops| scaled(flops, "FLOP"))),
        ("time", |run| or_absent(run.train_secs, duration)),
        ("energy", |run| or_absent(run.energy_joules, |joules| scaled(joules, "J"))),
        ("money", |run| or_absent(run.cost, |cost| format!("{cost:.4}"))),
        ("alarms", |run| run.num_alarms.to_string()),
    ];
    // A column that no run has anything in says nothing.
    let says_something = |(_, cell): &(&str, Cell)| rows.iter().any(|run| cell(run) != ABSENT);
    let columns: Vec<(&str, Cell)> = columns.into_iter().filter(says_something).collect();
    let head: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let row = |run: &RunRow| columns.iter().map(|(_, cell)| cell(run)).collect();
    Table::new("Every run, with the validation loss of its last model", 2, &head)
        .with_rows(rows.iter().map(row))
}

/// Where the numbers come from, and how to make them again.
pub(super) fn provenance(result: &StudyResult) -> Section {
    let body = html! {
        p { "The command that repeats the study:" }
        pre tabindex="0" { code { (result.provenance.command) } }
        dl {
            @for (term, value) in facts(&result.provenance) {
                div { dt { (term) } dd { (value) } }
            }
        }
    };
    Section { id: "provenance", heading: "Provenance", body }
}

fn facts(provenance: &Provenance) -> [(&'static str, String); 10] {
    let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "not recorded".into());
    let list = |lines: &[String]| if lines.is_empty() { ABSENT.into() } else { lines.join("; ") };
    [
        ("Switchyard", provenance.version.clone()),
        ("Commit", known(&provenance.commit)),
        ("SHA-256 of the study file", provenance.study_sha256.clone()),
        ("SHA-256 of the base recipe", provenance.base_sha256.clone()),
        ("SHA-256 of Cargo.lock", provenance.cargo_lock_sha256.clone()),
        ("Machines", list(&provenance.machines)),
        ("Devices", list(&provenance.devices)),
        ("First run started", known(&provenance.started_at)),
        ("Last run ended", known(&provenance.ended_at)),
        ("Training time of all runs", duration(provenance.total_train_secs)),
    ]
}

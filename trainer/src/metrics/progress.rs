//! What the person who started the run sees: a bar on a terminal, a line now and then elsewhere.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use switchyard_ground::units::{compact, duration};

use super::{EvalRecord, StepRecord, perplexity_text};

/// Seconds between two plain lines at the start of a run, and the most they grow to.
const MIN_LINE_GAP_SECS: f64 = 5.0;
const MAX_LINE_GAP_SECS: f64 = 60.0;

/// Progress of one run, on standard error.
#[derive(Debug)]
pub struct ProgressDisplay {
    total_steps: u64,
    output: Output,
    pace: Option<Pace>,
}

enum Output {
    Bar(ProgressBar),
    Lines(LineWriter),
    Hidden,
}

struct LineWriter {
    writer: Box<dyn Write + Send>,
    started: Instant,
    last_line_secs: Option<f64>,
}

/// Where the clock stood after the first step that this process ran. The first step is not counted:
/// it can hold seconds of kernel compilation.
#[derive(Debug, Clone, Copy)]
struct Pace {
    first_step: u64,
    first_step_ended: Instant,
    first_step_secs: f64,
}

impl ProgressDisplay {
    /// A bar if standard error is a terminal, else plain lines. `start_step` is the number of steps
    /// that were already done when this process began.
    pub fn new(total_steps: u64, start_step: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::with_lines(total_steps, Box::new(io::stderr()));
        }
        let bar = ProgressBar::with_draw_target(Some(total_steps), ProgressDrawTarget::stderr())
            .with_position(start_step)
            .with_message("first step ...");
        if let Ok(style) = ProgressStyle::with_template("step {pos}/{len} {wide_bar} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.tick();
        Self { total_steps, output: Output::Bar(bar), pace: None }
    }

    /// A display that shows nothing, for runs inside another program.
    pub fn hidden() -> Self {
        Self { total_steps: 0, output: Output::Hidden, pace: None }
    }

    fn with_lines(total_steps: u64, writer: Box<dyn Write + Send>) -> Self {
        let lines = LineWriter { writer, started: Instant::now(), last_line_secs: None };
        Self { total_steps, output: Output::Lines(lines), pace: None }
    }

    /// Shows a finished step. Plain lines appear for the first and the last step and every few
    /// seconds between.
    pub fn step(&mut self, row: &StepRecord) {
        let eta_secs = self.eta_secs(row);
        self.hide_bar_unless(io::stderr().is_terminal());
        match &mut self.output {
            Output::Bar(bar) => {
                bar.set_message(bar_message(row, eta_secs));
                bar.set_position(row.step);
            }
            Output::Lines(lines) => {
                let is_last = row.step >= self.total_steps;
                if lines.is_due(lines.started.elapsed().as_secs_f64(), is_last) {
                    lines.write(&step_line(row, self.total_steps, eta_secs));
                }
            }
            Output::Hidden => {}
        }
    }

    /// Shows a finished evaluation, above the bar if there is one.
    pub fn eval(&mut self, row: &EvalRecord) {
        self.println(&eval_line(row, self.total_steps));
    }

    /// Shows a line of text, above the bar if there is one.
    pub fn println(&mut self, line: &str) {
        self.hide_bar_unless(io::stderr().is_terminal());
        match &mut self.output {
            Output::Bar(bar) => bar.println(line),
            Output::Lines(lines) => lines.write(line),
            Output::Hidden => {}
        }
    }

    /// Leaves the bar where it stands and the cursor below it, so that other output can follow.
    pub fn finish(&mut self) {
        self.hide_bar_unless(io::stderr().is_terminal());
        if let Output::Bar(bar) = &self.output {
            bar.abandon();
            // The bar ends where its line ends, and the next line would begin there.
            let _ = io::stderr().write_all(b"\n");
            self.output = Output::Hidden;
        }
    }

    /// Gives up the bar of a terminal that is gone: each drawing would be kept for a better time,
    /// and added to the next.
    fn hide_bar_unless(&mut self, terminal_is_there: bool) {
        if let Output::Bar(bar) = &self.output
            && !terminal_is_there
        {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            self.output = Output::Hidden;
        }
    }

    /// Seconds until the last step at the pace so far, evaluations and checkpoints included.
    fn eta_secs(&mut self, row: &StepRecord) -> f64 {
        let now = Instant::now();
        let pace = self.pace.get_or_insert(Pace {
            first_step: row.step,
            first_step_ended: now,
            first_step_secs: row.step_secs,
        });
        let secs_per_step = match row.step.saturating_sub(pace.first_step) {
            0 => pace.first_step_secs,
            steps => (now - pace.first_step_ended).as_secs_f64() / steps as f64,
        };
        self.total_steps.saturating_sub(row.step) as f64 * secs_per_step
    }
}

impl Drop for ProgressDisplay {
    /// A run that ends in an error leaves the cursor below the bar too.
    fn drop(&mut self) {
        self.finish();
    }
}

impl LineWriter {
    /// Whether a step line should be written now; remembers that it was.
    fn is_due(&mut self, now_secs: f64, is_last: bool) -> bool {
        // The gap grows with the run: a minute's run shows its progress, a day's log stays
        // readable.
        let gap_secs = (now_secs / 12.0).clamp(MIN_LINE_GAP_SECS, MAX_LINE_GAP_SECS);
        let is_due = is_last || self.last_line_secs.is_none_or(|last| now_secs - last >= gap_secs);
        if is_due {
            self.last_line_secs = Some(now_secs);
        }
        is_due
    }

    fn write(&mut self, line: &str) {
        // A closed pipe must not end the training: the same numbers are in `metrics.jsonl`.
        let _ = writeln!(self.writer, "{line}");
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Bar(_) => "Bar",
            Self::Lines(_) => "Lines",
            Self::Hidden => "Hidden",
        })
    }
}

fn bar_message(row: &StepRecord, eta_secs: f64) -> String {
    let (loss, bits) = (row.cross_entropy_nats, bits_per_byte(row.bits_per_byte));
    let rate = compact(row.tokens_per_sec);
    format!("loss {loss:.4}{bits}  {rate} tok/s{}  eta {}", max_violation(row), duration(eta_secs))
}

fn step_line(row: &StepRecord, total_steps: u64, eta_secs: f64) -> String {
    let StepRecord { step, cross_entropy_nats: loss, .. } = row;
    let (bits, learning_rate) = (bits_per_byte(row.bits_per_byte), short_scientific(row.learning_rate));
    let rate = compact(row.tokens_per_sec);
    let (balance, eta) = (max_violation(row), duration(eta_secs));
    format!(
        "step {step}/{total_steps}  loss {loss:.4}{bits}  lr {learning_rate}  {rate} tok/s{balance}  eta {eta}"
    )
}

fn eval_line(row: &EvalRecord, total_steps: u64) -> String {
    let EvalRecord { step, cross_entropy_nats: loss, .. } = row;
    let (bits, perplexity) = (bits_per_byte(row.bits_per_byte), perplexity_text(*loss));
    let extent = if row.whole_split { "whole split" } else { "part of the split" };
    let (tokens, took) = (compact(row.num_tokens as f64), duration(row.eval_secs));
    format!(
        "eval {step}/{total_steps}  validation loss {loss:.4}{bits}  perplexity {perplexity}  \
         ({tokens} tokens, {extent}, {took}){}",
        source_losses(row)
    )
}

/// The losses of several sources, ready to follow the loss of all; empty for one source.
fn source_losses(row: &EvalRecord) -> String {
    if row.sources.is_empty() {
        return String::new();
    }
    // In one unit for all: nats per token of one tokenizer are not those of another text's bytes.
    let bits: Option<Vec<f64>> = row.sources.values().map(|loss| loss.bits_per_byte).collect();
    let (unit, losses) = match bits {
        Some(bits) => ("bits per byte", bits),
        None => ("nats", row.sources.values().map(|loss| loss.cross_entropy_nats).collect()),
    };
    let named = row.sources.keys().zip(losses).map(|(name, loss)| format!(" {name} {loss:.4}"));
    format!("  by source, {unit}:{}", named.collect::<Vec<_>>().join(","))
}

/// A loss in bits per byte, ready to follow the loss in nats; empty where the bytes are not known.
fn bits_per_byte(bits: Option<f64>) -> String {
    bits.map_or_else(String::new, |bits| format!(" ({bits:.4} bits per byte)"))
}

/// `1e-3`, `2.97e-4`: three digits, without zeros that say nothing.
fn short_scientific(value: f64) -> String {
    let text = format!("{value:.2e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            format!("{}e{exponent}", digits.trim_end_matches('0').trim_end_matches('.'))
        }
        None => text,
    }
}

/// The worst imbalance over the layers, ready to follow another number; empty for a dense model.
fn max_violation(row: &StepRecord) -> String {
    row.worst_max_violation().map_or_else(String::new, |worst| format!("  max_vio {worst:.2}"))
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{eval, layer, step};
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_shows_the_worst_layer_and_the_time_left() {
        let mut row = step(20, 5.12344, vec![layer(0, &[1]), layer(1, &[1])]);
        row.layers[1].max_violation = 0.625;
        row.tokens_per_sec = 12_345.0;
        assert_eq!(
            step_line(&row, 300, 92.2),
            "step 20/300  loss 5.1234  lr 1e-3  12.3k tok/s  max_vio 0.62  eta 1m32s"
        );
        row.layers.clear();
        assert_eq!(bar_message(&row, 0.0), "loss 5.1234  12.3k tok/s  eta 0.0s");
        row.bits_per_byte = Some(2.25);
        row.learning_rate = 2.9678e-4;
        assert_eq!(
            step_line(&row, 300, 92.2),
            "step 20/300  loss 5.1234 (2.2500 bits per byte)  lr 2.97e-4  12.3k tok/s  eta 1m32s"
        );
    }

    #[test]
    fn a_bar_whose_terminal_is_gone_is_given_up() {
        let bar = ProgressBar::with_draw_target(Some(9), ProgressDrawTarget::hidden());
        let mut display = ProgressDisplay { total_steps: 9, output: Output::Bar(bar), pace: None };
        display.hide_bar_unless(true);
        assert!(matches!(display.output, Output::Bar(_)));
        display.hide_bar_unless(false);
        assert!(matches!(display.output, Output::Hidden));
        display.step(&step(1, 3.0, Vec::new()));
        display.println("still there");
    }

    #[test]
    fn an_evaluation_says_how_much_it_covers() {
        let mut row = eval(20, 2.0);
        assert_eq!(
            eval_line(&row, 300),
            "eval 20/300  validation loss 2.0000  perplexity 7.39  (4.10k tokens, whole split, 0.2s)"
        );
        row.bits_per_byte = Some(1.5);
        assert!(eval_line(&row, 300).contains("loss 2.0000 (1.5000 bits per byte)  perplexity"));
        row.whole_split = false;
        assert!(eval_line(&row, 300).contains("part of the split"));
    }

    #[test]
    fn the_first_the_last_and_every_evaluation_are_shown_without_a_terminal() {
        let captured = Captured::default();
        let mut display = ProgressDisplay::with_lines(100, Box::new(captured.clone()));
        (1..=100).for_each(|n| display.step(&step(n, 3.0, Vec::new())));
        display.eval(&eval(100, 2.5));
        display.finish();
        let text = captured.text();
        let starts: Vec<&str> = text.lines().map(|line| &line[..line.find("  ").unwrap()]).collect();
        assert_eq!(starts, ["step 1/100", "step 100/100", "eval 100/100"]);
    }

    #[test]
    fn lines_come_every_few_seconds_and_thin_out_on_long_runs() {
        let lines_in = |secs: u32| {
            let mut lines =
                LineWriter { writer: Box::new(io::sink()), started: Instant::now(), last_line_secs: None };
            (0..=secs).filter(|&now| lines.is_due(f64::from(now), false)).count()
        };
        assert_eq!(lines_in(4), 1);
        assert_eq!(lines_in(60), 13);
        assert!((60..120).contains(&lines_in(3600)), "{}", lines_in(3600));
    }

    #[test]
    fn time_left_counts_the_steps_of_this_process_only() {
        let mut display = ProgressDisplay::with_lines(1_000, Box::new(io::sink()));
        // Resumed at 500: the first step here estimates from its own duration of half a second.
        assert_eq!(display.eta_secs(&step(501, 3.0, Vec::new())), 499.0 * 0.5);
        assert!(display.eta_secs(&step(502, 3.0, Vec::new())) < 60.0);
        assert_eq!(display.eta_secs(&step(1_000, 3.0, Vec::new())), 0.0);
    }
}

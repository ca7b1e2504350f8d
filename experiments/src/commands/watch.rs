//! `switchyard watch`

mod serve;

use std::path::Path;
use std::thread;
use std::time::Duration;

use console::Term;
use switchyard_flight::alarms::Alarm;
use switchyard_trainer::flight::read_alarms;
use switchyard_trainer::metrics::Record;
use switchyard_trainer::run_folder::{RunPaths, RunReading};

use super::print_text;
use super::report::plain_series;
use crate::cli::WatchArgs;
use crate::failure::Failure;
use crate::live_view::LiveRun;
use crate::metrics_tail::MetricsTail;
use crate::report;
use serve::Page;

/// Width of a frame that no terminal shows.
const DEFAULT_WIDTH: usize = 100;

pub(super) fn run(args: &WatchArgs) -> Result<(), Failure> {
    let mut watched = Watched::open(&args.run)?;
    if let Some(port) = args.serve {
        return serve::serve(&args.run, port, report_page);
    }
    let terminal = Term::buffered_stdout();
    if args.once || !terminal.is_term() {
        return print_text(&watched.frame(DEFAULT_WIDTH));
    }
    watched.show(&terminal, args.every)
}

/// A run that is looked at again and again.
#[derive(Debug)]
struct Watched {
    paths: RunPaths,
    reading: RunReading,
    tail: MetricsTail,
    records: Vec<Record>,
    alarms: Vec<Alarm>,
}

impl Watched {
    fn open(folder: &Path) -> Result<Self, Failure> {
        let paths = RunPaths::new(folder);
        let reading = paths.read()?;
        let tail = MetricsTail::new(paths.metrics());
        let mut watched = Self { paths, reading, tail, records: Vec::new(), alarms: Vec::new() };
        watched.read_rows()?;
        Ok(watched)
    }

    /// Looks again. The manifest comes first: a run that has ended wrote all its rows before it
    /// said so.
    fn refresh(&mut self) -> Result<(), Failure> {
        self.reading = self.paths.read()?;
        self.read_rows()
    }

    fn read_rows(&mut self) -> Result<(), Failure> {
        let new = self.tail.read_new()?;
        if new.begins_anew {
            self.records.clear();
        }
        self.records.extend(new.records);
        self.alarms = read_alarms(&self.paths)?;
        Ok(())
    }

    fn frame(&self, width: usize) -> String {
        let Self { paths, reading, records, alarms, .. } = self;
        LiveRun { path: paths.root(), reading, records, alarms }.frame(width)
    }

    /// Redraws until the run has ended; the last frame stays.
    fn show(&mut self, terminal: &Term, every: Duration) -> Result<(), Failure> {
        let mut num_lines = 0;
        loop {
            let (height, width) = terminal.size();
            let frame = fitted(&self.frame(width.into()), height.into());
            terminal.clear_last_lines(num_lines)?;
            terminal.write_str(&frame)?;
            terminal.flush()?;
            if !self.reading.is_at_work() {
                return Ok(());
            }
            num_lines = frame.lines().count();
            thread::sleep(every);
            self.refresh()?;
        }
    }
}

/// As many lines as fit above the line of the cursor: what has scrolled away cannot be cleared.
fn fitted(frame: &str, height: usize) -> String {
    frame.split_inclusive('\n').take(height.saturating_sub(1)).collect()
}

/// The run's report as it would be now.
fn report_page(folder: &Path) -> anyhow::Result<Page> {
    // First, so that the page of a run that has ended by then has all its rows.
    let will_change = RunPaths::new(folder).read()?.is_at_work();
    let series =
        plain_series(folder).map_err(|failure| anyhow::anyhow!(failure.message().unwrap_or_default()))?;
    let html = report::page(None, &[series], &folder.display().to_string())?;
    Ok(Page { html, will_change })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use switchyard_trainer::run_folder::{RunManifest, RunStatus};

    use super::*;
    use crate::figures::sample_rows::step;

    /// A run folder with these rows whose manifest says that it has ended.
    fn ended_run(name: &str, rows: &[Record]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let paths = RunPaths::new(folder.path());
        let mut manifest =
            RunManifest::starting(json!({ "name": name }), json!({ "num_steps": 8 }), 0, "cpu");
        manifest.end(RunStatus::Finished);
        manifest.write(&paths.manifest()).unwrap();
        write_rows(&folder, rows);
        folder
    }

    fn write_rows(folder: &tempfile::TempDir, rows: &[Record]) {
        let lines: String = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        fs::write(folder.path().join("metrics.jsonl"), lines).unwrap();
    }

    #[test]
    fn new_rows_are_added_and_a_rewound_run_begins_anew() {
        let rows: Vec<Record> = (1..=4).map(|n| step(n, 4.0 - 0.25 * n as f64, Vec::new())).collect();
        let folder = ended_run("a", &rows[..2]);
        let mut watched = Watched::open(folder.path()).unwrap();
        assert_eq!(watched.records, rows[..2]);
        write_rows(&folder, &rows);
        watched.refresh().unwrap();
        assert_eq!(watched.records, rows);
        write_rows(&folder, &rows[..1]);
        watched.refresh().unwrap();
        assert_eq!(watched.records, rows[..1]);
    }

    #[test]
    fn a_frame_leaves_a_line_for_the_cursor() {
        assert_eq!(fitted("a\nb\nc\n", 3), "a\nb\n");
        assert_eq!(fitted("a\nb\nc\n", 4), "a\nb\nc\n");
        assert_eq!(fitted("a\n", 0), "");
    }

    #[test]
    fn the_page_of_a_run_that_has_just_begun_is_a_page() {
        let folder = ended_run("<script>", &[step(1, 4.0, Vec::new())]);
        let Page { html: page, will_change } = report_page(folder.path()).unwrap();
        assert!(!will_change, "the run has ended");
        assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
    }

    #[test]
    fn a_folder_without_a_run_is_the_users_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let Err(Failure::Mistake(message)) = Watched::open(folder.path()) else { panic!("no run was found") };
        assert!(message.contains("run.json"), "{message}");
    }
}

//! How a long preparation shows itself, and how it is stopped.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use console::Term;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};
use switchyard_ground::say;

use crate::error::DatasetError;

/// Draws per second at most.
const DRAWS_PER_SEC: u8 = 20;

#[derive(Debug, Clone, Copy)]
enum Display {
    Silent,
    Lines,
    Bar,
}

/// Where progress is shown, and the flag that stops the work.
#[derive(Debug, Clone)]
pub struct Progress {
    display: Display,
    stop: Option<Arc<AtomicBool>>,
}

impl Progress {
    /// Shows nothing.
    pub fn silent() -> Self {
        Self { display: Display::Silent, stop: None }
    }

    /// A bar on standard error, or plain lines where that is not a terminal.
    pub fn stderr() -> Self {
        let display = if io::stderr().is_terminal() { Display::Bar } else { Display::Lines };
        Self { display, stop: None }
    }

    /// The same, with a flag that ends the work with [`DatasetError::Interrupted`] soon after it is
    /// set.
    pub fn with_stop(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop: Some(stop), ..self }
    }

    /// An error once the stop flag is set.
    pub(crate) fn check(&self) -> Result<(), DatasetError> {
        match &self.stop {
            Some(stop) if stop.load(Ordering::Relaxed) => Err(DatasetError::Interrupted),
            _ => Ok(()),
        }
    }

    /// Says one line, unless nothing is to be shown.
    pub(crate) fn line(&self, line: &str) {
        if !matches!(self.display, Display::Silent) {
            say!("{line}");
        }
    }

    /// Starts a stage of work over `total_bytes`, where that is known.
    pub(crate) fn stage(&self, name: &'static str, total_bytes: Option<u64>) -> Stage {
        let bar = match self.display {
            Display::Bar => Some(bar(name, total_bytes)),
            Display::Lines => {
                match total_bytes {
                    Some(total) => say!("{name}: {}", HumanBytes(total)),
                    None => say!("{name}"),
                }
                None
            }
            Display::Silent => None,
        };
        let prints_lines = matches!(self.display, Display::Lines);
        Stage { progress: self.clone(), name, bar, prints_lines, started: Instant::now() }
    }
}

fn bar(name: &'static str, total_bytes: Option<u64>) -> ProgressBar {
    let template = match total_bytes {
        Some(_) => "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
        None => "{msg} {spinner} {elapsed}",
    };
    let bar = ProgressBar::with_draw_target(total_bytes, stderr_draw_target());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(name);
    bar
}

/// Standard error as the place of a progress bar; hidden where it is no terminal that can move its
/// cursor, and from the first failed write on.
///
/// indicatif's own keeps what it could not write and tries again with every draw, so that a bar on
/// a terminal that is gone grows for ever.
pub fn stderr_draw_target() -> ProgressDrawTarget {
    let term = Term::stderr();
    if !term.is_term() || std::env::var_os("TERM").is_none_or(|name| name.is_empty() || name == "dumb") {
        return ProgressDrawTarget::hidden();
    }
    let screen = Screen {
        size: Box::new(move || term.size()),
        output: Mutex::new(Output::new(Box::new(io::stderr()))),
    };
    ProgressDrawTarget::term_like_with_hz(Box::new(screen), DRAWS_PER_SEC)
}

/// A terminal that may go away.
struct Screen {
    /// Rows and columns.
    size: Box<dyn Fn() -> (u16, u16) + Send + Sync>,
    output: Mutex<Output>,
}

struct Output {
    /// What has not been written yet.
    buffer: String,
    /// None once a write has failed.
    writer: Option<Box<dyn Write + Send>>,
}

impl Output {
    fn new(writer: Box<dyn Write + Send>) -> Self {
        Self { buffer: String::new(), writer: Some(writer) }
    }
}

impl Screen {
    fn push(&self, text: &str) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        if output.writer.is_some() {
            output.buffer.push_str(text);
        }
        Ok(())
    }

    /// Moves the cursor by ANSI's code `direction`.
    fn move_cursor(&self, num_cells: usize, direction: char) -> io::Result<()> {
        if num_cells == 0 { Ok(()) } else { self.push(&format!("\x1b[{num_cells}{direction}")) }
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        (self.size)().1
    }

    fn height(&self) -> u16 {
        (self.size)().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, s: &str) -> io::Result<()> {
        self.push(s)?;
        self.push("\n")
    }

    fn write_str(&self, s: &str) -> io::Result<()> {
        self.push(s)
    }

    fn clear_line(&self) -> io::Result<()> {
        self.push("\r\x1b[2K")
    }

    fn flush(&self) -> io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        let Output { buffer, writer } = &mut *output;
        if let Some(open) = writer
            && open.write_all(buffer.as_bytes()).and_then(|()| open.flush()).is_err()
        {
            *writer = None;
        }
        buffer.clear();
        Ok(())
    }
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Screen")
    }
}

/// One stage of the work; shown as finished when dropped.
pub(crate) struct Stage {
    progress: Progress,
    name: &'static str,
    bar: Option<ProgressBar>,
    prints_lines: bool,
    started: Instant,
}

impl Stage {
    /// Counts `bytes` more as done; an error once the stop flag is set.
    pub(crate) fn advance(&self, bytes: u64) -> Result<(), DatasetError> {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
        self.progress.check()
    }

    /// Ends the stage well.
    pub(crate) fn finish(self) {
        if self.prints_lines {
            say!("{}: done in {:.1} s", self.name, self.started.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `num_writes` writes and fails from then on; counts all that it is offered.
    struct Flaky {
        num_writes: usize,
        offered: Arc<Mutex<Vec<usize>>>,
    }

    impl Write for Flaky {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.offered.lock().unwrap().push(bytes.len());
            match self.num_writes.checked_sub(1) {
                Some(left) => self.num_writes = left,
                None => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_terminal_that_is_gone_is_written_to_once_more_and_nothing_is_kept_for_it() {
        let offered = Arc::new(Mutex::new(Vec::new()));
        let writer = Flaky { num_writes: 5, offered: offered.clone() };
        let screen =
            Screen { size: Box::new(|| (24, 80)), output: Mutex::new(Output::new(Box::new(writer))) };
        for _ in 0..1000 {
            screen.clear_line().unwrap();
            screen.write_str("tokenizing [===>   ] 3/10").unwrap();
            screen.flush().unwrap();
        }
        let offered = offered.lock().unwrap();
        assert_eq!(offered.len(), 6, "five that succeed, one that fails");
        assert!(offered.iter().all(|len| *len < 50), "{offered:?}");
        assert!(screen.output.lock().unwrap().buffer.is_empty());
    }
}

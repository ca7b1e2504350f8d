//! Messages on standard error, where nobody may be left to read them.
//!
//! `eprintln!` panics when the terminal is gone or the log's reader has ended, and a panic on the
//! way to a checkpoint loses the work that the message was about. Everything that the program says
//! goes through [`crate::say!`] instead.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes a line to standard error; a terminal or a reader that is gone changes nothing.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {
        $crate::stderr::line(::std::format_args!($($argument)*))
    };
}

/// Writes `text` and a line's end to standard error; what [`crate::say!`] calls.
pub fn line(text: Arguments<'_>) {
    // In one write, so that the lines of two processes do not mix.
    let _ = io::stderr().lock().write_all(format!("{text}\n").as_bytes());
}

//! The ground that every other crate stands on: host code only, no dependency of ours.
//!
//! | file | gives |
//! |---|---|
//! | [`stderr`] | messages to a person that may be gone: [`say!`] |
//! | [`printable`] | text of others, safe to print: no control characters, no megabytes |
//! | [`shell`] | paths as a shell takes them back |
//! | [`regular_file`] | files opened without waiting on pipes or reading devices |
//! | [`digest`] | SHA-256 as text, SplitMix64 |
//! | [`durable`] | files that are whole or absent |
//! | [`line_file`] | files that grow by whole lines |
//! | [`aside`] | files that cannot be used, set aside and not lost |
//! | [`hub_path`] | names of files on the Hugging Face hub as paths of this machine |
//! | [`advice`] | what to do about an error of the file system |
//! | [`units`] | numbers as a person reads them: prefixes, bytes, durations |
//! | [`key_error`] | one error for a key of the configuration: path, problem, remedy |
//! | [`key_checks`] | rules about one value at a time |
//! | [`pattern`] | names with `*` in them |
//! | [`open_choice`] | a choice of the configuration that may be left open |

pub mod advice;
pub mod aside;
pub mod digest;
pub mod durable;
pub mod hub_path;
pub mod key_checks;
pub mod key_error;
pub mod line_file;
pub mod open_choice;
pub mod pattern;
pub mod printable;
pub mod regular_file;
pub mod shell;
pub mod stderr;
pub mod units;

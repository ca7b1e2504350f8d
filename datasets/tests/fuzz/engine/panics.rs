//! Every panic, caught or not, and whose it is.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;
use std::sync::Mutex;

/// One panic.
#[derive(Debug, Clone)]
pub(crate) struct Panic {
    /// `file:line`.
    pub(crate) place: String,
    /// What it said.
    pub(crate) message: String,
    /// The other crate that it is the panic of; `None` for ours.
    pub(crate) foreign_crate: Option<String>,
}

/// Panics since the last look, of all threads.
static SEEN: Mutex<Vec<Panic>> = Mutex::new(Vec::new());

/// Notes all panics of this process from now on and prints none of them.
pub(crate) fn watch() {
    std::panic::set_hook(Box::new(|info| {
        let panic = describe(info);
        SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(panic);
    }));
}

/// The panics since the last call.
pub(crate) fn take() -> Vec<Panic> {
    std::mem::take(&mut *SEEN.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn describe(info: &PanicHookInfo<'_>) -> Panic {
    let location = info.location().map(|location| format!("{}:{}", location.file(), location.line()));
    let mut culprit = culprit_of_place(location.as_deref().unwrap_or_default());
    if culprit.is_none() {
        // The standard library panics on behalf of its caller.
        culprit = culprit_of_backtrace(&Backtrace::force_capture().to_string());
    }
    let message = info.payload_as_str().unwrap_or("no message").chars().take(300).collect();
    let (place, foreign_crate) = culprit.unwrap_or((location.unwrap_or_default(), None));
    Panic { place, message, foreign_crate }
}

/// Place, and the crate with its version unless it is ours; none in the standard library and in
/// this file.
fn culprit_of_place(place: &str) -> Option<(String, Option<String>)> {
    if place.starts_with("/rustc/") || place.contains("/library/") || place.contains("engine/panics.rs") {
        return None;
    }
    let Some((_, below)) = place.split_once("/registry/src/") else { return Some((place.to_owned(), None)) };
    let (_, below) = below.split_once('/')?;
    Some((below.to_owned(), Some(below.split('/').next()?.to_owned())))
}

/// The innermost function of `backtrace` that is not the standard library's.
fn culprit_of_backtrace(backtrace: &str) -> Option<(String, Option<String>)> {
    const STANDARD: [&str; 7] =
        ["std", "core", "alloc", "rustc", "__rustc", "rust_begin_unwind", "rust_panic"];
    let mut lines = backtrace.lines().map(str::trim_start).peekable();
    while let Some(line) = lines.next() {
        let Some((_, symbol)) = line.split_once(": ") else { continue };
        // Crates without line tables have no second line, yet whole names; inlined functions may
        // have neither.
        let culprit = match lines.next_if(|next| next.starts_with("at ")) {
            Some(at) => culprit_of_place(at.trim_start_matches("at ")),
            None => {
                let path = symbol.trim_start_matches(['<', '&', '[', '*', '(']);
                let name = path.split_once("::").map_or("", |(name, _)| name);
                let is_crate = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
                let is_foreign = is_crate && !name.is_empty() && !STANDARD.contains(&name);
                is_foreign.then(|| (name.to_owned(), Some(name.to_owned())))
            }
        };
        if culprit.is_some() {
            return culprit;
        }
    }
    None
}

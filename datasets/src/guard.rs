//! Panics of the crates `tokenizers` and `parquet`, which trust their input more than a file from
//! elsewhere deserves, as errors.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught and become an error, so that a panic hook has
/// nothing to say.
pub fn panic_becomes_error() -> bool {
    IS_GUARDED.get()
}

/// What `work` returns, or the message of its panic.
///
/// `work` must leave nothing half-changed that outlives it.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let before = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(before);
    result.map_err(|payload| message_of(payload.as_ref()))
}

fn message_of(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_inside_is_an_error_and_one_outside_is_none_of_ours() {
        assert!(!panic_becomes_error());
        assert_eq!(guarded(panic_becomes_error), Ok(true));
        assert_eq!(guarded(|| guarded(|| 3)), Ok(Ok(3)));
        assert_eq!(guarded::<()>(|| panic!("at {}", 7)), Err("at 7".to_owned()));
        assert!(!panic_becomes_error());
    }
}

//! A value updated in place by a function that consumes it.

/// Holds a value whose successor is made of it, as a model's parameters after a step are of those
/// before. The successor gets the value itself: with a copy beside it, buffers could not be updated
/// in place.
#[derive(Debug)]
pub(crate) struct Replaceable<T> {
    /// `None` only while its successor is made.
    value: Option<T>,
}

impl<T> Replaceable<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value) }
    }

    pub(crate) fn get(&self) -> &T {
        self.value.as_ref().expect("the value is absent only within `replace`")
    }

    pub(crate) fn replace(&mut self, successor: impl FnOnce(T) -> T) {
        self.value = self.value.take().map(successor);
    }
}

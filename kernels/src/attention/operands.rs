//! The tensors of attention, by name and in a fixed order.

/// Which of the optional tensors a call has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) sinks: bool,
    pub(crate) rotary: bool,
}

/// One thing per tensor: the tensor itself, its node, ...
#[derive(Debug, Clone)]
pub(crate) struct Operands<T> {
    /// Queries, `[t, h * d]`.
    pub(crate) q: T,
    /// Keys, `[t, g * d]`.
    pub(crate) k: T,
    /// Values, `[t, g * v]`.
    pub(crate) v: T,
    /// A score of each head without a key, `[h]`.
    pub(crate) sinks: Option<T>,
    /// The rotary table's cosines and sines, constants.
    pub(crate) rotation: Option<[T; 2]>,
}

impl<T> Operands<T> {
    pub(crate) fn parts(&self) -> Parts {
        Parts { sinks: self.sinks.is_some(), rotary: self.rotation.is_some() }
    }

    /// Those that are there, in the order of the fields.
    pub(crate) fn into_vec(self) -> Vec<T> {
        let Self { q, k, v, sinks, rotation } = self;
        [q, k, v].into_iter().chain(sinks).chain(rotation.into_iter().flatten()).collect()
    }

    /// The inverse of [`Operands::into_vec`].
    ///
    /// # Panics
    /// If the vector holds fewer than `parts` asks for.
    pub(crate) fn from_vec(operands: Vec<T>, parts: Parts) -> Self {
        let mut operands = operands.into_iter();
        let mut next = || operands.next().expect("as many tensors as there are parts");
        let (q, k, v) = (next(), next(), next());
        let sinks = parts.sinks.then(&mut next);
        let rotation = parts.rotary.then(|| [next(), next()]);
        Self { q, k, v, sinks, rotation }
    }

    /// Each thing replaced by another.
    pub(crate) fn map<U>(self, mut f: impl FnMut(T) -> U) -> Operands<U> {
        Operands {
            q: f(self.q),
            k: f(self.k),
            v: f(self.v),
            sinks: self.sinks.map(&mut f),
            rotation: self.rotation.map(|tables| tables.map(&mut f)),
        }
    }
}

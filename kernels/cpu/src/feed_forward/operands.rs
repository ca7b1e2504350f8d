//! The tensors of a feed-forward block, by name and in a fixed order.

/// Which of the optional tensors a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// A gate projection beside the up projection.
    pub gated: bool,
    /// Gates of the slots: a mixture of experts.
    pub routed: bool,
    /// Biases of all projections.
    pub biased: bool,
}

/// One thing per tensor: the tensor itself, its gradient, ...
#[derive(Debug, Clone, Copy)]
pub struct Operands<T> {
    /// Tokens, `[t, d]`.
    pub x: T,
    /// Up projections, `[e, d, f]`, or `[d, f]` of a dense block.
    pub up: T,
    /// Down projections, `[e, f, d]` or `[f, d]`.
    pub down: T,
    /// Gate projections, as the up projections.
    pub gate: Option<T>,
    /// Gates of the slots, `[t, k]`.
    pub gates: Option<T>,
    /// Biases `[e, f]`, or `[f]` of a dense block.
    pub up_bias: Option<T>,
    /// Biases `[e, d]` or `[d]`.
    pub down_bias: Option<T>,
    /// Biases, as those of the up projections.
    pub gate_bias: Option<T>,
}

/// One thing per matrix and bias, without what belongs to tokens.
#[derive(Debug, Clone, Copy)]
pub struct Matrices<T> {
    /// Up projections, `[e, d, f]`, or `[d, f]` of a dense block.
    pub up: T,
    /// Down projections, `[e, f, d]` or `[f, d]`.
    pub down: T,
    /// Gate projections, as the up projections.
    pub gate: Option<T>,
    /// Biases `[e, f]`, or `[f]` of a dense block.
    pub up_bias: Option<T>,
    /// Biases `[e, d]` or `[d]`.
    pub down_bias: Option<T>,
    /// Biases, as those of the up projections.
    pub gate_bias: Option<T>,
}

impl<T> Matrices<T> {
    /// Those that are there, in the order of the fields.
    pub fn into_vec(self) -> Vec<T> {
        let Self { up, down, gate, up_bias, down_bias, gate_bias } = self;
        let optional = [gate, up_bias, down_bias, gate_bias];
        [up, down].into_iter().chain(optional.into_iter().flatten()).collect()
    }

    /// The inverse of [`Matrices::into_vec`].
    ///
    /// # Panics
    /// If the vector holds fewer than `parts` asks for.
    pub fn from_vec(matrices: Vec<T>, parts: Parts) -> Self {
        let mut matrices = matrices.into_iter();
        let mut take = || matrices.next().unwrap_or_else(|| panic!("too few matrices for {parts:?}"));
        let Parts { gated, biased, .. } = parts;
        Self {
            up: take(),
            down: take(),
            gate: gated.then(&mut take),
            up_bias: biased.then(&mut take),
            down_bias: biased.then(&mut take),
            gate_bias: (gated && biased).then(&mut take),
        }
    }
}

impl<T> Operands<T> {
    /// The matrices and biases alone.
    pub fn matrices(self) -> Matrices<T> {
        let Self { up, down, gate, up_bias, down_bias, gate_bias, .. } = self;
        Matrices { up, down, gate, up_bias, down_bias, gate_bias }
    }

    /// Those that are there, in the order of the fields.
    pub fn into_vec(self) -> Vec<T> {
        let Self { x, up, down, gate, gates, up_bias, down_bias, gate_bias } = self;
        let optional = [gate, gates, up_bias, down_bias, gate_bias];
        [x, up, down].into_iter().chain(optional.into_iter().flatten()).collect()
    }

    /// The inverse of [`Operands::into_vec`].
    ///
    /// # Panics
    /// If the vector holds fewer or more than `parts` asks for.
    pub fn from_vec(operands: Vec<T>, parts: Parts) -> Self {
        let num_operands = operands.len();
        let mut operands = operands.into_iter();
        let Parts { gated, routed, biased } = parts;
        let mut take = |present: bool| {
            let taken = if present { operands.next() } else { None };
            assert!(taken.is_some() == present, "{num_operands} operands with {parts:?}");
            taken
        };
        let [x, up, down] = [(); 3].map(|()| take(true).expect("checked by `take`"));
        let [gate, gates, up_bias, down_bias, gate_bias] =
            [gated, routed, biased, biased, gated && biased].map(&mut take);
        Self { x, up, down, gate, gates, up_bias, down_bias, gate_bias }
    }

    /// Each thing replaced by another.
    pub fn map<U>(self, mut f: impl FnMut(T) -> U) -> Operands<U> {
        Operands {
            x: f(self.x),
            up: f(self.up),
            down: f(self.down),
            gate: self.gate.map(&mut f),
            gates: self.gates.map(&mut f),
            up_bias: self.up_bias.map(&mut f),
            down_bias: self.down_bias.map(&mut f),
            gate_bias: self.gate_bias.map(&mut f),
        }
    }

    /// The same, borrowed.
    pub fn as_ref(&self) -> Operands<&T> {
        Operands {
            x: &self.x,
            up: &self.up,
            down: &self.down,
            gate: self.gate.as_ref(),
            gates: self.gates.as_ref(),
            up_bias: self.up_bias.as_ref(),
            down_bias: self.down_bias.as_ref(),
            gate_bias: self.gate_bias.as_ref(),
        }
    }

    /// Pairs of the things of two blocks with the same parts.
    pub fn zip<U>(self, other: Operands<U>) -> Operands<(T, U)> {
        Operands {
            x: (self.x, other.x),
            up: (self.up, other.up),
            down: (self.down, other.down),
            gate: self.gate.zip(other.gate),
            gates: self.gates.zip(other.gates),
            up_bias: self.up_bias.zip(other.up_bias),
            down_bias: self.down_bias.zip(other.down_bias),
            gate_bias: self.gate_bias.zip(other.gate_bias),
        }
    }
}

//! A long short-term memory over the tokens of each sequence.
//!
//! Shape letters: b batch, s steps of a sequence, t = b*s tokens, d model width, h cells, g = 4 h
//! gates.

use burn::module::{Module, Param};
use burn::tensor::activation::sigmoid;
use burn::tensor::{Int, Tensor};
use switchyard_kernels::{Compute, linear};

use crate::{LstmSpec, ModelSpec, ParameterSource};

/// A long short-term memory (Hochreiter and Schmidhuber, 1997; with forget gates, Gers et al.,
/// 2000), with the equations of PyTorch's `nn.LSTM` and one bias instead of its two.
///
/// Four gates of each cell, in this order: input, forget, what is written, output. Its products are
/// of f32 whatever the run computes with: an error of one step is part of all that follow.
#[derive(Module, Debug)]
pub struct Lstm {
    /// Of the step's input, `[d, g]`.
    input_dg: Param<Tensor<2>>,
    /// Of the step before, `[d, g]`.
    recurrent_dg: Param<Tensor<2>>,
    bias_g: Param<Tensor<1>>,
    /// `[h, d]`; `None` where there are as many cells as the model is wide.
    projection_hd: Option<Param<Tensor<2>>>,
}

/// What the steps so far leave to the next one, of each sequence of a batch.
#[derive(Debug, Clone)]
pub struct LstmState {
    /// What the last step gave, `[b, d]`.
    pub hidden_bd: Tensor<2>,
    /// The cells, `[b, h]`.
    pub cell_bh: Tensor<2>,
}

impl Lstm {
    /// The LSTM `spec` of one layer of `model`; `key` is its place there, such as `blocks.0.lstm`.
    pub fn new(spec: &LstmSpec, model: &ModelSpec, key: &str, source: &ParameterSource) -> Self {
        let (d, h, std) = (model.d_model, spec.d_hidden, model.init.std);
        let matrix = |name: &str, shape: [usize; 2], std: f64| {
            Param::from_tensor(source.normal(&format!("{key}.{name}"), shape, std))
        };
        let gates = [source.zeros(h), source.ones(h) * spec.forget_bias, source.zeros(2 * h)];
        Self {
            input_dg: matrix("input", [d, 4 * h], std),
            recurrent_dg: matrix("recurrent", [d, 4 * h], std),
            bias_g: Param::from_tensor(Tensor::cat(gates.to_vec(), 0)),
            projection_hd: spec.has_projection(d).then(|| matrix("projection", [h, d], model.residual_std())),
        }
    }

    /// What each step gives, and the state behind the last one, detached: gradients end at the
    /// borders of a pass (truncated back-propagation through time).
    ///
    /// With `segment_ids_bs` a step whose document is not that of the step before begins with an
    /// empty state; `state` is of document 0. Without `state` all sequences begin with an empty one.
    ///
    /// # Shapes
    /// - `x_td`: `[batch * seq, d_model]`; `segment_ids_bs`: `[batch, seq]`; returns as `x_td`
    ///
    /// # Panics
    /// If `state` is of another number of sequences.
    pub fn forward(
        &self,
        x_td: Tensor<2>,
        seq_len: usize,
        state: Option<LstmState>,
        segment_ids_bs: Option<&Tensor<2, Int>>,
    ) -> (Tensor<2>, LstmState) {
        let [t, d] = x_td.dims();
        let (s, b) = (seq_len, t / seq_len);
        let mut state = state.unwrap_or_else(|| self.empty_state(b, &x_td));
        assert_eq!(state.num_sequences(), b, "a state for each sequence");
        let continues_bs = segment_ids_bs.map(|ids_bs| continues(ids_bs.clone(), &x_td));
        let x_td = x_td.reshape([b, s, d]).swap_dims(0, 1).reshape([t, d]);
        let mut hidden = Vec::with_capacity(s);
        for (step, gates_bg) in of_steps(self.input_gates(x_td), s).into_iter().enumerate() {
            if let Some(continues_bs) = &continues_bs {
                state = state.kept_where(continues_bs.clone().narrow(1, step, 1));
            }
            state = self.step(gates_bg, state);
            hidden.push(state.hidden_bd.clone());
        }
        let y_td = Tensor::cat(hidden, 0).reshape([s, b, d]).swap_dims(0, 1).reshape([t, d]);
        (y_td, state.detached())
    }

    /// One more step of each sequence, and the states behind it.
    ///
    /// # Shapes
    /// - `x_bd`: `[sequences, d_model]`; returns the same
    pub(crate) fn forward_next(
        &self,
        x_bd: Tensor<2>,
        states: Vec<LstmState>,
    ) -> (Tensor<2>, Vec<LstmState>) {
        let num_sequences = states.len();
        let state = self.step(self.input_gates(x_bd), LstmState::stacked(states));
        let states = (0..num_sequences).map(|sequence| state.rows(sequence, 1)).collect();
        (state.hidden_bd, states)
    }

    /// The part of the gates that the inputs make, `[t, g]`.
    fn input_gates(&self, x_td: Tensor<2>) -> Tensor<2> {
        linear(x_td, self.input_dg.val(), Some(self.bias_g.val()), Compute::F32)
    }

    fn step(&self, input_gates_bg: Tensor<2>, state: LstmState) -> LstmState {
        let [b, g] = input_gates_bg.dims();
        let h = g / 4;
        let gates_bg = input_gates_bg + linear(state.hidden_bd, self.recurrent_dg.val(), None, Compute::F32);
        let gate = |index: usize| gates_bg.clone().slice([0..b, index * h..(index + 1) * h]);
        let [input_bh, forget_bh, output_bh] = [0, 1, 3].map(|index| sigmoid(gate(index)));
        let cell_bh = forget_bh * state.cell_bh + input_bh * gate(2).tanh();
        let given_bh = output_bh * cell_bh.clone().tanh();
        let hidden_bd = match &self.projection_hd {
            Some(projection_hd) => linear(given_bh, projection_hd.val(), None, Compute::F32),
            None => given_bh,
        };
        LstmState { hidden_bd, cell_bh }
    }

    /// The state of sequences that begin, on the device and of the type of `like`.
    fn empty_state(&self, num_sequences: usize, like: &Tensor<2>) -> LstmState {
        let [d, g] = self.recurrent_dg.dims();
        let zeros = |width: usize| Tensor::zeros([num_sequences, width], (&like.device(), like.dtype()));
        LstmState { hidden_bd: zeros(d), cell_bh: zeros(g / 4) }
    }
}

impl LstmState {
    /// Sequences that it is of.
    pub fn num_sequences(&self) -> usize {
        self.hidden_bd.dims()[0]
    }

    /// That of `len` sequences, from number `first` on.
    pub fn rows(&self, first: usize, len: usize) -> Self {
        self.each(|tensor| tensor.narrow(0, first, len))
    }

    /// Those of several batches as one.
    ///
    /// # Panics
    /// If there are none.
    pub fn stacked(states: Vec<Self>) -> Self {
        let (hidden, cells) = states.into_iter().map(|state| (state.hidden_bd, state.cell_bh)).unzip();
        Self { hidden_bd: Tensor::cat(hidden, 0), cell_bh: Tensor::cat(cells, 0) }
    }

    /// Without what its gradient would need.
    fn detached(&self) -> Self {
        self.each(Tensor::detach)
    }

    /// Zero where `continues_b1` is 0, the same where it is 1.
    fn kept_where(&self, continues_b1: Tensor<2>) -> Self {
        self.each(|tensor| tensor * continues_b1.clone())
    }

    fn each(&self, change: impl Fn(Tensor<2>) -> Tensor<2>) -> Self {
        Self { hidden_bd: change(self.hidden_bd.clone()), cell_bh: change(self.cell_bh.clone()) }
    }
}

/// 1 where a token is of the document of the token before it, else 0; before the first is document
/// 0. On the device and of the type of `x_td`.
fn continues(segment_ids_bs: Tensor<2, Int>, x_td: &Tensor<2>) -> Tensor<2> {
    let [b, s] = segment_ids_bs.dims();
    let before_b1 = Tensor::zeros([b, 1], &segment_ids_bs.device());
    let before_bs = Tensor::cat(vec![before_b1, segment_ids_bs.clone()], 1).narrow(1, 0, s);
    segment_ids_bs.equal(before_bs).float().cast(x_td.dtype())
}

/// The rows of each step, cut in halves, and those in halves again: the gradient of a piece is as
/// large as what it was cut from, so to cut off one step after the other would cost the square of
/// their number.
///
/// # Shapes
/// - `rows_tg`: `[steps * batch, g]`; returns `[batch, g]` for each step
fn of_steps(rows_tg: Tensor<2>, num_steps: usize) -> Vec<Tensor<2>> {
    if num_steps == 1 {
        return vec![rows_tg];
    }
    let (t, num_front) = (rows_tg.dims()[0], num_steps / 2);
    let front = t / num_steps * num_front;
    let mut steps = of_steps(rows_tg.clone().narrow(0, 0, front), num_front);
    steps.extend(of_steps(rows_tg.narrow(0, front, t - front), num_steps - num_front));
    steps
}

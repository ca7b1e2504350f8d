//! Feed-forward blocks: tiles of rows, each through the whole block while it is in the cache.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts, d model width, f hidden
//! width of one block.

mod combine;
mod operands;

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use crate::activation::{Activation, Kept};
use crate::bf16::{Compute, Element};
use crate::dispatch::{DispatchPlan, Groups, SlotMap};
use crate::matrix::Matrix;
use crate::panel_product::{Stored, add_product, fill_with_product};
use crate::rounding::rounded;
pub use crate::row_tiles::MAX_TILE_ROWS;
use crate::row_tiles::{RowTile, WeightGradient, add_bias, sum_rows_by_group, weight_gradients};
use crate::simd::dot;
use crate::unwritten::{Part, Unwritten};

pub use operands::{Operands, Parts};

/// What the operation does, besides its tensors.
#[derive(Debug, Clone)]
pub struct Block {
    /// Non-linearity between the projections.
    pub activation: Activation,
    /// Which optional tensors there are.
    pub parts: Parts,
    /// Who goes where; `None` for a dense block.
    pub plan: Option<DispatchPlan>,
    /// How it is computed.
    pub options: FfnOptions,
}

/// How a feed-forward block is computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FfnOptions {
    /// What the factors of products are rounded to.
    pub compute: Compute,
    /// The way back computes the projections anew, with the same bits, so that they are not kept
    /// (arXiv:1604.06174).
    pub recompute: bool,
}

impl Block {
    /// The rows of each group: those of `num_tokens` tokens for a dense block.
    pub fn groups(&self, num_tokens: usize) -> Groups {
        match &self.plan {
            Some(plan) => plan.groups.clone(),
            None => Groups::new([0, num_tokens]),
        }
    }
}

/// What the forward pass returns; `E` is what it keeps for the way back.
#[derive(Debug)]
pub struct Output<E> {
    /// The block's output, `[t, d]`.
    pub y: Vec<f32>,
    /// Up projections of all rows, `[n, f]`.
    pub up: Vec<E>,
    /// Gate projections of all rows, `[n, f]`; empty if the block is not gated.
    pub gate: Vec<E>,
}

/// The block's output for `operands` of these sizes.
///
/// # Panics
/// If the operands do not fit `block` and the sizes, or `E` is not what `block` computes with.
pub fn forward<E: Kept>(operands: Operands<&[f32]>, sizes_tdf: [usize; 3], block: &Block) -> Output<E> {
    let sizes = Sizes::new(sizes_tdf, block);
    let reader = Reader::<E>::new(operands, block, &sizes);
    let x = rounded(operands.x);
    let Sizes { groups, n, d, f, f_gate } = &sizes;
    let (n, d, f, f_gate) = (*n, *d, *f, *f_gate);
    let tiles = RowTile::of(groups);
    let mut projections = [n * f, n * f_gate].map(Unwritten::new);
    let mut y = Unwritten::new(n * d);
    let [up, gate] = projections.each_mut().map(Unwritten::whole);
    let parts = RowTile::cut(&tiles, up, f)
        .into_iter()
        .zip(RowTile::cut(&tiles, gate, f_gate))
        .zip(RowTile::cut(&tiles, y.whole(), d))
        .zip(&tiles)
        .map(|(((up, gate), y), tile)| ForwardTile { tile, up, gate, y });
    parts.collect::<Vec<_>>().into_par_iter().for_each(|tile| reader.forward(&x, tile));
    let ([up, gate], y) = (projections.map(Unwritten::into_values), y.into_values());
    let y = match (&block.plan, reader.operands.gates) {
        (Some(plan), Some(gates)) => combine::weighted_sums(&y, gates, &plan.slots, d),
        _ => y,
    };
    Output { y, up, gate }
}

/// Gradients of all operands from that of the output, `dy`, `[t, d]`. The projections of the
/// forward pass, `up` and `gate`, become their own gradients.
///
/// # Panics
/// As [`forward`].
pub fn gradients<E: Kept>(
    operands: Operands<&[f32]>,
    sizes_tdf: [usize; 3],
    projections: [&mut [E]; 2],
    dy: &[f32],
    block: &Block,
) -> Operands<Vec<f32>> {
    let sizes = Sizes::new(sizes_tdf, block);
    let reader = Reader::<E>::new(operands, block, &sizes);
    let dy = OutputGradient { exact: dy, factor: rounded(dy) };
    RowGradients::new(&reader, &sizes, &dy, projections).into_operands(&reader, &sizes, &dy)
}

/// The gradient of the output, `[t, d]`.
struct OutputGradient<'a, E: Element> {
    exact: &'a [f32],
    /// As products read it.
    factor: Cow<'a, [E]>,
}

/// Sizes of one call.
struct Sizes {
    groups: Groups,
    n: usize,
    d: usize,
    f: usize,
    /// f, or 0 without a gate projection.
    f_gate: usize,
}

impl Sizes {
    fn new([t, d, f]: [usize; 3], block: &Block) -> Self {
        let groups = block.groups(t);
        Self { n: groups.num_rows(), d, f, f_gate: if block.parts.gated { f } else { 0 }, groups }
    }
}

/// What the tiles read; `E` is what their products read.
struct Reader<'a, E> {
    operands: Operands<&'a [f32]>,
    activation: Activation,
    slots: Option<&'a SlotMap>,
    /// Where each row's token begins, unless rows are tokens.
    token_offsets: Option<Vec<usize>>,
    d: usize,
    f: usize,
    compute: Compute,
    element: PhantomData<E>,
}

/// One tile's part of each buffer of the forward pass: rows of f, f (or nothing) and d elements.
struct ForwardTile<'a, E> {
    tile: &'a RowTile,
    up: Part<'a, E>,
    gate: Part<'a, E>,
    y: Part<'a>,
}

impl<'a, E: Kept> Reader<'a, E> {
    fn new(operands: Operands<&'a [f32]>, block: &'a Block, sizes: &Sizes) -> Self {
        let compute = block.options.compute;
        assert_eq!(E::IS_ROUNDED, compute.is_rounded(), "what products in {compute:?} read");
        let slots = block.plan.as_ref().map(|plan| &plan.slots);
        Self {
            operands,
            activation: block.activation,
            slots,
            token_offsets: slots.map(|slots| slots.token_of_row().map(|token| token * sizes.d).collect()),
            d: sizes.d,
            f: sizes.f,
            compute,
            element: PhantomData,
        }
    }

    fn forward(&self, x: &[E], ForwardTile { tile, up, gate, y }: ForwardTile<'_, E>) {
        let Operands { up: w_up, down: w_down, gate: w_gate, up_bias, down_bias, gate_bias, .. } =
            self.operands;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile.group, num_columns);
        let x = self.rows(x, tile.rows.clone());
        let bias_of = |biases: Option<&'a [f32]>, width| bias_of(biases, tile.group, width);
        let up = self.project(up, x, matrix_of(w_up, self.f), bias_of(up_bias, self.f));
        let gate = w_gate
            .map(|w_gate| &*self.project(gate, x, matrix_of(w_gate, self.f), bias_of(gate_bias, self.f)));
        let mut hidden = Unwritten::new(up.len());
        let hidden = hidden.whole().fill(|hidden| E::activate(self.activation, hidden, up, gate));
        let down_bias = bias_of(down_bias, self.d);
        self.project(y, Matrix::row_major(hidden, self.f), matrix_of(w_down, self.d), down_bias);
    }

    /// `target = x w + bias`.
    fn project<'t, T: Stored>(
        &self,
        target: Part<'t, T>,
        x: Matrix<'_, E>,
        w: Matrix<'_>,
        bias: Option<&[f32]>,
    ) -> &'t mut [T] {
        let target = target.fill(|target| fill_with_product(target, E::factor(x), w, self.compute));
        if let Some(bias) = bias {
            add_bias(target, bias);
        }
        target
    }

    /// Some rows of `x_td`, where they lie: a row's token is read through the index.
    fn rows<'t, T: Element>(&'t self, x_td: &'t [T], rows: Range<usize>) -> Matrix<'t, T> {
        match &self.token_offsets {
            Some(offsets) => Matrix::of_rows_at(x_td, self.d, &offsets[rows]),
            None => Matrix::row_major(x_td, self.d).rows(rows),
        }
    }

    fn matrix_of(&self, stack: &'a [f32], group: usize, num_columns: usize) -> Matrix<'a> {
        let len = self.d * self.f;
        Matrix::row_major(&stack[group * len..][..len], num_columns)
    }
}

/// The bias of one group among those of all, of this width.
fn bias_of(biases: Option<&[f32]>, group: usize, width: usize) -> Option<&[f32]> {
    biases.map(|biases| &biases[group * width..][..width])
}

/// Gradients per row, from which those of tokens and matrices are summed.
struct RowGradients<'a, E> {
    /// Gradients of the projections, `[n, f]` each, the second empty without a gate projection.
    dup: &'a [E],
    dgate: &'a [E],
    /// Hidden values times the row's gate, `[n, f]`.
    weighted_hidden: Vec<E>,
    /// Gradients of the rows' tokens, `[n, d]`, and gates, `[n]`.
    dx: Vec<f32>,
    dweight: Vec<f32>,
}

/// One tile's part of each buffer of the backward pass.
struct BackwardTile<'a, E> {
    tile: &'a RowTile,
    up: &'a mut [E],
    gate: &'a mut [E],
    weighted_hidden: Part<'a, E>,
    dx: Part<'a>,
    dweight: &'a mut [f32],
}

impl<'a, E: Kept> RowGradients<'a, E> {
    /// From the projections, which become their own gradients.
    fn new(
        reader: &Reader<'_, E>,
        sizes: &Sizes,
        dy_td: &OutputGradient<'_, E>,
        [up, gate]: [&'a mut [E]; 2],
    ) -> Self {
        let Sizes { groups, n, d, f, f_gate, .. } = sizes;
        let (n, d, f, f_gate) = (*n, *d, *f, *f_gate);
        let tiles = RowTile::of(groups);
        let (mut weighted_hidden, mut dx) = (Unwritten::new(n * f), Unwritten::new(n * d));
        let mut dweight = vec![0.0; n];
        let parts = RowTile::cut(&tiles, &mut *up, f)
            .into_iter()
            .zip(RowTile::cut(&tiles, &mut *gate, f_gate))
            .zip(RowTile::cut(&tiles, weighted_hidden.whole(), f))
            .zip(RowTile::cut(&tiles, dx.whole(), d))
            .zip(RowTile::cut(&tiles, &mut dweight[..], 1))
            .zip(&tiles)
            .map(|(((((up, gate), weighted_hidden), dx), dweight), tile)| BackwardTile {
                tile,
                up,
                gate,
                weighted_hidden,
                dx,
                dweight,
            });
        parts.collect::<Vec<_>>().into_par_iter().for_each(|part| reader.backward(dy_td, part));
        let (weighted_hidden, dx) = (weighted_hidden.into_values(), dx.into_values());
        Self { dup: up, dgate: gate, weighted_hidden, dx, dweight }
    }

    /// Sums over rows.
    fn into_operands(
        self,
        reader: &Reader<'_, E>,
        sizes: &Sizes,
        dy_td: &OutputGradient<'_, E>,
    ) -> Operands<Vec<f32>> {
        let operands = reader.operands;
        let Sizes { groups, n, d, f, .. } = sizes;
        let x = rounded(reader.operands.x);
        let x = E::factor(reader.rows(&x, 0..*n));
        let [dup, dgate, hidden] =
            [self.dup, self.dgate, &*self.weighted_hidden].map(|rows| Matrix::row_major(rows, *f));
        let dy = reader.rows(&dy_td.factor, 0..*n);
        let mut gradients = vec![
            WeightGradient { x, dy: E::factor(dup) },
            WeightGradient { x: E::factor(hidden), dy: E::factor(dy) },
        ];
        if operands.gate.is_some() {
            gradients.push(WeightGradient { x, dy: E::factor(dgate) });
        }
        let dy = reader.rows(dy_td.exact, 0..*n);
        let mut stacks = weight_gradients(groups, &gradients, reader.compute).into_iter();
        let mut next_stack = || stacks.next().expect("one stack per gradient");
        let (dw_up, dw_down) = (next_stack(), next_stack());
        Operands {
            up: dw_up,
            down: dw_down,
            gate: operands.gate.map(|_| next_stack()),
            gates: reader.slots.map(|slots| combine::by_slot(&self.dweight, slots)),
            up_bias: operands.up_bias.map(|_| sum_rows_by_group(groups, dup, None)),
            down_bias: operands
                .down_bias
                .map(|_| sum_rows_by_group(groups, dy, reader.row_weights().as_deref())),
            gate_bias: operands.gate_bias.map(|_| sum_rows_by_group(groups, dgate, None)),
            x: match reader.slots {
                Some(slots) => combine::sums(&self.dx, slots, *d),
                None => self.dx,
            },
        }
    }
}

impl<E: Kept> Reader<'_, E> {
    fn backward(&self, dy_td: &OutputGradient<'_, E>, part: BackwardTile<'_, E>) {
        let BackwardTile { tile, up, gate, weighted_hidden, dx, dweight } = part;
        let Operands { up: w_up, down: w_down, gate: w_gate, .. } = self.operands;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile.group, num_columns);
        let dy = E::factor(self.rows(&dy_td.factor, tile.rows.clone()));
        let w_down = matrix_of(w_down, self.d).transposed();
        let dhidden = weighted_hidden.fill(|target| fill_with_product(target, dy, w_down, self.compute));
        let dy = self.rows(dy_td.exact, tile.rows.clone());
        let gated = w_gate.is_some();
        for (i, (row, dweight)) in tile.rows.clone().zip(dweight).enumerate() {
            let elements = i * self.f..(i + 1) * self.f;
            let gate = gated.then(|| &mut gate[elements.clone()]);
            let weight = self.weight_of(row);
            *dweight = E::differentiate(
                self.activation,
                &mut up[elements.clone()],
                gate,
                &mut dhidden[elements],
                weight,
            );
            if let Some(bias) = bias_of(self.operands.down_bias, tile.group, self.d) {
                *dweight += dot(dy.row(i), bias);
            }
        }
        let [dup, dgate] = [up, gate].map(|rows| E::factor(Matrix::row_major(rows, self.f)));
        let w_up = matrix_of(w_up, self.f).transposed();
        let dx = dx.fill(|dx| fill_with_product(dx, dup, w_up, self.compute));
        if let Some(w_gate) = w_gate {
            add_product(dx, dgate, matrix_of(w_gate, self.f).transposed(), self.compute);
        }
    }

    /// The factors of all rows, [`Reader::weight_of`]; `None` if all are 1.
    fn row_weights(&self) -> Option<Vec<f32>> {
        self.slots.map(|slots| (0..slots.num_rows()).map(|row| self.weight_of(row)).collect())
    }

    /// The factor with which a row enters its token's output.
    fn weight_of(&self, row: usize) -> f32 {
        match (self.slots, self.operands.gates) {
            (Some(slots), Some(gates)) => gates[slots.slot_of_row()[row] as usize],
            _ => 1.0,
        }
    }
}

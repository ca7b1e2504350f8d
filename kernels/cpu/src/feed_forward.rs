//! Feed-forward blocks: tiles of rows, each through the whole block while it is in the cache.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, e experts, d model width, f hidden
//! width of one block.

mod combine;
mod operands;

use std::ops::Range;

use rayon::prelude::*;

use crate::activation::{self, Activation};
use crate::dispatch::{DispatchPlan, Groups, SlotMap};
use crate::matrix::Matrix;
use crate::panel_product::{add_product, fill_with_product};
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

/// What the forward pass returns.
#[derive(Debug)]
pub struct Output {
    /// The block's output, `[t, d]`.
    pub y: Vec<f32>,
    /// Up projections of all rows, `[n, f]`.
    pub up: Vec<f32>,
    /// Gate projections of all rows, `[n, f]`; empty if the block is not gated.
    pub gate: Vec<f32>,
}

/// The block's output for `operands` of these sizes.
///
/// # Panics
/// If the operands do not fit `block` and the sizes.
pub fn forward(operands: Operands<&[f32]>, sizes_tdf: [usize; 3], block: &Block) -> Output {
    let sizes = Sizes::new(sizes_tdf, block);
    let reader = Reader::new(operands, block, &sizes);
    let Sizes { groups, n, d, f, f_gate } = &sizes;
    let (n, d, f, f_gate) = (*n, *d, *f, *f_gate);
    let tiles = RowTile::of(groups);
    let mut buffers = [n * f, n * f_gate, n * d].map(Unwritten::new);
    let [up, gate, y] = buffers.each_mut().map(Unwritten::whole);
    let parts = RowTile::cut(&tiles, up, f)
        .into_iter()
        .zip(RowTile::cut(&tiles, gate, f_gate))
        .zip(RowTile::cut(&tiles, y, d))
        .zip(&tiles)
        .map(|(((up, gate), y), tile)| ForwardTile { tile, up, gate, y });
    parts.collect::<Vec<_>>().into_par_iter().for_each(|tile| reader.forward(tile));
    let [up, gate, y] = buffers.map(Unwritten::into_values);
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
pub fn gradients(
    operands: Operands<&[f32]>,
    sizes_tdf: [usize; 3],
    [up, gate]: [&mut [f32]; 2],
    dy: &[f32],
    block: &Block,
) -> Operands<Vec<f32>> {
    let sizes = Sizes::new(sizes_tdf, block);
    let reader = Reader::new(operands, block, &sizes);
    RowGradients::new(&reader, &sizes, dy, up, gate).into_operands(&reader, &sizes, dy)
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

/// What the tiles read.
struct Reader<'a> {
    operands: Operands<&'a [f32]>,
    activation: Activation,
    slots: Option<&'a SlotMap>,
    /// Where each row's token begins, unless rows are tokens.
    token_offsets: Option<Vec<usize>>,
    d: usize,
    f: usize,
}

/// One tile's part of each buffer of the forward pass: rows of f, f (or nothing) and d elements.
struct ForwardTile<'a> {
    tile: &'a RowTile,
    up: Part<'a>,
    gate: Part<'a>,
    y: Part<'a>,
}

impl<'a> Reader<'a> {
    fn new(operands: Operands<&'a [f32]>, block: &'a Block, sizes: &Sizes) -> Self {
        let slots = block.plan.as_ref().map(|plan| &plan.slots);
        Self {
            operands,
            activation: block.activation,
            slots,
            token_offsets: slots.map(|slots| slots.token_of_row().map(|token| token * sizes.d).collect()),
            d: sizes.d,
            f: sizes.f,
        }
    }

    fn forward(&self, ForwardTile { tile, up, gate, y }: ForwardTile<'_>) {
        let Operands { up: w_up, down: w_down, gate: w_gate, up_bias, down_bias, gate_bias, .. } =
            self.operands;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile.group, num_columns);
        let x = self.rows(self.operands.x, tile.rows.clone());
        let bias_of = |biases: Option<&'a [f32]>, width| bias_of(biases, tile.group, width);
        let up = project(up, x, matrix_of(w_up, self.f), bias_of(up_bias, self.f));
        let gate =
            w_gate.map(|w_gate| &*project(gate, x, matrix_of(w_gate, self.f), bias_of(gate_bias, self.f)));
        let mut hidden = Unwritten::new(up.len());
        let hidden = hidden.whole().fill(|hidden| activation::activate(self.activation, hidden, up, gate));
        let down_bias = bias_of(down_bias, self.d);
        project(y, Matrix::row_major(hidden, self.f), matrix_of(w_down, self.d), down_bias);
    }

    /// Some rows of `x_td`, where they lie: a row's token is read through the index.
    fn rows<'t>(&'t self, x_td: &'t [f32], rows: Range<usize>) -> Matrix<'t> {
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

/// `target = x w + bias`.
fn project<'t>(target: Part<'t>, x: Matrix<'_>, w: Matrix<'_>, bias: Option<&[f32]>) -> &'t mut [f32] {
    let target = target.fill(|target| fill_with_product(target, x, w));
    if let Some(bias) = bias {
        add_bias(target, bias);
    }
    target
}

/// Gradients per row, from which those of tokens and matrices are summed.
struct RowGradients<'a> {
    /// Gradients of the projections, `[n, f]` each, the second empty without a gate projection.
    dup: &'a [f32],
    dgate: &'a [f32],
    /// Hidden values times the row's gate, `[n, f]`.
    weighted_hidden: Vec<f32>,
    /// Gradients of the rows' tokens, `[n, d]`, and gates, `[n]`.
    dx: Vec<f32>,
    dweight: Vec<f32>,
}

/// One tile's part of each buffer of the backward pass.
struct BackwardTile<'a> {
    tile: &'a RowTile,
    up: &'a mut [f32],
    gate: &'a mut [f32],
    weighted_hidden: Part<'a>,
    dx: Part<'a>,
    dweight: &'a mut [f32],
}

impl<'a> RowGradients<'a> {
    /// From the projections, which become their own gradients.
    fn new(
        reader: &Reader<'_>,
        sizes: &Sizes,
        dy_td: &[f32],
        up: &'a mut [f32],
        gate: &'a mut [f32],
    ) -> Self {
        let Sizes { groups, n, d, f, f_gate, .. } = sizes;
        let (n, d, f, f_gate) = (*n, *d, *f, *f_gate);
        let tiles = RowTile::of(groups);
        let mut buffers = [n * f, n * d].map(Unwritten::new);
        let mut dweight = vec![0.0; n];
        let [hidden_buffer, dx_buffer] = buffers.each_mut().map(Unwritten::whole);
        let parts = RowTile::cut(&tiles, &mut *up, f)
            .into_iter()
            .zip(RowTile::cut(&tiles, &mut *gate, f_gate))
            .zip(RowTile::cut(&tiles, hidden_buffer, f))
            .zip(RowTile::cut(&tiles, dx_buffer, d))
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
        let [weighted_hidden, dx] = buffers.map(Unwritten::into_values);
        Self { dup: up, dgate: gate, weighted_hidden, dx, dweight }
    }

    /// Sums over rows.
    fn into_operands(self, reader: &Reader<'_>, sizes: &Sizes, dy_td: &[f32]) -> Operands<Vec<f32>> {
        let operands = reader.operands;
        let Sizes { groups, n, d, f, .. } = sizes;
        let (x, dy) = (reader.rows(reader.operands.x, 0..*n), reader.rows(dy_td, 0..*n));
        let [dup, dgate, hidden] =
            [self.dup, self.dgate, &*self.weighted_hidden].map(|rows| Matrix::row_major(rows, *f));
        let mut gradients = vec![WeightGradient { x, dy: dup }, WeightGradient { x: hidden, dy }];
        if operands.gate.is_some() {
            gradients.push(WeightGradient { x, dy: dgate });
        }
        let mut stacks = weight_gradients(groups, &gradients).into_iter();
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

impl Reader<'_> {
    fn backward(&self, dy_td: &[f32], part: BackwardTile<'_>) {
        let BackwardTile { tile, up, gate, weighted_hidden, dx, dweight } = part;
        let Operands { up: w_up, down: w_down, gate: w_gate, .. } = self.operands;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile.group, num_columns);
        let dy = self.rows(dy_td, tile.rows.clone());
        let w_down = matrix_of(w_down, self.d).transposed();
        let dhidden = weighted_hidden.fill(|target| fill_with_product(target, dy, w_down));
        let gated = w_gate.is_some();
        for (i, (row, dweight)) in tile.rows.clone().zip(dweight).enumerate() {
            let elements = i * self.f..(i + 1) * self.f;
            let gate = gated.then(|| &mut gate[elements.clone()]);
            let weight = self.weight_of(row);
            *dweight = activation::backward(
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
        let (dup, w_up) = (Matrix::row_major(up, self.f), matrix_of(w_up, self.f).transposed());
        let dx = dx.fill(|dx| fill_with_product(dx, dup, w_up));
        if let Some(w_gate) = w_gate {
            add_product(dx, Matrix::row_major(gate, self.f), matrix_of(w_gate, self.f).transposed());
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

//! Feed-forward blocks on the CPU: tiles of rows, each through the whole block while it is in the cache.

mod combine;

use std::mem::MaybeUninit;
use std::ops::Range;

use burn::backend::TensorMetadata;
use burn::backend::flex::FlexTensor;
use burn::tensor::Shape;
use rayon::prelude::*;

use super::Block;
use super::operands::Operands;
use crate::activation::{Activation, lanes};
use crate::dispatch::{Groups, SlotMap};
use crate::matrix::{Matrix, Unwritten};
use crate::panel_product::{add_product, fill_with_product};
use crate::row_tiles::{RowTile, WeightGradient, add_bias, sum_rows, weight_gradients};
use crate::slices::{contiguous, elements, from_elements};

/// The block's output, and the up and gate projections of all rows.
pub(super) fn forward(operands: Operands<FlexTensor>, block: &Block) -> (FlexTensor, Vec<FlexTensor>) {
    let operands = operands.map(contiguous);
    let sizes = Sizes::new(&operands, block);
    let reader = Reader::new(&operands, block, &sizes);
    let Sizes { groups, n, t, d, f, f_gate } = &sizes;
    let (n, t, d, f, f_gate) = (*n, *t, *d, *f, *f_gate);
    let tiles = RowTile::of(groups);
    let mut buffers = [n * f, n * f_gate, n * d].map(Unwritten::new);
    let [up, gate, y] = buffers.each_mut().map(Unwritten::as_mut_slice);
    let parts = RowTile::cut(&tiles, up, f)
        .into_iter()
        .zip(RowTile::cut(&tiles, gate, f_gate))
        .zip(RowTile::cut(&tiles, y, d))
        .zip(&tiles)
        .map(|(((up, gate), y), tile)| ForwardTile { tile, up, gate, y });
    parts.collect::<Vec<_>>().into_par_iter().for_each(|tile| reader.forward(tile));
    // SAFETY: the tiles cover all rows, and each wrote its whole parts.
    let [up, gate, y] = buffers.map(|buffer| unsafe { buffer.written() });
    let y = match (&block.plan, reader.operands.gates) {
        (Some(plan), Some(gates)) => combine::weighted_sums(&y, gates, &plan.slots, d),
        _ => y,
    };
    let mut projections = vec![from_elements(up, Shape::new([n, f]))];
    if block.parts.gated {
        projections.push(from_elements(gate, Shape::new([n, f])));
    }
    (from_elements(y, Shape::new([t, d])), projections)
}

/// Gradients of all operands. The projections become their own gradients in place.
pub(super) fn gradients(
    operands: Operands<FlexTensor>,
    projections: Vec<FlexTensor>,
    dy_td: FlexTensor,
    block: &Block,
) -> Operands<FlexTensor> {
    let (operands, dy_td) = (operands.map(contiguous), contiguous(dy_td));
    let sizes = Sizes::new(&operands, block);
    let reader = Reader::new(&operands, block, &sizes);
    let mut projections = projections.into_iter().map(contiguous);
    let (mut up, mut gate) = (projections.next(), projections.next());
    let rows =
        RowGradients::new(&reader, &sizes, elements(&dy_td), storage_mut(&mut up), storage_mut(&mut gate));
    rows.into_operands(&reader, &sizes, elements(&dy_td), &operands)
}

/// The elements of a tensor that is there and covers its buffer.
fn storage_mut(projection: &mut Option<FlexTensor>) -> &mut [f32] {
    match projection {
        Some(projection) => projection.storage_mut(),
        None => &mut [],
    }
}

/// Sizes of one call.
struct Sizes {
    groups: Groups,
    n: usize,
    t: usize,
    d: usize,
    f: usize,
    /// f, or 0 without a gate projection.
    f_gate: usize,
}

impl Sizes {
    fn new(operands: &Operands<FlexTensor>, block: &Block) -> Self {
        let (t, d) = (operands.x.shape()[0], operands.x.shape()[1]);
        let f = *operands.up.shape().last().expect("a matrix has columns");
        let groups = block.groups(t);
        Self { n: groups.num_rows(), t, d, f, f_gate: if block.parts.gated { f } else { 0 }, groups }
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
    up: &'a mut [MaybeUninit<f32>],
    gate: &'a mut [MaybeUninit<f32>],
    y: &'a mut [MaybeUninit<f32>],
}

impl<'a> Reader<'a> {
    fn new(operands: &'a Operands<FlexTensor>, block: &'a Block, sizes: &Sizes) -> Self {
        let slots = block.plan.as_ref().map(|plan| &plan.slots);
        Self {
            operands: operands.as_ref().map(elements),
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
        let up = project(up, x, matrix_of(w_up, self.f), up_bias);
        let gate = w_gate.map(|w_gate| &*project(gate, x, matrix_of(w_gate, self.f), gate_bias));
        let mut hidden = Unwritten::new(up.len());
        let hidden = lanes::activate(self.activation, hidden.as_mut_slice(), up, gate);
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

/// `target = x w + bias`.
fn project<'t>(
    target: &'t mut [MaybeUninit<f32>],
    x: Matrix<'_>,
    w: Matrix<'_>,
    bias: Option<&[f32]>,
) -> &'t mut [f32] {
    let target = fill_with_product(target, x, w);
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
    weighted_hidden: &'a mut [MaybeUninit<f32>],
    dx: &'a mut [MaybeUninit<f32>],
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
        let [hidden_buffer, dx_buffer] = buffers.each_mut().map(Unwritten::as_mut_slice);
        let parts = RowTile::cut(&tiles, up, f)
            .into_iter()
            .zip(RowTile::cut(&tiles, gate, f_gate))
            .zip(RowTile::cut(&tiles, hidden_buffer, f))
            .zip(RowTile::cut(&tiles, dx_buffer, d))
            .zip(RowTile::cut(&tiles, &mut dweight, 1))
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
        // SAFETY: the tiles cover all rows, and each wrote its whole parts.
        let [weighted_hidden, dx] = buffers.map(|buffer| unsafe { buffer.written() });
        Self { dup: up, dgate: gate, weighted_hidden, dx, dweight }
    }

    /// Sums over rows.
    fn into_operands(
        self,
        reader: &Reader<'_>,
        sizes: &Sizes,
        dy_td: &[f32],
        operands: &Operands<FlexTensor>,
    ) -> Operands<FlexTensor> {
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
        let gradients = Operands {
            up: dw_up,
            down: dw_down,
            gate: operands.gate.as_ref().map(|_| next_stack()),
            gates: reader.slots.map(|slots| combine::by_slot(&self.dweight, slots)),
            up_bias: operands.up_bias.as_ref().map(|_| sum_rows(dup)),
            down_bias: operands.down_bias.as_ref().map(|_| sum_rows(dy)),
            gate_bias: operands.gate_bias.as_ref().map(|_| sum_rows(dgate)),
            x: match reader.slots {
                Some(slots) => combine::sums(&self.dx, slots, *d),
                None => self.dx,
            },
        };
        gradients.zip(operands.as_ref()).map(|(gradient, operand)| from_elements(gradient, operand.shape()))
    }
}

impl Reader<'_> {
    fn backward(&self, dy_td: &[f32], part: BackwardTile<'_>) {
        let BackwardTile { tile, up, gate, weighted_hidden, dx, dweight } = part;
        let Operands { up: w_up, down: w_down, gate: w_gate, .. } = self.operands;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile.group, num_columns);
        let dy = self.rows(dy_td, tile.rows.clone());
        let dhidden = fill_with_product(weighted_hidden, dy, matrix_of(w_down, self.d).transposed());
        let gated = w_gate.is_some();
        for (i, (row, dweight)) in tile.rows.clone().zip(dweight).enumerate() {
            let elements = i * self.f..(i + 1) * self.f;
            let gate = gated.then(|| &mut gate[elements.clone()]);
            let weight = self.weight_of(row);
            *dweight = lanes::backward(
                self.activation,
                &mut up[elements.clone()],
                gate,
                &mut dhidden[elements],
                weight,
            );
        }
        let dx = fill_with_product(dx, Matrix::row_major(up, self.f), matrix_of(w_up, self.f).transposed());
        if let Some(w_gate) = w_gate {
            add_product(dx, Matrix::row_major(gate, self.f), matrix_of(w_gate, self.f).transposed());
        }
    }

    /// The factor with which a row enters its token's output.
    fn weight_of(&self, row: usize) -> f32 {
        match (self.slots, self.operands.gates) {
            (Some(slots), Some(gates)) => gates[slots.slot_of_row()[row] as usize],
            _ => 1.0,
        }
    }
}

//! The work on rows: tiles of them, each through the whole block while it is in the cache.
//!
//! Rows are those of one or several sources, one source behind the other, each source's grouped by
//! expert. What comes out of a row does not depend on the others, and gradients of the matrices are
//! sums over one source's rows: both are the bits of that source alone.

use std::borrow::Cow;
use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::{Block, Matrices, Output};
use crate::activation::{Activation, Kept};
use crate::bf16::{Compute, Element};
use crate::dispatch::Groups;
use crate::matrix::Matrix;
use crate::panel_product::{Stored, add_product, fill_with_product};
use crate::rounding::rounded;
use crate::row_tiles::{RowTile, WeightGradient, add_bias, sum_rows_by_group, weight_gradients};
use crate::simd::dot;
use crate::unwritten::{Part, Unwritten};

/// The block of some rows; `E` is what its products read and what it keeps for the way back.
#[derive(Debug)]
pub struct RowBlock<'a, E> {
    matrices: Matrices<&'a [f32]>,
    activation: Activation,
    compute: Compute,
    d: usize,
    f: usize,
    /// The rows that each source has for each expert.
    sources: Vec<Groups>,
    /// The same, one source behind the other.
    groups: Groups,
    /// Where each row's token begins, unless rows are packed.
    token_offsets: Option<Vec<usize>>,
    element: PhantomData<E>,
}

/// What [`RowBlock::gradients`] returns.
#[derive(Debug)]
pub struct PackedGradients {
    /// Gradients of the rows, `[n, d]`.
    pub dx: Vec<f32>,
    /// Gradients of the rows' weights, `[n]`.
    pub dweight: Vec<f32>,
    /// Gradients of the matrices from each source's rows.
    pub by_source: Vec<Matrices<Vec<f32>>>,
}

/// The gradient of the output: of each token, or of each packed row.
pub(super) struct OutputGradient<'a, E: Element> {
    exact: &'a [f32],
    /// As products read it.
    factor: Cow<'a, [E]>,
    /// The factors with which rows enter their outputs, `[n]`; `None` if all are 1.
    weights: Option<&'a [f32]>,
}

impl<'a, E: Element> OutputGradient<'a, E> {
    pub(super) fn new(dy: &'a [f32], weights: Option<&'a [f32]>) -> Self {
        Self { exact: dy, factor: rounded(dy), weights }
    }

    fn weight_of(&self, row: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[row])
    }
}

/// One tile's part of each buffer of the forward pass: rows of f, f (or nothing) and d elements.
struct ForwardTile<'a, E> {
    tile: &'a RowTile,
    up: Part<'a, E>,
    gate: Part<'a, E>,
    y: Part<'a>,
}

/// Gradients per row, from which those of tokens and matrices are summed.
pub(super) struct RowGradients<'a, E> {
    /// Gradients of the projections, `[n, f]` each, the second empty without a gate projection.
    dup: &'a [E],
    dgate: &'a [E],
    /// Hidden values times the row's gate, `[n, f]`.
    weighted_hidden: Vec<E>,
    /// Gradients of the rows' tokens, `[n, d]`, and gates, `[n]`.
    pub(super) dx: Vec<f32>,
    pub(super) dweight: Vec<f32>,
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

impl<'a, E: Kept> RowBlock<'a, E> {
    /// The block whose rows are packed, those of each source in its groups, one per expert. `d` and
    /// `f` are the sizes of `matrices`; of `block`, the plan is not read.
    ///
    /// # Panics
    /// If there is no source, sources differ in their number of experts, or `E` is not what `block`
    /// computes with.
    pub fn packed(
        matrices: Matrices<&'a [f32]>,
        [d, f]: [usize; 2],
        sources: Vec<Groups>,
        block: &Block,
    ) -> Self {
        let compute = block.options.compute;
        assert_eq!(E::IS_ROUNDED, compute.is_rounded(), "what products in {compute:?} read");
        let num_experts = sources.first().expect("rows have a source").num_groups();
        assert!(
            sources.iter().all(|groups| groups.num_groups() == num_experts),
            "sources differ in their number of experts: {sources:?}"
        );
        let groups = Groups::joined(&sources);
        let activation = block.activation;
        Self {
            matrices,
            activation,
            compute,
            d,
            f,
            sources,
            groups,
            token_offsets: None,
            element: PhantomData,
        }
    }

    /// The block whose rows are those of `block`'s plan, or the tokens, and lie where tokens lie.
    pub(super) fn of_tokens(matrices: Matrices<&'a [f32]>, [t, d, f]: [usize; 3], block: &Block) -> Self {
        let offset_of = |token| token * d;
        Self {
            token_offsets: block.plan.as_ref().map(|plan| plan.slots.token_of_row().map(offset_of).collect()),
            ..Self::packed(matrices, [d, f], vec![block.groups(t)], block)
        }
    }

    /// The experts' outputs for the rows, `[n, d]`, and the projections.
    ///
    /// # Panics
    /// If `x` does not fit the rows, or the matrices do not fit the sizes.
    pub fn forward(&self, x: &[E]) -> Output<E> {
        let (n, d, f, f_gate) = (self.groups.num_rows(), self.d, self.f, self.f_gate());
        let tiles = RowTile::of(&self.groups);
        let mut projections = [n * f, n * f_gate].map(Unwritten::new);
        let mut y = Unwritten::new(n * d);
        let [up, gate] = projections.each_mut().map(Unwritten::whole);
        let parts = RowTile::cut(&tiles, up, f)
            .into_iter()
            .zip(RowTile::cut(&tiles, gate, f_gate))
            .zip(RowTile::cut(&tiles, y.whole(), d))
            .zip(&tiles)
            .map(|(((up, gate), y), tile)| ForwardTile { tile, up, gate, y });
        parts.collect::<Vec<_>>().into_par_iter().for_each(|tile| self.forward_tile(x, tile));
        let ([up, gate], y) = (projections.map(Unwritten::into_values), y.into_values());
        Output { y, up, gate }
    }

    /// Gradients of packed rows, of their weights and of the matrices from `dy`, `[n, d]`, the
    /// gradients of what the rows, each times its weight, are added to. The projections of the
    /// forward pass, `up` and `gate`, become their own gradients.
    ///
    /// # Panics
    /// As [`RowBlock::forward`].
    pub fn gradients(
        &self,
        x: &[E],
        projections: [&mut [E]; 2],
        dy: &[f32],
        weights: &[f32],
    ) -> PackedGradients {
        let dy = OutputGradient::new(dy, Some(weights));
        let of_rows = self.row_gradients(projections, &dy);
        let by_source = self.matrix_gradients(&of_rows, x, &dy);
        PackedGradients { dx: of_rows.dx, dweight: of_rows.dweight, by_source }
    }

    /// From the projections, which become their own gradients.
    pub(super) fn row_gradients<'p>(
        &self,
        [up, gate]: [&'p mut [E]; 2],
        dy: &OutputGradient<'_, E>,
    ) -> RowGradients<'p, E> {
        let (n, d, f, f_gate) = (self.groups.num_rows(), self.d, self.f, self.f_gate());
        let tiles = RowTile::of(&self.groups);
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
        parts.collect::<Vec<_>>().into_par_iter().for_each(|part| self.backward_tile(dy, part));
        let (weighted_hidden, dx) = (weighted_hidden.into_values(), dx.into_values());
        RowGradients { dup: up, dgate: gate, weighted_hidden, dx, dweight }
    }

    /// The sums over each source's rows.
    pub(super) fn matrix_gradients(
        &self,
        of_rows: &RowGradients<'_, E>,
        x: &[E],
        dy: &OutputGradient<'_, E>,
    ) -> Vec<Matrices<Vec<f32>>> {
        let all_rows = 0..self.groups.num_rows();
        let x = E::factor(self.rows(x, all_rows.clone()));
        let [dup, dgate, hidden] = [of_rows.dup, of_rows.dgate, &*of_rows.weighted_hidden]
            .map(|rows| Matrix::row_major(rows, self.f));
        let dy_factor = E::factor(self.rows(&dy.factor, all_rows.clone()));
        let mut pairs = vec![(x, E::factor(dup)), (E::factor(hidden), dy_factor)];
        if self.matrices.gate.is_some() {
            pairs.push((x, E::factor(dgate)));
        }
        let mut gradients = Vec::new();
        for (groups, rows) in self.rows_by_source() {
            for (x, dy) in &pairs {
                gradients.push(WeightGradient { groups, x: x.rows(rows.clone()), dy: dy.rows(rows.clone()) });
            }
        }
        let mut stacks = weight_gradients(&gradients, self.compute).into_iter();
        let mut next_stack = || stacks.next().expect("one stack per gradient");
        let dy_exact = self.rows(dy.exact, all_rows);
        let Matrices { gate, up_bias, down_bias, gate_bias, .. } = self.matrices;
        let of_source = |(groups, rows): (&Groups, Range<usize>)| {
            let weights = dy.weights.map(|weights| &weights[rows.clone()]);
            let sum_of = |of_rows: Matrix<'_, E>| sum_rows_by_group(groups, of_rows.rows(rows.clone()), None);
            Matrices {
                up: next_stack(),
                down: next_stack(),
                gate: gate.map(|_| next_stack()),
                up_bias: up_bias.map(|_| sum_of(dup)),
                down_bias: down_bias.map(|_| sum_rows_by_group(groups, dy_exact.rows(rows.clone()), weights)),
                gate_bias: gate_bias.map(|_| sum_of(dgate)),
            }
        };
        self.rows_by_source().map(of_source).collect()
    }

    /// Each source's groups, whose rows are counted from its first, and its place among all rows.
    fn rows_by_source(&self) -> impl Iterator<Item = (&Groups, Range<usize>)> {
        self.sources.iter().scan(0, |end, groups| {
            let start = *end;
            *end += groups.num_rows();
            Some((groups, start..*end))
        })
    }

    fn forward_tile(&self, x: &[E], ForwardTile { tile, up, gate, y }: ForwardTile<'_, E>) {
        let Matrices { up: w_up, down: w_down, gate: w_gate, up_bias, down_bias, gate_bias } = self.matrices;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile, num_columns);
        let x = self.rows(x, tile.rows.clone());
        let bias_of = |biases: Option<&'a [f32]>, width| self.bias_of(biases, tile, width);
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

    fn backward_tile(&self, dy: &OutputGradient<'_, E>, part: BackwardTile<'_, E>) {
        let BackwardTile { tile, up, gate, weighted_hidden, dx, dweight } = part;
        let Matrices { up: w_up, down: w_down, gate: w_gate, down_bias, .. } = self.matrices;
        let matrix_of = |stack, num_columns| self.matrix_of(stack, tile, num_columns);
        let dy_factor = E::factor(self.rows(&dy.factor, tile.rows.clone()));
        let w_down = matrix_of(w_down, self.d).transposed();
        let dhidden =
            weighted_hidden.fill(|target| fill_with_product(target, dy_factor, w_down, self.compute));
        let dy_exact = self.rows(dy.exact, tile.rows.clone());
        let gated = w_gate.is_some();
        for (i, (row, dweight)) in tile.rows.clone().zip(dweight).enumerate() {
            let elements = i * self.f..(i + 1) * self.f;
            let gate = gated.then(|| &mut gate[elements.clone()]);
            *dweight = E::differentiate(
                self.activation,
                &mut up[elements.clone()],
                gate,
                &mut dhidden[elements],
                dy.weight_of(row),
            );
            if let Some(bias) = self.bias_of(down_bias, tile, self.d) {
                *dweight += dot(dy_exact.row(i), bias);
            }
        }
        let [dup, dgate] = [up, gate].map(|rows| E::factor(Matrix::row_major(rows, self.f)));
        let w_up = matrix_of(w_up, self.f).transposed();
        let dx = dx.fill(|dx| fill_with_product(dx, dup, w_up, self.compute));
        if let Some(w_gate) = w_gate {
            add_product(dx, dgate, matrix_of(w_gate, self.f).transposed(), self.compute);
        }
    }

    /// Some rows: a row's token is read where it lies, through the index.
    fn rows<'t, T: Element>(&'t self, elements: &'t [T], rows: Range<usize>) -> Matrix<'t, T> {
        match &self.token_offsets {
            Some(offsets) => Matrix::of_rows_at(elements, self.d, &offsets[rows]),
            None => Matrix::row_major(elements, self.d).rows(rows),
        }
    }

    fn matrix_of(&self, stack: &'a [f32], tile: &RowTile, num_columns: usize) -> Matrix<'a> {
        let len = self.d * self.f;
        Matrix::row_major(&stack[self.expert_of(tile) * len..][..len], num_columns)
    }

    /// The bias of the tile's expert among those of all, of this width.
    fn bias_of<'b>(&self, biases: Option<&'b [f32]>, tile: &RowTile, width: usize) -> Option<&'b [f32]> {
        biases.map(|biases| &biases[self.expert_of(tile) * width..][..width])
    }

    fn expert_of(&self, tile: &RowTile) -> usize {
        tile.group % self.sources[0].num_groups()
    }

    /// f, or 0 without a gate projection.
    fn f_gate(&self) -> usize {
        if self.matrices.gate.is_some() { self.f } else { 0 }
    }
}

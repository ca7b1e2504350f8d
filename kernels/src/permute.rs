//! Tokens to packed rows and back: dispatch to experts, and the weighted combination of what they return.
//!
//! Both directions, and both gradients, read through an index and never scatter: no atomics, and each sum has one
//! fixed order, so results repeat bit for bit.
//!
//! Shape letters: t tokens, k slots per token, n packed rows, d width.

use std::sync::Arc;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Shape, Slice, Tensor, TensorData};

/// Which packed row holds which slot. Slot `t * top_k + s` is the s-th expert choice of token t; a slot without a
/// row was dropped. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotMap {
    num_tokens: usize,
    top_k: usize,
    slot_of_row: Arc<[u32]>,
    row_of_slot: Arc<[Option<u32>]>,
}

impl SlotMap {
    /// The map in which packed row r holds slot `slot_of_row[r]`.
    ///
    /// # Panics
    /// If a slot is not below `num_tokens * top_k` or has two rows.
    pub fn new(slot_of_row: impl Into<Arc<[u32]>>, num_tokens: usize, top_k: usize) -> Self {
        let slot_of_row = slot_of_row.into();
        let mut row_of_slot = vec![None; num_tokens * top_k];
        for (row, &slot) in (0u32..).zip(slot_of_row.iter()) {
            let earlier = row_of_slot[slot as usize].replace(row);
            assert!(earlier.is_none(), "slot {slot} is in rows {earlier:?} and {row}");
        }
        Self { num_tokens, top_k, slot_of_row, row_of_slot: row_of_slot.into() }
    }

    /// Tokens, those without any row included.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    /// Slots of each token.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Packed rows; `num_tokens * top_k` unless slots were dropped.
    pub fn num_rows(&self) -> usize {
        self.slot_of_row.len()
    }

    /// Slot that each packed row holds.
    pub fn slot_of_row(&self) -> &[u32] {
        &self.slot_of_row
    }

    /// Packed row of each slot, `None` where the slot was dropped.
    pub fn row_of_slot(&self) -> &[Option<u32>] {
        &self.row_of_slot
    }

    fn drops_slots(&self) -> bool {
        self.num_rows() < self.row_of_slot.len()
    }
}

/// The token of each packed row: copies token rows to where their experts read them.
///
/// # Shapes
/// - `x_td`: `[num_tokens, d]`; returns `[num_rows, d]`
///
/// # Panics
/// If `x_td` has not one row per token of `slots`.
pub fn gather_rows(x_td: Tensor<2>, slots: &SlotMap) -> Tensor<2> {
    let [t, _] = x_td.dims();
    assert!(t == slots.num_tokens, "{t} rows given for {} tokens", slots.num_tokens);
    Tensor::from_dispatch(Dispatch::gather_rows(x_td.into_dispatch(), slots.clone()))
}

/// Sum over each token's slots of gate times packed row, in slot order; a dropped slot adds nothing and its gate
/// gets no gradient.
///
/// # Shapes
/// - `y_nd`: `[num_rows, d]`; `gates_tk`: `[num_tokens, top_k]` of the same float type; returns `[num_tokens, d]`
///
/// # Panics
/// If the shapes do not fit `slots`.
pub fn combine_rows(y_nd: Tensor<2>, gates_tk: Tensor<2>, slots: &SlotMap) -> Tensor<2> {
    let [n, _] = y_nd.dims();
    assert!(
        n == slots.num_rows() && gates_tk.dims() == [slots.num_tokens, slots.top_k],
        "{n} rows and gates {:?} do not fit {} rows of {} tokens with {} slots each",
        gates_tk.dims(),
        slots.num_rows(),
        slots.num_tokens,
        slots.top_k,
    );
    let y_td = Dispatch::combine_rows(y_nd.into_dispatch(), gates_tk.into_dispatch(), slots.clone());
    Tensor::from_dispatch(y_td)
}

/// The operations and their gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait Permute: Backend {
    /// Packed rows of the tokens: `[n, d]`.
    fn gather_rows(x_td: FloatTensor<Self>, slots: SlotMap) -> FloatTensor<Self> {
        let token_of_row = slots.slot_of_row.iter().map(|&slot| slot as usize / slots.top_k);
        let indices = upload_indices::<Self>(token_of_row, &x_td);
        Self::float_select(x_td, 0, indices)
    }

    /// Gradient of [`Permute::gather_rows`]: the sum of each token's rows, `[t, d]`.
    fn sum_slots(dy_nd: FloatTensor<Self>, slots: SlotMap) -> FloatTensor<Self> {
        let padded_nd = pad_for_dropped::<Self>(dy_nd, &slots);
        sum_in_slot_order::<Self>(&slots, |slot| rows_of_slot::<Self>(&padded_nd, &slots, slot))
    }

    /// Weighted sum of each token's rows: `[t, d]`.
    fn combine_rows(
        y_nd: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        slots: SlotMap,
    ) -> FloatTensor<Self> {
        let padded_nd = pad_for_dropped::<Self>(y_nd, &slots);
        sum_in_slot_order::<Self>(&slots, |slot| {
            let gate_t1 = Self::float_slice(gates_tk.clone(), &[Slice::full(), Slice::from(slot..slot + 1)]);
            Self::float_mul(rows_of_slot::<Self>(&padded_nd, &slots, slot), gate_t1)
        })
    }

    /// Gradient of the rows of [`Permute::combine_rows`]: gate times the token's gradient, `[n, d]`.
    fn combine_rows_row_gradient(
        dy_td: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        slots: SlotMap,
    ) -> FloatTensor<Self> {
        let num_slots = slots.num_tokens * slots.top_k;
        let gates_n1 = Self::float_reshape(gates_tk, Shape::new([num_slots, 1]));
        let slot_of_row = slots.slot_of_row.iter().map(|&slot| slot as usize);
        let indices = upload_indices::<Self>(slot_of_row, &gates_n1);
        let gate_of_row_n1 = Self::float_select(gates_n1, 0, indices);
        Self::float_mul(Self::gather_rows(dy_td, slots), gate_of_row_n1)
    }

    /// Gradient of the gates of [`Permute::combine_rows`]: row times the token's gradient, `[t, k]`.
    fn combine_rows_gate_gradient(
        dy_td: FloatTensor<Self>,
        y_nd: FloatTensor<Self>,
        slots: SlotMap,
    ) -> FloatTensor<Self> {
        let padded_nd = pad_for_dropped::<Self>(y_nd, &slots);
        let gradient_of = |slot| {
            let y_td = rows_of_slot::<Self>(&padded_nd, &slots, slot);
            Self::float_sum_dim(Self::float_mul(y_td, dy_td.clone()), 1)
        };
        Self::float_cat((0..slots.top_k).map(gradient_of).collect(), 1)
    }
}

/// `y_nd` with a row of zeros at the end, for dropped slots to read; unchanged if none was dropped.
fn pad_for_dropped<B: Backend>(y_nd: FloatTensor<B>, slots: &SlotMap) -> FloatTensor<B> {
    if !slots.drops_slots() {
        return y_nd;
    }
    let zeros_1d = B::float_zeros(Shape::new([1, y_nd.shape()[1]]), &y_nd.device(), y_nd.dtype().into());
    B::float_cat(vec![y_nd, zeros_1d], 0)
}

/// Row of every token's slot number `slot`: `[t, d]`.
fn rows_of_slot<B: Backend>(padded_nd: &FloatTensor<B>, slots: &SlotMap, slot: usize) -> FloatTensor<B> {
    let rows = slots.row_of_slot.iter().skip(slot).step_by(slots.top_k);
    let rows = rows.map(|row| row.map_or(slots.num_rows(), |row| row as usize));
    B::float_select(padded_nd.clone(), 0, upload_indices::<B>(rows, padded_nd))
}

/// `term(0) + term(1) + ...` over a token's slots, starting from the first term: adding to zero would turn -0 into 0.
fn sum_in_slot_order<B: Backend>(slots: &SlotMap, term: impl Fn(usize) -> FloatTensor<B>) -> FloatTensor<B> {
    (1..slots.top_k).fold(term(0), |sum, slot| B::float_add(sum, term(slot)))
}

fn upload_indices<B: Backend>(indices: impl Iterator<Item = usize>, like: &FloatTensor<B>) -> IntTensor<B> {
    let indices: Vec<i32> = indices.map(|index| index as i32).collect();
    let shape = [indices.len()];
    B::int_from_data(TensorData::new(indices, shape), &like.device())
}

impl Permute for Flex {}

#[cfg(feature = "cube")]
impl Permute for burn_cubecl::CubeBackend {}

impl<B: Permute, C: CheckpointStrategy> Permute for Autodiff<B, C> {
    fn gather_rows(x_td: FloatTensor<Self>, slots: SlotMap) -> FloatTensor<Self> {
        match GatherRowsBackward.prepare::<C>([x_td.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prepared) => {
                let rows_nd = B::gather_rows(x_td.into_primitive(), slots.clone());
                prepared.finish(slots, rows_nd)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::gather_rows(x_td.into_primitive(), slots)),
        }
    }

    fn combine_rows(
        y_nd: FloatTensor<Self>,
        gates_tk: FloatTensor<Self>,
        slots: SlotMap,
    ) -> FloatTensor<Self> {
        let prepared =
            CombineRowsBackward.prepare::<C>([y_nd.node(), gates_tk.node()]).compute_bound().stateful();
        match prepared {
            OpsKind::Tracked(mut prepared) => {
                let state = SavedForCombine {
                    y_nd: gates_tk.is_tracked().then(|| prepared.checkpoint(&y_nd)),
                    gates_tk: y_nd.is_tracked().then(|| prepared.checkpoint(&gates_tk)),
                    slots: slots.clone(),
                };
                let y_td = B::combine_rows(y_nd.into_primitive(), gates_tk.into_primitive(), slots);
                prepared.finish(state, y_td)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::combine_rows(y_nd.into_primitive(), gates_tk.into_primitive(), slots))
            }
        }
    }
}

#[derive(Debug)]
struct GatherRowsBackward;

impl<B: Permute> Backward<B, 1> for GatherRowsBackward {
    type State = SlotMap;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let dy_nd = grads.consume::<B>(&ops.node);
        let [x_node] = ops.parents;
        if let Some(node) = x_node {
            grads.register::<B>(node.id, B::sum_slots(dy_nd, ops.state));
        }
    }
}

#[derive(Debug)]
struct CombineRowsBackward;

/// What the backward pass reads again: each input only if the other one has a gradient.
#[derive(Debug, Clone)]
struct SavedForCombine {
    y_nd: Option<NodeId>,
    gates_tk: Option<NodeId>,
    slots: SlotMap,
}

impl<B: Permute> Backward<B, 2> for CombineRowsBackward {
    type State = SavedForCombine;

    fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_td = grads.consume::<B>(&ops.node);
        let SavedForCombine { y_nd, gates_tk, slots } = ops.state;
        let y_nd = y_nd.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let gates_tk = gates_tk.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let [y_node, gates_node] = ops.parents;
        if let (Some(node), Some(gates_tk)) = (y_node, gates_tk) {
            let dy_nd = B::combine_rows_row_gradient(dy_td.clone(), gates_tk, slots.clone());
            grads.register::<B>(node.id, dy_nd);
        }
        if let (Some(node), Some(y_nd)) = (gates_node, y_nd) {
            grads.register::<B>(node.id, B::combine_rows_gate_gradient(dy_td, y_nd, slots));
        }
    }
}

//! Causal self-attention.
//!
//! Shape letters: b batch, s sequence, t = b * s tokens, h query heads, g key/value heads, d head width, q = h * d.

mod fused;
mod stock;

use burn::backend::{
    Autodiff, Backend, Dispatch, ExtensionType, Flex, TensorMetadata,
    autodiff::{
        NodeId,
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    backend_extension,
    flex::FlexTensor,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{Int, Tensor};

use crate::rotary::RotaryTable;
use crate::slices::all_f32;
use crate::tensor_list::TensorList;

/// Which earlier tokens a token may attend to. Build it once per forward pass; every layer shares it.
#[derive(Debug, Clone)]
pub struct CausalMask {
    /// `[b or 1, s]`: a token sees those before it with its own number.
    segment_ids_bs: Tensor<2, Int>,
}

impl CausalMask {
    /// Each token sees itself and what precedes it.
    pub fn new(seq_len: usize, device: &burn::tensor::Device) -> Self {
        Self { segment_ids_bs: Tensor::zeros([1, seq_len], device) }
    }

    /// As [`CausalMask::new`], and only within the token's own document.
    ///
    /// # Shapes
    /// - `segment_ids_bs`: `[batch, seq]`, equal for tokens of one document
    pub fn within_documents(segment_ids_bs: Tensor<2, Int>) -> Self {
        Self { segment_ids_bs }
    }
}

/// How the rows of tokens are cut into heads, and what attention knows of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads: query head i reads head `i / (num_heads / num_kv_heads)` (arXiv:2305.13245).
    pub num_kv_heads: usize,
    /// Subtract from each score the key's distance times the head's slope (ALiBi, arXiv:2108.12409, section 3).
    pub alibi: bool,
}

/// Scaled dot-product attention, `softmax(Q K^T / sqrt(d)) V` under `mask` (arXiv:1706.03762, eq. 1), of every head.
/// With `rotary`, queries and keys are turned by their positions first. On the CPU the scores of a few queries exist at
/// a time, never a `[seq, seq]` matrix (FlashAttention, arXiv:2205.14135).
///
/// # Shapes
/// - `q_tq`: `[batch * seq, num_heads * d_head]`, head by head
/// - `k_tg`, `v_tg`: `[batch * seq, num_kv_heads * d_head]`
/// - returns `[batch * seq, num_heads * d_head]`
///
/// # Panics
/// If the shapes do not fit each other, `heads`, `mask` or `rotary`.
pub fn causal_attention(
    q_tq: Tensor<2>,
    k_tg: Tensor<2>,
    v_tg: Tensor<2>,
    heads: Heads,
    mask: &CausalMask,
    rotary: Option<&RotaryTable>,
) -> Tensor<2> {
    let Heads { num_heads: h, num_kv_heads: g, .. } = heads;
    assert!(g > 0 && h.is_multiple_of(g), "{h} query heads cannot share {g} key/value heads");
    let ([t, q], [mask_b, s]) = (q_tq.dims(), mask.segment_ids_bs.dims());
    let d = q / h;
    assert!(
        q == h * d
            && k_tg.dims() == [t, g * d]
            && v_tg.dims() == [t, g * d]
            && t.is_multiple_of(s)
            && (mask_b == 1 || mask_b * s == t),
        "queries {:?}, keys {:?}, values {:?}, {h} and {g} heads and a mask of {mask_b} x {s} do not fit each other",
        q_tq.dims(),
        k_tg.dims(),
        v_tg.dims(),
    );
    let mut inputs = vec![q_tq.into_dispatch(), k_tg.into_dispatch(), v_tg.into_dispatch()];
    if let Some(table) = rotary {
        let [table_len, half] = table.cos_sp.dims();
        assert!(
            s <= table_len && d == 2 * half,
            "{s} positions of head width {d} do not fit a table of {table_len} positions of width {}",
            2 * half,
        );
        inputs.extend([table.cos_sp.clone().into_dispatch(), table.sin_sp.clone().into_dispatch()]);
    }
    Tensor::from_dispatch(Dispatch::causal_attention(
        TensorList::from_vec(inputs),
        mask.segment_ids_bs.clone().into_dispatch(),
        heads,
    ))
}

/// Elements that one thread holds of its own in the backward pass of [`causal_attention`] on the CPU, which holds more of
/// them than the forward pass.
pub fn attention_elements_per_thread(seq_len: usize, d_head: usize) -> usize {
    fused::elements_per_thread(seq_len, d_head)
}

/// The slope of each head: the powers of `2^(-8/n)` from the first for n heads, n a power of two; for other numbers,
/// those of the next lower power of two, then every other one of the next higher (arXiv:2108.12409, section 3 and the
/// authors' code).
fn alibi_slopes(num_heads: usize) -> Vec<f32> {
    let powers = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64) as f32);
    let lower = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    powers(lower).chain(powers(2 * lower).step_by(2)).take(num_heads).collect()
}

/// What the gradients are computed from: inputs and results of the forward pass.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct SavedForAttention<B: Backend> {
    y_tq: FloatTensor<B>,
    log_partition_bhs: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
    /// Queries, keys, values, and the rotary table's cosines and sines if there is one.
    #[extension_type]
    inputs: TensorList<B>,
}

/// The operation and its gradients on one backend. `inputs` as in [`SavedForAttention`].
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait CausalAttention: Backend {
    /// Attention's output, `[t, q]`.
    fn causal_attention(
        #[extension_type] inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        Self::causal_attention_and_partition(inputs, segment_ids_bs, heads).0
    }

    /// Attention's output, `[t, q]`, and the logarithm of each softmax's denominator, `[b, h, s]`.
    fn causal_attention_and_partition(
        #[extension_type] inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::forward::<Self>(inputs, segment_ids_bs, heads)
    }

    /// Gradients of queries, keys and values, each in its shape, from that of the output.
    fn causal_attention_gradients(
        #[extension_type] saved: SavedForAttention<Self>,
        dy_tq: FloatTensor<Self>,
        heads: Heads,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::gradients::<Self>(saved, dy_tq, heads)
    }
}

impl CausalAttention for Flex {
    fn causal_attention_and_partition(
        inputs: TensorList<Flex>,
        segment_ids_bs: FlexTensor,
        heads: Heads,
    ) -> (FlexTensor, FlexTensor) {
        if !computes_fused(&inputs, None) {
            return stock::forward::<Flex>(inputs, segment_ids_bs, heads);
        }
        fused::forward(inputs.into_vec(), segment_ids_bs, heads)
    }

    fn causal_attention_gradients(
        saved: SavedForAttention<Flex>,
        dy_tq: FlexTensor,
        heads: Heads,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !computes_fused(&saved.inputs, Some(&dy_tq)) {
            return stock::gradients::<Flex>(saved, dy_tq, heads);
        }
        fused::gradients(saved, dy_tq, heads)
    }
}

/// Whether the tensors are of the type that the loops are written for, and hold anything.
fn computes_fused(inputs: &TensorList<Flex>, dy_tq: Option<&FlexTensor>) -> bool {
    let inputs = inputs.clone().into_vec();
    let tensors: Vec<_> = inputs.iter().chain(dy_tq).collect();
    all_f32(&tensors) && inputs.iter().all(|input| input.shape().num_elements() > 0)
}

#[cfg(feature = "cube")]
impl CausalAttention for burn_cubecl::CubeBackend {}

impl<B: CausalAttention, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        inputs: TensorList<Self>,
        segment_ids_bs: IntTensor<Self>,
        heads: Heads,
    ) -> FloatTensor<Self> {
        let mut inputs = inputs.into_vec();
        // The tables are constants.
        let tables: Vec<_> = inputs.split_off(3).into_iter().map(|table| table.into_primitive()).collect();
        let nodes = [inputs[0].node(), inputs[1].node(), inputs[2].node()];
        let inner = |inputs: Vec<FloatTensor<Self>>| {
            let inputs = inputs.into_iter().map(|input| input.into_primitive());
            TensorList::from_vec(inputs.chain(tables.clone()).collect())
        };
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let ids = inputs.iter().map(|input| prepared.checkpoint(input)).collect();
                let (y_tq, log_partition_bhs) =
                    B::causal_attention_and_partition(inner(inputs), segment_ids_bs.clone(), heads);
                let state = SavedIds {
                    inputs: ids,
                    tables,
                    segment_ids_bs,
                    y_tq: y_tq.clone(),
                    log_partition_bhs,
                    heads,
                };
                prepared.finish(state, y_tq)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::causal_attention(inner(inputs), segment_ids_bs, heads))
            }
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

/// [`SavedForAttention`], the inputs as nodes.
#[derive(Debug, Clone)]
struct SavedIds<B: Backend> {
    inputs: Vec<NodeId>,
    tables: Vec<FloatTensor<B>>,
    segment_ids_bs: IntTensor<B>,
    y_tq: FloatTensor<B>,
    log_partition_bhs: FloatTensor<B>,
    heads: Heads,
}

impl<B: CausalAttention> Backward<B, 3> for AttentionBackward {
    type State = SavedIds<B>;

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_tq = grads.consume::<B>(&ops.node);
        let SavedIds { inputs, tables, segment_ids_bs, y_tq, log_partition_bhs, heads } = ops.state;
        let inputs = inputs.into_iter().map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let inputs = TensorList::from_vec(inputs.chain(tables).collect());
        let saved = SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs };
        let (dq_tq, dk_tg, dv_tg) = B::causal_attention_gradients(saved, dy_tq, heads);
        for (node, gradient) in ops.parents.into_iter().zip([dq_tq, dk_tg, dv_tg]) {
            if let Some(node) = node {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
    use crate::slices::{elements, from_elements};
    use burn::tensor::TensorData;

    #[derive(Debug, Clone, Copy)]
    struct Case {
        b: usize,
        s: usize,
        d: usize,
        heads: Heads,
        /// Documents of 7 tokens, or one.
        masked: bool,
        rotary: bool,
    }

    fn case([b, h, g, s, d]: [usize; 5], masked: bool, rotary: bool, alibi: bool) -> Case {
        Case { b, s, d, heads: Heads { num_heads: h, num_kv_heads: g, alibi }, masked, rotary }
    }

    /// Inputs with the results of the stock body, and a gradient of the output.
    fn inputs(case: Case) -> (SavedForAttention<Flex>, FlexTensor) {
        let Case { b, s, d, heads, masked, rotary } = case;
        let rows = |seed, num_heads| random_flex(seed, [b * s, num_heads * d]);
        let mut inputs =
            vec![rows(1, heads.num_heads), rows(2, heads.num_kv_heads), rows(3, heads.num_kv_heads)];
        if rotary {
            let angles = random_flex(5, [s + 2, d / 2]);
            let table = |f: fn(f32) -> f32| {
                from_elements(elements(&angles).iter().map(|&angle| f(angle)).collect(), angles.shape())
            };
            inputs.extend([table(f32::cos), table(f32::sin)]);
        }
        let inputs = TensorList::from_vec(inputs);
        let ids: Vec<i32> = (0..b * s).map(|i| if masked { (i / 7) as i32 } else { 0 }).collect();
        let segment_ids_bs = FlexTensor::from_data(TensorData::new(ids, [b, s]));
        let (y_tq, log_partition_bhs) = stock::forward::<Flex>(inputs.clone(), segment_ids_bs.clone(), heads);
        (SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs }, rows(4, heads.num_heads))
    }

    fn fused_forward(saved: &SavedForAttention<Flex>, heads: Heads) -> (FlexTensor, FlexTensor) {
        Flex::causal_attention_and_partition(saved.inputs.clone(), saved.segment_ids_bs.clone(), heads)
    }

    #[test]
    fn fused_attention_agrees_with_the_stock_body() {
        for case in [
            case([1, 1, 1, 1, 1], false, false, false),
            case([1, 2, 1, 2, 2], false, true, false),
            case([2, 2, 1, 16, 16], false, false, true),
            case([2, 6, 2, 17, 6], true, true, false),
            case([1, 4, 4, 64, 24], true, false, true),
            case([1, 3, 1, 130, 34], false, true, true),
            case([1, 2, 1, 300, 8], true, true, true),
        ] {
            let (saved, dy_tq) = inputs(case);
            let (y_tq, log_partition_bhs) = fused_forward(&saved, case.heads);
            assert_agree("output", &y_tq, &saved.y_tq);
            assert_agree("log partition", &log_partition_bhs, &saved.log_partition_bhs);
            let fused = Flex::causal_attention_gradients(saved.clone(), dy_tq.clone(), case.heads);
            let stock = stock::gradients::<Flex>(saved, dy_tq, case.heads);
            assert_agree("gradient of queries", &fused.0, &stock.0);
            assert_agree("gradient of keys", &fused.1, &stock.1);
            assert_agree("gradient of values", &fused.2, &stock.2);
        }
    }

    #[test]
    fn attention_repeats_bit_for_bit_for_any_number_of_threads() {
        let case = case([3, 6, 2, 137, 20], true, true, true);
        let compute = || {
            let (saved, dy_tq) = inputs(case);
            let (y_tq, _) = fused_forward(&saved, case.heads);
            let (dq_tq, dk_tg, dv_tg) = Flex::causal_attention_gradients(saved, dy_tq, case.heads);
            vec![y_tq, dq_tq, dk_tg, dv_tg]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }

    #[test]
    fn no_later_key_changes_an_output_even_if_it_is_no_number() {
        let case = case([1, 1, 1, 20, 4], false, false, false);
        let (mut saved, _) = inputs(case);
        let (clean, _) = fused_forward(&saved, case.heads);
        let mut list = saved.inputs.into_vec();
        list[1].storage_mut::<f32>()[19 * 4..].fill(f32::NAN);
        saved.inputs = TensorList::from_vec(list);
        let (y, _) = fused_forward(&saved, case.heads);
        let y: &[f32] = y.storage();
        assert_eq!(y[..19 * 4], clean.storage::<f32>()[..19 * 4]);
        assert!(y[19 * 4..].iter().all(|value| value.is_nan()));
    }

    #[test]
    fn alibi_slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        let expected = [1, 3, 5, 7].map(|i| 2f64.powf(-0.5 * f64::from(i)) as f32);
        assert_eq!(twelve[8..], expected);
    }
}

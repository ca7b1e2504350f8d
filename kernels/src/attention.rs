//! Causal self-attention.
//!
//! Shape letters: b batch, s sequence, h query heads, g key/value heads, r query heads per key/value head, d head
//! width.

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
use burn::tensor::{Int, Shape, Tensor};

use crate::heads::Heads;
use crate::slices::{all_f32, from_elements};

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

/// Scaled dot-product attention, `softmax(Q K^T / sqrt(d)) V` under `mask`
/// (arXiv:1706.03762, eq. 1); query head i reads key/value head `i / (h / g)` (arXiv:2305.13245).
///
/// # Shapes
/// - `q_bhsd`: `[batch, num_heads, seq, d_head]`
/// - `k_bgsd`, `v_bgsd`: `[batch, num_kv_heads, seq, d_head]`
/// - returns `[batch, num_heads, seq, d_head]`
///
/// # Panics
/// If `num_heads` is not a multiple of `num_kv_heads`, or shapes do not fit each other or `mask`.
pub fn causal_attention(
    q_bhsd: Tensor<4>,
    k_bgsd: Tensor<4>,
    v_bgsd: Tensor<4>,
    mask: &CausalMask,
) -> Tensor<4> {
    let ([b, h, s, d], [_, g, ..]) = (q_bhsd.dims(), k_bgsd.dims());
    assert!(g > 0 && h.is_multiple_of(g), "{h} query heads cannot share {g} key/value heads");
    let [mask_b, mask_s] = mask.segment_ids_bs.dims();
    assert!(
        k_bgsd.dims() == [b, g, s, d]
            && v_bgsd.dims() == [b, g, s, d]
            && mask_s == s
            && (mask_b == b || mask_b == 1),
        "queries {:?}, keys {:?}, values {:?} and a mask of {mask_b} x {mask_s} do not fit each other",
        q_bhsd.dims(),
        k_bgsd.dims(),
        v_bgsd.dims(),
    );
    Tensor::from_dispatch(Dispatch::causal_attention(
        q_bhsd.into_dispatch(),
        k_bgsd.into_dispatch(),
        v_bgsd.into_dispatch(),
        mask.segment_ids_bs.clone().into_dispatch(),
    ))
}

/// What the gradients are computed from: inputs and results of the forward pass.
#[derive(Debug, Clone, ExtensionType)]
pub(crate) struct SavedForAttention<B: Backend> {
    q_bhsd: FloatTensor<B>,
    k_bgsd: FloatTensor<B>,
    v_bgsd: FloatTensor<B>,
    segment_ids_bs: IntTensor<B>,
    y_bhsd: FloatTensor<B>,
    log_partition_bhs1: FloatTensor<B>,
}

/// The operation and its gradients on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait CausalAttention: Backend {
    /// Attention's output, `[b, h, s, d]`.
    fn causal_attention(
        q_bhsd: FloatTensor<Self>,
        k_bgsd: FloatTensor<Self>,
        v_bgsd: FloatTensor<Self>,
        segment_ids_bs: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        Self::causal_attention_and_partition(q_bhsd, k_bgsd, v_bgsd, segment_ids_bs).0
    }

    /// Attention's output, `[b, h, s, d]`, and the logarithm of each softmax's denominator, `[b, h, s, 1]`.
    fn causal_attention_and_partition(
        q_bhsd: FloatTensor<Self>,
        k_bgsd: FloatTensor<Self>,
        v_bgsd: FloatTensor<Self>,
        segment_ids_bs: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::forward::<Self>(q_bhsd, k_bgsd, v_bgsd, segment_ids_bs)
    }

    /// Gradients of queries, `[b, h, s, d]`, keys and values, `[b, g, s, d]`, from that of the output.
    fn causal_attention_gradients(
        #[extension_type] saved: SavedForAttention<Self>,
        dy_bhsd: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        stock::backward::<Self>(saved, dy_bhsd)
    }
}

impl CausalAttention for Flex {
    fn causal_attention_and_partition(
        q_bhsd: FlexTensor,
        k_bgsd: FlexTensor,
        v_bgsd: FlexTensor,
        segment_ids_bs: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let shape = q_bhsd.shape();
        if !all_f32(&[&q_bhsd, &k_bgsd, &v_bgsd]) || shape.num_elements() == 0 {
            return stock::forward::<Flex>(q_bhsd, k_bgsd, v_bgsd, segment_ids_bs);
        }
        let [b, h, s, _] = shape.dims();
        let documents = fused::Documents::new(segment_ids_bs, s);
        let [q, k, v] = [q_bhsd, k_bgsd, v_bgsd].map(Heads::new);
        let (y, log_partition) = fused::forward(&q, &k, &v, &documents);
        (from_elements(y, shape), from_elements(log_partition, Shape::new([b, h, s, 1])))
    }

    fn causal_attention_gradients(
        saved: SavedForAttention<Flex>,
        dy_bhsd: FlexTensor,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let (q_shape, kv_shape) = (saved.q_bhsd.shape(), saved.k_bgsd.shape());
        let floats = [&saved.q_bhsd, &saved.k_bgsd, &saved.v_bgsd, &saved.y_bhsd, &dy_bhsd];
        if !all_f32(&floats) || q_shape.num_elements() == 0 {
            return stock::backward::<Flex>(saved, dy_bhsd);
        }
        let [dq, dk, dv] = fused::backward(saved, dy_bhsd);
        (from_elements(dq, q_shape), from_elements(dk, kv_shape.clone()), from_elements(dv, kv_shape))
    }
}

#[cfg(feature = "cube")]
impl CausalAttention for burn_cubecl::CubeBackend {}

impl<B: CausalAttention, C: CheckpointStrategy> CausalAttention for Autodiff<B, C> {
    fn causal_attention(
        q_bhsd: FloatTensor<Self>,
        k_bgsd: FloatTensor<Self>,
        v_bgsd: FloatTensor<Self>,
        segment_ids_bs: IntTensor<Self>,
    ) -> FloatTensor<Self> {
        let nodes = [q_bhsd.node(), k_bgsd.node(), v_bgsd.node()];
        match AttentionBackward.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let inputs = [&q_bhsd, &k_bgsd, &v_bgsd].map(|input| prepared.checkpoint(input));
                let (y_bhsd, log_partition_bhs1) = B::causal_attention_and_partition(
                    q_bhsd.into_primitive(),
                    k_bgsd.into_primitive(),
                    v_bgsd.into_primitive(),
                    segment_ids_bs.clone(),
                );
                let state = (inputs, segment_ids_bs, y_bhsd.clone(), log_partition_bhs1);
                prepared.finish(state, y_bhsd)
            }
            OpsKind::UnTracked(prepared) => prepared.finish(B::causal_attention(
                q_bhsd.into_primitive(),
                k_bgsd.into_primitive(),
                v_bgsd.into_primitive(),
                segment_ids_bs,
            )),
        }
    }
}

#[derive(Debug)]
struct AttentionBackward;

impl<B: CausalAttention> Backward<B, 3> for AttentionBackward {
    /// Queries, keys and values; segment ids; output; logarithms of the denominators.
    type State = ([NodeId; 3], IntTensor<B>, FloatTensor<B>, FloatTensor<B>);

    fn backward(self, ops: Ops<Self::State, 3>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dy_bhsd = grads.consume::<B>(&ops.node);
        let (inputs, segment_ids_bs, y_bhsd, log_partition_bhs1) = ops.state;
        let [q_bhsd, k_bgsd, v_bgsd] =
            inputs.map(|id| checkpointer.retrieve_node_output::<FloatTensor<B>>(id));
        let saved = SavedForAttention { q_bhsd, k_bgsd, v_bgsd, segment_ids_bs, y_bhsd, log_partition_bhs1 };
        let (dq_bhsd, dk_bgsd, dv_bgsd) = B::causal_attention_gradients(saved, dy_bhsd);
        for (node, gradient) in ops.parents.into_iter().zip([dq_bhsd, dk_bgsd, dv_bgsd]) {
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
    use burn::tensor::TensorData;

    /// Documents of 7 tokens, or one.
    fn segments([b, s]: [usize; 2], masked: bool) -> FlexTensor {
        let ids: Vec<i32> = (0..b * s).map(|i| if masked { (i / 7) as i32 } else { 0 }).collect();
        FlexTensor::from_data(TensorData::new(ids, [b, s]))
    }

    /// Inputs as a model makes them: heads and positions swapped in memory.
    fn inputs([b, h, g, s, d]: [usize; 5], masked: bool) -> (SavedForAttention<Flex>, FlexTensor) {
        let heads = |seed, num_heads| random_flex(seed, [b, s, num_heads, d]).transpose(1, 2);
        let (q_bhsd, k_bgsd, v_bgsd) = (heads(1, h), heads(2, g), heads(3, g));
        let segment_ids_bs = segments([b, s], masked);
        let (y_bhsd, log_partition_bhs1) =
            stock::forward::<Flex>(q_bhsd.clone(), k_bgsd.clone(), v_bgsd.clone(), segment_ids_bs.clone());
        let saved = SavedForAttention { q_bhsd, k_bgsd, v_bgsd, segment_ids_bs, y_bhsd, log_partition_bhs1 };
        (saved, heads(4, h))
    }

    fn fused_forward(saved: &SavedForAttention<Flex>) -> (FlexTensor, FlexTensor) {
        let SavedForAttention { q_bhsd, k_bgsd, v_bgsd, segment_ids_bs, .. } = saved.clone();
        Flex::causal_attention_and_partition(q_bhsd, k_bgsd, v_bgsd, segment_ids_bs)
    }

    #[test]
    fn fused_attention_agrees_with_the_stock_body() {
        for (sizes, masked) in [
            ([1, 1, 1, 1, 1], false),
            ([2, 2, 1, 16, 16], false),
            ([2, 6, 2, 17, 5], true),
            ([1, 4, 4, 61, 24], true),
            ([1, 3, 1, 130, 33], false),
        ] {
            let (saved, dy_bhsd) = inputs(sizes, masked);
            let (y_bhsd, log_partition_bhs1) = fused_forward(&saved);
            assert_agree("output", &y_bhsd, &saved.y_bhsd);
            assert_agree("log partition", &log_partition_bhs1, &saved.log_partition_bhs1);
            let fused = Flex::causal_attention_gradients(saved.clone(), dy_bhsd.clone());
            let stock = stock::backward::<Flex>(saved, dy_bhsd);
            assert_agree("gradient of queries", &fused.0, &stock.0);
            assert_agree("gradient of keys", &fused.1, &stock.1);
            assert_agree("gradient of values", &fused.2, &stock.2);
        }
    }

    #[test]
    fn attention_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || {
            let (saved, dy_bhsd) = inputs([3, 6, 2, 37, 20], true);
            let (y_bhsd, _) = fused_forward(&saved);
            let (dq_bhsd, dk_bgsd, dv_bgsd) = Flex::causal_attention_gradients(saved, dy_bhsd);
            vec![y_bhsd, dq_bhsd, dk_bgsd, dv_bgsd]
        };
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }

    #[test]
    fn no_later_key_changes_an_output_even_if_it_is_no_number() {
        let (mut saved, _) = inputs([1, 1, 1, 20, 4], false);
        let (clean, _) = fused_forward(&saved);
        let mut k = saved.k_bgsd.to_contiguous();
        k.storage_mut::<f32>()[19 * 4..].fill(f32::NAN);
        saved.k_bgsd = k;
        let (y, _) = fused_forward(&saved);
        let y: &[f32] = y.storage();
        assert_eq!(y[..19 * 4], clean.storage::<f32>()[..19 * 4]);
        assert!(y[19 * 4..].iter().all(|value| value.is_nan()));
    }
}

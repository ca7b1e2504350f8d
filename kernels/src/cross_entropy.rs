//! Cross-entropy of the next token.
//!
//! Shape letters: t tokens, v vocabulary.

mod rows;

use burn::backend::{
    Autodiff, Backend, Dispatch, Flex, TensorMetadata,
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
use burn::tensor::{IndexingUpdateOp, Int, Shape, Tensor};
use rayon::prelude::*;

use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};

/// Mean of `logsumexp(logits) - logits[target]` over the tokens, in nats.
///
/// # Shapes
/// - `logits_tv`: `[num_tokens, vocab_size]`; `target_ids_t`: `[num_tokens]`; returns `[1]`
///
/// # Panics
/// If a target lies outside the vocabulary.
pub fn cross_entropy(logits_tv: Tensor<2>, target_ids_t: Tensor<1, Int>) -> Tensor<1> {
    Tensor::from_dispatch(Dispatch::cross_entropy(logits_tv.into_dispatch(), target_ids_t.into_dispatch()))
}

/// The operation and its gradient on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait CrossEntropy: Backend {
    /// Mean loss, `[1]`.
    fn cross_entropy(logits_tv: FloatTensor<Self>, target_ids_t: IntTensor<Self>) -> FloatTensor<Self> {
        Self::cross_entropy_and_partition(logits_tv, target_ids_t).0
    }

    /// Mean loss, `[1]`, and the logarithm of each token's partition function, `[t, 1]`.
    fn cross_entropy_and_partition(
        logits_tv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock_loss::<Self>(logits_tv, target_ids_t)
    }

    /// Gradient of the logits, `[t, v]`, from that of the loss, `[1]`.
    fn cross_entropy_gradient(
        logits_tv: FloatTensor<Self>,
        target_ids_t: IntTensor<Self>,
        log_partition_t1: FloatTensor<Self>,
        dloss_1: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stock_gradient::<Self>(logits_tv, target_ids_t, log_partition_t1, dloss_1)
    }
}

/// The default body of [`CrossEntropy::cross_entropy_and_partition`].
fn stock_loss<B: Backend>(
    logits_tv: FloatTensor<B>,
    target_ids_t: IntTensor<B>,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let ids_t1 = B::int_reshape(target_ids_t, Shape::new([logits_tv.shape()[0], 1]));
    // The maximum cancels out of the loss: shifting by it only guards `exp`.
    let max_t1 = B::float_max_dim(logits_tv.clone(), 1);
    let shifted_tv = B::float_sub(logits_tv, max_t1.clone());
    let log_sum_t1 = B::float_log(B::float_sum_dim(B::float_exp(shifted_tv.clone()), 1));
    let losses_t1 = B::float_sub(log_sum_t1.clone(), B::float_gather(1, shifted_tv, ids_t1));
    (B::float_mean(losses_t1), B::float_add(log_sum_t1, max_t1))
}

/// The default body of [`CrossEntropy::cross_entropy_gradient`].
fn stock_gradient<B: Backend>(
    logits_tv: FloatTensor<B>,
    target_ids_t: IntTensor<B>,
    log_partition_t1: FloatTensor<B>,
    dloss_1: FloatTensor<B>,
) -> FloatTensor<B> {
    let (t, device, dtype) = (logits_tv.shape()[0], logits_tv.device(), logits_tv.dtype());
    let ids_t1 = B::int_reshape(target_ids_t, Shape::new([t, 1]));
    let minus_ones_t1 = B::float_neg(B::float_ones(Shape::new([t, 1]), &device, dtype.into()));
    let probabilities_tv = B::float_exp(B::float_sub(logits_tv, log_partition_t1));
    let error_tv = B::float_scatter(1, probabilities_tv, ids_t1, minus_ones_t1, IndexingUpdateOp::Add);
    let scale_11 = B::float_reshape(B::float_div_scalar(dloss_1, (t as f64).into()), Shape::new([1, 1]));
    B::float_mul(error_tv, scale_11)
}

impl CrossEntropy for Flex {
    fn cross_entropy_and_partition(
        logits_tv: FlexTensor,
        target_ids_t: FlexTensor,
    ) -> (FlexTensor, FlexTensor) {
        let (t, v) = (logits_tv.shape()[0], logits_tv.shape()[1]);
        if !all_f32(&[&logits_tv]) || t * v == 0 {
            return stock_loss::<Flex>(logits_tv, target_ids_t);
        }
        let (logits_tv, targets) = (contiguous(logits_tv), target_columns(target_ids_t, v));
        let logits = elements(&logits_tv);
        let mut log_partition = vec![0.0; t];
        log_partition
            .par_iter_mut()
            .zip(logits.par_chunks(v))
            .for_each(|(log_partition, logits)| *log_partition = rows::log_partition(logits));
        let rows = logits.chunks(v).zip(&targets).zip(&log_partition);
        let total: f64 = rows.map(|((row, &target), &log)| f64::from(log - row[target])).sum();
        let mean = (total / t as f64) as f32;
        (from_elements(vec![mean], Shape::new([1])), from_elements(log_partition, Shape::new([t, 1])))
    }

    fn cross_entropy_gradient(
        logits_tv: FlexTensor,
        target_ids_t: FlexTensor,
        log_partition_t1: FlexTensor,
        dloss_1: FlexTensor,
    ) -> FlexTensor {
        let (t, v) = (logits_tv.shape()[0], logits_tv.shape()[1]);
        if !all_f32(&[&logits_tv, &log_partition_t1, &dloss_1]) || t * v == 0 {
            return stock_gradient::<Flex>(logits_tv, target_ids_t, log_partition_t1, dloss_1);
        }
        let (logits_tv, targets) = (contiguous(logits_tv), target_columns(target_ids_t, v));
        let scale = elements(&contiguous(dloss_1))[0] / t as f32;
        let mut gradient = vec![0.0; t * v];
        gradient
            .par_chunks_mut(v)
            .zip(elements(&logits_tv).par_chunks(v))
            .zip(elements(&contiguous(log_partition_t1)))
            .zip(&targets)
            .for_each(|(((gradient, logits), &log_partition), &target)| {
                rows::gradient(gradient, logits, log_partition, scale);
                gradient[target] -= scale;
            });
        from_elements(gradient, logits_tv.shape())
    }
}

/// The target of each token as a column of the logits.
///
/// # Panics
/// If a target is not below `vocab_size`.
fn target_columns(target_ids_t: FlexTensor, vocab_size: usize) -> Vec<usize> {
    let column = |id: i64| match usize::try_from(id) {
        Ok(column) if column < vocab_size => column,
        _ => panic!("target {id} lies outside a vocabulary of {vocab_size}"),
    };
    host_integers(target_ids_t).into_iter().map(column).collect()
}

#[cfg(feature = "cube")]
impl CrossEntropy for burn_cubecl::CubeBackend {}

impl<B: CrossEntropy, C: CheckpointStrategy> CrossEntropy for Autodiff<B, C> {
    fn cross_entropy(logits_tv: FloatTensor<Self>, target_ids_t: IntTensor<Self>) -> FloatTensor<Self> {
        match CrossEntropyBackward.prepare::<C>([logits_tv.node()]).compute_bound().stateful() {
            OpsKind::Tracked(mut prepared) => {
                let logits_id = prepared.checkpoint(&logits_tv);
                let (loss_1, log_partition_t1) =
                    B::cross_entropy_and_partition(logits_tv.into_primitive(), target_ids_t.clone());
                prepared.finish(SavedForLoss { logits_tv: logits_id, target_ids_t, log_partition_t1 }, loss_1)
            }
            OpsKind::UnTracked(prepared) => {
                prepared.finish(B::cross_entropy(logits_tv.into_primitive(), target_ids_t))
            }
        }
    }
}

#[derive(Debug)]
struct CrossEntropyBackward;

/// What the backward pass reads again.
#[derive(Debug, Clone)]
struct SavedForLoss<B: Backend> {
    logits_tv: NodeId,
    target_ids_t: IntTensor<B>,
    log_partition_t1: FloatTensor<B>,
}

impl<B: CrossEntropy> Backward<B, 1> for CrossEntropyBackward {
    type State = SavedForLoss<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, checkpointer: &mut Checkpointer) {
        let dloss_1 = grads.consume::<B>(&ops.node);
        let SavedForLoss { logits_tv, target_ids_t, log_partition_t1 } = ops.state;
        let logits_tv = checkpointer.retrieve_node_output::<FloatTensor<B>>(logits_tv);
        let [logits_node] = ops.parents;
        if let Some(node) = logits_node {
            let dlogits_tv = B::cross_entropy_gradient(logits_tv, target_ids_t, log_partition_t1, dloss_1);
            grads.register::<B>(node.id, dlogits_tv);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slices::test_support::{assert_agree, bits_with_threads, random_flex};
    use burn::tensor::TensorData;

    fn targets(t: usize, v: usize) -> FlexTensor {
        let ids: Vec<i32> = (0..t).map(|i| (i * 7919 % v) as i32).collect();
        FlexTensor::from_data(TensorData::new(ids, [t]))
    }

    fn loss_and_gradient([t, v]: [usize; 2]) -> Vec<FlexTensor> {
        let (logits_tv, ids_t) = (random_flex(1, [t, v]), targets(t, v));
        let (loss, log_partition) = Flex::cross_entropy_and_partition(logits_tv.clone(), ids_t.clone());
        let gradient =
            Flex::cross_entropy_gradient(logits_tv, ids_t, log_partition.clone(), random_flex(2, [1]));
        vec![loss, log_partition, gradient]
    }

    #[test]
    fn fused_loss_agrees_with_the_stock_body() {
        for [t, v] in [[1, 1], [1, 17], [5, 16], [33, 1003]] {
            let (logits_tv, ids_t) = (random_flex(1, [t, v]), targets(t, v));
            let (loss, log_partition) = stock_loss::<Flex>(logits_tv.clone(), ids_t.clone());
            let gradient =
                stock_gradient::<Flex>(logits_tv, ids_t, log_partition.clone(), random_flex(2, [1]));
            let fused = loss_and_gradient([t, v]);
            assert_agree("loss", &fused[0], &loss);
            assert_agree("log partition", &fused[1], &log_partition);
            assert_agree("gradient", &fused[2], &gradient);
        }
    }

    #[test]
    fn loss_repeats_bit_for_bit_for_any_number_of_threads() {
        let compute = || loss_and_gradient([67, 1003]);
        assert_eq!(bits_with_threads(1, compute), bits_with_threads(2, compute));
    }

    #[test]
    fn a_logit_that_is_no_number_makes_the_loss_none() {
        let logits_tv = from_elements(vec![0.0, f32::NAN, 1.0], Shape::new([1, 3]));
        let (loss, _) = Flex::cross_entropy_and_partition(logits_tv, targets(1, 3));
        assert!(elements(&loss)[0].is_nan());
    }

    #[test]
    #[should_panic(expected = "target 3 lies outside a vocabulary of 3")]
    fn a_target_outside_the_vocabulary_is_named() {
        let ids = FlexTensor::from_data(TensorData::new(vec![3i32], [1]));
        Flex::cross_entropy_and_partition(random_flex(1, [1, 3]), ids);
    }
}

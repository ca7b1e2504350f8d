//! The loss and its gradients from stock tensor operations: the default body on every backend. It
//! holds all logits.

use burn::backend::{
    Backend, TensorMetadata, get_device_settings,
    tensor::{FloatTensor, IntTensor},
};
use burn::tensor::{IndexingUpdateOp, Shape};

use super::{HeadLossOptions, Losses};

/// The losses.
pub(super) fn losses<B: Backend>(
    x_td: FloatTensor<B>,
    w_dv: FloatTensor<B>,
    target_ids_t: IntTensor<B>,
    options: HeadLossOptions,
) -> Losses<B> {
    Forward::<B>::new(x_td, w_dv, target_ids_t, options).losses()
}

/// [`losses`], and the gradients of the mean loss: those of the rows, `[t, d]`, and of the matrix,
/// `[d, v]`.
pub(super) fn losses_and_gradients<B: Backend>(
    x_td: FloatTensor<B>,
    w_dv: FloatTensor<B>,
    target_ids_t: IntTensor<B>,
    options: HeadLossOptions,
) -> (Losses<B>, FloatTensor<B>, FloatTensor<B>) {
    let forward = Forward::<B>::new(x_td.clone(), w_dv.clone(), target_ids_t, options);
    let losses = forward.losses();
    let dlogits_tv = forward.logits_gradient();
    let dx_td = B::float_matmul(dlogits_tv.clone(), B::float_transpose(w_dv));
    let dw_dv = B::float_matmul(B::float_transpose(x_td), dlogits_tv);
    (losses, dx_td, dw_dv)
}

/// `gradient` times `dloss_1`.
pub(super) fn scaled_gradient<B: Backend>(
    gradient: FloatTensor<B>,
    dloss_1: FloatTensor<B>,
) -> FloatTensor<B> {
    B::float_mul(gradient, B::float_reshape(dloss_1, Shape::new([1, 1])))
}

struct Forward<B: Backend> {
    logits_tv: FloatTensor<B>,
    log_partition_t1: FloatTensor<B>,
    /// The target of each token; any id where it is ignored.
    ids_t1: IntTensor<B>,
    /// Share of each token in the means: zero where it is ignored.
    share_t1: FloatTensor<B>,
    z_loss_weight: f64,
}

impl<B: Backend> Forward<B> {
    fn new(
        x_td: FloatTensor<B>,
        w_dv: FloatTensor<B>,
        target_ids_t: IntTensor<B>,
        options: HeadLossOptions,
    ) -> Self {
        let logits_tv = B::float_matmul(x_td, w_dv);
        let (ids_t1, share_t1) = ids_and_shares::<B>(target_ids_t, &logits_tv, options.ignored_target);
        // The maximum cancels out of the loss: shifting by it only guards `exp`.
        let max_t1 = B::float_max_dim(logits_tv.clone(), 1);
        let exponentials_tv = B::float_exp(B::float_sub(logits_tv.clone(), max_t1.clone()));
        let log_partition_t1 = B::float_add(B::float_log(B::float_sum_dim(exponentials_tv, 1)), max_t1);
        let z_loss_weight = options.z_loss_weight.unwrap_or(0.0);
        Self { logits_tv, log_partition_t1, ids_t1, share_t1, z_loss_weight }
    }

    fn losses(&self) -> Losses<B> {
        let mean = |values_t1| B::float_sum(B::float_mul(values_t1, self.share_t1.clone()));
        let target_logits_t1 = B::float_gather(1, self.logits_tv.clone(), self.ids_t1.clone());
        let log_partition_t1 = || self.log_partition_t1.clone();
        let cross_entropy_1 = mean(B::float_sub(log_partition_t1(), target_logits_t1));
        let square_1 = mean(B::float_mul(log_partition_t1(), log_partition_t1()));
        let weighted_1 = B::float_mul_scalar(square_1.clone(), self.z_loss_weight.into());
        Losses { total_1: B::float_add(cross_entropy_1.clone(), weighted_1), cross_entropy_1, square_1 }
    }

    fn logits_gradient(self) -> FloatTensor<B> {
        let slope_t1 = B::float_mul_scalar(self.log_partition_t1.clone(), (2.0 * self.z_loss_weight).into());
        let factor_t1 = B::float_mul(B::float_add_scalar(slope_t1, 1.0.into()), self.share_t1.clone());
        let probabilities_tv = B::float_exp(B::float_sub(self.logits_tv, self.log_partition_t1));
        let weighted_tv = B::float_mul(probabilities_tv, factor_t1);
        let minus_share_t1 = B::float_neg(self.share_t1);
        B::float_scatter(1, weighted_tv, self.ids_t1, minus_share_t1, IndexingUpdateOp::Add)
    }
}

/// The targets as `[t, 1]`, zero where they are ignored, and each token's share in the means.
fn ids_and_shares<B: Backend>(
    target_ids_t: IntTensor<B>,
    logits_tv: &FloatTensor<B>,
    ignored_target: Option<i64>,
) -> (IntTensor<B>, FloatTensor<B>) {
    let (t, device, dtype) = (logits_tv.shape()[0], logits_tv.device(), logits_tv.dtype());
    let column = Shape::new([t, 1]);
    let ids_t1 = B::int_reshape(target_ids_t, column.clone());
    let ones_t1 = B::float_ones(column, &device, dtype.into());
    let Some(ignored) = ignored_target else {
        return (ids_t1, B::float_div_scalar(ones_t1, (t as f64).into()));
    };
    let bool_dtype = get_device_settings::<B>(&device).bool_dtype;
    let is_ignored_t1 = B::int_equal_elem(ids_t1.clone(), ignored.into(), bool_dtype);
    let counted_t1 = B::float_mask_fill(ones_t1, is_ignored_t1.clone(), 0.0.into());
    let num_counted_11 = B::float_clamp_min(B::float_sum_dim(counted_t1.clone(), 0), 1.0.into());
    (B::int_mask_fill(ids_t1, is_ignored_t1, 0.into()), B::float_div(counted_t1, num_counted_11))
}

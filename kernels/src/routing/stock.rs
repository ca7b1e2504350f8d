//! The same as stock tensor operations, for every backend.

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{IndexingUpdateOp, Shape, TensorData};

use switchyard_kernels_cpu::routing::{GateSoftmax, RouterLoss};

use super::Choice;

/// Gates, `[t, k]`.
pub(super) fn gates<B: Backend>(logits_te: FloatTensor<B>, choice: &Choice) -> FloatTensor<B> {
    let ids_tk = ids::<B>(&logits_te, choice);
    match choice.softmax {
        GateSoftmax::OverChosen => softmax::<B>(B::float_gather(1, logits_te, ids_tk)),
        GateSoftmax::OverAll => B::float_gather(1, softmax::<B>(logits_te), ids_tk),
    }
}

/// Gradient of the logits, `[t, e]`.
pub(super) fn gates_gradient<B: Backend>(
    logits_te: FloatTensor<B>,
    gates_tk: FloatTensor<B>,
    dgates_tk: FloatTensor<B>,
    choice: &Choice,
) -> FloatTensor<B> {
    let ids_tk = ids::<B>(&logits_te, choice);
    let weighted_tk = B::float_mul(gates_tk.clone(), dgates_tk);
    let mean_t1 = B::float_sum_dim(weighted_tk.clone(), 1);
    let (others_te, chosen_tk) = match choice.softmax {
        GateSoftmax::OverChosen => {
            let zeros_te = B::float_zeros(logits_te.shape(), &logits_te.device(), logits_te.dtype().into());
            (zeros_te, B::float_sub(weighted_tk, B::float_mul(gates_tk, mean_t1)))
        }
        GateSoftmax::OverAll => (B::float_neg(B::float_mul(softmax::<B>(logits_te), mean_t1)), weighted_tk),
    };
    B::float_scatter(1, others_te, ids_tk, chosen_tk, IndexingUpdateOp::Add)
}

/// The mean over tokens, `[1]`.
pub(super) fn loss<B: Backend>(logits_te: FloatTensor<B>, loss: &RouterLoss) -> FloatTensor<B> {
    match loss {
        RouterLoss::Load(load) => {
            let load_1e = upload::<B>(load, &logits_te);
            B::float_mean(B::float_sum_dim(B::float_mul(softmax::<B>(logits_te), load_1e), 1))
        }
        RouterLoss::SquareLogPartition => {
            let log_partition_t1 = log_partition::<B>(logits_te);
            B::float_mean(B::float_mul(log_partition_t1.clone(), log_partition_t1))
        }
    }
}

/// Gradient of the logits, `[t, e]`.
pub(super) fn loss_gradient<B: Backend>(
    logits_te: FloatTensor<B>,
    dloss_1: FloatTensor<B>,
    loss: &RouterLoss,
) -> FloatTensor<B> {
    let t = logits_te.shape()[0];
    let factor_11 = B::float_reshape(B::float_div_scalar(dloss_1, (t as f64).into()), Shape::new([1, 1]));
    let probs_te = softmax::<B>(logits_te.clone());
    let slope_te = match loss {
        RouterLoss::Load(load) => {
            let load_1e = upload::<B>(load, &logits_te);
            let mean_t1 = B::float_sum_dim(B::float_mul(probs_te.clone(), load_1e.clone()), 1);
            B::float_sub(load_1e, mean_t1)
        }
        RouterLoss::SquareLogPartition => B::float_mul_scalar(log_partition::<B>(logits_te), 2.0.into()),
    };
    B::float_mul(B::float_mul(probs_te, slope_te), factor_11)
}

fn softmax<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    // The maximum cancels out: shifting by it only guards `exp`.
    let max = B::float_max_dim(x.clone(), 1);
    let exp = B::float_exp(B::float_sub(x, max));
    B::float_div(exp.clone(), B::float_sum_dim(exp, 1))
}

fn log_partition<B: Backend>(x: FloatTensor<B>) -> FloatTensor<B> {
    let max = B::float_max_dim(x.clone(), 1);
    let exp = B::float_exp(B::float_sub(x, max.clone()));
    B::float_add(B::float_log(B::float_sum_dim(exp, 1)), max)
}

fn ids<B: Backend>(logits_te: &FloatTensor<B>, choice: &Choice) -> IntTensor<B> {
    let t = logits_te.shape()[0];
    let ids: Vec<i32> = choice.expert_ids_tk.iter().map(|&id| id as i32).collect();
    B::int_from_data(TensorData::new(ids, [t, choice.top_k(t)]), &logits_te.device())
}

fn upload<B: Backend>(load: &[f64], like: &FloatTensor<B>) -> FloatTensor<B> {
    let data = TensorData::new(load.to_vec(), [1, load.len()]).convert_dtype(like.dtype());
    B::float_from_data(data, &like.device())
}

//! Soft mixing: experts work on weighted means of a sequence's tokens (Soft MoE, arXiv:2308.00951,
//! section 2.1).
//!
//! Every token enters every slot, later tokens included: not for autoregressive decoding.
//!
//! Shape letters: b sequences, s tokens of a sequence, t = b s tokens, e experts, p slots of one
//! expert per sequence, q = e p slots per sequence, d model width.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;
use switchyard_kernels::{DispatchPlan, FfnOptions};
use switchyard_router::{Router, RouterInput, RouterStatistics, Sequences};

use crate::Experts;
use crate::output::MoeAux;

/// The mixture's output, `[t, d]`, and what there is to know about it.
pub(crate) fn forward(
    router: &Router,
    experts: &Experts,
    x_td: Tensor<2>,
    input: RouterInput<'_>,
    options: FfnOptions,
) -> (Tensor<2>, MoeAux) {
    let Sequences::OfLen(s) = input.sequences else { panic!("soft mixing of sequences of several lengths") };
    let ([t, d], e) = (x_td.dims(), router.num_experts());
    let logits_tq = router.soft_logits(&input);
    let [_, q] = logits_tq.dims();
    let b = t / s;
    let logits_bsq = logits_tq.reshape([b, s, q]);
    // Each slot is a mean over the sequence's tokens (eq. 1 and 2), each token a mean over its
    // slots' outputs (eq. 3).
    let dispatch_bsq = softmax(logits_bsq.clone(), 1).cast(x_td.dtype());
    let combine_bsq = softmax(logits_bsq.clone(), 2).cast(x_td.dtype());
    let slots_bqd = dispatch_bsq.transpose().matmul(x_td.reshape([b, s, d]));
    let expert_ids: Vec<u32> = (0..b * q).map(|slot| (slot % q / (q / e)) as u32).collect();
    let plan = DispatchPlan::new(&expert_ids, None, e, 1);
    let ones = Tensor::ones([b * q, 1], (&slots_bqd.device(), slots_bqd.dtype()));
    let outputs_bqd = experts.forward(slots_bqd.reshape([b * q, d]), ones, &plan, options).reshape([b, q, d]);
    let hidden_td = combine_bsq.matmul(outputs_bqd).reshape([t, d]);
    let aux = MoeAux {
        losses: Vec::new(),
        statistics: statistics(&logits_bsq, e),
        pooled_balance: None,
        balance: None,
        route: None,
    };
    (hidden_td, aux)
}

/// Every expert works on equally many slots, so their counts say nothing; entropies are those of a
/// token's weights, summed over each expert's slots.
fn statistics(logits_bsq: &Tensor<3>, num_experts: usize) -> RouterStatistics {
    let [b, s, q] = logits_bsq.dims();
    let p = q / num_experts;
    let weights_tq = softmax(logits_bsq.clone(), 2).reshape([b * s, num_experts, p]);
    let log_weights_te: Tensor<2> = weights_tq.sum_dim(2).reshape([b * s, num_experts]).log();
    let log_weights_te: Vec<f64> = log_weights_te
        .try_to_vec_as::<f64>()
        .unwrap_or_else(|error| panic!("the device did not return routing data: {error}"));
    let expert_ids_te: Vec<u32> = (0..b * s).flat_map(|_| 0..num_experts as u32).collect();
    RouterStatistics::measure(&log_weights_te, &expert_ids_te, None, num_experts, num_experts)
}

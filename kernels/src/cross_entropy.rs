//! Cross-entropy of the next token.

use burn::tensor::{Int, Tensor};

/// Mean of `logsumexp(logits) - logits[target]` over the tokens, in nats.
///
/// # Shapes
/// - `logits_tv`: `[num_tokens, vocab_size]`; `target_ids_t`: `[num_tokens]`; returns `[1]`
///
/// # Panics
/// If a target lies outside the vocabulary.
pub fn cross_entropy(logits_tv: Tensor<2>, target_ids_t: Tensor<1, Int>) -> Tensor<1> {
    let [t, _] = logits_tv.dims();
    // The maximum cancels out of the loss and of its gradient: shifting by it only guards `exp`.
    let shifted_tv = logits_tv.clone() - logits_tv.detach().max_dim(1);
    let log_partition_t1 = shifted_tv.clone().exp().sum_dim(1).log();
    let target_logits_t1 = shifted_tv.gather(1, target_ids_t.reshape([t, 1]));
    (log_partition_t1 - target_logits_t1).mean()
}

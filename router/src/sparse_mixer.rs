//! Two experts in turn, each weighed by a softmax over those close to it: SparseMixer-v2 of
//! Phi-3.5-MoE (arXiv:2409.12136) as its published code evaluates. There is no sampling while
//! training.
//!
//! Shape letters: t tokens, e experts, k = 2 slots per token.

use burn::tensor::{Tensor, TensorData};
use switchyard_kernels::{GateSoftmax, top_k_gates};

use crate::select_top_k;

/// Picks of each token.
const NUM_PICKS: usize = 2;

/// The gates of one token's two picks, the experts of its two highest logits: the share of each in
/// the softmax over the experts near to it.
pub fn sparse_mixer_gates(logits_e: &[f64], jitter: f64) -> [f64; NUM_PICKS] {
    let picks = select_top_k(logits_e, logits_e.len(), NUM_PICKS);
    [0, 1].map(|pick| {
        let top = logits_e[picks[pick] as usize];
        let near = near_experts(logits_e, &picks, pick, jitter);
        let rivals = logits_e.iter().zip(near).filter(|(_, is_near)| *is_near);
        1.0 / rivals.map(|(logit, _)| (logit - top).exp()).sum::<f64>()
    })
}

/// Gates of all tokens: `[t, 2]`. Which experts are near gets no gradient.
pub(crate) fn gates(
    logits_te: Tensor<2>,
    host_logits_te: &[f64],
    expert_ids_tk: &[u32],
    jitter: f64,
) -> Tensor<2> {
    let ([t, e], device) = (logits_te.dims(), logits_te.device());
    let gate_of = |pick: usize| {
        let tokens = host_logits_te.chunks_exact(e).zip(expert_ids_tk.chunks_exact(NUM_PICKS));
        let mask_te: Vec<f32> = tokens
            .clone()
            .flat_map(|(logits_e, picks)| near_experts(logits_e, picks, pick, jitter))
            .map(|is_near| if is_near { 0.0 } else { f32::NEG_INFINITY })
            .collect();
        let mask_te = Tensor::<2>::from_data(TensorData::new(mask_te, [t, e]), (&device, logits_te.dtype()));
        let ids: Vec<u32> = tokens.map(|(_, picks)| picks[pick]).collect();
        top_k_gates(logits_te.clone() + mask_te, ids, GateSoftmax::OverAll)
    };
    Tensor::cat((0..NUM_PICKS).map(gate_of).collect(), 1)
}

/// Whether each expert has a part in the softmax of a pick: those of earlier picks do not, nor do
/// those too far below.
fn near_experts(logits_e: &[f64], picks: &[u32], pick: usize, jitter: f64) -> Vec<bool> {
    let top = logits_e[picks[pick] as usize];
    let is_near = |(expert, &logit): (usize, &f64)| {
        let is_picked = picks[..pick].iter().any(|&earlier| earlier as usize == expert);
        !is_picked && (top - logit) / logit.abs().max(top) <= 2.0 * jitter
    };
    // The pick itself, even if its logit is 0 and the distance 0 / 0.
    let is_own = |expert: usize| picks[pick] as usize == expert;
    logits_e.iter().enumerate().map(|it| is_own(it.0) || is_near(it)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn far_experts_and_earlier_picks_have_no_part() {
        // 2 and 1.99 are within 2 % of each other, 1.9 is not.
        let gates = sparse_mixer_gates(&[1.9, 2.0, 1.99, -3.0], 0.01);
        let share = 1.0 / (1.0 + (-0.01_f64).exp());
        assert!((gates[0] - share).abs() < 1e-12);
        assert_eq!(gates[1], 1.0);
    }

    #[test]
    fn gates_of_a_wide_neighbourhood_are_shares_of_the_softmax_of_those_left() {
        let logits = [0.3_f64, -0.2, 0.1];
        let gates = sparse_mixer_gates(&logits, 100.0);
        let exps = logits.map(f64::exp);
        assert!((gates[0] - exps[0] / exps.iter().sum::<f64>()).abs() < 1e-12);
        assert!((gates[1] - exps[2] / (exps[1] + exps[2])).abs() < 1e-12);
    }
}

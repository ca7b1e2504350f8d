//! How likely a model finds given tokens: the base of multiple choice and of echoed prompts.
//!
//! Shapes: t rows of a batch, one below the other; v vocabulary.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::module::Module;
use burn::tensor::Device;
use switchyard_model::{ModelInput, ModelSpec, Pass, Transformer};

use crate::TrainError;
use crate::generate;
use crate::readings::read_floats;

/// Scores read from the device at a time.
const MAX_SCORES_READ: usize = 1 << 23;
/// Input tokens of a forward pass.
const MAX_BATCH_TOKENS: usize = 4096;

/// Tokens of which the last are to be scored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToScore {
    /// The tokens, context first: two at least.
    pub ids: Vec<u32>,
    /// How many of the last tokens to score: fewer than all.
    pub num_scored: usize,
}

/// How likely a token was where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability, given all tokens before it.
    pub log_prob: f64,
    /// Whether no other token was likelier.
    pub is_greedy: bool,
    /// The likeliest tokens with the logarithms of their probabilities, falling.
    pub top: Vec<(u32, f64)>,
}

impl TokenScore {
    /// The score of token `id` among these scores of all tokens, with the `num_top` likeliest.
    ///
    /// # Shapes
    /// - `logits_v`: `[vocab_size]`
    pub fn new(logits_v: &[f32], id: u32, num_top: usize) -> Self {
        let max = logits_v.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits_v.iter().map(|logit| (f64::from(*logit) - f64::from(max)).exp()).sum();
        let log_partition = f64::from(max) + sum.ln();
        let log_prob = |id: u32| f64::from(logits_v[id as usize]) - log_partition;
        let mut top: Vec<u32> = Vec::with_capacity(num_top + 1);
        for candidate in 0..logits_v.len() as u32 {
            // Among equals the lowest id comes first.
            let logit = logits_v[candidate as usize];
            let place = top.partition_point(|kept| logits_v[*kept as usize] >= logit);
            if place < num_top {
                top.insert(place, candidate);
                top.truncate(num_top);
            }
        }
        Self {
            log_prob: log_prob(id),
            is_greedy: logits_v[id as usize] == max,
            top: top.into_iter().map(|id| (id, log_prob(id))).collect(),
        }
    }
}

/// Ok if tokens can be scored without those that follow them.
///
/// # Errors
/// [`TrainError::NotCausal`] if the routers of `model` need later tokens.
pub fn check_causal(model: &ModelSpec) -> Result<(), TrainError> {
    generate::check_causal(model, None)
}

/// The scores of the tokens of each of `requests`, with the `num_top` likeliest in their places.
///
/// Dropless and without noise. Requests of one length are computed together: none is padded, so a
/// score depends on its own tokens only.
///
/// # Errors
/// If the device fails, a score is no number, or `stop` is set.
///
/// # Panics
/// If a request scores no token that has one before it, or is longer than the model's positions by
/// more than one token.
pub fn token_scores(
    model: &Transformer,
    requests: &[ToScore],
    num_top: usize,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Vec<Vec<TokenScore>>, TrainError> {
    let model = model.valid();
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (index, request) in requests.iter().enumerate() {
        let ToScore { ids, num_scored } = request;
        assert!(*num_scored > 0 && *num_scored < ids.len(), "{num_scored} of {} tokens to score", ids.len());
        by_length.entry(ids.len() - 1).or_default().push(index);
    }
    let mut scores = vec![Vec::new(); requests.len()];
    // The longest first: what does not fit into memory is found out at once.
    for (seq_len, indices) in by_length.into_iter().rev() {
        for batch in indices.chunks((MAX_BATCH_TOKENS / seq_len).max(1)) {
            if stop.load(Ordering::SeqCst) {
                return Err(TrainError::Interrupted);
            }
            let of_batch: Vec<&ToScore> = batch.iter().map(|index| &requests[*index]).collect();
            let found = batch_scores(&model, &of_batch, num_top, device)?;
            batch.iter().zip(found).for_each(|(index, found)| scores[*index] = found);
        }
    }
    Ok(scores)
}

/// The scores of requests of one length.
fn batch_scores(
    model: &Transformer,
    requests: &[&ToScore],
    num_top: usize,
    device: &Device,
) -> Result<Vec<Vec<TokenScore>>, TrainError> {
    let seq_len = requests[0].ids.len() - 1;
    let inputs = requests.iter().flat_map(|request| &request.ids[..seq_len]);
    let input_ids: Vec<i32> = inputs.map(|id| *id as i32).collect();
    let input = ModelInput::upload(input_ids, None, [requests.len(), seq_len], device);
    let hidden_td = model.forward(&input, Pass::Generation).hidden_td;
    let scores_of = |(row, request): (usize, &&ToScore)| {
        let end = (row + 1) * seq_len;
        let targets = &request.ids[request.ids.len() - request.num_scored..];
        let rows = end - request.num_scored..end;
        let mut scores = Vec::with_capacity(targets.len());
        for (rows, targets) in pieces(rows, targets, model.spec().vocab_size) {
            let rows_td = hidden_td.clone().narrow(0, rows.start, rows.len());
            let logits = read_floats(model.logits(rows_td))?;
            let vocab_size = logits.len() / targets.len();
            let of_targets = logits.chunks(vocab_size).zip(targets);
            scores.extend(of_targets.map(|(logits_v, id)| TokenScore::new(logits_v, *id, num_top)));
        }
        if scores.iter().any(|score| !score.log_prob.is_finite()) {
            return Err(TrainError::NoNumbers { what: "a token's score is NaN or infinite" });
        }
        Ok(scores)
    };
    requests.iter().enumerate().map(scores_of).collect()
}

/// `rows` with their targets, in pieces whose scores are read at a time.
fn pieces(
    rows: Range<usize>,
    targets: &[u32],
    vocab_size: usize,
) -> impl Iterator<Item = (Range<usize>, &[u32])> {
    let size = (MAX_SCORES_READ / vocab_size).max(1);
    targets.chunks(size).enumerate().map(move |(index, targets)| {
        let start = rows.start + index * size;
        (start..start + targets.len(), targets)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_the_softmax_and_the_likeliest_come_first() {
        // Probabilities 1/8, 4/8, 2/8, 1/8.
        let logits = [0.0, 4f32.ln(), 2f32.ln(), 0.0];
        let score = TokenScore::new(&logits, 2, 3);
        assert!((score.log_prob.exp() - 0.25).abs() < 1e-7 && !score.is_greedy);
        assert_eq!(score.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(score.top[1].1.to_bits(), score.log_prob.to_bits(), "the same number in both places");
        assert!(TokenScore::new(&logits, 1, 0).is_greedy);
        let all: f64 = (0..4).map(|id| TokenScore::new(&logits, id, 0).log_prob.exp()).sum();
        assert!((all - 1.0).abs() < 1e-12);
    }

    #[test]
    fn rows_are_read_in_pieces_with_their_targets() {
        let targets: Vec<u32> = (0..7).collect();
        let found: Vec<_> = pieces(10..17, &targets, MAX_SCORES_READ / 3).collect();
        assert_eq!(found, [(10..13, &targets[..3]), (13..16, &targets[3..6]), (16..17, &targets[6..])]);
    }
}

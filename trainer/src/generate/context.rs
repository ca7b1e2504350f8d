//! The scores of the token that comes next: by what is kept of those before it, or over all of them
//! again.

use burn::tensor::{Device, Tensor};
use switchyard_experts::MoeAux;
use switchyard_model::{CachedOutput, ModelInput, Pass, SequenceCache, Transformer, random};

use super::trace::{TokenTrace, token_traces};
use crate::TrainError;
use crate::readings::read_floats;
use crate::sampling::{SamplingSettings, penalise_repetition, sample_token};

/// The tokens of one text so far, its prompt's among them, and what is kept of them.
pub(crate) struct Context {
    ids: Vec<u32>,
    /// Most tokens that there will be.
    max_len: usize,
    /// Of all tokens but the last; `None` if nothing is kept.
    cache: Option<SequenceCache>,
    num_traced: usize,
}

impl Context {
    /// A prompt that so many tokens will follow.
    pub(crate) fn new(ids: Vec<u32>, num_tokens: usize) -> Self {
        let max_len = ids.len().saturating_add(num_tokens);
        Self { ids, max_len, cache: None, num_traced: 0 }
    }

    pub(super) fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Adds the token that follows, the one of this index behind the prompt, by its scores.
    ///
    /// # Errors
    /// [`TrainError::NoNumbers`] if every score is NaN or infinite.
    pub(crate) fn choose(
        &mut self,
        scores_v: &[f32],
        index: u64,
        sampling: &SamplingSettings,
        seed: u64,
    ) -> Result<u32, TrainError> {
        if !scores_v.iter().any(|score| score.is_finite()) {
            return Err(TrainError::NoNumbers { what: "every score of the next token is NaN or infinite" });
        }
        // The same numbers for each text: it does not depend on what else is generated.
        let uniform = random::uniform(seed, "generate", index);
        let id = match sampling.repetition_penalty {
            Some(penalty) => {
                let mut penalised_v = scores_v.to_vec();
                penalise_repetition(&mut penalised_v, &self.ids, penalty);
                sample_token(&penalised_v, sampling, uniform)
            }
            None => sample_token(scores_v, sampling, uniform),
        };
        self.ids.push(id);
        Ok(id)
    }
}

/// The model, and how it is asked.
pub(crate) struct Engine<'a> {
    model: &'a Transformer,
    device: &'a Device,
    keeps_cache: bool,
    traces_experts: bool,
}

/// The scores of each context's next token, in order, and the experts of tokens that went through
/// the network for the first time.
type Scores = (Vec<Vec<f32>>, Vec<TokenTrace>);

impl<'a> Engine<'a> {
    /// Keeps what earlier tokens left, where that gives the same text, and tells no experts.
    pub(crate) fn new(model: &'a Transformer, device: &'a Device) -> Self {
        let keeps_cache = model.spec().cache_obstacle().is_none();
        Self { model, device, keeps_cache, traces_experts: false }
    }

    /// The same that goes over the whole context for each token.
    pub(super) fn without_cache(self) -> Self {
        Self { keeps_cache: false, ..self }
    }

    /// The same that tells the experts of each token.
    pub(super) fn with_traces(self) -> Self {
        Self { traces_experts: true, ..self }
    }

    /// The scores of the token that follows the context, `[vocab_size]`.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn scores_after(&self, context: &mut Context) -> Result<Vec<f32>, TrainError> {
        let (mut scores, _) = self.next_scores(vec![(0, context)])?;
        Ok(scores.swap_remove(0))
    }

    /// The scores of the token that follows each context, which has the number of its text with it.
    pub(super) fn next_scores(&self, contexts: Vec<(usize, &mut Context)>) -> Result<Scores, TrainError> {
        let mut scores = vec![Vec::new(); contexts.len()];
        let mut traces = Vec::new();
        let mut together = Vec::new();
        for (place, (sequence, context)) in contexts.into_iter().enumerate() {
            match self.cache_to_go_on_with(context) {
                Some(cache) => together.push((place, sequence, context, cache)),
                None => scores[place] = self.scores_anew(sequence, context, &mut traces)?,
            }
        }
        if together.is_empty() {
            return Ok((scores, traces));
        }
        let (mut ids, mut caches, mut decoded) = (Vec::new(), Vec::new(), Vec::new());
        for (place, sequence, context, cache) in together {
            ids.extend(context.ids.last());
            caches.push(cache);
            decoded.push((place, sequence, context));
        }
        let CachedOutput { hidden_bd, moe_layers, caches } = self.model.decode(&ids, caches);
        let of_rows = self.read_scores(hidden_bd)?;
        let rows = decoded.into_iter().zip(caches).zip(of_rows).enumerate();
        for (row, (((place, sequence, context), cache), of_row)) in rows {
            scores[place] = of_row;
            context.cache = Some(cache);
            self.trace(sequence, context, (&moe_layers, ids.len()), row..row + 1, &mut traces);
        }
        Ok((scores, traces))
    }

    /// What is kept of the tokens before the last one, if that is all that the last one needs.
    fn cache_to_go_on_with(&self, context: &mut Context) -> Option<SequenceCache> {
        let fits = context.ids.len() <= self.model.spec().max_context_len();
        context.cache.take().filter(|cache| {
            fits && cache.num_tokens() + 1 == context.ids.len() && self.model.can_go_on(cache)
        })
    }

    /// Over all tokens that the positions allow.
    fn scores_anew(
        &self,
        sequence: usize,
        context: &mut Context,
        traces: &mut Vec<TokenTrace>,
    ) -> Result<Vec<f32>, TrainError> {
        let max_context_len = self.model.spec().max_context_len();
        let len = context.ids.len();
        let visible = &context.ids[len.saturating_sub(max_context_len)..];
        let num_visible = visible.len();
        let (hidden_1d, moe_layers, cache) = if self.keeps_cache {
            let capacity = context.max_len.min(max_context_len);
            let CachedOutput { hidden_bd, moe_layers, mut caches } =
                self.model.prefill(visible, capacity, self.device);
            (hidden_bd, moe_layers, caches.pop().filter(|_| len <= max_context_len))
        } else {
            let ids = visible.iter().map(|&id| id as i32).collect();
            let input = ModelInput::upload(ids, None, [1, num_visible], self.device);
            let output = self.model.forward(&input, Pass::Generation);
            (output.hidden_td.narrow(0, num_visible - 1, 1), output.moe_layers, None)
        };
        context.cache = cache;
        self.trace(sequence, context, (&moe_layers, num_visible), 0..num_visible, traces);
        Ok(self.read_scores(hidden_1d)?.swap_remove(0))
    }

    /// Adds the experts of those of the context's last tokens, in these rows of a pass over
    /// `num_rows`, that were not told yet.
    fn trace(
        &self,
        sequence: usize,
        context: &mut Context,
        (moe_layers, num_rows): (&[(usize, MoeAux)], usize),
        rows: std::ops::Range<usize>,
        traces: &mut Vec<TokenTrace>,
    ) {
        if !self.traces_experts {
            return;
        }
        let first_position = context.ids.len() - rows.len();
        let told = context.num_traced.saturating_sub(first_position);
        for (offset, row) in rows.enumerate().skip(told) {
            let position = first_position + offset;
            let layers = token_traces(self.model, moe_layers, num_rows, row);
            traces.push(TokenTrace { sequence, position, token_id: context.ids[position], layers });
        }
        context.num_traced = context.ids.len();
    }

    /// The scores behind each of these rows.
    fn read_scores(&self, hidden_bd: Tensor<2>) -> Result<Vec<Vec<f32>>, TrainError> {
        let logits_bv = self.model.logits(hidden_bd);
        let [_, v] = logits_bv.dims();
        let scores = read_floats(logits_bv)?;
        Ok(scores.chunks(v).map(<[f32]>::to_vec).collect())
    }
}

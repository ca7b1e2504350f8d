//! How often a run goes over its data.

/// Passes over `train_tokens` tokens of data that `num_tokens` targets are: 0.5 is half of the data
/// once.
pub fn passes(num_tokens: u64, train_tokens: u64) -> f64 {
    num_tokens as f64 / train_tokens as f64
}

/// What to say of a run with batches of `tokens_per_step` targets, where that is more than all the
/// data has; none where a batch fits into it.
pub fn passes_note(tokens_per_step: u64, train_tokens: u64) -> Option<String> {
    (tokens_per_step > train_tokens).then(|| {
        format!(
            "one step reads {tokens_per_step} tokens, {:.1} times the {train_tokens} that the train split has: each step sees \
             all of it more than once",
            passes(tokens_per_step, train_tokens)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_are_targets_per_token_and_a_batch_beyond_the_data_is_remarked() {
        assert_eq!(passes(500, 1000), 0.5);
        assert_eq!(passes_note(1000, 1000), None);
        let note = passes_note(31_000, 1000).unwrap();
        assert!(note.starts_with("one step reads 31000 tokens, 31.0 times the 1000 that"), "{note}");
    }
}

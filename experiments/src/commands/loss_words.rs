//! A validation loss in words.

use switchyard_datasets::SplitManifest;
use switchyard_ground::units::grouped;
use switchyard_trainer::metrics::perplexity_text;

/// `2.1234 nats per token (1.5678 bits per byte, perplexity 8.36)`; without the bytes where they
/// are not known.
pub(super) fn loss(nats_per_token: f64, bits_per_byte: Option<f64>) -> String {
    let bits = bits_per_byte.map(|bits| format!("{bits:.4} bits per byte, ")).unwrap_or_default();
    format!("{nats_per_token:.4} nats per token ({bits}perplexity {})", perplexity_text(nats_per_token))
}

/// `39,424 of 39,534 targets (whole windows) in 12 documents`: what an average over `num_targets`
/// covers, of `split` in windows of `seq_len`. Documents are not named where no borders are known.
pub(super) fn extent(num_targets: u64, seq_len: usize, split: &SplitManifest) -> String {
    let all = split.num_tokens.saturating_sub(1);
    let documents = match split.num_documents {
        0 => String::new(),
        1 => " in 1 document".into(),
        many => format!(" in {} documents", grouped(many)),
    };
    if num_targets == all {
        return format!("all {} targets{documents}", grouped(all));
    }
    if num_targets == targets_of_whole_windows(seq_len, split) {
        return format!("{} of {} targets (whole windows){documents}", grouped(num_targets), grouped(all));
    }
    // Of a part it is not known how many documents it lies in.
    format!("the first {} of {} targets (whole windows)", grouped(num_targets), grouped(all))
}

/// Targets of an evaluation on the whole split.
pub(super) fn targets_of_whole_windows(seq_len: usize, split: &SplitManifest) -> u64 {
    let seq_len = seq_len as u64;
    split.num_tokens.saturating_sub(1) / seq_len * seq_len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(num_documents: u64, num_bytes: u64, num_tokens: u64) -> SplitManifest {
        SplitManifest { num_documents, num_bytes, num_tokens, ..SplitManifest::default() }
    }

    #[test]
    fn what_is_left_out_is_said() {
        assert_eq!(
            extent(39_424, 128, &split(12, 1, 39_535)),
            "39,424 of 39,534 targets (whole windows) in 12 documents"
        );
        assert_eq!(
            extent(1_024, 128, &split(1, 1, 39_535)),
            "the first 1,024 of 39,534 targets (whole windows)"
        );
        assert_eq!(extent(256, 128, &split(0, 0, 257)), "all 256 targets");
    }

    #[test]
    fn bits_per_byte_are_given_where_the_bytes_are_known() {
        assert_eq!(
            loss(std::f64::consts::LN_2, Some(0.5)),
            "0.6931 nats per token (0.5000 bits per byte, perplexity 2.00)"
        );
        assert_eq!(loss(700.0, None), "700.0000 nats per token (perplexity 1.01e304)");
    }
}

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

/// `all 39,534 targets in 12 documents`: what an average over `num_targets` of `split` covers.
/// Documents are not named where no borders are known.
pub(super) fn extent(num_targets: u64, split: &SplitManifest) -> String {
    let all = split.num_tokens.saturating_sub(1);
    let documents = match split.num_documents {
        0 => String::new(),
        1 => " in 1 document".into(),
        many => format!(" in {} documents", grouped(many)),
    };
    if num_targets == all {
        return format!("all {} targets{documents}", grouped(all));
    }
    // Of a part it is not known how many documents it lies in.
    format!("the first {} of {} targets", grouped(num_targets), grouped(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(num_documents: u64, num_bytes: u64, num_tokens: u64) -> SplitManifest {
        SplitManifest { num_documents, num_bytes, num_tokens, ..SplitManifest::default() }
    }

    #[test]
    fn what_is_left_out_is_said() {
        assert_eq!(extent(39_534, &split(12, 1, 39_535)), "all 39,534 targets in 12 documents");
        assert_eq!(extent(1_024, &split(1, 1, 39_535)), "the first 1,024 of 39,534 targets");
        assert_eq!(extent(256, &split(0, 0, 257)), "all 256 targets");
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

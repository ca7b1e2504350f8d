//! What the datasets hand to the trainer.

use crate::error::DatasetError;
use crate::store::TokenStore;

/// Sequences of tokens with their targets, in host memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// `[num_sequences * seq_len]`, row-major: what the model reads.
    pub input_ids: Vec<i32>,
    /// `[num_sequences * seq_len]`, row-major: the token after each input. After the last token of
    /// a document that is the first of the next one; such targets are kept, and cost what
    /// documents' beginnings cost.
    pub target_ids: Vec<i32>,
    /// `[num_sequences * seq_len]`, row-major: for each input, which document of its row it belongs
    /// to, from 0; present when documents are masked. A token may attend to tokens with its own
    /// number only.
    pub segment_ids: Option<Vec<i32>>,
    /// `[num_sequences]`: domain of each sequence's first token; 0 where no domains are known.
    pub domains: Vec<u16>,
    /// `[num_sequences]`: index of each sequence's source in
    /// [`Dataset::sources`](crate::Dataset::sources); 0 where there is one.
    pub source_ids_b: Vec<u16>,
    /// Rows.
    pub num_sequences: usize,
    /// Columns.
    pub seq_len: usize,
}

impl TokenBatch {
    /// The sequences of `seq_len` inputs that begin at `starts`.
    pub(crate) fn read(
        store: &TokenStore,
        starts: &[usize],
        seq_len: usize,
        mask_documents: bool,
    ) -> Result<Self, DatasetError> {
        let num_tokens = starts.len() * seq_len;
        let (mut input_ids, mut target_ids) =
            (Vec::with_capacity(num_tokens), Vec::with_capacity(num_tokens));
        let mut window = vec![0; seq_len + 1];
        for start in starts {
            store.read(*start, &mut window)?;
            input_ids.extend_from_slice(&window[..seq_len]);
            target_ids.extend_from_slice(&window[1..]);
        }
        let segments = || starts.iter().flat_map(|start| store.segment_ids(*start, seq_len)).collect();
        Ok(Self {
            input_ids,
            target_ids,
            segment_ids: mask_documents.then(segments),
            domains: starts.iter().map(|start| store.domain(*start)).collect(),
            source_ids_b: vec![0; starts.len()],
            num_sequences: starts.len(),
            seq_len,
        })
    }

    /// The rows of `batches`, one below the other; `None` without any.
    ///
    /// # Panics
    /// If their rows differ in length, or only some have segments.
    pub(crate) fn stacked(batches: Vec<Self>) -> Option<Self> {
        let mut batches = batches.into_iter();
        let mut all = batches.next()?;
        for batch in batches {
            assert_eq!(batch.seq_len, all.seq_len, "rows of one length");
            all.input_ids.extend(batch.input_ids);
            all.target_ids.extend(batch.target_ids);
            match (&mut all.segment_ids, batch.segment_ids) {
                (Some(all), Some(segments)) => all.extend(segments),
                (None, None) => {}
                _ => panic!("only some rows have segments"),
            }
            all.domains.extend(batch.domains);
            all.source_ids_b.extend(batch.source_ids_b);
            all.num_sequences += batch.num_sequences;
        }
        Some(all)
    }

    /// Number of targets: `num_sequences * seq_len`.
    pub fn num_tokens(&self) -> usize {
        self.target_ids.len()
    }
}

//! What the datasets hand to the trainer.

use crate::error::DatasetError;
use crate::span::Span;
use crate::store::TokenStore;

/// Sequences of tokens with their targets, in host memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenBatch {
    /// `[num_sequences * seq_len]`, row-major: what the model reads.
    pub input_ids: Vec<i32>,
    /// `[num_sequences * seq_len]`, row-major: the token after each input. After the last token of
    /// a document that is the first of the next one; such targets are kept, and cost what
    /// documents' beginnings cost. Packed sequences have none of them: there the last token of a
    /// document is a target only. Id 0 stands where `target_mask` is false.
    pub target_ids: Vec<i32>,
    /// `[num_sequences * seq_len]`, row-major: for each input, which document of its row it belongs
    /// to, from 0; present when documents are masked. A token may attend to tokens with its own
    /// number only. Of rows that follow others, 0 is the document of the token before them.
    pub segment_ids: Option<Vec<i32>>,
    /// `[num_sequences * seq_len]`, row-major: whether each target counts in the loss; `None` if all
    /// do. Padding, at the end of packed sequences, does not; it has a segment of its own.
    pub target_mask: Option<Vec<bool>>,
    /// `[num_sequences]`: places of each row that hold a token, where padding follows them; `None` if
    /// all do.
    pub row_lens: Option<Vec<usize>>,
    /// Whether each row goes on where the row in its place ended before: a model's state is kept.
    pub follows: bool,
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
            target_mask: None,
            row_lens: None,
            follows: false,
            domains: starts.iter().map(|start| store.domain(*start)).collect(),
            source_ids_b: vec![0; starts.len()],
            num_sequences: starts.len(),
            seq_len,
        })
    }

    /// The rows, which begin at `starts`, as what follows the tokens before them.
    pub(crate) fn following(self, store: &TokenStore, starts: &[usize]) -> Self {
        let behind_one = |start: &usize| {
            let before = (start + store.len() - 1) % store.len();
            store.segment_ids(before, self.seq_len + 1).split_off(1)
        };
        let segment_ids = self.segment_ids.as_ref().map(|_| starts.iter().flat_map(behind_one).collect());
        Self { segment_ids, follows: true, ..self }
    }

    /// The packed sequence of `spans`, in this order, and padding after them.
    pub(crate) fn packed(store: &TokenStore, spans: &[Span], seq_len: usize) -> Result<Self, DatasetError> {
        let (mut input_ids, mut target_ids) = (vec![0; seq_len], vec![0; seq_len]);
        // What no span covers is padding.
        let mut segments = vec![spans.len() as i32; seq_len];
        let mut mask = vec![false; seq_len];
        let (mut window, mut place) = (Vec::new(), 0);
        for (segment, Span { start, len }) in spans.iter().copied().enumerate() {
            window.resize(len + 1, 0);
            store.read(start, &mut window)?;
            let places = place..place + len;
            input_ids[places.clone()].copy_from_slice(&window[..len]);
            target_ids[places.clone()].copy_from_slice(&window[1..]);
            segments[places.clone()].fill(segment as i32);
            mask[places].fill(true);
            place += len;
        }
        Ok(Self {
            input_ids,
            target_ids,
            segment_ids: Some(segments),
            target_mask: Some(mask),
            row_lens: Some(vec![place]),
            follows: false,
            domains: vec![spans.first().map_or(0, |span| store.domain(span.start))],
            source_ids_b: vec![0],
            num_sequences: 1,
            seq_len,
        })
    }

    /// The rows of `batches`, one below the other; `None` without any.
    ///
    /// # Panics
    /// If their rows differ in length, or only some have segments or masks.
    pub(crate) fn stacked(batches: Vec<Self>) -> Option<Self> {
        let mut batches = batches.into_iter();
        let mut all = batches.next()?;
        for batch in batches {
            assert_eq!(batch.seq_len, all.seq_len, "rows of one length");
            all.input_ids.extend(batch.input_ids);
            all.target_ids.extend(batch.target_ids);
            extend(&mut all.segment_ids, batch.segment_ids);
            extend(&mut all.target_mask, batch.target_mask);
            extend(&mut all.row_lens, batch.row_lens);
            all.domains.extend(batch.domains);
            all.source_ids_b.extend(batch.source_ids_b);
            all.num_sequences += batch.num_sequences;
        }
        Some(all)
    }

    /// Number of places for targets: `num_sequences * seq_len`.
    pub fn num_tokens(&self) -> usize {
        self.target_ids.len()
    }

    /// Number of targets that count in the loss.
    pub fn num_counted_targets(&self) -> usize {
        let masked = |mask: &Vec<bool>| mask.iter().filter(|counts| **counts).count();
        self.target_mask.as_ref().map_or(self.target_ids.len(), masked)
    }
}

/// Adds `more` to `all`, where both are given or neither.
fn extend<T>(all: &mut Option<Vec<T>>, more: Option<Vec<T>>) {
    match (all, more) {
        (Some(all), Some(more)) => all.extend(more),
        (None, None) => {}
        _ => panic!("only some rows have segments or masks"),
    }
}

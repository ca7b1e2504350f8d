//! The loss on held-out text: dropless, without noise, over fixed windows in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, s};
use switchyard_datasets::{DatasetError, EvaluationWindows, SlidingWindows, TokenBatch, TokenStore};
use switchyard_model::{Compute, Pass, Transformer};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::metrics::DocumentLoss;
use crate::readings::{Readings, read_scalar};
use crate::step::{RoutingByLayer, merge_routing};

/// How much of the split is read, and in what pieces.
#[derive(Debug, Clone, Copy)]
pub struct EvaluationSettings {
    /// Tokens per window.
    pub seq_len: usize,
    /// Windows per forward pass.
    pub sequences_per_batch: usize,
    /// Targets to evaluate on, from the start of the split; `None` means all.
    pub max_tokens: Option<u64>,
    /// Windows begin this many tokens after one another, and but for the first each counts only the
    /// targets that no window before it has: see [`SlidingWindows`]. `None` means windows one after
    /// the other.
    pub stride: Option<usize>,
    /// Attention, or the state of a recurrent model, stays within documents.
    pub mask_documents: bool,
    /// The windows are one stream, which a recurrent model reads from its beginning to its end: its
    /// state goes from each to the next. One window is computed at a time, so what is found depends
    /// neither on their length nor on `sequences_per_batch`. Not with a `stride`.
    pub carries_state: bool,
    /// Also the loss of each document, for which the head is run a second time; not with a `stride`.
    pub by_document: bool,
}

/// What an evaluation found.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// Mean cross-entropy of the targets, in nats.
    pub cross_entropy_nats: f64,
    /// Targets evaluated on.
    pub num_tokens: u64,
    /// Whether these were all that the split's windows hold.
    pub whole_split: bool,
    /// The loss of each document, in their order; `None` unless it was asked for, and where no
    /// documents are known.
    pub documents: Option<Vec<DocumentLoss>>,
    /// What was found on each of several sources alone, by its index; empty unless
    /// [`evaluate_sources`] was asked too.
    pub sources: BTreeMap<usize, Evaluation>,
    /// Duration.
    pub secs: f64,
    /// Routing of each MoE layer over all tokens.
    pub routing: RoutingByLayer,
}

/// The loss of `model` on `store`.
///
/// # Errors
/// [`TrainError`] if the data is shorter than one window or cannot be read, or the device fails;
/// [`TrainError::CarriedStride`].
pub fn evaluate(
    model: &Transformer,
    store: &Arc<TokenStore>,
    settings: &EvaluationSettings,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    evaluate_unless(&AtomicBool::new(false), model, store, settings, device)
}

/// As [`evaluate`], and looks at `stop` before each batch.
///
/// # Errors
/// Also [`TrainError::Interrupted`], once `stop` is set.
pub fn evaluate_unless(
    stop: &AtomicBool,
    model: &Transformer,
    store: &Arc<TokenStore>,
    settings: &EvaluationSettings,
    device: &Device,
) -> Result<Evaluation, TrainError> {
    let started = Instant::now();
    let model = model.valid();
    let windows = Windows::new(store, settings)?;
    let (mut nats, mut num_tokens, mut routing) = (0.0, 0u64, RoutingByLayer::new());
    let mut state = None;
    let knows_documents = settings.by_document && settings.stride.is_none() && store.num_documents() > 0;
    let mut documents = knows_documents.then(|| DocumentLosses { store, losses: Vec::new() });
    let num_rows = if settings.carries_state { 1 } else { settings.sequences_per_batch };
    for batch in windows.batches(num_rows) {
        if stop.load(Ordering::SeqCst) {
            return Err(TrainError::Interrupted);
        }
        let batch = batch?;
        let batch_tokens = batch.num_counted_targets() as u64;
        let before = state.take().filter(|_| batch.follows);
        let batch = DeviceBatch::upload(batch, device);
        let mut output = model.forward(&batch.input.after(before), Pass::Evaluation);
        state = output.state.take();
        let loss = model.head_loss(output.hidden_td.clone(), batch.target_ids_t.clone(), None, Compute::F32);
        nats += read_scalar(&loss.cross_entropy_1)? * batch_tokens as f64;
        if let Some(documents) = &mut documents {
            // The first token of the split is no target.
            documents.add(&model, &output.hidden_td, &batch.target_ids_t, 1 + num_tokens as usize)?;
        }
        num_tokens += batch_tokens;
        merge_routing(&mut routing, &output);
    }
    Ok(Evaluation {
        cross_entropy_nats: nats / num_tokens as f64,
        num_tokens,
        whole_split: num_tokens == windows.num_targets_of_whole_split() as u64,
        documents: documents.map(|documents| documents.losses),
        sources: BTreeMap::new(),
        secs: started.elapsed().as_secs_f64(),
        routing,
    })
}

/// The windows of an evaluation.
enum Windows {
    OneByOne { windows: EvaluationWindows, of_whole_split: usize },
    Sliding { windows: SlidingWindows, of_whole_split: usize },
}

impl Windows {
    fn new(store: &Arc<TokenStore>, settings: &EvaluationSettings) -> Result<Self, TrainError> {
        let EvaluationSettings { seq_len, mask_documents, .. } = *settings;
        let max_tokens = settings.max_tokens.map_or(usize::MAX, |max| max as usize);
        let Some(stride) = settings.stride else {
            let all = EvaluationWindows::new(store.clone(), seq_len)?.with_document_masking(mask_documents);
            let of_whole_split = all.num_tokens();
            let all = if settings.carries_state { all.as_stream() } else { all };
            return Ok(Self::OneByOne { windows: all.with_max_tokens(max_tokens), of_whole_split });
        };
        if settings.carries_state {
            return Err(TrainError::CarriedStride { stride });
        }
        let all = SlidingWindows::new(store.clone(), seq_len, stride)?.with_document_masking(mask_documents);
        let of_whole_split = all.num_tokens();
        Ok(Self::Sliding { windows: all.with_max_tokens(max_tokens), of_whole_split })
    }

    fn num_targets_of_whole_split(&self) -> usize {
        match self {
            Self::OneByOne { of_whole_split, .. } | Self::Sliding { of_whole_split, .. } => *of_whole_split,
        }
    }

    fn batches(&self, size: usize) -> Box<dyn Iterator<Item = Result<TokenBatch, DatasetError>> + '_> {
        match self {
            Self::OneByOne { windows, .. } => Box::new(windows.batches(size)),
            Self::Sliding { windows, .. } => Box::new(windows.batches(size)),
        }
    }
}

/// The loss of `model` on the split of each source, in `stores`, that there is and that holds a window,
/// by the source's index; looks at `stop` before each batch.
///
/// # Errors
/// As [`evaluate_unless`].
pub fn evaluate_sources(
    stop: &AtomicBool,
    model: &Transformer,
    stores: &[Option<&Arc<TokenStore>>],
    settings: &EvaluationSettings,
    device: &Device,
) -> Result<BTreeMap<usize, Evaluation>, TrainError> {
    let settings = EvaluationSettings { by_document: false, ..*settings };
    let long_enough = |(index, store): (usize, &Option<&Arc<TokenStore>>)| {
        Some((index, (*store).filter(|store| store.len() > settings.seq_len)?.clone()))
    };
    let evaluated = |(index, store): (usize, Arc<TokenStore>)| {
        Ok((index, evaluate_unless(stop, model, &store, &settings, device)?))
    };
    stores.iter().enumerate().filter_map(long_enough).map(evaluated).collect()
}

/// The loss of each document so far.
struct DocumentLosses<'a> {
    store: &'a TokenStore,
    losses: Vec<DocumentLoss>,
}

impl DocumentLosses<'_> {
    /// Adds consecutive targets, the first of them at position `start` of the store, with the hidden
    /// states that predict them.
    fn add(
        &mut self,
        model: &Transformer,
        hidden_td: &Tensor<2>,
        target_ids_t: &Tensor<1, Int>,
        start: usize,
    ) -> Result<(), TrainError> {
        let spans = self.store.documents_of(start, target_ids_t.dims()[0]).unwrap_or_default();
        let (mut readings, mut first) = (Readings::default(), 0);
        let mut means = Vec::new();
        for (_, len) in &spans {
            let end = first + len;
            let loss = model.head_loss(
                hidden_td.clone().slice(s![first..end, ..]),
                target_ids_t.clone().slice(s![first..end]),
                None,
                Compute::F32,
            );
            means.push(readings.add(&loss.cross_entropy_1));
            first = end;
        }
        let values = readings.read()?;
        let mut position = start;
        for ((document, len), mean) in spans.into_iter().zip(&means) {
            let nats = values.scalar(mean) * len as f64;
            let domain = self.store.domain(position);
            position += len;
            match self.losses.last_mut().filter(|last| last.document == document) {
                Some(last) => {
                    last.num_tokens += len as u64;
                    last.nats += nats;
                }
                None => self.losses.push(DocumentLoss { document, domain, num_tokens: len as u64, nats }),
            }
        }
        Ok(())
    }
}

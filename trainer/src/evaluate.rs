//! The loss on held-out text: dropless, without noise, over fixed windows in order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, s};
use serde::{Deserialize, Serialize};
use switchyard_datasets::{DatasetError, EvaluationWindows, SlidingWindows, TokenBatch, TokenStore};
use switchyard_model::{Compute, Pass, Transformer};

use crate::TrainError;
use crate::batch::DeviceBatch;
use crate::metrics::DocumentLoss;
use crate::readings::{Reading, Readings, read_scalar};
use crate::step::{RoutingByLayer, add_statistics, statistics_of};

/// How much of the split is read, and in what pieces.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
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
    let look = || match stop.load(Ordering::SeqCst) {
        true => Err(TrainError::Interrupted),
        false => Ok(()),
    };
    let batches = evaluate_batches(look, model, store, settings, device, |num_batches| 0..num_batches)?;
    Evaluation::of(batches, store, settings, started)
}

/// What was found in one batch of an evaluation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BatchEvaluation {
    nats: f64,
    num_tokens: u64,
    routing: RoutingByLayer,
    /// The loss of each document's part of the batch; `None` unless it was asked for.
    documents: Option<Vec<DocumentLoss>>,
}

/// The loss of `model` on those batches of `store` that `share` says of their number, before each of
/// which it may `look` whether to go on.
///
/// # Errors
/// As [`evaluate_unless`].
pub(crate) fn evaluate_batches(
    mut look: impl FnMut() -> Result<(), TrainError>,
    model: &Transformer,
    store: &Arc<TokenStore>,
    settings: &EvaluationSettings,
    device: &Device,
    share: impl FnOnce(usize) -> Range<usize>,
) -> Result<Vec<BatchEvaluation>, TrainError> {
    let model = model.valid();
    let windows = Windows::new(store, settings)?;
    let knows_documents = settings.by_document && settings.stride.is_none() && store.num_documents() > 0;
    let num_rows = if settings.carries_state { 1 } else { settings.sequences_per_batch };
    let share = share(windows.num_batches(num_rows));
    let (mut found, mut state, mut first_target) = (Vec::new(), None, 0);
    for (index, batch) in windows.batches(num_rows).enumerate().take(share.end) {
        let batch = batch?;
        let num_tokens = batch.num_counted_targets();
        // The first token of the split is no target.
        let start = 1 + first_target;
        first_target += num_tokens;
        if index < share.start {
            continue;
        }
        look()?;
        let before = state.take().filter(|_| batch.follows);
        let batch = DeviceBatch::upload(batch, device);
        let mut output = model.forward(&batch.input.after(before), Pass::Evaluation);
        state = output.state.take();
        let loss = model.head_loss(output.hidden_td.clone(), batch.target_ids_t.clone(), None, Compute::F32);
        let documents = match knows_documents {
            true => Some(document_losses(&model, store, (&output.hidden_td, &batch.target_ids_t), start)?),
            false => None,
        };
        found.push(BatchEvaluation {
            nats: read_scalar(&loss.cross_entropy_1)? * num_tokens as f64,
            num_tokens: num_tokens as u64,
            routing: statistics_of(&output),
            documents,
        });
    }
    Ok(found)
}

impl Evaluation {
    /// What all `batches` of an evaluation of `store` have found, in their order.
    ///
    /// # Errors
    /// [`TrainError::Data`] if the data is shorter than one window.
    pub(crate) fn of(
        batches: Vec<BatchEvaluation>,
        store: &Arc<TokenStore>,
        settings: &EvaluationSettings,
        started: Instant,
    ) -> Result<Self, TrainError> {
        let (mut nats, mut num_tokens, mut routing) = (0.0, 0u64, RoutingByLayer::new());
        let mut documents: Option<Vec<DocumentLoss>> = None;
        for batch in batches {
            nats += batch.nats;
            num_tokens += batch.num_tokens;
            add_statistics(&mut routing, batch.routing);
            for part in batch.documents.into_iter().flatten() {
                add_document(documents.get_or_insert_default(), part);
            }
        }
        Ok(Self {
            cross_entropy_nats: nats / num_tokens as f64,
            num_tokens,
            whole_split: num_tokens == Windows::new(store, settings)?.num_targets_of_whole_split() as u64,
            documents,
            sources: BTreeMap::new(),
            secs: started.elapsed().as_secs_f64(),
            routing,
        })
    }
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

    /// Batches of windows one after the other, or more than those of windows that slide.
    fn num_batches(&self, size: usize) -> usize {
        match self {
            Self::OneByOne { windows, .. } => windows.num_batches(size),
            Self::Sliding { .. } => usize::MAX,
        }
    }

    fn batches(&self, size: usize) -> Box<dyn Iterator<Item = Result<TokenBatch, DatasetError>> + '_> {
        match self {
            Self::OneByOne { windows, .. } => Box::new(windows.batches(size)),
            Self::Sliding { windows, .. } => Box::new(windows.batches(size)),
        }
    }
}

/// What `evaluate` finds on the split of each source, in `stores`, that there is and that holds a
/// window, by the source's index.
///
/// # Errors
/// As `evaluate`.
pub fn evaluate_sources(
    stores: &[Option<&Arc<TokenStore>>],
    settings: &EvaluationSettings,
    evaluate: impl Fn(usize, &Arc<TokenStore>, &EvaluationSettings) -> Result<Evaluation, TrainError>,
) -> Result<BTreeMap<usize, Evaluation>, TrainError> {
    let settings = EvaluationSettings { by_document: false, ..*settings };
    let long_enough = |(index, store): (usize, &Option<&Arc<TokenStore>>)| {
        Some((index, (*store).filter(|store| store.len() > settings.seq_len)?.clone()))
    };
    let evaluated =
        |(index, store): (usize, Arc<TokenStore>)| Ok((index, evaluate(index, &store, &settings)?));
    stores.iter().enumerate().filter_map(long_enough).map(evaluated).collect()
}

/// The loss of each document's part of consecutive targets, the first of them at position `start` of
/// the store, with the hidden states that predict them.
fn document_losses(
    model: &Transformer,
    store: &TokenStore,
    (hidden_td, target_ids_t): (&Tensor<2>, &Tensor<1, Int>),
    start: usize,
) -> Result<Vec<DocumentLoss>, TrainError> {
    let spans = store.documents_of(start, target_ids_t.dims()[0]).unwrap_or_default();
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
    let of_span = |((document, len), mean): ((usize, usize), &Reading)| {
        let domain = store.domain(position);
        position += len;
        DocumentLoss { document, domain, num_tokens: len as u64, nats: values.scalar(mean) * len as f64 }
    };
    Ok(spans.into_iter().zip(&means).map(of_span).collect())
}

/// Adds a document, or the next part of the last one.
fn add_document(documents: &mut Vec<DocumentLoss>, part: DocumentLoss) {
    match documents.last_mut().filter(|last| last.document == part.document) {
        Some(last) => {
            last.num_tokens += part.num_tokens;
            last.nats += part.nats;
        }
        None => documents.push(part),
    }
}

//! The loss on held-out text: dropless, without noise, over fixed windows in order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, s};
use switchyard_datasets::{EvaluationWindows, TokenStore};
use switchyard_model::{Pass, Transformer};

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
    /// Attention stays within documents.
    pub mask_documents: bool,
    /// Also the loss of each document, for which the head is run a second time.
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
    /// Duration.
    pub secs: f64,
    /// Routing of each MoE layer over all tokens.
    pub routing: RoutingByLayer,
}

/// The loss of `model` on `store`.
///
/// # Errors
/// [`TrainError`] if the data is shorter than one window or cannot be read, or the device fails.
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
    let windows = EvaluationWindows::new(store.clone(), settings.seq_len)?
        .with_document_masking(settings.mask_documents);
    let tokens_in_split = windows.num_tokens();
    let windows = match settings.max_tokens {
        Some(max_tokens) => windows.with_max_tokens(max_tokens as usize),
        None => windows,
    };
    let (mut nats, mut num_tokens, mut routing) = (0.0, 0u64, RoutingByLayer::new());
    let knows_documents = settings.by_document && store.num_documents() > 0;
    let mut documents = knows_documents.then(|| DocumentLosses { store, losses: Vec::new() });
    for batch in windows.batches(settings.sequences_per_batch) {
        if stop.load(Ordering::SeqCst) {
            return Err(TrainError::Interrupted);
        }
        let batch = batch?;
        let batch_tokens = batch.num_tokens() as u64;
        let batch = DeviceBatch::upload(batch, device);
        let output = model.forward(&batch.input, Pass::Evaluation);
        let loss = model.head_loss(output.hidden_td.clone(), batch.target_ids_t.clone(), None);
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
        whole_split: num_tokens == tokens_in_split as u64,
        documents: documents.map(|documents| documents.losses),
        secs: started.elapsed().as_secs_f64(),
        routing,
    })
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

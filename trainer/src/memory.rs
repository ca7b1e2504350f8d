//! Memory of a training process at its worst moment, by arithmetic alone: nothing is allocated.
//!
//! The parts of the model say what they hold in a pass ([`ModelFootprint`]); this file goes through
//! a step, adds up what is alive at each moment, and takes the largest sum. On top comes what the
//! process holds besides. Steps before the first update hold less (no moments), and an evaluation
//! keeps nothing for a backward pass: neither is the worst moment.

use serde::{Deserialize, Serialize};
use switchyard_model::{
    LayerFootprint, ModelCounts, ModelFootprint, ModelSpec, PassOptions, Recompute, hidden_matrices,
};

use crate::config::{AdamWConfig, MomentType, MuonConfig};
use crate::throughput::probe_bytes;

/// Bytes of one f32, the type of parameters, gradients and, usually, moments.
const F32_BYTES: f64 = 4.0;
/// Bytes of one bf16.
const BF16_BYTES: f64 = 2.0;
/// The estimate is above or below the peak by at most this share of the peak:
/// `experiments/tests/memory.rs` holds it against measured peaks.
pub const MEMORY_ERROR: f64 = 0.15;

/// What a process that trains holds besides all that is counted here: the pages of the program that
/// are used, stacks, tables of the libraries, the tokenizer, buffers of the logs.
///
/// Measured, as the next two: least squares of the relative errors over the peaks (`VmHWM`) of 22
/// recipes of 220 to 820 MB, dense and sparse, with 1 and 2 threads; x86-64 Linux, the program's
/// own allocator, dev profile.
const PROCESS_BYTES: f64 = 23e6;
/// What MPI holds in each rank: by how much the peak of the quickstart was larger when `mpirun` had
/// started its one process. Open MPI 4.1.
const MPI_BYTES: u64 = 31_000_000;
/// What the allocator holds beyond the buffers that are alive, as a share of them: a buffer takes
/// whole slices of 64 KiB and must fit into a chunk of 32 MiB, whose rest only smaller ones can
/// use.
const ALLOCATOR_SHARE: f64 = 0.10;
/// What the allocator holds for each size class of a routed model's tiles on each thread. An expert
/// gets other numbers of rows in each pass, so the buffers of its tiles (128 to 384 rows) are of 7
/// size classes: those from [`LARGE_BUFFER_BYTES`] on each with a page of 4 MiB, of which more and
/// more is used in the first 20 steps, smaller ones with one of 512 KiB. It depends on which thread
/// gets which tile: with 2 threads, peaks of one recipe were 229 to 271 MB.
const TILE_CLASS_BYTES: [f64; 2] = [0.45e6, 3.57e6];
/// Size from which the allocator gives a buffer a large page.
const LARGE_BUFFER_BYTES: f64 = 128.0 * 1024.0;
/// Size classes of the allocator for each doubling of a size.
const CLASSES_PER_OCTAVE: f64 = 4.0;
/// Rows of the smallest tile, and the size classes from there to the largest.
const TILE_ROWS: f64 = 128.0;
const TILE_CLASSES: i32 = 7;

/// Batches that the loader reads ahead, and the one that it is reading.
const BATCHES_AHEAD: f64 = 5.0;
/// Bytes of a token in a batch: the id, the target and the document, 4 each.
const BATCH_TOKEN_BYTES: f64 = 12.0;

/// Memory of training on the CPU, in bytes, at the moment when most of it is alive: what each part
/// takes then.
///
/// Within [`MEMORY_ERROR`] of the peak of a process (`VmHWM`), on x86-64 Linux, without the
/// preparation of data that is not cached yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryEstimate {
    /// Parameters.
    pub weights_bytes: u64,
    /// Gradients: those of the parameters behind the one at work, or all; with several
    /// micro-batches also sums over earlier ones, one for each doubling of their number.
    pub gradients_bytes: u64,
    /// What the optimizer remembers: AdamW's two moments per parameter, Muon's one.
    pub moments_bytes: u64,
    /// Kept for the backward pass, and who went where.
    pub activations_bytes: u64,
    /// Buffers of the operation at work.
    #[serde(default)]
    pub temporaries_bytes: u64,
    /// The program, its allocator, the batches read ahead, and the matrices by which it measured
    /// the machine's speed.
    #[serde(default)]
    pub process_bytes: u64,
    /// Buffers of each thread.
    #[serde(default)]
    pub thread_bytes: u64,
    /// Threads that the configuration asks for; `None` leaves it to the machine, and the sum counts
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// Weights and moments that a checkpoint may still be written from when an update has made
    /// others. Not part of any sum: a disk that is faster than a step never needs it.
    #[serde(default)]
    pub checkpoint_bytes: u64,
    /// When most is alive.
    #[serde(default)]
    pub moment: StepMoment,
}

/// A moment of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepMoment {
    /// The loss, behind the whole forward pass.
    Loss,
    /// The backward pass of attention in a layer, or of the LSTM in its place.
    Attention(usize),
    /// The backward pass of the feed-forward block in a layer.
    FeedForward(usize),
    /// The end of the backward pass: the embedding.
    Embedding,
    /// Adding a micro-batch's gradients to those before.
    Accumulation,
    /// The update of the parameters, which happens in place but for buffers of Muon.
    #[default]
    Update,
}

/// How a step goes over its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepSize {
    /// Tokens of one forward and backward pass.
    pub micro_batch_tokens: usize,
    /// Passes of a step.
    pub micro_batches: usize,
    /// Threads, if the configuration says how many.
    pub threads: Option<usize>,
    /// How passes are computed.
    pub options: PassOptions,
    /// Checkpoints are written while the run goes on.
    pub writes_checkpoints: bool,
}

/// What is alive beside weights and moments, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Alive {
    gradients: f64,
    activations: f64,
    temporaries: f64,
}

impl Alive {
    fn sum(self) -> f64 {
        self.gradients + self.activations + self.temporaries
    }
}

impl MemoryEstimate {
    /// Memory of training the model in steps of this size, by AdamW and, where it is asked for, Muon.
    pub fn of(
        spec: &ModelSpec,
        counts: &ModelCounts,
        size: StepSize,
        (adamw, muon): (&AdamWConfig, Option<&MuonConfig>),
    ) -> Self {
        // Products in f64: an absurd configuration saturates instead of overflowing.
        let weights = F32_BYTES * counts.total_params as f64;
        let model = ModelFootprint::of(spec, size.micro_batch_tokens, size.options.ffn());
        let of_muon = MuonFootprint::of(spec, muon, size.threads.unwrap_or(1));
        let moment_share = match adamw.moments {
            MomentType::F32 => 1.0,
            MomentType::Bf16 => BF16_BYTES / F32_BYTES,
        };
        let moments = 2.0 * moment_share * (weights - of_muon.weights) + of_muon.weights;
        let step = Step {
            model: &model,
            weights,
            update: of_muon.update,
            passes: size.micro_batches as f64,
            recomputes_blocks: size.options.recompute == Recompute::Block,
        };
        let (moment, alive) = step.worst_moment();
        let checkpoint = if size.writes_checkpoints { weights + moments } else { 0.0 };
        let (probe, probe_of_thread) = probe_bytes();
        let routed = routed_thread_bytes(spec);
        // The probe's matrices are freed before the first step, but the allocator keeps them, and
        // buffers of other sizes hardly fit into their place: resident memory grew by what the
        // first step needs, as if they were there.
        let process = PROCESS_BYTES
            + probe as f64
            + ALLOCATOR_SHARE * (weights + moments + alive.sum())
            + step.batch_bytes(size.micro_batch_tokens as f64);
        Self {
            weights_bytes: weights as u64,
            gradients_bytes: alive.gradients as u64,
            moments_bytes: moments as u64,
            activations_bytes: alive.activations as u64,
            temporaries_bytes: alive.temporaries as u64,
            process_bytes: process as u64,
            thread_bytes: (probe_of_thread as f64 + model.thread_bytes() + routed) as u64,
            threads: size.threads,
            checkpoint_bytes: checkpoint as u64,
            moment,
        }
    }

    /// That of a rank of several, which makes steps of the same size, but holds only so many bytes of
    /// weights, and its own of the whole bytes of moments. The first rank, `is_first`, holds for a
    /// checkpoint what the others have too.
    pub(crate) fn of_rank(
        self,
        weights_bytes: u64,
        [moments_bytes, whole_moments]: [u64; 2],
        is_first: bool,
    ) -> Self {
        let counted = self.weights_bytes.saturating_add(self.moments_bytes);
        let allocator =
            ALLOCATOR_SHARE * counted.saturating_sub(weights_bytes.saturating_add(moments_bytes)) as f64;
        // While the run goes on, the next update makes others of all that is written; at its end the
        // rank still has its own.
        let checkpoint = match self.checkpoint_bytes {
            // A bias of selection is held and not counted, so that all may hold more than is counted.
            0 => self.weights_bytes.saturating_sub(weights_bytes) + whole_moments - moments_bytes,
            _ => self.weights_bytes.saturating_add(whole_moments),
        };
        Self {
            weights_bytes,
            moments_bytes,
            process_bytes: self.process_bytes.saturating_sub(allocator as u64) + MPI_BYTES,
            checkpoint_bytes: if is_first { checkpoint } else { 0 },
            ..self
        }
    }

    /// Parameters, each with its gradient and two moments: certain to be alive at the update.
    pub fn parameter_bytes(&self) -> u64 {
        self.weights_bytes.saturating_mul(2).saturating_add(self.moments_bytes)
    }

    /// What the run itself holds, the process around it left out: the same on every machine.
    pub fn run_bytes(&self) -> u64 {
        let parts =
            [self.gradients_bytes, self.moments_bytes, self.activations_bytes, self.temporaries_bytes];
        parts.into_iter().fold(self.weights_bytes, u64::saturating_add)
    }

    /// Sum of the parts, with the configuration's threads or one.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes_with(self.threads.unwrap_or(1))
    }

    /// Sum of the parts with so many threads.
    pub fn total_bytes_with(&self, threads: usize) -> u64 {
        let of_threads = self.thread_bytes.saturating_mul(threads as u64);
        self.run_bytes().saturating_add(self.process_bytes).saturating_add(of_threads)
    }
}

/// What the allocator holds for the tiles of each thread, 0 without a routed layer.
fn routed_thread_bytes(spec: &ModelSpec) -> f64 {
    let routed = spec.layers.iter().filter_map(|layer| layer.ffn.routed());
    let width = routed.map(|(experts, _)| experts.d_expert.max(spec.d_model)).max();
    let class_bytes = |class: i32, width: usize| {
        let buffer = F32_BYTES * TILE_ROWS * width as f64 * (f64::from(class) / CLASSES_PER_OCTAVE).exp2();
        TILE_CLASS_BYTES[usize::from(buffer >= LARGE_BUFFER_BYTES)]
    };
    width.map_or(0.0, |width| (0..TILE_CLASSES).map(|class| class_bytes(class, width)).sum())
}

/// What Muon's parameters take.
struct MuonFootprint {
    /// Themselves: each element has one moment, where AdamW has two.
    weights: f64,
    /// Buffers of the update of one: the direction of the whole stack and, for each matrix at work,
    /// the next iterate and both factors of an iteration, as large as the smaller side is squared.
    update: f64,
}

impl MuonFootprint {
    fn of(spec: &ModelSpec, muon: Option<&MuonConfig>, threads: usize) -> Self {
        let matrices = hidden_matrices(spec);
        let taken = matrices.iter().filter(|matrix| muon.is_some_and(|muon| muon.takes(matrix.name.role)));
        taken.fold(Self { weights: 0.0, update: 0.0 }, |sum, matrix| {
            let [number, rows, columns] = matrix.value.map(|side| side as f64);
            let smaller = rows.min(columns);
            let at_work = number.min(threads as f64) * (rows * columns + 2.0 * smaller * smaller);
            Self {
                weights: sum.weights + F32_BYTES * number * rows * columns,
                update: sum.update.max(F32_BYTES * (number * rows * columns + at_work)),
            }
        })
    }
}

/// A step of a model whose parameters take `weights` bytes.
struct Step<'a> {
    model: &'a ModelFootprint,
    weights: f64,
    /// Buffers of the update.
    update: f64,
    passes: f64,
    recomputes_blocks: bool,
}

impl Step<'_> {
    /// When most is alive, and what.
    fn worst_moment(&self) -> (StepMoment, Alive) {
        let mut worst = (StepMoment::Update, self.at_the_update());
        for moment in self.pass().into_iter().chain(self.accumulation()) {
            if moment.1.sum() > worst.1.sum() {
                worst = moment;
            }
        }
        worst
    }

    /// Parameters have their gradients, and activations are gone.
    fn at_the_update(&self) -> Alive {
        Alive { gradients: self.weights, activations: self.records_bytes(), temporaries: self.update }
    }

    /// Sums of gradients of the passes before that wait for others, at most: the tree of
    /// `switchyard_comm::tree` holds one for each digit 1 of their number.
    fn sums_alive(&self) -> f64 {
        self.passes.log2().floor().max(0.0)
    }

    /// The sums of gradients of the passes before and the gradients of this one are alive, and one
    /// parameter's new sum.
    fn accumulation(&self) -> Option<(StepMoment, Alive)> {
        let alive = Alive {
            gradients: (1.0 + self.sums_alive()) * self.weights,
            activations: self.records_bytes(),
            temporaries: self.model.largest_param_bytes(),
        };
        (self.passes > 1.0).then_some((StepMoment::Accumulation, alive))
    }

    /// The last forward and backward pass: from the loss back to the embedding, gradients come and
    /// activations go.
    fn pass(&self) -> Vec<(StepMoment, Alive)> {
        let ModelFootprint { layers, head, stream_bytes, .. } = self.model;
        let kept_by_the_loss = |layer| kept_bytes(layer) - self.recomputed_bytes(layer);
        let mut alive = Alive {
            gradients: self.sums_alive() * self.weights,
            activations: self.records_bytes()
                + head.kept_bytes
                + layers.iter().map(kept_by_the_loss).sum::<f64>(),
            temporaries: 0.0,
        };
        alive.gradients += head.gradient_bytes;
        let mut moments = vec![(StepMoment::Loss, Alive { temporaries: head.loss_bytes, ..alive })];
        alive.activations -= head.kept_bytes;
        for (index, layer) in layers.iter().enumerate().rev() {
            // The gradient of the residual stream is there all the way.
            let at_work = |alive: Alive, part_bytes: f64, buffers: f64| Alive {
                gradients: alive.gradients + part_bytes,
                temporaries: stream_bytes + buffers,
                ..alive
            };
            alive.activations += self.recomputed_bytes(layer);
            let ffn = at_work(alive, layer.ffn_param_bytes, layer.ffn.backward_bytes);
            moments.push((StepMoment::FeedForward(index), ffn));
            alive.gradients += layer.ffn_param_bytes;
            alive.activations -= layer.ffn.kept_bytes;
            let mixer = at_work(alive, layer.mixer_param_bytes, layer.mixer.backward_bytes);
            moments.push((StepMoment::Attention(index), mixer));
            alive.gradients += layer.mixer_param_bytes;
            alive.activations -= layer.mixer.kept_bytes;
        }
        // A tied matrix has the head's gradient already, to which that of the embedding is added.
        let tied = if head.is_tied { head.embedding_bytes } else { 0.0 };
        let gradients = alive.gradients + head.embedding_bytes - tied;
        moments.push((StepMoment::Embedding, Alive { gradients, temporaries: stream_bytes + tied, ..alive }));
        moments
    }

    /// What a layer keeps only while its own backward pass is at work: all but its input, if blocks
    /// are computed anew.
    fn recomputed_bytes(&self, layer: &LayerFootprint) -> f64 {
        if self.recomputes_blocks { kept_bytes(layer) - self.model.stream_bytes } else { 0.0 }
    }

    /// Who went where in all passes of the step, for the flight recorder.
    fn records_bytes(&self) -> f64 {
        self.passes * self.model.layers.iter().map(|layer| layer.ffn.record_bytes).sum::<f64>()
    }

    /// The step's batches, those read ahead, and the ids that the records keep.
    fn batch_bytes(&self, micro_batch_tokens: f64) -> f64 {
        (self.passes + BATCHES_AHEAD) * BATCH_TOKEN_BYTES * micro_batch_tokens
    }
}

fn kept_bytes(layer: &LayerFootprint) -> f64 {
    layer.mixer.kept_bytes + layer.ffn.kept_bytes
}

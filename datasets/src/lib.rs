//! Text on disk to token batches.
//!
//! ```text
//! source ─► documents ─► split ─► tokenizer ─► shards            once, in a cache keyed by content
//! shards ─► TokenStore ─► Sampler: start of sample i = f(seed, i) ─► Loader ─► TokenBatch
//!                     └─► EvaluationWindows ─► TokenBatch
//! ```
//!
//! # The path of a document
//! 1. A **source** yields it, in an order that never changes: a file of one of the crates that
//!    Switchyard is built from (`[data.crates]`), a text file, a line of a `.jsonl` file or a row of a
//!    `.parquet` file (`[data.text]`), or a sequence of ids drawn from a hidden domain (`[data.synthetic]`). It
//!    carries the number of its domain. Files of ids (`[data.tokens]`) skip all of this and are
//!    read where they lie.
//! 2. The **split** sends it to training, validation or test by the hash of its content, or cuts the
//!    end off the corpus. How much of the held-out text the training split has too is measured.
//! 3. The **tokenizer** turns it into ids: bytes, a byte-pair encoding trained on the training
//!    split, or a `tokenizer.json`, whose ids are those that the crate `tokenizers` gives the whole
//!    document in one call. Where a source has several documents, each is followed by the
//!    end-of-document mark: the id of `<|endoftext|>` or of another name for it, or byte 0. A
//!    single text gets none, so its bytes are exactly its tokens. Marks that the configuration
//!    names are put around every document.
//! 4. [`prepare()`] writes the ids to **shards** in the cache and opens them: a [`TokenStore`] for
//!    each split. The same configuration and content finds them there the next
//!    time.
//! 5. The [`Loader`] reads windows at the positions that the [`Sampler`] gives, on a thread of its
//!    own, and hands out [`TokenBatch`]es; its cursor is the whole state that a checkpoint needs.
//!    [`EvaluationWindows`] go over a split once. A model whose state goes from window to window
//!    reads [`Streams`] instead, each row one stretch of the data.
//!    With `packing = "best_fit"` sequences hold whole documents and padding, which
//!    [`TokenBatch::target_mask`] tells apart.
//!
//! Several sources (`[[data.sources]]`) each take this path on their own, with one tokenizer. A
//! [`MixtureSchedule`] says, from the seed and the position alone, which of them a training sequence
//! comes from.
//!
//! # Example
//! ```
//! use switchyard_datasets::{DataConfig, Loader, LoaderConfig, Packing, Progress, SourceConfig, SyntheticConfig, prepare};
//!
//! # fn main() -> Result<(), switchyard_datasets::DatasetError> {
//! # let cache = tempfile::tempdir().expect("a temporary folder");
//! let source = SourceConfig::Synthetic(SyntheticConfig {
//!     num_domains: 4, vocab_size: 64, num_documents: 200, document_tokens: 50, branching: 4, seed: 0,
//! });
//! let config = DataConfig { cache_dir: Some(cache.path().to_path_buf()), ..DataConfig::new(source) };
//! let dataset = prepare(&config, &Progress::silent())?;
//! let packing = Packing::Concatenate;
//! let loader_config = LoaderConfig {
//!     seq_len: 32,
//!     sequences_per_batch: 8,
//!     seed: 1,
//!     mask_documents: false,
//!     packing,
//!     num_streams: None,
//! };
//! let mut loader = Loader::new(dataset.train.clone(), loader_config, 0)?;
//! let batch = loader.next_batch()?;
//! assert_eq!(batch.input_ids.len(), 8 * 32);
//! # Ok(())
//! # }
//! ```

mod batch;
mod bpe;
mod build;
mod cache;
mod config;
mod dataset;
mod decode;
mod encoded;
mod encoder;
mod error;
mod evaluation;
#[cfg(test)]
mod exactness;
mod guard;
mod hash;
mod hub_paths;
mod join;
mod loader;
mod manifest;
mod mixture;
mod notes;
mod overlap;
mod packing;
mod passes;
mod pieces;
mod prepare;
mod progress;
mod published;
mod remarks;
mod sampler;
mod samples;
mod seams;
mod shard;
mod sliding;
mod source;
mod span;
mod split;
mod stats;
mod store;
mod streams;
mod token_files;
mod token_text;
mod token_width;
mod tokenizer;
mod unfinished;
mod vocabulary;
mod words;

pub use batch::TokenBatch;
pub use config::{
    BpeTokenizerConfig, CratesConfig, DEFAULT_VALIDATION_FRACTION, DataConfig, FileTokenizerConfig,
    MixtureSourceConfig, OnTrouble, Packing, SourceConfig, SourceWeights, SplitConfig, SplitFractions,
    SyntheticConfig, TextConfig, TokenDtype, TokenName, TokenizerConfig, TokensConfig, WeightChange,
};
pub use dataset::{Dataset, DatasetSource};
pub use decode::DecodeStream;
pub use error::DatasetError;
pub use evaluation::EvaluationWindows;
pub use guard::panic_becomes_error;
pub use loader::{Loader, LoaderConfig};
pub use manifest::{FORMAT_VERSION, Manifest, Overlap, Repeats, ShardManifest, SplitManifest};
pub use mixture::{Draw, MAX_EXCESS, MixtureSchedule};
pub use packing::PackingFacts;
pub use passes::{passes, passes_note};
pub use prepare::prepare;
pub use progress::{Progress, stderr_draw_target};
pub use sampler::Sampler;
pub use sliding::SlidingWindows;
pub use stats::{DatasetStatistics, DomainStatistics, SplitStatistics, TokenStatistics};
pub use store::TokenStore;
pub use streams::{StreamWindow, Streams};
pub use tokenizer::Tokenizer;
pub use vocabulary::Vocabulary;

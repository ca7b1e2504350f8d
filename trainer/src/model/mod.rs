//! The decoder-only Transformer.
//!
//! Shape letters: b batch, s sequence, t = b*s tokens, d model width, h query heads, g key/value heads, v vocabulary.

mod attention;
mod block;
mod config;
mod embedding;
mod non_finite;
mod norm;
pub mod random;
mod spec;
mod transformer;

pub use attention::Attention;
pub use block::{Block, BlockContext, FeedForward};
pub use config::{
    AlibiConfig, AttentionConfig, FfnConfig, InitConfig, LayerNormConfig, LearnedPositionConfig, ModelConfig,
    NormConfig, PositionConfig, RmsNormConfig, RopeConfig, SinusoidalPositionConfig,
};
pub use embedding::Embedding;
pub use non_finite::NonFinite;
pub use norm::Norm;
pub use random::{ParameterSource, StepNoise};
pub(crate) use spec::layers_in_words;
pub use spec::{AttentionSpec, FfnUse, LayerSpec, MixerSpec, ModelSpec, NormKind, PositionKind};
pub use transformer::{ModelInput, ModelOutput, Pass, Transformer};

//! The language model, a decoder-only Transformer or layers of LSTM: a specification per layer, the
//! network, the names of its parameters and its counts.
//!
//! Nothing here reads a file or trains.
//!
//! | question | module |
//! |---|---|
//! | what did the user write in `[model]` | `config` |
//! | what is each layer | `spec`; from what is written: `resolve` |
//! | text token by token | `transformer/cached` |
//! | the backward pass, and blocks run once more in it | `transformer/backward` |
//! | the network | `transformer`, of `embedding`, `block`, `mixer` (`attention` or `lstm`), `norm`; what it goes over: `pass` |
//! | what a recurrent model hands from one window to the next | `state` |
//! | how rotary angles are stretched | `rope_scaling` |
//! | where initial values and the noise of a step come from | [`random`] |
//! | what is a parameter called, and what is it for | `names`, `parameters` |
//! | how initial values, rates and multipliers go with its size | `parametrisation` |
//! | how large is it, what does a token cost | `counts` |
//! | what does a pass over tokens hold in memory | `footprint` |
//! | where did a NaN come from | `non_finite` |

mod attention;
mod attention_bias;
mod block;
mod config;
mod counts;
mod embedding;
mod footprint;
mod hidden_matrices;
mod lstm;
mod mixer;
mod names;
mod non_finite;
mod norm;
mod padding;
mod parameters;
mod parametrisation;
mod pass;
mod qk_clip;
mod qk_norm;
pub mod random;
mod recompute;
mod resolve;
mod rope_scaling;
mod spec;
mod state;
mod transformer;

pub use attention::Attention;
pub use attention_bias::AttentionBias;
pub use block::{Block, BlockOutput, FeedForward};
pub use config::{
    AlibiConfig, AttentionConfig, FfnConfig, InitConfig, LatentConfig, LayerNormConfig, LstmConfig,
    ModelConfig, MultipliersConfig, NormConfig, PositionConfig, Residual, RmsNormConfig, RopeConfig,
    WindowConfig,
};
pub use counts::{ForwardFlops, ModelCounts, ParameterBreakdown};
pub use embedding::Embedding;
pub use footprint::{HeadFootprint, LayerFootprint, ModelFootprint};
pub use hidden_matrices::hidden_matrices;
pub use lstm::{Lstm, LstmState};
pub use mixer::Mixer;
pub use names::{
    Affine, AttentionPart, CosinePart, EmbeddingPart, FfnMatrix, LstmPart, NormPlace, ParameterName, Role,
    RouterPart,
};
pub use non_finite::NonFinite;
pub use norm::Norm;
pub use padding::RealPlaces;
pub use parameters::{
    Named, ParameterShape, ParameterTensor, freeze_parameters, parameter_data, parameter_gradients,
    parameter_shapes, parameter_tensors, update_parameters,
};
pub use parametrisation::{BaseShapeConfig, Parametrisation, ParametrisationConfig, RoleFactors};
pub use pass::{BlockContext, ModelInput, Pass, PassOptions};
pub use qk_clip::with_scaled_logits;
pub use qk_norm::{QkNorm, QkNormConfig, QkNormOver};
pub use random::{ParameterSource, StepNoise};
pub use recompute::Recompute;
pub use resolve::{MAX_SEQ_LEN, MAX_VOCAB_SIZE};
pub use rope_scaling::{
    DynamicScaling, LinearScaling, Llama3Scaling, LongropeScaling, RopeScaling, YarnScaling,
};
pub use spec::{
    AttentionSpec, FfnUse, LayerSpec, LstmSpec, MixerSpec, ModelSpec, NormKind, PositionKind, layers_in_words,
};
pub use state::{ModelState, StateTensor};
pub use switchyard_kernels::Compute;
pub use transformer::{CachedOutput, IGNORED_TARGET, ModelOutput, SequenceCache, Streams, Tape, Transformer};

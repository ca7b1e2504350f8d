//! How fast a training step, or one feed-forward layer, is on this machine.
//!
//! Times are wall-clock times of whole pieces of work, repeated; a rate is that of the median
//! repetition. The rate of the machine's matrix product is measured beside them in the same
//! process, because shared machines change their speed.

mod layer;
mod layer_case;
mod layer_work;
mod links;
mod machine;
mod step;
mod timing;

pub use layer::{LayerReport, benchmark_layer};
pub use layer_case::LayerCase;
pub use links::benchmark_links;
pub use machine::{Machine, Usage};
pub use step::{StepCase, StepRatio, StepReport, benchmark_step};
pub use timing::{Repetitions, Timed, Timings};

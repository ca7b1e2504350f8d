//! `switchyard generate`

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use switchyard_ground::printable::printable;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::device;
use switchyard_trainer::generate::{GenerationRule, GenerationSettings, check, generate};
use switchyard_trainer::moved_data::{MayChange, changed_config};
use switchyard_trainer::run_folder::RunPaths;
use switchyard_trainer::sampling::SamplingSettings;
use switchyard_trainer::train::with_threads;

use super::{parsed, with_device};
use crate::cli::{GenerateArgs, RoutingArg};
use crate::failure::Failure;
use crate::interrupt::Interruption;

pub(super) fn run(args: &GenerateArgs, interruption: &Interruption) -> Result<(), Failure> {
    let sampling = SamplingSettings { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.check().map_err(|error| Failure::Mistake(error.to_string()))?;
    let settings = GenerationSettings {
        prompt: args.prompt.clone(),
        num_tokens: args.num_tokens,
        seed: args.seed,
        sampling,
        routing: args.routing.map(|RoutingArg::TopK| GenerationRule::TopK),
    };
    let overrides = parsed(&with_device(&args.overrides, args.device.as_deref()))?;
    let stop = interruption.watch("stopping after this token")?;
    let mut checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let written = RunPaths::new(&checkpoint.path).config();
    checkpoint.config = changed_config(&checkpoint.config, &written, &overrides, MayChange::Places)?;
    Ok(with_threads(checkpoint.config.threads, || stream(&checkpoint, &settings, &stop))?)
}

/// Print the prompt and what follows it, token by token, once it is known that something can.
fn stream(
    checkpoint: &Checkpoint,
    settings: &GenerationSettings,
    stop: &AtomicBool,
) -> Result<(), TrainError> {
    let device = device::select(&checkpoint.config.device)?;
    let model = checkpoint.model(&device)?;
    check(&model, &checkpoint.tokenizer, settings)?;
    let is_terminal = io::stdout().is_terminal();
    let print = |text: &str| {
        let mut stdout = io::stdout().lock();
        // A file gets the model's own bytes; a terminal would obey escape codes.
        let text = if is_terminal { printable(text) } else { text.into() };
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    };
    let failed = |source| TrainError::Output { source };
    print(settings.prompt.as_deref().unwrap_or_default()).map_err(failed)?;
    let ended = generate(&model, &checkpoint.tokenizer, settings, &device, |text| {
        print(text)?;
        if stop.load(Ordering::SeqCst) { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
    });
    // The line ends well even where the text does not.
    print("\n").map_err(failed).and(ended)
}

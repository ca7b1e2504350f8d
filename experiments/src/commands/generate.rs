//! `switchyard generate`

use std::io::{self, Write};

use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::device;
use switchyard_trainer::generate::{GenerationRule, GenerationSettings, generate};
use switchyard_trainer::sampling::SamplingSettings;
use switchyard_trainer::train::with_threads;

use crate::cli::{GenerateArgs, RoutingArg};
use crate::failure::Failure;

pub(super) fn run(args: &GenerateArgs) -> Result<(), Failure> {
    let sampling = SamplingSettings { temperature: args.temperature, top_k: args.top_k, top_p: args.top_p };
    sampling.check().map_err(|error| Failure::Mistake(error.to_string()))?;
    let settings = GenerationSettings {
        prompt: args.prompt.clone(),
        num_tokens: args.num_tokens,
        seed: args.seed,
        sampling,
        routing: args.routing.map(|RoutingArg::TopK| GenerationRule::TopK),
    };
    let checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let threads = checkpoint.config.threads;
    Ok(with_threads(threads, || stream(args, &checkpoint, &settings))?)
}

fn stream(
    args: &GenerateArgs,
    checkpoint: &Checkpoint,
    settings: &GenerationSettings,
) -> Result<(), TrainError> {
    let device = device::select(args.device.as_deref().unwrap_or(&checkpoint.config.device))?;
    let model = checkpoint.model(&device)?;
    let print = |text: &str| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
    };
    let failed = |source| TrainError::Output { source };
    print(settings.prompt.as_deref().unwrap_or_default()).map_err(failed)?;
    generate(&model, &checkpoint.tokenizer, settings, &device, print)?;
    print("\n").map_err(failed)
}

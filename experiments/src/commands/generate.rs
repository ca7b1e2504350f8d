//! `switchyard generate`

mod prompts;
mod trace_file;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use switchyard_datasets::Tokenizer;
use switchyard_ground::printable::printable;
use switchyard_ground::say;
use switchyard_model::Transformer;
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::device::{self, Device};
use switchyard_trainer::generate::{
    Generated, GenerationEvent, GenerationRule, GenerationSettings, GenerationSpeed, check, generate_all,
};
use switchyard_trainer::moved_data::{MayChange, changed_config};
use switchyard_trainer::run_folder::RunPaths;
use switchyard_trainer::sampling::SamplingSettings;
use switchyard_trainer::train::with_threads;

use super::{parsed, with_device};
use crate::cli::{GenerateArgs, RoutingArg};
use crate::failure::Failure;
use crate::interrupt::Interruption;
use trace_file::TraceFile;

pub(super) fn run(args: &GenerateArgs, interruption: &Interruption) -> Result<(), Failure> {
    let settings = settings(args)?;
    let prompts = args.prompts.as_deref().map(prompts::read).transpose()?;
    let overrides = parsed(&with_device(&args.overrides, args.device.as_deref()))?;
    let stop = interruption.watch("stopping after this token")?;
    let mut checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let written = RunPaths::new(&checkpoint.path).config();
    checkpoint.config = changed_config(&checkpoint.config, &written, &overrides, MayChange::Places)?;
    let mut trace = args.trace.as_deref().map(TraceFile::create).transpose()?;
    with_threads(checkpoint.config.threads, || {
        let writer = Writer::new(&checkpoint, &settings, &stop, trace.as_mut())?;
        match &prompts {
            Some(prompts) => writer.write_all(prompts, args.batch_size.into()),
            None => writer.stream(),
        }
    })?;
    match trace {
        Some(trace) => trace.finish(),
        None => Ok(()),
    }
}

/// What the arguments mean, each checked.
fn settings(args: &GenerateArgs) -> Result<GenerationSettings, Failure> {
    let sampling = SamplingSettings {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        repetition_penalty: args.repetition_penalty,
    };
    sampling.check().map_err(|error| Failure::Mistake(error.to_string()))?;
    if args.stop.iter().any(String::is_empty) {
        let message =
            "`--stop` is empty, which every text begins with: name the text to stop at, or leave it out";
        return Err(Failure::Mistake(message.into()));
    }
    Ok(GenerationSettings {
        prompt: args.prompt.clone(),
        seed: args.seed,
        routing: args.routing.map(|RoutingArg::TopK| GenerationRule::TopK),
        stop: args.stop.clone(),
        ends_with_document: !args.past_end,
        keeps_cache: !args.no_cache,
        traces_experts: args.trace.is_some(),
        ..GenerationSettings::new(args.num_tokens, sampling)
    })
}

/// A model that generates, and who hears of it.
struct Writer<'a> {
    model: Transformer,
    tokenizer: &'a Tokenizer,
    device: Device,
    settings: &'a GenerationSettings,
    stop: &'a AtomicBool,
    trace: Option<&'a mut TraceFile>,
}

/// A line of the result for `--prompts`.
#[derive(Serialize)]
struct TextRow<'a> {
    prompt: &'a str,
    text: &'a str,
    num_tokens: usize,
    finish: &'static str,
}

impl<'a> Writer<'a> {
    fn new(
        checkpoint: &'a Checkpoint,
        settings: &'a GenerationSettings,
        stop: &'a AtomicBool,
        trace: Option<&'a mut TraceFile>,
    ) -> Result<Self, TrainError> {
        let device = device::select(&checkpoint.config.device)?;
        let model = checkpoint.model(&device)?;
        Ok(Self { model, tokenizer: &checkpoint.tokenizer, device, settings, stop, trace })
    }

    /// Print the prompt and what follows it, token by token, once it is known that something can.
    fn stream(mut self) -> Result<(), TrainError> {
        check(&self.model, self.tokenizer, self.settings)?;
        let is_terminal = io::stdout().is_terminal();
        let print = |text: &str| {
            let mut stdout = io::stdout().lock();
            // A file gets the model's own bytes; a terminal would obey escape codes.
            let text = if is_terminal { printable(text) } else { text.into() };
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        };
        let failed = |source| TrainError::Output { source };
        let prompt = self.settings.prompt.as_deref();
        print(prompt.unwrap_or_default()).map_err(failed)?;
        let ended = self.generate(&[prompt], 0, print);
        // The line ends well even where the text does not.
        print("\n").map_err(failed)?;
        say_speed(ended?.speed);
        Ok(())
    }

    /// Print a line of JSON for each prompt, so many of them together.
    fn write_all(mut self, prompts: &[String], batch_size: usize) -> Result<(), TrainError> {
        for prompt in prompts {
            let settings = GenerationSettings { prompt: Some(prompt.clone()), ..self.settings.clone() };
            check(&self.model, self.tokenizer, &settings)?;
        }
        let mut speed = GenerationSpeed::default();
        for (batch, prompts) in prompts.chunks(batch_size).enumerate() {
            let given: Vec<Option<&str>> = prompts.iter().map(|prompt| Some(prompt.as_str())).collect();
            let generated = self.generate(&given, batch * batch_size, |_| Ok(()))?;
            speed = speed.plus(generated.speed);
            for (prompt, text) in prompts.iter().zip(&generated.texts) {
                let finish = if text.is_stopped { "stop" } else { "length" };
                let row = TextRow { prompt, text: &text.text, num_tokens: text.num_tokens, finish };
                print_line(&row).map_err(|source| TrainError::Output { source })?;
            }
        }
        say_speed(speed);
        Ok(())
    }

    /// The texts of `prompts`, the first of which is number `first`.
    fn generate(
        &mut self,
        prompts: &[Option<&str>],
        first: usize,
        print: impl Fn(&str) -> io::Result<()>,
    ) -> Result<Generated, TrainError> {
        let Self { model, tokenizer, device, settings, stop, trace } = self;
        generate_all(model, tokenizer, prompts, settings, device, |event| {
            match event {
                GenerationEvent::Text { text, .. } => print(text)?,
                GenerationEvent::Routed(mut token) => {
                    token.sequence += first;
                    trace.as_mut().map_or(Ok(()), |trace| trace.write(&token))?;
                }
            }
            if stop.load(Ordering::SeqCst) { Err(ErrorKind::Interrupted.into()) } else { Ok(()) }
        })
    }
}

fn say_speed(speed: GenerationSpeed) {
    say!("{}", speed.in_words());
}

fn print_line(row: &TextRow<'_>) -> io::Result<()> {
    let mut line = serde_json::to_vec(row)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line).and_then(|()| stdout.flush())
}

//! The part of a rank that is not the first: it does what the first one orders, and writes nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use switchyard_comm::{Comm, link};
use switchyard_datasets::{Dataset, Progress};

use super::{loader, test_split, with_threads};
use crate::TrainError;
use crate::available_memory::check_memory;
use crate::checkpoint::{Checkpoint, TrainingState};
use crate::device;
use crate::host::training_code_sha256;
use crate::moved_data;
use crate::moving_parts::MovingParts;
use crate::optimizer::Optimizer;
use crate::ranks::{Begin, Beginning, EvaluatedSplit, Order, Ranks};
use crate::replaceable::Replaceable;
use crate::start::{initial_network, with_frozen_parameters};

/// Follows the first rank through its runs, until it has no more.
///
/// # Errors
/// [`TrainError::Comm`]; all others are the first rank's to report.
pub fn follow(comm: &Comm, stop: &Arc<AtomicBool>) -> Result<(), TrainError> {
    let ranks = Ranks::new(comm.clone(), stop.clone());
    loop {
        match ranks.next_order()? {
            Order::Begin(begin) => with_threads(begin.config.threads, || follow_run(&begin, &ranks))?,
            Order::MeasureLinks => drop(link::measure(comm)?),
            Order::Quit => return Ok(()),
            other => unreachable!("{other:?} outside a run"),
        }
    }
}

/// Tells the ranks that [`follow`] this one, the first, that there are no more runs.
pub fn dismiss(comm: &Comm) {
    // Ranks that cannot be told have ended.
    drop(Ranks::new(comm.clone(), Arc::default()).order(&Order::Quit));
}

/// What this rank has of a run.
struct Followed {
    device: Device,
    dataset: Dataset,
    parts: MovingParts,
}

fn follow_run(begin: &Begin, ranks: &Ranks) -> Result<(), TrainError> {
    let ranks = &ranks.of_run(&begin.config.distributed)?;
    let device = device::select(&begin.config.device)?;
    // Whatever is wrong, the first rank says so, and ends the run.
    let ready = ranks.ready(prepare(begin, ranks, &device), &device, begin.plan.compute);
    let mut followed = ready.ok().map(|(followed, _)| followed);
    loop {
        let order = ranks.next_order()?;
        let (Some(followed), false) = (&mut followed, matches!(order, Order::End)) else { return Ok(()) };
        // The first rank knows of all other errors.
        if let Err(error @ TrainError::Comm(_)) = followed.obey(order, begin, ranks) {
            return Err(error);
        }
    }
}

impl Followed {
    fn obey(&mut self, order: Order, begin: &Begin, ranks: &Ranks) -> Result<(), TrainError> {
        let Self { device, dataset, parts } = self;
        match order {
            Order::Step => parts.step(&begin.config, &begin.plan, device).map(drop),
            Order::Evaluate { split, settings } => {
                let store = match split {
                    EvaluatedSplit::Validation => &dataset.validation,
                    EvaluatedSplit::ValidationOf(source) => &dataset.sources[source].validation,
                    EvaluatedSplit::Test => test_split(dataset)?,
                };
                ranks.evaluate(parts.model.get(), store, &settings, device).map(drop)
            }
            Order::GatherMoments => ranks.whole_optimizer(&parts.optimizer, device).map(drop),
            Order::GatherModel => {
                drop(ranks.whole_model(parts.model.get()));
                Ok(())
            }
            other => unreachable!("{other:?} within a run"),
        }
    }
}

/// The parts where the first rank's are, from the same values.
fn prepare(begin: &Begin, ranks: &Ranks, device: &Device) -> Result<(Followed, Beginning), TrainError> {
    let Begin { training_code: of_first, config, plan, checkpoint } = begin;
    if training_code_sha256() != of_first {
        return Err(TrainError::OtherProgram);
    }
    check_memory(config, plan, &ranks.memory(config, plan)?)?;
    let dataset = moved_data::prepare(&config.data, &Progress::silent().with_stop(ranks.stop_flag()))?;
    let training_device = device.clone().autodiff();
    let (model, optimizer, state) = match checkpoint {
        Some(path) => {
            let checkpoint = Checkpoint::read(path)?;
            let model = with_frozen_parameters(checkpoint.model(&training_device)?, config)?;
            let optimizer = checkpoint.optimizer(&model)?;
            (model, optimizer, checkpoint.state)
        }
        None => (
            initial_network(config, plan, &training_device)?,
            Optimizer::new(&config.train, &plan.model),
            TrainingState::initial(config.seed, &dataset.manifest.key),
        ),
    };
    let loader = loader(config, plan, &dataset, state.data_cursor)?;
    let beginning = Beginning::of(&dataset.manifest.key, (&model, &optimizer), &state);
    let model = Replaceable::new(ranks.part_of(model));
    let parts = MovingParts { loader, model, optimizer, state, carried: None, ranks: ranks.clone() };
    Ok((Followed { device: device.clone(), dataset, parts }, beginning))
}

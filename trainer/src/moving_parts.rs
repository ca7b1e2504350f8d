//! What a step moves on: model, optimizer, data position, counters, and the state of a recurrent
//! model. A run and its replay share this code.

use burn::tensor::Device;
use switchyard_comm::Traffic;
use switchyard_datasets::Loader;
use switchyard_model::{ModelState, ParameterName, Role, RouterPart, Transformer, update_parameters};

use crate::TrainError;
use crate::checkpoint::TrainingState;
use crate::config::RunConfig;
use crate::optimizer::{Optimizer, StepGradients};
use crate::parameter_groups::is_frozen;
use crate::plan::RunPlan;
use crate::qk_clip::{clip_factors, clipped, num_clipped};
use crate::ranks::Ranks;
use crate::replaceable::Replaceable;
use crate::sharding::ShardGradients;
use crate::step::{StepMeasurements, StepSettings, step_gradients};

/// The moving parts of a run.
#[derive(Debug)]
pub(crate) struct MovingParts {
    pub(crate) loader: Loader,
    pub(crate) model: Replaceable<Transformer>,
    pub(crate) optimizer: Optimizer,
    pub(crate) state: TrainingState,
    /// What the last step's sequences left in a recurrent model, where it is carried on.
    pub(crate) carried: Option<ModelState>,
    /// The ranks that do each step together.
    pub(crate) ranks: Ranks,
}

impl MovingParts {
    /// Does the next step and says what it measured. A step that fails changes nothing but the
    /// loader; one that is skipped counts, and moves no parameter.
    pub(crate) fn step(
        &mut self,
        config: &RunConfig,
        plan: &RunPlan,
        device: &Device,
    ) -> Result<StepMeasurements, TrainError> {
        let learning_rate = plan.schedule.learning_rate(self.state.step);
        let micro_batches =
            (0..plan.micro_batches_per_step).map(|_| self.loader.next_batch()).collect::<Result<Vec<_>, _>>();
        let micro_batches = self.ranks.all_or_none(micro_batches.map_err(TrainError::from))?;
        let follows = micro_batches.iter().all(|batch| batch.follows);
        let settings = StepSettings {
            seed: config.seed,
            step: self.state.step,
            max_grad_norm: plan.max_grad_norm,
            head_z_weight: plan.head_z_loss_weight,
            options: plan.pass_options(),
            state: self.carried.as_ref().filter(|_| follows),
        };
        let (gradients, mut measurements) = if self.ranks.is_alone() {
            let (gradients, measurements) =
                step_gradients(self.model.get(), micro_batches, &settings, device)?;
            (Gradients::Whole(gradients), measurements)
        } else {
            let keeps_tokens = plan.flight_recorder.looks_at_tokens(self.state.step + 1);
            let parts = (self.model.get(), &self.optimizer);
            let (gradients, measurements) =
                self.ranks.step_gradients(parts, micro_batches, &settings, keeps_tokens, device)?;
            (Gradients::OfShard(gradients), measurements)
        };
        measurements.spike = config.train.skip_spikes.and_then(|spikes| {
            let history = self.state.spikes.get_or_insert_default();
            history.judge(&spikes, measurements.total_loss, measurements.grad_norm)
        });
        if measurements.spike.is_none() {
            measurements.balance.retain(|layer, _| {
                let bias = Role::Router(RouterPart::SelectionBias);
                !is_frozen(config, ParameterName::of_layer(*layer, bias))
            });
            let factors = plan.qk_clip.map(|clip| {
                clip_factors(&measurements.max_logits, clip.max_logit, |name| is_frozen(config, name))
            });
            measurements.clipped_heads = factors.as_ref().map(num_clipped);
            let parameters = self.update(gradients, learning_rate)?;
            if let Some(traffic) = &mut measurements.traffic {
                traffic.parameters = parameters;
            }
            self.model.replace(|model| {
                let model = model.with_balanced_routers(&measurements.balance);
                clipped(model, &factors.unwrap_or_default())
            });
        }
        self.carried = measurements.state.take().filter(|_| plan.carries_state);
        self.state.step += 1;
        self.state.tokens_seen += plan.tokens_per_step as u64;
        self.state.active_flops += plan.training_flops_per_step();
        self.state.data_cursor = self.loader.cursor();
        self.state.rng.next_step = self.state.step;
        Ok(measurements)
    }

    /// The update of all parameters; of several ranks, each makes a part of it. Returns what this one
    /// sent.
    fn update(&mut self, gradients: Gradients, learning_rate: f64) -> Result<Traffic, TrainError> {
        match gradients {
            Gradients::Whole(gradients) => {
                self.model.replace(|model| self.optimizer.update(model, gradients, learning_rate));
                Ok(Traffic::default())
            }
            Gradients::OfShard(gradients) => self.update_with_others(gradients, learning_rate),
        }
    }

    /// Bucket by bucket, so that no more than one is held twice.
    fn update_with_others(
        &mut self,
        gradients: ShardGradients,
        learning_rate: f64,
    ) -> Result<Traffic, TrainError> {
        let ShardGradients { sharding, pieces, scale } = gradients;
        let before = self.ranks.traffic();
        self.optimizer.start_update_of_shard(&sharding);
        let mut gradients = pieces.into_iter();
        for bucket in sharding.buckets() {
            let of_bucket = gradients.by_ref().take(sharding.own_pieces_of(bucket).len()).collect();
            let updated = self.optimizer.update_pieces(self.model.get(), of_bucket, (learning_rate, scale));
            let mut parameters = self.ranks.gathered(&sharding, bucket, updated)?;
            self.model.replace(|model| {
                update_parameters(model, |name, _, value_n| parameters.remove(&name).unwrap_or(value_n))
            });
        }
        Ok(self.ranks.traffic().since(before))
    }
}

/// Gradients of an update.
enum Gradients {
    /// Of all parameters.
    Whole(StepGradients),
    /// Of those that this rank updates.
    OfShard(ShardGradients),
}

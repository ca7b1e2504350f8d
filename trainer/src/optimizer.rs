//! AdamW over all parameters, with the gradients' global norm.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::Tensor;
use switchyard_kernels::{AdamWState, AdamWStep, adamw_update};
use switchyard_model::{
    ModelSpec, Named, ParameterName, ParameterTensor, Parametrisation, Role, RoleFactors, update_parameters,
};

use crate::config::{AdamWConfig, ParameterGroupConfig, TrainConfig};
use crate::norms::{Norms, ParameterSquares};
use crate::parameter_groups::group_of;
use crate::readings::{Readings, Values};

/// Gradients of one optimizer step, flattened, in the model's order.
#[derive(Debug, Clone)]
pub struct StepGradients {
    gradients: Vec<Named<Tensor<1>>>,
    /// The update multiplies every gradient by it.
    scale: f64,
}

impl Default for StepGradients {
    fn default() -> Self {
        Self { gradients: Vec::new(), scale: 1.0 }
    }
}

/// A gradient that is not a finite number.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
#[error("the gradient of `{name}` is not finite ({num_bad} of {num_elements} elements{})", of_expert(*.expert))]
pub struct NonFiniteGradient {
    /// The first such parameter, in the model's order.
    pub name: ParameterName,
    /// The first expert whose part of it is not finite; `None` outside the experts.
    pub expert: Option<usize>,
    /// Elements that are NaN or infinite.
    pub num_bad: usize,
    /// Elements of the gradient.
    pub num_elements: usize,
}

impl NonFiniteGradient {
    fn of(gradient: &Named<Tensor<1>>, expert: Option<usize>) -> Self {
        let data = gradient.value.to_data();
        Self {
            name: gradient.name,
            expert,
            num_bad: data.iter::<f32>().filter(|g| !g.is_finite()).count(),
            num_elements: data.num_elements(),
        }
    }
}

fn of_expert(expert: Option<usize>) -> String {
    expert.map_or_else(String::new, |expert| format!(", the first of them of expert {expert}"))
}

impl StepGradients {
    /// Adds one micro-batch's gradients.
    ///
    /// # Panics
    /// If they are not of the same parameters in the same order as those before: a sum of others
    /// would train nothing.
    pub fn accumulate(&mut self, micro_batch: Vec<Named<Tensor<1>>>) {
        if self.gradients.is_empty() {
            self.gradients = micro_batch;
            return;
        }
        // A mixture's untouched expert still has a (zero) gradient, so every micro-batch brings
        // the same parameters in the same order.
        assert_eq!(self.gradients.len(), micro_batch.len(), "gradients of other parameters");
        for (sum, new) in self.gradients.iter_mut().zip(micro_batch) {
            assert_eq!(sum.name, new.name, "gradients of other parameters");
            sum.value = sum.value.clone() + new.value;
        }
    }

    /// Starts the sums of squares that [`StepGradients::norms`] needs. `num_experts` of a layer
    /// says into how many rows the gradients of its experts divide.
    pub(crate) fn start_norms(
        &self,
        num_experts: impl Fn(usize) -> usize,
        readings: &mut Readings,
    ) -> Vec<ParameterSquares> {
        let start = |gradient: &Named<Tensor<1>>| {
            ParameterSquares::start(gradient.name, gradient.value.clone(), &num_experts, readings)
        };
        self.gradients.iter().map(start).collect()
    }

    /// Euclidean norms over all parameters together and over the parts of each mixture, from their
    /// `squares`.
    ///
    /// # Errors
    /// [`NonFiniteGradient`] names the first parameter whose gradient is not finite.
    pub(crate) fn norms(
        &self,
        squares: &[ParameterSquares],
        values: &Values,
    ) -> Result<Norms, NonFiniteGradient> {
        let mut norms = Norms::default();
        for (gradient, squares) in self.gradients.iter().zip(squares) {
            let squares = squares.on_host(values);
            if !squares.total().is_finite() {
                return Err(NonFiniteGradient::of(gradient, squares.first_non_finite_expert()));
            }
            norms.add(&squares);
        }
        Ok(norms.finish())
    }

    /// Multiply by `max_norm / norm` if `norm` is above `max_norm` (arXiv:1211.5063, algorithm 1).
    pub fn clip(&mut self, norm: f64, max_norm: f64) {
        if norm > max_norm {
            self.scale *= max_norm / norm;
        }
    }
}

/// AdamW with its moments.
#[derive(Debug, Clone)]
pub struct AdamW {
    config: AdamWConfig,
    groups: Vec<ParameterGroupConfig>,
    parametrisation: Option<Parametrisation>,
    /// Updates done.
    step: u64,
    moments: BTreeMap<ParameterName, Moments>,
}

/// What AdamW remembers of one parameter.
#[derive(Debug, Clone)]
pub(crate) struct Moments {
    pub(crate) first_n: Tensor<1>,
    pub(crate) second_n: Tensor<1>,
}

impl AdamW {
    /// A fresh optimizer of `train.adamw` and `train.groups` for this model: no moments yet.
    pub fn new(train: &TrainConfig, model: &ModelSpec) -> Self {
        Self::restore((train, model), 0, BTreeMap::new())
    }

    /// The model after one update.
    pub fn update<M: Module>(&mut self, model: M, gradients: StepGradients, learning_rate: f64) -> M {
        self.step += 1;
        let mut by_name: BTreeMap<ParameterName, Tensor<1>> =
            gradients.gradients.into_iter().map(|gradient| (gradient.name, gradient.value)).collect();
        let step = AdamWStep {
            learning_rate,
            beta1: self.config.beta1,
            beta2: self.config.beta2,
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            step: self.step,
            gradient_scale: gradients.scale,
        };
        update_parameters(model, |name, _, value_n| match by_name.remove(&name) {
            Some(gradient_n) => {
                let step = self.step_of(name, &step);
                self.update_one(name, value_n, gradient_n, &step)
            }
            None => value_n,
        })
    }

    fn update_one(
        &mut self,
        name: ParameterName,
        value_n: Tensor<1>,
        gradient_n: Tensor<1>,
        step: &AdamWStep,
    ) -> Tensor<1> {
        let moments = self.moments.remove(&name).unwrap_or_else(|| {
            let zeros = || Tensor::zeros(value_n.dims(), &value_n.device());
            Moments { first_n: zeros(), second_n: zeros() }
        });
        let state = AdamWState { value_n, moment1_n: moments.first_n, moment2_n: moments.second_n };
        let AdamWState { value_n, moment1_n, moment2_n } = adamw_update(state, gradient_n, step);
        self.moments.insert(name, Moments { first_n: moment1_n, second_n: moment2_n });
        value_n
    }

    /// The step of one parameter: of its group, where it has one, times what the model's
    /// parametrisation says of its role.
    fn step_of(&self, name: ParameterName, step: &AdamWStep) -> AdamWStep {
        let usual_decay = if self.decays(name.role) { step.weight_decay } else { 0.0 };
        let group = group_of(&self.groups, name);
        let decay = group.and_then(|group| group.weight_decay).unwrap_or(usual_decay);
        let rate = step.learning_rate * group.map_or(1.0, |group| group.learning_rate_factor);
        let factors = self.parametrisation.map_or(RoleFactors::NONE, |of_model| of_model.factors(name.role));
        AdamWStep {
            learning_rate: rate * factors.learning_rate,
            weight_decay: decay * factors.weight_decay(),
            epsilon: step.epsilon * factors.epsilon,
            ..*step
        }
    }

    /// Matrices decay; vectors (norm scales, biases) do not, and embeddings only if asked.
    fn decays(&self, role: Role) -> bool {
        !role.is_vector() && (self.config.decay_embeddings || !matches!(role, Role::Embedding(_)))
    }

    /// Every moment under `first.NAME` and `second.NAME`, without copying any.
    pub fn moments(&self) -> Vec<(String, ParameterTensor)> {
        let moment = |prefix: &str, name: &ParameterName, values_n: &Tensor<1>| {
            let shape = values_n.dims().to_vec();
            (format!("{prefix}.{name}"), ParameterTensor { shape, values_n: values_n.clone(), learns: false })
        };
        let both = |(name, moments): (&ParameterName, &Moments)| {
            [moment("first", name, &moments.first_n), moment("second", name, &moments.second_n)]
        };
        self.moments.iter().flat_map(both).collect()
    }

    /// The optimizer after `step` updates, with the moments of each parameter.
    pub(crate) fn restore(
        (train, model): (&TrainConfig, &ModelSpec),
        step: u64,
        moments: BTreeMap<ParameterName, Moments>,
    ) -> Self {
        let (config, groups) = (train.adamw.clone(), train.groups.clone());
        Self { config, groups, parametrisation: model.parametrisation, step, moments }
    }
}

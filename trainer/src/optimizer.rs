//! AdamW over all parameters, or Muon over the matrices between hidden units, with the gradients'
//! global norm.

use std::collections::BTreeMap;

use burn::module::Module;
use burn::tensor::{DType, Tensor, s};
use switchyard_comm::tree::{TreeSum, tree_sum};
use switchyard_kernels::{AdamWState, AdamWStep, MuonState, MuonStep, adamw_update, muon_update};
use switchyard_model::random::stream_key;
use switchyard_model::{
    ModelSpec, Named, ParameterName, ParameterTensor, Parametrisation, Role, RoleFactors, parameter_tensors,
    update_parameters,
};

use crate::config::{AdamWConfig, MomentType, MuonConfig, ParameterGroupConfig, TrainConfig};
use crate::norms::{Norms, ParameterSquares};
use crate::parameter_groups::group_of;
use crate::readings::{Readings, Values};
use crate::sharding::{Piece, PieceValues, Sharding};

/// Gradients of one optimizer step, flattened, in the model's order.
#[derive(Debug, Clone)]
pub struct StepGradients {
    gradients: Vec<Named<Tensor<1>>>,
    /// The update multiplies every gradient by it.
    scale: f64,
}

/// The sum of the gradients of one micro-batch after another, added by the tree of
/// [`switchyard_comm::tree`], so that it does not depend on how they are spread over ranks.
#[derive(Debug, Default)]
pub struct GradientSum {
    sum: TreeSum<Vec<Named<Tensor<1>>>>,
    /// Of experts that are spread over ranks: from the tokens of each rank, by rank.
    of_experts: Vec<TreeSum<Vec<Named<Tensor<1>>>>>,
}

impl GradientSum {
    /// Adds the next micro-batch's gradients.
    ///
    /// # Panics
    /// If they are not of the same parameters in the same order as those before: a sum of others
    /// would train nothing.
    pub fn push(&mut self, micro_batch: Vec<Named<Tensor<1>>>) {
        self.sum.push(micro_batch, added);
    }

    /// Adds what the backward passes over the next micro-batch of each rank left for this rank's
    /// experts, by rank.
    pub(crate) fn push_of_experts(&mut self, by_rank: Vec<Vec<Named<Tensor<1>>>>) {
        self.of_experts.resize_with(by_rank.len(), TreeSum::default);
        for (sum, gradients) in self.of_experts.iter_mut().zip(by_rank) {
            sum.push(gradients, added);
        }
    }

    /// The sum; of no parameters if nothing was added.
    pub fn finish(self) -> StepGradients {
        StepGradients { gradients: self.sum.finish(added).unwrap_or_default(), scale: 1.0 }
    }

    /// The sum without that of experts that are spread over ranks, and that of this rank's.
    pub(crate) fn finish_parts(self) -> [Vec<Named<Tensor<1>>>; 2] {
        let of_ranks = self.of_experts.into_iter().filter_map(|sum| sum.finish(added));
        [self.sum.finish(added), tree_sum(of_ranks, added)].map(Option::unwrap_or_default)
    }
}

/// The sums of both, parameter by parameter.
fn added(left: Vec<Named<Tensor<1>>>, right: Vec<Named<Tensor<1>>>) -> Vec<Named<Tensor<1>>> {
    // A mixture's untouched expert still has a (zero) gradient, so every micro-batch brings the same
    // parameters in the same order.
    assert_eq!(left.len(), right.len(), "gradients of other parameters");
    let sum = |(left, right): (Named<Tensor<1>>, Named<Tensor<1>>)| {
        assert_eq!(left.name, right.name, "gradients of other parameters");
        Named { name: left.name, value: left.value + right.value }
    };
    left.into_iter().zip(right).map(sum).collect()
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

/// `max_norm / norm` if `norm` is above `max_norm`, else 1 (arXiv:1211.5063, algorithm 1).
pub(crate) fn clip_factor(norm: f64, max_norm: Option<f64>) -> f64 {
    max_norm.filter(|max_norm| norm > *max_norm).map_or(1.0, |max_norm| max_norm / norm)
}

fn of_expert(expert: Option<usize>) -> String {
    expert.map_or_else(String::new, |expert| format!(", the first of them of expert {expert}"))
}

impl StepGradients {
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

    /// Multiply by [`clip_factor`].
    pub(crate) fn clip(&mut self, norm: f64, max_norm: Option<f64>) {
        self.scale *= clip_factor(norm, max_norm);
    }
}

/// AdamW, and Muon for the parameters that it takes, with what they remember.
#[derive(Debug, Clone)]
pub struct Optimizer {
    adamw: AdamWConfig,
    muon: Option<MuonConfig>,
    groups: Vec<ParameterGroupConfig>,
    parametrisation: Option<Parametrisation>,
    /// Updates done.
    step: u64,
    moments: BTreeMap<ParameterName, Moments>,
    /// What of them is here, where ranks share them.
    sharding: Option<Sharding>,
}

/// What the optimizer remembers of one parameter: what [`moment_names`] lists, in that order.
pub(crate) type Moments = Vec<Tensor<1>>;

/// Names of what is remembered of a parameter of this role: AdamW's running means of the gradient and
/// of its square, or Muon's decaying sum of gradients.
pub(crate) fn moment_names(muon: Option<&MuonConfig>, role: Role) -> &'static [&'static str] {
    if muon_of(muon, role).is_some() { &["momentum"] } else { &["first", "second"] }
}

/// Type of what is remembered of a parameter of this role: Muon's is f32.
pub(crate) fn moment_dtype(adamw: &AdamWConfig, muon: Option<&MuonConfig>, role: Role) -> DType {
    match adamw.moments {
        MomentType::Bf16 if muon_of(muon, role).is_none() => DType::BF16,
        MomentType::Bf16 | MomentType::F32 => DType::F32,
    }
}

/// Muon, if it trains parameters of this role.
fn muon_of(muon: Option<&MuonConfig>, role: Role) -> Option<&MuonConfig> {
    muon.filter(|muon| muon.takes(role))
}

/// A parameter, or a part of it.
struct Part<'a> {
    name: ParameterName,
    /// Its shape, of a stack of matrices that of the part.
    shape: &'a [usize],
    /// Number of its first element in the parameter.
    first: usize,
}

/// How one parameter is updated.
enum ParameterStep {
    AdamW(AdamWStep),
    Muon(MuonStep),
}

impl Optimizer {
    /// A fresh optimizer of `train.adamw`, `train.muon` and `train.groups` for this model: no moments
    /// yet.
    pub fn new(train: &TrainConfig, model: &ModelSpec) -> Self {
        Self::restore((train, model), 0, BTreeMap::new())
    }

    /// The model after one update.
    pub fn update<M: Module>(&mut self, model: M, gradients: StepGradients, learning_rate: f64) -> M {
        self.step += 1;
        let StepGradients { gradients, scale } = gradients;
        let mut by_name: BTreeMap<ParameterName, Tensor<1>> =
            gradients.into_iter().map(|gradient| (gradient.name, gradient.value)).collect();
        update_parameters(model, |name, shape, value_n| match by_name.remove(&name) {
            Some(gradient_n) => {
                self.updated(Part { name, shape, first: 0 }, value_n, gradient_n, (learning_rate, scale))
            }
            None => value_n,
        })
    }

    /// The next update is of this rank's pieces, by [`Self::update_pieces`]. From now on the optimizer
    /// remembers of each parameter what belongs to its piece alone.
    pub(crate) fn start_update_of_shard(&mut self, sharding: &Sharding) {
        self.step += 1;
        self.keep_moments_of(sharding);
        self.sharding = Some(sharding.clone());
    }

    /// Pieces of the parameters of `model` after the update by these gradients of them.
    ///
    /// # Panics
    /// Unless the update was started.
    pub(crate) fn update_pieces<M: Module>(
        &mut self,
        model: &M,
        gradients: Vec<PieceValues>,
        rate_and_scale: (f64, f64),
    ) -> Vec<PieceValues> {
        let parameters: BTreeMap<ParameterName, ParameterTensor> =
            parameter_tensors(model).into_iter().map(|named| (named.name, named.value)).collect();
        let updated = |PieceValues { piece, values_n: gradient_n }| {
            let (name, elements) = (piece.of.name, piece.elements.clone());
            let ParameterTensor { shape, values_n, .. } = &parameters[&name];
            let mut shape = shape.clone();
            if let [rows, _, _] = &mut shape[..] {
                *rows = elements.len() / piece.of.row_len();
            }
            let part = Part { name, shape: &shape, first: elements.start };
            let sharding = self.sharding.as_ref().expect("the update of a shard was started");
            let first = sharding.first_element(&piece.of);
            let value_n = values_n.clone().slice(s![elements.start - first..elements.end - first]);
            let values_n = self.updated(part, value_n, gradient_n, rate_and_scale);
            PieceValues { piece, values_n }
        };
        gradients.into_iter().map(updated).collect()
    }

    /// Forgets what other ranks remember.
    fn keep_moments_of(&mut self, sharding: &Sharding) {
        let mut all = std::mem::take(&mut self.moments);
        for piece in sharding.own_pieces() {
            let Some(mut moments) = all.remove(&piece.of.name) else { continue };
            for moment_n in &mut moments {
                if moment_n.dims()[0] != piece.elements.len() {
                    *moment_n = moment_n.clone().slice([piece.elements.clone()]);
                }
            }
            self.moments.insert(piece.of.name, moments);
        }
    }

    /// How what is remembered is spread over ranks; `None` while all of it is here.
    pub(crate) fn sharding(&self) -> Option<&Sharding> {
        self.sharding.as_ref()
    }

    /// What is remembered of a piece.
    pub(crate) fn moments_of(&self, piece: &Piece) -> &[Tensor<1>] {
        self.moments.get(&piece.of.name).map_or(&[], Vec::as_slice)
    }

    /// Types of what is remembered of a parameter.
    pub(crate) fn moment_dtypes(&self, name: ParameterName) -> Vec<DType> {
        let dtype = moment_dtype(&self.adamw, self.muon.as_ref(), name.role);
        vec![dtype; moment_names(self.muon.as_ref(), name.role).len()]
    }

    /// The optimizer of a process alone that remembers `moments` of each parameter.
    pub(crate) fn with_all_moments(&self, moments: BTreeMap<ParameterName, Moments>) -> Self {
        Self { moments, sharding: None, ..self.clone() }
    }

    /// Whether the update of an element of the parameter depends on all of its matrix.
    pub(crate) fn updates_matrices(&self, name: ParameterName) -> bool {
        muon_of(self.muon.as_ref(), name.role).is_some()
    }

    /// Values of a parameter, or of a part of it, after its update.
    fn updated(
        &mut self,
        part: Part<'_>,
        value_n: Tensor<1>,
        gradient_n: Tensor<1>,
        (learning_rate, scale): (f64, f64),
    ) -> Tensor<1> {
        match self.step_of(part.name, learning_rate, scale) {
            ParameterStep::AdamW(step) => {
                let step = AdamWStep { first_element: part.first, ..step };
                self.update_by_adamw(part.name, value_n, gradient_n, &step)
            }
            ParameterStep::Muon(step) => {
                self.update_by_muon((part.name, stack_shape(part.shape)), value_n, gradient_n, &step)
            }
        }
    }

    /// The step of one parameter: of its group, where it has one, times what the model's
    /// parametrisation says of its role. Its factors are AdamW's: a plan has no Muon beside it.
    fn step_of(&self, name: ParameterName, learning_rate: f64, gradient_scale: f64) -> ParameterStep {
        let group = group_of(&self.groups, name);
        let learning_rate = learning_rate * group.map_or(1.0, |group| group.learning_rate_factor);
        let own_decay = group.and_then(|group| group.weight_decay);
        match muon_of(self.muon.as_ref(), name.role) {
            Some(muon) => ParameterStep::Muon(MuonStep {
                learning_rate,
                momentum: muon.momentum,
                nesterov: muon.nesterov,
                newton_schulz_steps: muon.newton_schulz_steps,
                weight_decay: own_decay.or(muon.weight_decay).unwrap_or(self.adamw.weight_decay),
                gradient_scale,
            }),
            None => {
                let of_role =
                    self.parametrisation.map_or(RoleFactors::NONE, |of_model| of_model.factors(name.role));
                let weight_decay = own_decay.unwrap_or(self.usual_decay(name.role));
                ParameterStep::AdamW(AdamWStep {
                    learning_rate: learning_rate * of_role.learning_rate,
                    beta1: self.adamw.beta1,
                    beta2: self.adamw.beta2,
                    epsilon: self.adamw.epsilon * of_role.epsilon,
                    weight_decay: weight_decay * of_role.weight_decay(),
                    step: self.step,
                    gradient_scale,
                    rounding_key: stream_key(self.step, &name.to_string()),
                    first_element: 0,
                })
            }
        }
    }

    /// AdamW's decay: matrices decay; vectors (norm scales, biases) do not, and embeddings only if
    /// asked.
    fn usual_decay(&self, role: Role) -> f64 {
        let is_embedding = matches!(role, Role::Embedding(_));
        let decays = !role.is_vector() && (self.adamw.decay_embeddings || !is_embedding);
        if decays { self.adamw.weight_decay } else { 0.0 }
    }

    fn update_by_adamw(
        &mut self,
        name: ParameterName,
        value_n: Tensor<1>,
        gradient_n: Tensor<1>,
        step: &AdamWStep,
    ) -> Tensor<1> {
        let [moment1_n, moment2_n] = self.take_moments(name, &value_n);
        let state = AdamWState { value_n, moment1_n, moment2_n };
        let AdamWState { value_n, moment1_n, moment2_n } = adamw_update(state, gradient_n, step);
        self.moments.insert(name, vec![moment1_n, moment2_n]);
        value_n
    }

    fn update_by_muon(
        &mut self,
        (name, shape): (ParameterName, [usize; 3]),
        value_n: Tensor<1>,
        gradient_n: Tensor<1>,
        step: &MuonStep,
    ) -> Tensor<1> {
        let [momentum_n] = self.take_moments(name, &value_n);
        let MuonState { value_n, momentum_n } =
            muon_update(MuonState { value_n, momentum_n }, gradient_n, shape, step);
        self.moments.insert(name, vec![momentum_n]);
        value_n
    }

    /// The moments of a parameter, out of the optimizer; zeros before its first update.
    fn take_moments<const N: usize>(&mut self, name: ParameterName, value_n: &Tensor<1>) -> [Tensor<1>; N] {
        let dtype = moment_dtype(&self.adamw, self.muon.as_ref(), name.role);
        let zeros = || std::array::from_fn(|_| Tensor::zeros(value_n.dims(), (&value_n.device(), dtype)));
        let of_optimizer = |moments: Moments| {
            let wrong = |moments: Moments| panic!("{} moments of `{name}` instead of {N}", moments.len());
            moments.try_into().unwrap_or_else(wrong)
        };
        self.moments.remove(&name).map_or_else(zeros, of_optimizer)
    }

    /// Every moment, such as `first.NAME`, `second.NAME` and `momentum.NAME`, without copying any.
    pub fn moments(&self) -> Vec<(String, ParameterTensor)> {
        let of_parameter = |(name, moments): (&ParameterName, &Moments)| {
            let prefixes = moment_names(self.muon.as_ref(), name.role);
            let moment = |(prefix, values_n): (&&str, &Tensor<1>)| {
                let shape = values_n.dims().to_vec();
                let values_n = values_n.clone();
                (format!("{prefix}.{name}"), ParameterTensor { shape, values_n, learns: false })
            };
            prefixes.iter().zip(moments).map(moment).collect::<Vec<_>>()
        };
        self.moments.iter().flat_map(of_parameter).collect()
    }

    /// The optimizer after `step` updates, with the moments of each parameter.
    pub(crate) fn restore(
        (train, model): (&TrainConfig, &ModelSpec),
        step: u64,
        moments: BTreeMap<ParameterName, Moments>,
    ) -> Self {
        let (adamw, muon, groups) = (train.adamw.clone(), train.muon.clone(), train.groups.clone());
        Self { adamw, muon, groups, parametrisation: model.parametrisation, step, moments, sharding: None }
    }
}

/// The matrices of a parameter: a stack of experts' has three dimensions already.
///
/// # Panics
/// If it is no matrix and no stack: then its role is wrong.
fn stack_shape(shape: &[usize]) -> [usize; 3] {
    match *shape {
        [rows, columns] => [1, rows, columns],
        [matrices, rows, columns] => [matrices, rows, columns],
        _ => panic!("a parameter of shape {shape:?} has no matrices"),
    }
}

//! From the parameters of a dense model to those of the mixture: pure arithmetic on named values.
//!
//! Shape letters: d model width, f hidden width, e experts.

use std::ops::Range;

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_model::random::uniform;
use switchyard_model::{
    CosinePart, FfnMatrix, ModelSpec, ParameterName, ParameterSource, Role, RouterPart, Transformer,
    update_parameters,
};

use super::check::{gate_sum, num_parts};
use super::{DenseModel, UpcycleMethod, UpcycleSettings};

/// The mixture with every parameter that comes from `dense` in place.
///
/// # Panics
/// If a parameter of `dense` is missing, which a checkpoint that was read has checked.
pub(super) fn mapped(
    dense: DenseModel<'_>,
    spec: &ModelSpec,
    settings: UpcycleSettings,
    device: &Device,
) -> Transformer {
    let mapping = Mapping { dense, spec, settings };
    let initial = Transformer::new(spec, settings.seed, device);
    update_parameters(initial, |name, shape, initial_n| match mapping.values(name, shape, &initial_n) {
        Some(values) => Tensor::from_data(TensorData::new(values, initial_n.dims()), &initial_n.device()),
        None => initial_n,
    })
}

/// Which way a matrix of the dense block has its hidden units.
fn hidden_axis(matrix: FfnMatrix) -> HiddenAxis {
    match matrix {
        FfnMatrix::Gate | FfnMatrix::Up => HiddenAxis::Columns,
        FfnMatrix::Down => HiddenAxis::Rows,
    }
}

/// Which way a feed-forward matrix has its hidden units.
#[derive(Debug, Clone, Copy, PartialEq)]
enum HiddenAxis {
    /// As columns: gate and up projection.
    Columns,
    /// As rows: down projection.
    Rows,
}

struct Mapping<'a> {
    dense: DenseModel<'a>,
    spec: &'a ModelSpec,
    settings: UpcycleSettings,
}

impl Mapping<'_> {
    /// Values of the mixture's parameter; `None` if it stays at its initial ones.
    fn values(&self, name: ParameterName, shape: &[usize], initial_n: &Tensor<1>) -> Option<Vec<f32>> {
        match (name.role, name.layer) {
            (Role::Expert(matrix), Some(layer)) => Some(self.experts(layer, matrix)),
            (Role::ExpertBias(matrix), Some(layer)) => Some(self.expert_biases(layer, matrix)),
            // Their last axis runs over experts.
            (Role::Router(RouterPart::Weight | RouterPart::Cosine(CosinePart::Directions)), Some(layer)) => {
                let initial = host_values(&initial_n.to_data());
                Some(shared_by_parts(initial, shape[1], self.num_parts(layer)))
            }
            // It adds nothing at first, and learns, because its other matrices are not zero.
            (Role::Shared(FfnMatrix::Down), _) => Some(vec![0.0; shape.iter().product()]),
            _ => self.dense.parameters.get(&name).map(host_values),
        }
    }

    fn num_parts(&self, layer: usize) -> usize {
        let blocks = self.dense.spec.layers.get(layer).zip(self.spec.layers.get(layer));
        blocks.map_or(1, |(before, now)| num_parts(&before.ffn, &now.ffn, self.settings.method))
    }

    fn dense_matrix(&self, name: ParameterName, matrix: FfnMatrix) -> DenseMatrix {
        let Some(data) = self.dense.parameters.get(&name) else { panic!("a dense model without `{name}`") };
        let shape = data.shape();
        DenseMatrix { values: host_values(data), num_columns: shape[1], axis: hidden_axis(matrix) }
    }

    /// One matrix of every expert of `layer`, stacked.
    fn experts(&self, layer: usize, matrix: FfnMatrix) -> Vec<f32> {
        let name = ParameterName::of_layer(layer, Role::Dense(matrix));
        let dense = self.dense_matrix(name, matrix);
        let Some(experts) = self.spec.experts_of(layer) else { return Vec::new() };
        let num_parts = self.num_parts(layer);
        let scale = match dense.axis {
            HiddenAxis::Columns => 1.0,
            HiddenAxis::Rows => self.output_scale(layer),
        };
        let of_expert = |expert: usize| {
            let part = expert % num_parts;
            let units = part * experts.d_expert..(part + 1) * experts.d_expert;
            let redrawn = self.redrawn_units(layer, expert, dense.num_units());
            let key = format!("{name}#{expert}");
            let source = ParameterSource::new(self.settings.seed, &Device::flex());
            dense.with_units_redrawn(&redrawn, &key, &source).units(units)
        };
        (0..experts.num_experts).flat_map(of_expert).map(|value| value * scale).collect()
    }

    /// One bias of every expert of `layer`, stacked: that of the dense block.
    fn expert_biases(&self, layer: usize, matrix: FfnMatrix) -> Vec<f32> {
        let name = ParameterName::of_layer(layer, Role::DenseBias(matrix));
        let Some(data) = self.dense.parameters.get(&name) else { panic!("a dense model without `{name}`") };
        let scale = match hidden_axis(matrix) {
            HiddenAxis::Columns => 1.0,
            HiddenAxis::Rows => self.output_scale(layer),
        };
        let of_dense: Vec<f32> = host_values(data).into_iter().map(|value| value * scale).collect();
        let num_experts = self.spec.experts_of(layer).map_or(0, |experts| experts.num_experts);
        of_dense.repeat(num_experts)
    }

    /// Factor on the experts' outputs that makes whole copies, weighed by gates, add up to the
    /// dense block.
    fn output_scale(&self, layer: usize) -> f32 {
        let router = self.spec.layers.get(layer).and_then(|spec| spec.ffn.router());
        let sum = router.and_then(|router| gate_sum(&router.config)).unwrap_or(1.0);
        (self.num_parts(layer) as f64 / sum) as f32
    }

    /// Hidden units of an expert that are drawn anew, the same in each of its matrices, in order.
    fn redrawn_units(&self, layer: usize, expert: usize, num_units: usize) -> Vec<usize> {
        let UpcycleMethod::Drop { ratio } = self.settings.method else { return Vec::new() };
        let stream = format!("blocks.{layer}.ffn.redrawn#{expert}");
        let rank = |unit: &usize| uniform(self.settings.seed, &stream, *unit as u64);
        let mut units: Vec<usize> = (0..num_units).collect();
        units.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
        units.truncate((ratio * num_units as f64) as usize);
        units.sort_unstable();
        units
    }
}

/// A matrix of the dense block, row-major.
#[derive(Debug, Clone)]
struct DenseMatrix {
    values: Vec<f32>,
    num_columns: usize,
    axis: HiddenAxis,
}

impl DenseMatrix {
    fn num_units(&self) -> usize {
        match self.axis {
            HiddenAxis::Columns => self.num_columns,
            HiddenAxis::Rows => self.values.len() / self.num_columns,
        }
    }

    /// The hidden units in `range`, a matrix of the same kind.
    fn units(&self, range: Range<usize>) -> Vec<f32> {
        match self.axis {
            HiddenAxis::Rows => {
                self.values[range.start * self.num_columns..range.end * self.num_columns].to_vec()
            }
            HiddenAxis::Columns => self
                .values
                .chunks_exact(self.num_columns)
                .flat_map(|row| &row[range.clone()])
                .copied()
                .collect(),
        }
    }

    /// Places of the values of `units` in `values`.
    fn places(&self, units: &[usize]) -> Vec<usize> {
        let num_columns = self.num_columns;
        let of_unit = |&unit: &usize| match self.axis {
            HiddenAxis::Rows => (unit * num_columns..(unit + 1) * num_columns).step_by(1),
            HiddenAxis::Columns => (unit..self.values.len()).step_by(num_columns),
        };
        units.iter().flat_map(of_unit).collect()
    }

    /// The matrix with the values of `units` drawn from the normal distribution of their mean and
    /// deviation.
    fn with_units_redrawn(&self, units: &[usize], key: &str, source: &ParameterSource) -> Self {
        let places = self.places(units);
        if places.is_empty() {
            return self.clone();
        }
        let old = places.iter().map(|&place| f64::from(self.values[place]));
        let mean = old.clone().sum::<f64>() / places.len() as f64;
        let variance = old.map(|value| (value - mean).powi(2)).sum::<f64>() / places.len() as f64;
        let drawn = source.normal(key, [places.len()], variance.sqrt()).into_data();
        let mut values = self.values.clone();
        for (place, noise) in places.into_iter().zip(host_values(&drawn)) {
            values[place] = mean as f32 + noise;
        }
        Self { values, ..self.clone() }
    }
}

/// A gate's matrix in which the `num_parts` experts of each copy have the column of the first of
/// them.
fn shared_by_parts(values: Vec<f32>, num_columns: usize, num_parts: usize) -> Vec<f32> {
    let of_place = |place: usize| {
        let column = place % num_columns;
        values[place - column % num_parts]
    };
    (0..values.len()).map(of_place).collect()
}

fn host_values(data: &TensorData) -> Vec<f32> {
    data.iter::<f32>().collect()
}

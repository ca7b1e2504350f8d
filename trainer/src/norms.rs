//! Norms of gradients and weights: over everything, and over the router and each expert of every
//! mixture.
//!
//! The experts of a layer are stacked in one tensor, so a row of it is an expert and one pass gives
//! all norms.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::tensor::Tensor;
use switchyard_experts::Experts;
use switchyard_kernels::square_sums_of_rows;
use switchyard_model::{ParameterName, Role};
use switchyard_router::Router;

use crate::readings::{Reading, Readings, Values};

/// Euclidean norms.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Norms {
    /// Over all parameters together.
    pub global: f64,
    /// Of each mixture, by layer.
    pub moe: BTreeMap<usize, MoeNorms>,
}

/// Euclidean norms of one mixture.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MoeNorms {
    /// Of the router; `None` if nothing of it is learned.
    pub router: Option<f64>,
    /// Of each expert.
    pub experts: Vec<f64>,
}

/// Which part of a mixture a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Router,
    Experts,
}

/// The part that a parameter belongs to, and its layer; `None` outside the mixtures.
fn part_of(name: ParameterName) -> Option<(usize, Part)> {
    let part = match name.role {
        Role::Router(_) => Part::Router,
        role if role.is_of_experts() => Part::Experts,
        _ => return None,
    };
    Some((name.layer?, part))
}

/// Sums of squares that the device may still be working on.
#[derive(Debug)]
pub(crate) struct ParameterSquares {
    part: Option<(usize, Part)>,
    num_rows: usize,
    parts: Reading,
}

/// Sums of squares on the host.
#[derive(Debug)]
pub(crate) struct HostSquares {
    part: Option<(usize, Part)>,
    rows: Vec<f64>,
}

impl ParameterSquares {
    /// Those of a parameter; `num_experts` of a layer says into how many rows its experts'
    /// parameters divide.
    pub(crate) fn start(
        name: ParameterName,
        value_n: Tensor<1>,
        num_experts: impl Fn(usize) -> usize,
        readings: &mut Readings,
    ) -> Self {
        let part = part_of(name);
        let num_rows = match part {
            Some((layer, Part::Experts)) => num_experts(layer),
            _ => 1,
        };
        Self { part, num_rows, parts: readings.add(&square_sums_of_rows(value_n, num_rows)) }
    }

    /// The sums, once they have been read.
    pub(crate) fn on_host(&self, values: &Values) -> HostSquares {
        HostSquares { part: self.part, rows: row_sums(values.of(&self.parts), self.num_rows) }
    }
}

fn row_sums(parts: &[f64], num_rows: usize) -> Vec<f64> {
    parts.chunks((parts.len() / num_rows).max(1)).map(|row| row.iter().sum()).collect()
}

impl HostSquares {
    /// Those of a parameter with these sums of rows.
    pub(crate) fn new(name: ParameterName, rows: Vec<f64>) -> Self {
        Self { part: part_of(name), rows }
    }

    pub(crate) fn total(&self) -> f64 {
        self.rows.iter().sum()
    }

    /// The first expert whose sum is not finite; `None` outside the experts.
    pub(crate) fn first_non_finite_expert(&self) -> Option<usize> {
        self.part.filter(|(_, part)| *part == Part::Experts)?;
        self.rows.iter().position(|sum| !sum.is_finite())
    }
}

impl Norms {
    /// Adds a parameter; all sums are squares until [`Norms::finish`].
    pub(crate) fn add(&mut self, squares: &HostSquares) {
        self.global += squares.total();
        let Some((layer, part)) = squares.part else { return };
        let moe = self.moe.entry(layer).or_default();
        match part {
            Part::Router => *moe.router.get_or_insert(0.0) += squares.total(),
            Part::Experts => {
                moe.experts.resize(squares.rows.len(), 0.0);
                moe.experts.iter_mut().zip(&squares.rows).for_each(|(sum, row)| *sum += row);
            }
        }
    }

    pub(crate) fn finish(mut self) -> Self {
        self.global = self.global.sqrt();
        for moe in self.moe.values_mut() {
            moe.router = moe.router.map(f64::sqrt);
            moe.experts.iter_mut().for_each(|sum| *sum = sum.sqrt());
        }
        self
    }
}

/// Norm of the weights that a router learns, 0 if it learns none. The selection bias is none of
/// them.
pub(crate) fn router_weight_norm(router: &Router) -> f64 {
    let cosine = router.cosine.as_ref();
    let matrices = [
        router.weight_de.as_ref(),
        router.noise_weight_de.as_ref(),
        cosine.map(|cosine| &cosine.projection_dc),
        cosine.map(|cosine| &cosine.directions_ce),
    ];
    let scale = cosine.map_or(0.0, |cosine| squares_of_rows(&cosine.log_scale_1, 1)[0]);
    let squares = matrices.into_iter().flatten().map(|matrix| squares_of_rows(matrix, 1)[0]);
    (squares.sum::<f64>() + scale).sqrt()
}

/// Norm of the weights of each expert.
pub(crate) fn expert_weight_norms(experts: &Experts) -> Vec<f64> {
    let [num_experts, _, _] = experts.w_up_edf.dims();
    let matrices = [experts.w_gate_edf.as_ref(), Some(&experts.w_up_edf), Some(&experts.w_down_efd)];
    let mut sums = vec![0.0; num_experts];
    for matrix in matrices.into_iter().flatten() {
        let rows = squares_of_rows(matrix, num_experts);
        sums.iter_mut().zip(rows).for_each(|(sum, row)| *sum += row);
    }
    sums.into_iter().map(f64::sqrt).collect()
}

fn squares_of_rows<const D: usize>(param: &Param<Tensor<D>>, num_rows: usize) -> Vec<f64> {
    let value_n: Tensor<1> = param.val().inner().flatten(0, D - 1);
    let parts: Vec<f64> = square_sums_of_rows(value_n, num_rows).into_data().iter::<f64>().collect();
    row_sums(&parts, num_rows)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::plan::RunPlan;
    use switchyard_model::Transformer;
    use switchyard_model::parameter_data;

    fn squares(name: &str, values: &[f32]) -> HostSquares {
        let device = Device::flex();
        let mut readings = Readings::default();
        let (name, value_n) = (ParameterName::parse(name).unwrap(), Tensor::from_floats(values, &device));
        let squares = ParameterSquares::start(name, value_n, |_| 2, &mut readings);
        squares.on_host(&readings.read().unwrap())
    }

    #[test]
    fn each_expert_and_each_router_has_its_own_norm() {
        let mut norms = Norms::default();
        norms.add(&squares("blocks.1.ffn.router.weight", &[3.0, 4.0]));
        norms.add(&squares("blocks.1.ffn.experts.up", &[1.0, 2.0, 2.0, 0.0]));
        norms.add(&squares("blocks.1.ffn.experts.down", &[2.0, 4.0, 0.0, 0.0]));
        norms.add(&squares("embedding.token", &[1.0]));
        let norms = norms.finish();
        assert_eq!(norms.moe[&1], MoeNorms { router: Some(5.0), experts: vec![5.0, 2.0] });
        assert_eq!(norms.global, (25.0_f64 + 25.0 + 4.0 + 1.0).sqrt());
    }

    #[test]
    fn the_expert_with_a_nan_is_named() {
        let experts = squares("blocks.0.ffn.experts.up", &[1.0, 2.0, f32::NAN, 0.0]);
        assert_eq!(experts.first_non_finite_expert(), Some(1));
        assert_eq!(squares("head", &[f32::NAN]).first_non_finite_expert(), None);
    }

    /// The paths are those of a real model: a renamed field would leave a part without its norm.
    #[test]
    fn every_parameter_of_a_model_is_in_its_part() {
        let config = toml::from_str(
            r#"
            name = "a"
            [data.synthetic]
            num_domains = 1
            vocab_size = 7
            num_documents = 9
            document_tokens = 8
            branching = 2
            [train]
            num_steps = 1
            seq_len = 4
            batch_tokens = 4
            [train.adamw]
            learning_rate = 1e-3
            [model]
            num_layers = 2
            d_model = 4
            [model.attention]
            num_heads = 1
            [model.ffn]
            activation = "swiglu"
            d_ff = 3
            [model.ffn.moe]
            num_experts = 3
            d_expert = 5
            d_shared_expert = 2
            layers = { list = [1] }
            router = { top_k = 2, cosine = { d_projection = 6 } }
            "#,
        )
        .unwrap();
        let plan = RunPlan::resolve(&config).unwrap();
        let model = Transformer::new(&plan.model, 0, &Device::flex());
        let mut sizes = BTreeMap::new();
        for named in parameter_data(&model) {
            *sizes.entry(part_of(named.name)).or_insert(0) += named.value.num_elements() as u64;
        }
        let routers = sizes.remove(&Some((1, Part::Router)));
        let experts = sizes.remove(&Some((1, Part::Experts)));
        // 4 x 6, 6 x 3 and a scale; 3 experts of three 4 x 5.
        assert_eq!((routers, experts), (Some(24 + 18 + 1), Some(180)));
        let rest = plan.counts.total_params - 43 - 180;
        assert_eq!(sizes.into_iter().collect::<Vec<_>>(), [(None, rest)]);
    }
}

//! One step on several ranks: each computes its own micro-batches, then all know what all measured,
//! and each has the sum of the gradients of the parameters that it updates.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};
use switchyard_comm::Traffic;
use switchyard_datasets::TokenBatch;
use switchyard_kernels::square_sums;
use switchyard_model::{ParameterName, Transformer, parameter_shapes};

use super::{Ranks, from_bytes, to_bytes};
use crate::TrainError;
use crate::norms::{HostSquares, Norms};
use crate::optimizer::{GradientSum, NonFiniteGradient, Optimizer, clip_factor};
use crate::readings::{Readings, read_floats};
use crate::routed_pass::RoutedPass;
use crate::sharding::{Bucket, Divisible, PieceValues, ShardGradients, Sharding, ShardingError, StepTraffic};
use crate::step::{
    PassMeasurements, Passes, Share, StepMeasurements, StepSettings, measured, num_experts_in, run_passes,
};

/// What a rank tells of the pieces of a gradient's norm: the addends of each row that is in each
/// piece.
#[derive(Debug, Serialize, Deserialize)]
struct PieceSquares(Vec<Vec<f64>>);

impl Ranks {
    /// As [`crate::step::step_gradients`] of all ranks together: the same measurements on each, and
    /// the gradients of its own parameters. `micro_batches` are all of the step; what there is of each
    /// token comes to the first rank alone, if `keeps_tokens`.
    ///
    /// # Errors
    /// As [`crate::step::step_gradients`] on each rank if on any; [`TrainError::Comm`].
    pub(crate) fn step_gradients(
        &self,
        (model, optimizer): (&Transformer, &Optimizer),
        micro_batches: Vec<TokenBatch>,
        settings: &StepSettings<'_>,
        keeps_tokens: bool,
        device: &Device,
    ) -> Result<(ShardGradients, StepMeasurements), TrainError> {
        let share = self.share_of(micro_batches.len());
        let of = micro_batches.len();
        let own = micro_batches.into_iter().skip(share.start).take(share.len()).collect();
        let passes = own_passes(model, own, (settings, share.start, of), device);
        let (gradients, passes) = self.all_or_none(passes)?;
        let mut measurements = self.measurements(passes, keeps_tokens)?;
        let parts = gradients.finish_parts();
        let [whole, of_experts] = parts.each_ref().map(|part| {
            let lens = part.iter().map(|gradient| (gradient.name, gradient.value.dims()[0]));
            divisible(lens, model, optimizer)
        });
        let sharding = Sharding::new(&whole, &of_experts, self.layout());
        let before = self.comm.traffic();
        let pieces = sharding.sum(parts.into_iter().flatten().collect(), &self.groups)?;
        let gradients = self.comm.traffic().since(before);
        measurements.traffic = Some(StepTraffic { gradients, ..StepTraffic::default() });
        let norms = self.norms(&sharding, &pieces, settings.step, &names_in_order(model))?;
        (measurements.grad_norm, measurements.moe_grad_norms) = (norms.global, norms.moe);
        let scale = clip_factor(measurements.grad_norm, settings.max_grad_norm);
        Ok((ShardGradients { sharding, pieces, scale }, measurements))
    }

    /// What all ranks measured, in the order of their micro-batches.
    fn measurements(
        &self,
        mut own: Vec<PassMeasurements>,
        keeps_tokens: bool,
    ) -> Result<StepMeasurements, TrainError> {
        let mut routed = Vec::new();
        for pass in &mut own {
            let without_tokens = pass.routed.without_tokens();
            routed.push(std::mem::replace(&mut pass.routed, without_tokens));
        }
        let all = self.all_gather(&own)?;
        let mut measurements = StepMeasurements::of(all.into_iter().flatten().collect());
        if keeps_tokens && let Some(of_ranks) = self.gather(&to_bytes(&routed))? {
            let passes = of_ranks.iter().map(|bytes| from_bytes::<Vec<RoutedPass>>(bytes));
            measurements.passes = passes.flatten().collect();
        }
        Ok(measurements)
    }

    /// Norms of the gradients that all ranks have pieces of.
    fn norms(
        &self,
        sharding: &Sharding,
        own: &[PieceValues],
        step: u64,
        order: &[ParameterName],
    ) -> Result<Norms, TrainError> {
        let mut readings = Readings::default();
        let mut started = Vec::new();
        for PieceValues { piece, values_n } in own {
            let row = |row: std::ops::Range<usize>| readings.add(&square_sums(values_n.clone().slice([row])));
            started.push(piece.rows().map(row).collect::<Vec<_>>());
        }
        let values = readings.read()?;
        let of_piece = |rows: &Vec<_>| PieceSquares(rows.iter().map(|row| values.of(row).to_vec()).collect());
        let told: Vec<PieceSquares> = started.iter().map(of_piece).collect();
        let mut of_ranks: Vec<_> = self.all_gather(&told)?.into_iter().map(Vec::into_iter).collect();
        let mut all: BTreeMap<ParameterName, (Divisible, Vec<Vec<f64>>)> = BTreeMap::new();
        for (rank, piece) in sharding.all_pieces() {
            let PieceSquares(addends) =
                of_ranks[rank].next().unwrap_or_else(|| unreachable!("a piece without squares: {piece:?}"));
            let of = piece.of;
            let (_, rows) = all.entry(of.name).or_insert_with(|| (of, vec![Vec::new(); of.num_rows]));
            let of_piece = rows.iter_mut().skip(piece.first_row());
            of_piece.zip(addends).for_each(|(row, addends)| row.extend(addends));
        }
        let mut norms = Norms::default();
        // In the order in which a process alone adds them.
        for (of, rows) in order.iter().filter_map(|name| all.remove(name)) {
            let squares =
                HostSquares::new(of.name, rows.iter().map(|addends| addends.iter().sum()).collect());
            if !squares.total().is_finite() {
                let source = self.non_finite_gradient(of, squares.first_non_finite_expert(), own)?;
                return Err(TrainError::NonFiniteGradient { step: step + 1, source });
            }
            norms.add(&squares);
        }
        Ok(norms.finish())
    }

    /// What there is to say of a gradient that all ranks have found not to be finite.
    fn non_finite_gradient(
        &self,
        of: Divisible,
        expert: Option<usize>,
        own: &[PieceValues],
    ) -> Result<NonFiniteGradient, TrainError> {
        let mut num_bad = 0;
        for PieceValues { values_n, .. } in own.iter().filter(|values| values.piece.of == of) {
            num_bad += read_floats(values_n.clone())?.iter().filter(|value| !value.is_finite()).count();
        }
        let num_bad = self.all_gather(&num_bad)?.iter().sum();
        Ok(NonFiniteGradient { name: of.name, expert, num_bad, num_elements: of.num_elements })
    }

    /// Every parameter of a bucket, from this rank's pieces and those of the others.
    ///
    /// # Errors
    /// [`TrainError::Comm`], [`TrainError::Device`].
    pub(crate) fn gathered(
        &self,
        sharding: &Sharding,
        bucket: &Bucket,
        own: Vec<PieceValues>,
    ) -> Result<BTreeMap<ParameterName, Tensor<1>>, TrainError> {
        Ok(sharding.all_gather(bucket, own, &self.groups)?)
    }

    /// What this rank has sent so far.
    pub(crate) fn traffic(&self) -> Traffic {
        self.comm.traffic()
    }
}

/// Passes over this rank's micro-batches, the first of them number `first` of the step's `of`.
fn own_passes(
    model: &Transformer,
    micro_batches: Vec<TokenBatch>,
    (settings, first, of): (&StepSettings<'_>, usize, usize),
    device: &Device,
) -> Result<(GradientSum, Vec<PassMeasurements>), TrainError> {
    let mut readings = Readings::default();
    let Passes { gradients, passes, .. } =
        run_passes(model, micro_batches, (settings, Share { first, of }), device, &mut readings);
    let values = readings.read()?;
    Ok((gradients, measured(model, passes, &values, settings)?))
}

fn names_in_order(model: &Transformer) -> Vec<ParameterName> {
    parameter_shapes(model).into_iter().map(|named| named.name).collect()
}

/// How the parameters of these gradients, or of which these are a part, may be cut.
///
/// Each comes as its name and its number of elements on this rank.
pub(super) fn divisible(
    gradients: impl IntoIterator<Item = (ParameterName, usize)>,
    model: &Transformer,
    optimizer: &Optimizer,
) -> Vec<Divisible> {
    let num_experts = num_experts_in(model);
    let of_gradient = |(name, num_here): (ParameterName, usize)| {
        let experts = name.role.is_of_experts().then_some(name.layer).flatten();
        let moe = experts.and_then(|layer| model.moe(layer));
        let num_parts = moe.and_then(|moe| moe.experts.ranks()).map_or(1, |ranks| ranks.exchange.num_ranks());
        Divisible {
            name,
            num_elements: num_here * num_parts,
            num_rows: experts.map_or(1, &num_experts),
            keeps_rows_whole: optimizer.updates_matrices(name),
        }
    };
    gradients.into_iter().map(of_gradient).collect()
}

impl From<ShardingError> for TrainError {
    fn from(error: ShardingError) -> Self {
        match error {
            ShardingError::Comm(error) => error.into(),
            ShardingError::Device(error) => error.into(),
        }
    }
}

//! What the optimizers of all ranks remember, brought together for a checkpoint.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

use switchyard_model::ParameterName;

use super::Ranks;
use crate::TrainError;
use crate::optimizer::{Moments, Optimizer};
use crate::readings::read_floats;
use crate::sharding::Bucket;

impl Ranks {
    /// The optimizer that a process alone would have: on the first rank, `None` on the others. All
    /// ranks call it at once.
    ///
    /// # Errors
    /// [`TrainError::Comm`], [`TrainError::Device`].
    pub(crate) fn whole_optimizer(
        &self,
        optimizer: &Optimizer,
        device: &Device,
    ) -> Result<Option<Optimizer>, TrainError> {
        let Some(sharding) = optimizer.sharding() else {
            return Ok(Some(optimizer.clone()));
        };
        let mut moments = BTreeMap::new();
        // Bucket by bucket, so that no more than one is held twice.
        for bucket in sharding.buckets() {
            let mut own: Vec<f32> = Vec::new();
            for piece in sharding.own_pieces_of(bucket) {
                for moment_n in optimizer.moments_of(&piece) {
                    own.extend(read_floats(moment_n.clone())?);
                }
            }
            if let Some(of_ranks) = self.gather(&own)? {
                moments.extend(moments_of(bucket, &of_ranks, optimizer, device));
            }
        }
        Ok((self.comm.rank() == 0).then(|| optimizer.with_all_moments(moments)))
    }
}

/// The moments of the parameters of a bucket, from what each rank has of them.
fn moments_of(
    bucket: &Bucket,
    of_ranks: &[Vec<f32>],
    optimizer: &Optimizer,
    device: &Device,
) -> BTreeMap<ParameterName, Moments> {
    let mut rest: Vec<&[f32]> = of_ranks.iter().map(Vec::as_slice).collect();
    let mut all: BTreeMap<ParameterName, Vec<Vec<f32>>> = BTreeMap::new();
    for (rank, piece) in bucket.all_pieces() {
        let name = piece.of.name;
        let moments =
            all.entry(name).or_insert_with(|| vec![Vec::new(); optimizer.moment_dtypes(name).len()]);
        for values in moments {
            let (of_piece, behind) = rest[rank].split_at(piece.elements.len());
            rest[rank] = behind;
            values.extend(of_piece);
        }
    }
    let of_parameter = |(name, moments): (ParameterName, Vec<Vec<f32>>)| {
        let tensor = |(values, dtype): (Vec<f32>, _)| {
            let shape = [values.len()];
            Tensor::<1>::from_data(TensorData::new(values, shape), device).cast(dtype)
        };
        (name, moments.into_iter().zip(optimizer.moment_dtypes(name)).map(tensor).collect())
    };
    all.into_iter().map(of_parameter).collect()
}

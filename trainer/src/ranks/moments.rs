//! What the optimizers of all ranks remember, brought together for a checkpoint.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

use super::Ranks;
use crate::TrainError;
use crate::optimizer::Optimizer;
use crate::readings::read_floats;

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
        let mut own = Vec::new();
        for piece in sharding.own_pieces() {
            for moment_n in optimizer.moments_of(&piece) {
                own.extend(read_floats(moment_n.clone())?.iter().flat_map(|value| value.to_le_bytes()));
            }
        }
        let Some(of_ranks) = self.gather_bytes(own)? else { return Ok(None) };
        let mut rest: Vec<&[u8]> = of_ranks.iter().map(Vec::as_slice).collect();
        let mut all: BTreeMap<_, Vec<Vec<f32>>> = BTreeMap::new();
        for (rank, piece) in sharding.all_pieces() {
            let moments = all
                .entry(piece.of.name)
                .or_insert_with(|| vec![Vec::new(); optimizer.moment_dtypes(piece.of.name).len()]);
            for values in moments {
                let (bytes, behind) = rest[rank].split_at(4 * piece.elements.len());
                rest[rank] = behind;
                values.extend(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
            }
        }
        let moments = all.into_iter().map(|(name, moments)| {
            let dtypes = optimizer.moment_dtypes(name);
            let tensor = |(values, dtype): (Vec<f32>, _)| {
                let shape = [values.len()];
                Tensor::<1>::from_data(TensorData::new(values, shape), device).cast(dtype)
            };
            (name, moments.into_iter().zip(dtypes).map(tensor).collect())
        });
        Ok(Some(optimizer.with_all_moments(moments.collect())))
    }
}

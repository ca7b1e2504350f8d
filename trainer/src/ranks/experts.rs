//! The experts of each layer spread over ranks.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};
use bytemuck::{Pod, pod_collect_to_vec};
use switchyard_comm::Comm;
use switchyard_experts::{ExpertParallel, RowExchange};
use switchyard_model::Transformer;

use super::Ranks;

/// The ranks of a group.
#[derive(Debug)]
struct Group(Comm);

impl Group {
    /// What every rank has for this one. A pass cannot be left in the middle, for the others would
    /// wait in it: an error ends the job.
    fn exchange<T: Pod>(&self, parts: &[&[T]]) -> Vec<Vec<T>> {
        self.0.all_to_all(parts).unwrap_or_else(|error| self.0.abort(&format!("error: {error}")))
    }
}

impl RowExchange for Group {
    fn num_ranks(&self) -> usize {
        self.0.size()
    }

    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn exchange_rows(&self, parts: &[&[f32]]) -> Vec<Vec<f32>> {
        self.exchange(parts)
    }

    fn exchange_counts(&self, parts: &[&[u32]]) -> Vec<Vec<u32>> {
        self.exchange(parts)
    }
}

impl Ranks {
    /// `model`, which every rank has alike, with the experts that this rank is to have.
    pub(crate) fn part_of(&self, model: Transformer) -> Transformer {
        if self.experts.size() == 1 {
            return model;
        }
        let exchange: Arc<dyn RowExchange> = Arc::new(Group(self.experts.clone()));
        model.with_mixtures(|_, moe| {
            moe.over_ranks(ExpertParallel { exchange: exchange.clone(), gradients: Arc::default() })
        })
    }

    /// `model` with all experts, for this rank to use alone: on the first rank, `None` on the others.
    /// All ranks call it at once.
    pub(crate) fn whole_model(&self, model: &Transformer) -> Option<Transformer> {
        let is_first = self.comm.rank() == 0;
        // The groups are replicas of each other.
        if !model.is_over_ranks() || self.comm.rank() >= self.experts.size() {
            return is_first.then(|| model.clone());
        }
        let group = Group(self.experts.clone());
        let gather = |own_n: Tensor<1>| {
            let device = own_n.device();
            let data = own_n.clone().into_data();
            let mut parts: Vec<&[u8]> = vec![&[]; group.num_ranks()];
            parts[0] = data.as_bytes();
            let all = group.exchange(&parts).concat();
            match is_first {
                true => {
                    let values: Vec<f32> = pod_collect_to_vec(&all);
                    let shape = [values.len()];
                    Tensor::from_data(TensorData::new(values, shape), &device)
                }
                false => own_n,
            }
        };
        if is_first {
            return Some(model.clone().with_mixtures(|_, moe| moe.gathered(gather)));
        }
        model.moe_layers().flat_map(|(_, moe)| moe.experts.stacks()).for_each(|own_n| drop(gather(own_n)));
        None
    }
}

//! Attention on the CPU, without a `[seq, seq]` tensor.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::attention::{self as on_slices, Heads, Inputs, Results};
use switchyard_kernels_cpu::rotary::Rotation;

use super::{CausalAttention, SavedForAttention, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};
use crate::tensor_list::TensorList;

impl CausalAttention for Flex {
    fn causal_attention_and_partition(
        inputs: TensorList<Flex>,
        segment_ids_bs: FlexTensor,
        heads: Heads,
    ) -> (FlexTensor, FlexTensor) {
        if !computes_fused(&inputs, None) {
            return stock::forward::<Flex>(inputs, segment_ids_bs, heads);
        }
        let operands = Operands::new(inputs, segment_ids_bs);
        let inputs = operands.inputs(heads);
        let (y, log_partition) = on_slices::forward(inputs);
        let [t, s] = [operands.tensors[0].shape()[0], inputs.seq_len];
        let y_tq = from_elements(y, operands.tensors[0].shape());
        (y_tq, from_elements(log_partition, Shape::new([t / s, heads.num_heads, s])))
    }

    fn causal_attention_gradients(
        saved: SavedForAttention<Flex>,
        dy_tq: FlexTensor,
        heads: Heads,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        if !computes_fused(&saved.inputs, Some(&dy_tq)) {
            return stock::gradients::<Flex>(saved, dy_tq, heads);
        }
        let SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs } = saved;
        let [y_tq, dy_tq, log_partition_bhs] = [y_tq, dy_tq, log_partition_bhs].map(contiguous);
        let operands = Operands::new(inputs, segment_ids_bs);
        let results =
            Results { y: elements(&y_tq), dy: elements(&dy_tq), log_partition: elements(&log_partition_bhs) };
        let [dq, dk, dv] = on_slices::gradients(operands.inputs(heads), results);
        let shape_of = |input: usize| operands.tensors[input].shape();
        (from_elements(dq, shape_of(0)), from_elements(dk, shape_of(1)), from_elements(dv, shape_of(2)))
    }
}

/// The operands of the CPU's own body.
struct Operands {
    /// Queries, keys, values, and the rotary table's cosines and sines if there is one, each
    /// contiguous.
    tensors: Vec<FlexTensor>,
    segment_ids: Vec<i64>,
    seq_len: usize,
}

impl Operands {
    fn new(inputs: TensorList<Flex>, segment_ids_bs: FlexTensor) -> Self {
        Self {
            tensors: inputs.into_vec().into_iter().map(contiguous).collect(),
            seq_len: segment_ids_bs.shape()[1],
            segment_ids: host_integers(segment_ids_bs),
        }
    }

    fn inputs(&self, heads: Heads) -> Inputs<'_> {
        let slice = |index: usize| elements(&self.tensors[index]);
        Inputs {
            q: slice(0),
            k: slice(1),
            v: slice(2),
            rotation: (self.tensors.len() > 3).then(|| Rotation { cos: slice(3), sin: slice(4) }),
            segment_ids: &self.segment_ids,
            seq_len: self.seq_len,
            d_head: self.tensors[0].shape()[1] / heads.num_heads,
            heads,
        }
    }
}

/// Whether the tensors are of the type that the loops are written for, and hold anything.
fn computes_fused(inputs: &TensorList<Flex>, dy_tq: Option<&FlexTensor>) -> bool {
    let inputs = inputs.clone().into_vec();
    let tensors: Vec<_> = inputs.iter().chain(dy_tq).collect();
    all_f32(&tensors) && inputs.iter().all(|input| input.shape().num_elements() > 0)
}

//! Attention on the CPU, without a `[seq, seq]` tensor.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::attention::{self as on_slices, Gradients, Inputs, Results};
use switchyard_kernels_cpu::rotary::Rotation;

use super::operands::Operands;
use super::{Call, CausalAttention, SavedForAttention, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements, host_integers};
use crate::tensor_list::TensorList;

impl CausalAttention for Flex {
    fn causal_attention_and_partition(
        inputs: TensorList<Flex>,
        segment_ids_bs: FlexTensor,
        call: Call,
    ) -> (FlexTensor, FlexTensor) {
        if !computes_fused(&inputs, None) {
            return stock::forward::<Flex>(inputs, segment_ids_bs, call);
        }
        let operands = HostOperands::new(inputs, segment_ids_bs, call);
        let inputs = operands.inputs(call);
        let (y, log_partition) = on_slices::forward(inputs);
        let (h, s) = (call.heads.num_heads, inputs.seq_len);
        let t = operands.tensors.q.shape()[0];
        let y_tq = from_elements(y, Shape::new([t, h * inputs.d_value]));
        (y_tq, from_elements(log_partition, Shape::new([t / s, h, s])))
    }

    fn causal_attention_gradients(
        saved: SavedForAttention<Flex>,
        dy_tq: FlexTensor,
        call: Call,
    ) -> Vec<FlexTensor> {
        if !computes_fused(&saved.inputs, Some(&dy_tq)) {
            return stock::gradients::<Flex>(saved, dy_tq, call);
        }
        let SavedForAttention { y_tq, log_partition_bhs, segment_ids_bs, inputs } = saved;
        let [y_tq, dy_tq, log_partition_bhs] = [y_tq, dy_tq, log_partition_bhs].map(contiguous);
        let operands = HostOperands::new(inputs, segment_ids_bs, call);
        let results =
            Results { y: elements(&y_tq), dy: elements(&dy_tq), log_partition: elements(&log_partition_bhs) };
        let Gradients { q, k, v, sinks } = on_slices::gradients(operands.inputs(call), results);
        let Operands { q: q_tq, k: k_tg, v: v_tg, sinks: sinks_h, .. } = &operands.tensors;
        let pairs = [(q, q_tq), (k, k_tg), (v, v_tg)].into_iter().chain(sinks.zip(sinks_h.as_ref()));
        pairs.map(|(gradient, operand)| from_elements(gradient, operand.shape())).collect()
    }
}

/// The operands of the CPU's own body.
struct HostOperands {
    /// Each contiguous.
    tensors: Operands<FlexTensor>,
    segment_ids: Vec<i64>,
    seq_len: usize,
}

impl HostOperands {
    fn new(inputs: TensorList<Flex>, segment_ids_bs: FlexTensor, call: Call) -> Self {
        Self {
            tensors: Operands::from_vec(inputs.into_vec(), call.parts).map(contiguous),
            seq_len: segment_ids_bs.shape()[1],
            segment_ids: host_integers(segment_ids_bs),
        }
    }

    fn inputs(&self, call: Call) -> Inputs<'_> {
        let Operands { q, k, v, sinks, rotation } = &self.tensors;
        Inputs {
            q: elements(q),
            k: elements(k),
            v: elements(v),
            sinks: sinks.as_ref().map(elements),
            rotation: rotation.as_ref().map(|[cos, sin]| Rotation { cos: elements(cos), sin: elements(sin) }),
            segment_ids: &self.segment_ids,
            seq_len: self.seq_len,
            d_head: q.shape()[1] / call.heads.num_heads,
            d_value: v.shape()[1] / call.heads.num_kv_heads,
            heads: call.heads,
            compute: call.compute,
        }
    }
}

/// Whether the tensors are of the type that the loops are written for, and hold anything.
fn computes_fused(inputs: &TensorList<Flex>, dy_tq: Option<&FlexTensor>) -> bool {
    let inputs = inputs.clone().into_vec();
    let tensors: Vec<_> = inputs.iter().chain(dy_tq).collect();
    all_f32(&tensors) && inputs.iter().all(|input| input.shape().num_elements() > 0)
}

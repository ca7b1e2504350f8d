//! Kept keys and values on the CPU, in place where nobody else holds them.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::attention::cached::{self as on_slices, CachedInputs};
use switchyard_kernels_cpu::rotary::Rotation;

use super::{AppendCall, CachedAttention, CachedCall, Operands, stock};
use crate::slices::{InPlaceTensor, all_f32, contiguous, elements, from_elements};
use crate::tensor_list::TensorList;

impl CachedAttention for Flex {
    fn append_to_cache(
        keys_gdc: FlexTensor,
        values_gcv: FlexTensor,
        rows: TensorList<Flex>,
        call: AppendCall,
    ) -> (FlexTensor, FlexTensor) {
        let tensors: Vec<FlexTensor> = rows.into_vec().into_iter().map(contiguous).collect();
        let all: Vec<&FlexTensor> = tensors.iter().chain([&keys_gdc, &values_gcv]).collect();
        if !all_f32(&all) || all.iter().any(|tensor| tensor.shape().num_elements() == 0) {
            return stock::append::<Flex>(keys_gdc, values_gcv, TensorList::from_vec(tensors), call);
        }
        let [mut keys, mut values] = [keys_gdc, values_gcv].map(InPlaceTensor::new);
        let rotation =
            call.rotary.then(|| Rotation { cos: elements(&tensors[2]), sin: elements(&tensors[3]) });
        let kept = [&mut keys, &mut values].map(|tensor| {
            let target = tensor.elements();
            if let Some(source) = target.source {
                target.target.copy_from_slice(source);
            }
            target.target
        });
        let rows = [elements(&tensors[0]), elements(&tensors[1])];
        on_slices::append(kept, rows, rotation, call.first, call.shape);
        (keys.finish(), values.finish())
    }

    fn cached_attention(inputs: TensorList<Flex>, call: CachedCall) -> FlexTensor {
        let inputs = inputs.into_vec();
        let all: Vec<&FlexTensor> = inputs.iter().collect();
        if !all_f32(&all) || all.iter().any(|tensor| tensor.shape().num_elements() == 0) {
            return stock::forward::<Flex>(TensorList::from_vec(inputs), call);
        }
        let operands = Operands::from_vec(inputs, call.parts).map(contiguous);
        let Operands { q, k, v, sinks, rotation } = &operands;
        let y = on_slices::forward(CachedInputs {
            q: elements(q),
            keys: elements(k),
            values: elements(v),
            sinks: sinks.as_ref().map(elements),
            rotation: rotation.as_ref().map(|[cos, sin]| Rotation { cos: elements(cos), sin: elements(sin) }),
            num_tokens: call.num_tokens,
            shape: call.shape,
            heads: call.heads,
        });
        from_elements(y, Shape::new([1, call.heads.num_heads * call.shape.d_value]))
    }
}

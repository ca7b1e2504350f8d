//! Gates and losses on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::routing::{self as on_slices, Chosen, RouterLoss};

use super::{Choice, Route, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements};

impl Route for Flex {
    fn top_k_gates(logits_te: FlexTensor, choice: Choice) -> FlexTensor {
        if !has_f32_rows(&logits_te) {
            return stock::gates::<Flex>(logits_te, &choice);
        }
        let logits_te = contiguous(logits_te);
        let t = logits_te.shape()[0];
        let gates = on_slices::gates(choice.among(&logits_te));
        from_elements(gates, Shape::new([t, choice.top_k(t)]))
    }

    fn top_k_gates_gradient(
        logits_te: FlexTensor,
        gates_tk: FlexTensor,
        dgates_tk: FlexTensor,
        choice: Choice,
    ) -> FlexTensor {
        if !has_f32_rows(&logits_te) || !all_f32(&[&gates_tk, &dgates_tk]) {
            return stock::gates_gradient::<Flex>(logits_te, gates_tk, dgates_tk, &choice);
        }
        let [logits_te, gates_tk, dgates_tk] = [logits_te, gates_tk, dgates_tk].map(contiguous);
        let chosen = choice.among(&logits_te);
        let dlogits = on_slices::gates_gradient(chosen, elements(&gates_tk), elements(&dgates_tk));
        from_elements(dlogits, logits_te.shape())
    }

    fn router_loss(logits_te: FlexTensor, loss: RouterLoss) -> FlexTensor {
        if !has_f32_rows(&logits_te) {
            return stock::loss::<Flex>(logits_te, &loss);
        }
        let logits_te = contiguous(logits_te);
        let mean = on_slices::loss(elements(&logits_te), logits_te.shape()[1], &loss);
        from_elements(vec![mean as f32], Shape::new([1]))
    }

    fn router_loss_gradient(logits_te: FlexTensor, dloss_1: FlexTensor, loss: RouterLoss) -> FlexTensor {
        if !has_f32_rows(&logits_te) || !all_f32(&[&dloss_1]) {
            return stock::loss_gradient::<Flex>(logits_te, dloss_1, &loss);
        }
        let (logits_te, dloss_1) = (contiguous(logits_te), contiguous(dloss_1));
        let (logits, e) = (elements(&logits_te), logits_te.shape()[1]);
        let dlogits = on_slices::loss_gradient(logits, e, &loss, elements(&dloss_1)[0]);
        from_elements(dlogits, logits_te.shape())
    }
}

impl Choice {
    /// The choice with its logits, `[t, e]`, which are contiguous and not empty.
    fn among<'a>(&'a self, logits_te: &'a FlexTensor) -> Chosen<'a> {
        let [t, e] = logits_te.shape().dims();
        Chosen {
            logits: elements(logits_te),
            expert_ids: &self.expert_ids_tk,
            num_experts: e,
            top_k: self.top_k(t),
            softmax: self.softmax,
        }
    }
}

/// Whether the row loops can run: f32 only, and at least one row.
fn has_f32_rows(logits_te: &FlexTensor) -> bool {
    all_f32(&[logits_te]) && logits_te.shape()[0] > 0
}

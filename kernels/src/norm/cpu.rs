//! Norms on the CPU.

use burn::backend::{Flex, TensorMetadata, flex::FlexTensor};
use burn::tensor::Shape;
use switchyard_kernels_cpu::norm::{self as on_slices, Measure};

use super::{Centre, Norm, NormalizeRows, stock};
use crate::slices::{all_f32, contiguous, elements, from_elements};

impl Norm {
    fn measure(self) -> Measure {
        Measure { centred: self.centre == Centre::Mean, epsilon: self.epsilon as f32 }
    }
}

impl NormalizeRows for Flex {
    fn normalize_rows(x_nd: FlexTensor, scale_d: FlexTensor, norm: Norm) -> FlexTensor {
        flex_normalize(x_nd, scale_d, None, norm)
    }

    fn normalize_rows_with_bias(
        x_nd: FlexTensor,
        scale_d: FlexTensor,
        bias_d: FlexTensor,
        norm: Norm,
    ) -> FlexTensor {
        flex_normalize(x_nd, scale_d, Some(bias_d), norm)
    }

    fn normalize_rows_gradients(
        x_nd: FlexTensor,
        scale_d: FlexTensor,
        dy_nd: FlexTensor,
        norm: Norm,
    ) -> (FlexTensor, FlexTensor) {
        if !has_f32_rows(&x_nd, &scale_d) || !all_f32(&[&dy_nd]) {
            return stock::gradients::<Flex>(x_nd, scale_d, dy_nd, norm);
        }
        let (x_nd, scale_d, dy_nd) = (contiguous(x_nd), contiguous(scale_d), contiguous(dy_nd));
        let (dx, dscale) =
            on_slices::gradients(elements(&x_nd), elements(&scale_d), elements(&dy_nd), norm.measure());
        (from_elements(dx, x_nd.shape()), from_elements(dscale, scale_d.shape()))
    }

    fn sum_rows(dy_nd: FlexTensor) -> FlexTensor {
        if !has_f32_rows(&dy_nd, &dy_nd) {
            return stock::sum_rows::<Flex>(dy_nd);
        }
        let dy_nd = contiguous(dy_nd);
        let width = dy_nd.shape()[1];
        from_elements(on_slices::sum_rows(elements(&dy_nd), width), Shape::new([width]))
    }
}

fn flex_normalize(
    x_nd: FlexTensor,
    scale_d: FlexTensor,
    bias_d: Option<FlexTensor>,
    norm: Norm,
) -> FlexTensor {
    if !has_f32_rows(&x_nd, &scale_d) || bias_d.as_ref().is_some_and(|bias_d| !all_f32(&[bias_d])) {
        return stock::normalize::<Flex>(x_nd, scale_d, bias_d, norm);
    }
    let (x_nd, scale_d, bias_d) = (contiguous(x_nd), contiguous(scale_d), bias_d.map(contiguous));
    let bias = bias_d.as_ref().map(elements);
    let y = on_slices::normalize(elements(&x_nd), elements(&scale_d), bias, norm.measure());
    from_elements(y, x_nd.shape())
}

/// Whether the row loops can run: f32 only, and no rows of width 0.
fn has_f32_rows(x_nd: &FlexTensor, scale_d: &FlexTensor) -> bool {
    all_f32(&[x_nd, scale_d]) && x_nd.shape()[1] > 0
}

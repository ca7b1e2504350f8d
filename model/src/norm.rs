//! The norm before each sub-block and before the head.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use switchyard_kernels::{layer_norm, rms_norm};

use crate::{NormKind, ParameterSource};

/// RMS norm or layer norm over the last dimension.
#[derive(Module, Debug)]
pub struct Norm {
    scale_d: Param<Tensor<1>>,
    bias_d: Option<Param<Tensor<1>>>,
    #[module(skip)]
    kind: NormKind,
}

impl Norm {
    /// A norm that starts as the plain normalisation: scale one, bias zero; `None` if `kind` is none.
    pub fn new(kind: NormKind, width: usize, source: &ParameterSource) -> Option<Self> {
        let has_bias = match kind {
            NormKind::Rms { .. } => false,
            NormKind::Layer { bias, .. } => bias,
            NormKind::Off => return None,
        };
        Some(Self {
            scale_d: Param::from_tensor(source.ones(width)),
            bias_d: has_bias.then(|| Param::from_tensor(source.zeros(width))),
            kind,
        })
    }

    /// Each row normalised.
    ///
    /// # Shapes
    /// - `x_nd`: `[rows, width]`; returns the same
    pub fn forward(&self, x_nd: Tensor<2>) -> Tensor<2> {
        let scale_d = self.scale_d.val();
        match self.kind {
            NormKind::Rms { epsilon } => rms_norm(x_nd, scale_d, epsilon),
            NormKind::Layer { epsilon, .. } => {
                layer_norm(x_nd, scale_d, self.bias_d.as_ref().map(Param::val), epsilon)
            }
            NormKind::Off => x_nd,
        }
    }
}

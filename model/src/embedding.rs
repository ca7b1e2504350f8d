//! Token embedding, the positions that are added to it, and the head's matrix when it is tied.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use switchyard_kernels::embedding;

use crate::{EmbeddingPart, ModelSpec, ParameterSource, PositionKind, Role};

/// Token ids to vectors, with learned or sinusoidal positions added.
#[derive(Module, Debug)]
pub struct Embedding {
    token_vd: Param<Tensor<2>>,
    position_sd: Option<Param<Tensor<2>>>,
    #[module(skip)]
    sinusoidal: bool,
    /// Factor on the rows of tokens.
    #[module(skip)]
    multiplier: f64,
    #[module(skip)]
    padding_id: Option<usize>,
}

impl Embedding {
    /// An embedding with initial values from `source`.
    pub fn new(spec: &ModelSpec, source: &ParameterSource) -> Self {
        let learned = matches!(spec.position, PositionKind::Learned);
        let std = |part| spec.initial_std(Role::Embedding(part));
        Self {
            token_vd: Param::from_tensor(source.normal(
                "embedding.token",
                [spec.vocab_size, spec.d_model],
                std(EmbeddingPart::Token),
            )),
            position_sd: learned.then(|| {
                let shape = [spec.num_positions(), spec.d_model];
                Param::from_tensor(source.normal("embedding.position", shape, std(EmbeddingPart::Position)))
            }),
            sinusoidal: matches!(spec.position, PositionKind::Sinusoidal),
            multiplier: spec.multipliers.embedding,
            padding_id: spec.padding_id,
        }
    }

    /// Vectors of the tokens, positions included.
    ///
    /// # Shapes
    /// - `input_ids_bs`: `[batch, seq]`; returns `[batch * seq, d_model]`
    pub fn forward(&self, input_ids_bs: Tensor<2, Int>) -> Tensor<2> {
        let [b, s] = input_ids_bs.dims();
        let x_td = self.rows(input_ids_bs.reshape([b * s]));
        let d = x_td.dims()[1];
        let Some(position_sd) = self.position_vectors(s, d, &x_td.device()) else {
            return x_td;
        };
        (x_td.reshape([b, s, d]) + position_sd.unsqueeze::<3>()).reshape([b * s, d])
    }

    /// Vectors of one token of each sequence, at its position.
    ///
    /// # Shapes
    /// - `input_ids_b`: `[sequences]`; returns `[sequences, d_model]`
    pub(crate) fn forward_at(&self, input_ids_b: Tensor<1, Int>, positions: &[usize]) -> Tensor<2> {
        let x_bd = self.rows(input_ids_b);
        let ([_, d], device) = (x_bd.dims(), x_bd.device());
        match &self.position_sd {
            Some(position_sd) => {
                let row = |position: &usize| position_sd.val().narrow(0, *position, 1);
                x_bd + Tensor::cat(positions.iter().map(row).collect(), 0)
            }
            None if self.sinusoidal => x_bd + sinusoids(positions.iter().copied(), d, &device),
            None => x_bd,
        }
    }

    /// The rows of these ids. That of the padding token gets no gradient: it is not there to mean
    /// anything.
    fn rows(&self, ids_t: Tensor<1, Int>) -> Tensor<2> {
        let [t] = ids_t.dims();
        let x_td = embedding(self.token_vd.val(), ids_t.clone());
        let x_td = match self.padding_id {
            Some(id) => {
                let is_padding = ids_t.equal_elem(id as i64).reshape([t, 1]).expand(x_td.dims());
                x_td.clone().mask_where(is_padding, x_td.detach())
            }
            None => x_td,
        };
        if self.multiplier == 1.0 { x_td } else { x_td.mul_scalar(self.multiplier) }
    }

    /// The embedding as the head's matrix.
    ///
    /// # Shapes
    /// - returns `[d_model, vocab_size]`
    pub fn head_dv(&self) -> Tensor<2> {
        self.token_vd.val().transpose()
    }

    fn position_vectors(&self, seq_len: usize, d_model: usize, device: &Device) -> Option<Tensor<2>> {
        match &self.position_sd {
            Some(position_sd) => Some(position_sd.val().narrow(0, 0, seq_len)),
            None => self.sinusoidal.then(|| sinusoids(0..seq_len, d_model, device)),
        }
    }
}

/// Element 2i at position p is `sin(p / 10000^(2i/d))`, element 2i+1 the cosine (arXiv:1706.03762,
/// section 3.5).
///
/// # Shapes
/// - returns `[positions, d_model]`
fn sinusoids(positions: impl ExactSizeIterator<Item = usize>, d_model: usize, device: &Device) -> Tensor<2> {
    let value = |position: usize, i: usize| {
        let angle = position as f64 / 10_000f64.powf((i - i % 2) as f64 / d_model as f64);
        if i.is_multiple_of(2) { angle.sin() as f32 } else { angle.cos() as f32 }
    };
    let num_positions = positions.len();
    let values: Vec<f32> =
        positions.flat_map(|position| (0..d_model).map(move |i| value(position, i))).collect();
    Tensor::from_data(TensorData::new(values, [num_positions, d_model]), device)
}

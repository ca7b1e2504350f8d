//! Keys and values that are kept, and attention of the last token to them: inference only, without
//! a gradient.
//!
//! Shape letters: t new tokens, n tokens so far, c tokens that there is room for, h query heads, g
//! key/value heads, d width of a head of queries and keys, v of one of values.

mod autodiff;
mod cpu;
mod stock;
#[cfg(test)]
mod tests;

use burn::backend::{Backend, Dispatch, backend_extension, tensor::FloatTensor};
use burn::tensor::{Device, Tensor};
use switchyard_kernels_cpu::attention::Heads;
use switchyard_kernels_cpu::attention::cached::CacheShape;

use super::operands::{Operands, Parts};
use crate::rotary::RotaryTable;
use crate::tensor_list::TensorList;

/// Keys and values of one sequence in one layer.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    /// Turned by their positions: `[g, d, c]`.
    keys_gdc: Tensor<3>,
    /// `[g, c, v]`.
    values_gcv: Tensor<3>,
    num_tokens: usize,
}

impl KeyValueCache {
    /// Room for `capacity` tokens, of `num_kv_heads` heads with keys of width `d_head` and values of
    /// width `d_value`.
    pub fn new(num_kv_heads: usize, [d_head, d_value]: [usize; 2], capacity: usize, device: &Device) -> Self {
        Self {
            keys_gdc: Tensor::zeros([num_kv_heads, d_head, capacity], device),
            values_gcv: Tensor::zeros([num_kv_heads, capacity, d_value], device),
            num_tokens: 0,
        }
    }

    /// Tokens that are kept.
    pub fn num_tokens(&self) -> usize {
        self.num_tokens
    }

    fn shape(&self) -> CacheShape {
        let ([num_kv_heads, d_head, capacity], [_, _, d_value]) =
            (self.keys_gdc.dims(), self.values_gcv.dims());
        CacheShape { num_kv_heads, capacity, d_head, d_value }
    }

    /// The cache with the next tokens' keys, which with `rotary` are turned by their positions, and
    /// values.
    ///
    /// # Shapes
    /// - `k_tg`: `[t, num_kv_heads * d_head]`; `v_tg`: `[t, num_kv_heads * d_value]`
    ///
    /// # Panics
    /// If the shapes do not fit, or there is no room.
    pub fn append(self, k_tg: Tensor<2>, v_tg: Tensor<2>, rotary: Option<&RotaryTable>) -> Self {
        let (shape, [t, _]) = (self.shape(), k_tg.dims());
        let CacheShape { num_kv_heads: g, capacity, d_head: d, d_value } = shape;
        let num_tokens = self.num_tokens + t;
        assert!(
            k_tg.dims() == [t, g * d] && v_tg.dims() == [t, g * d_value] && num_tokens <= capacity,
            "keys {:?} and values {:?} behind {} tokens do not fit {shape:?}",
            k_tg.dims(),
            v_tg.dims(),
            self.num_tokens,
        );
        assert_table_fits(rotary, num_tokens, d);
        let rotation = rotary.into_iter().flat_map(|table| [table.cos_sp.clone(), table.sin_sp.clone()]);
        let rows = [k_tg, v_tg].into_iter().chain(rotation).map(Tensor::into_dispatch).collect();
        let call = AppendCall { shape, first: self.num_tokens, rotary: rotary.is_some() };
        let (keys, values) = Dispatch::append_to_cache(
            self.keys_gdc.into_dispatch(),
            self.values_gcv.into_dispatch(),
            TensorList::from_vec(rows),
            call,
        );
        Self { keys_gdc: Tensor::from_dispatch(keys), values_gcv: Tensor::from_dispatch(values), num_tokens }
    }

    /// What the last of the kept tokens takes from them all, as [`crate::causal_attention`] has it.
    /// On the CPU these are the same bits.
    ///
    /// # Shapes
    /// - `q_1q`: its queries, `[1, num_heads * d_head]`; `sinks_h`: `[num_heads]`; returns
    ///   `[1, num_heads * d_value]`
    ///
    /// # Panics
    /// If nothing is kept, or the shapes do not fit.
    pub fn attend(
        &self,
        q_1q: Tensor<2>,
        sinks_h: Option<Tensor<1>>,
        heads: Heads,
        rotary: Option<&RotaryTable>,
    ) -> Tensor<2> {
        let shape = self.shape();
        assert!(
            self.num_tokens > 0
                && heads.num_kv_heads == shape.num_kv_heads
                && heads.num_heads.is_multiple_of(shape.num_kv_heads)
                && q_1q.dims() == [1, heads.num_heads * shape.d_head]
                && sinks_h.as_ref().is_none_or(|sinks_h| sinks_h.dims() == [heads.num_heads]),
            "queries {:?} of {heads:?} do not fit {} tokens in {shape:?}",
            q_1q.dims(),
            self.num_tokens,
        );
        assert_table_fits(rotary, self.num_tokens, shape.d_head);
        let operands = Operands {
            q: q_1q.into_dispatch(),
            k: self.keys_gdc.clone().into_dispatch(),
            v: self.values_gcv.clone().into_dispatch(),
            sinks: sinks_h.map(Tensor::into_dispatch),
            rotation: rotary
                .map(|table| [&table.cos_sp, &table.sin_sp].map(|table_sp| table_sp.clone().into_dispatch())),
        };
        let call = CachedCall { heads, parts: operands.parts(), shape, num_tokens: self.num_tokens };
        let inputs = TensorList::from_vec(operands.into_vec());
        Tensor::from_dispatch(Dispatch::cached_attention(inputs, call))
    }
}

fn assert_table_fits(rotary: Option<&RotaryTable>, num_tokens: usize, d: usize) {
    if let Some(table) = rotary {
        let [table_len, half] = table.cos_sp.dims();
        assert!(
            num_tokens <= table_len && d == 2 * half,
            "{num_tokens} positions of head width {d} do not fit a table of {table_len} positions of width {}",
            2 * half,
        );
    }
}

/// What is kept where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AppendCall {
    shape: CacheShape,
    /// Position of the first new token.
    first: usize,
    rotary: bool,
}

/// What the operation does, besides its tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CachedCall {
    heads: Heads,
    parts: Parts,
    shape: CacheShape,
    num_tokens: usize,
}

/// Both operations on one backend.
#[backend_extension(Cube: cfg(feature = "cube"), Flex, Autodiff)]
pub(crate) trait CachedAttention: Backend {
    /// Keys, `[g, d, c]`, and values, `[g, c, v]`, with those of new tokens. `rows` are keys,
    /// `[t, g * d]`, values, `[t, g * v]`, and the tables that keys are turned by, if there are any.
    fn append_to_cache(
        keys_gdc: FloatTensor<Self>,
        values_gcv: FloatTensor<Self>,
        #[extension_type] rows: TensorList<Self>,
        call: AppendCall,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        stock::append::<Self>(keys_gdc, values_gcv, rows, call)
    }

    /// The last token's output, `[1, h * v]`. Tensors in the order of [`Operands::into_vec`], keys
    /// and values as they are kept.
    fn cached_attention(#[extension_type] inputs: TensorList<Self>, call: CachedCall) -> FloatTensor<Self> {
        stock::forward::<Self>(inputs, call)
    }
}

#[cfg(feature = "cube")]
impl CachedAttention for burn_cubecl::CubeBackend {}

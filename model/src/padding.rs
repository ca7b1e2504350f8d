//! Places of a micro-batch that hold no token: no expert takes them, and no router counts them.
//!
//! Shape letters: t places, r places that hold a token, d model width.

use std::sync::Arc;

use burn::tensor::{Device, IndexingUpdateOp, Int, Tensor, TensorData};

/// The places that hold a token, where others are padding.
#[derive(Debug, Clone)]
pub struct RealPlaces {
    rows_r: Tensor<1, Int>,
    token_ids_r: Arc<[u32]>,
    seq_lens: Arc<[usize]>,
}

impl RealPlaces {
    /// The first so many of each row of `seq_len` places; `None` if rows have no padding.
    ///
    /// # Panics
    /// If a row is shorter.
    pub(crate) fn new(
        row_lens: &[usize],
        token_ids_t: &[u32],
        seq_len: usize,
        device: &Device,
    ) -> Option<Self> {
        assert!(row_lens.iter().all(|len| *len <= seq_len), "{row_lens:?} tokens in rows of {seq_len}");
        if row_lens.iter().all(|len| *len == seq_len) {
            return None;
        }
        let of_row = |(row, len): (usize, &usize)| row * seq_len..row * seq_len + len;
        let rows: Vec<usize> = row_lens.iter().enumerate().flat_map(of_row).collect();
        let row_ids: Vec<i32> = rows.iter().map(|&row| row as i32).collect();
        Some(Self {
            rows_r: Tensor::from_data(TensorData::new(row_ids, [rows.len()]), device),
            token_ids_r: rows.iter().map(|&row| token_ids_t[row]).collect(),
            seq_lens: row_lens.into(),
        })
    }

    /// Their token ids, `[num_real]`.
    pub fn token_ids(&self) -> &Arc<[u32]> {
        &self.token_ids_r
    }

    /// Tokens of each sequence.
    pub fn seq_lens(&self) -> &[usize] {
        &self.seq_lens
    }

    /// Their rows of `x_td`: `[num_real, d]`.
    pub(crate) fn gathered(&self, x_td: Tensor<2>) -> Tensor<2> {
        x_td.select(0, self.rows_r.clone())
    }

    /// `x_rd` back in its places among `num_places`, zeros in the others: `[num_places, d]`.
    pub(crate) fn spread(&self, x_rd: Tensor<2>, num_places: usize) -> Tensor<2> {
        let [_, d] = x_rd.dims();
        let zeros_td = Tensor::<2>::zeros([num_places, d], (&x_rd.device(), x_rd.dtype()));
        zeros_td.select_assign(0, self.rows_r.clone(), x_rd, IndexingUpdateOp::Add)
    }
}

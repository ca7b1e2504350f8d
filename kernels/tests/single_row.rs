//! A single row has the bits that it has among others, whichever way its matrix lies.

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_kernels::{Compute, linear};

fn values(len: usize, shape: [usize; 2]) -> Tensor<2> {
    let values: Vec<f32> = (0..len).map(|i| ((i * 7919 % 1009) as f32 / 331.0).sin()).collect();
    Tensor::from_data(TensorData::new(values, shape), &Device::flex())
}

fn bits(rows: Tensor<2>) -> Vec<u32> {
    rows.into_data().iter::<f32>().map(f32::to_bits).collect()
}

#[test]
fn a_single_row_has_the_bits_that_it_has_among_others() {
    for compute in [Compute::F32, Compute::Bf16] {
        check(compute);
    }
}

fn check(compute: Compute) {
    for [k, n] in [[1, 1], [7, 5], [255, 300], [300, 130], [512, 512], [513, 1500], [1536, 500], [40, 4000]] {
        let x_td = values(3 * k, [3, k]);
        for w_df in [values(k * n, [k, n]), values(k * n, [n, k]).transpose()] {
            let together = bits(linear(x_td.clone(), w_df.clone(), None, compute));
            for row in 0..3 {
                let alone = bits(linear(x_td.clone().narrow(0, row, 1), w_df.clone(), None, compute));
                assert!(alone == together[row * n..][..n], "row {row} of {k} x {n}, {compute:?}");
            }
        }
    }
}

//! Routing data on the host.

use burn::tensor::{Element, Tensor};

/// The values of a matrix, row-major.
///
/// # Panics
/// If the device does not return them.
pub(crate) fn read_to_host<E: Element>(values: &Tensor<2>) -> Vec<E> {
    // A device that cannot return a tensor is lost: burn's own operations panic on it too.
    values
        .try_to_vec_as::<E>()
        .unwrap_or_else(|error| panic!("the device did not return routing data: {error}"))
}

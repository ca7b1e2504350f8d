//! A published model as a network.

use burn::tensor::{Device, Tensor, TensorData};
use switchyard_hub::{HubError, Located, PublishedModel};
use switchyard_model::{ModelSpec, Transformer, update_parameters};

/// The network with every parameter of `published`, of which one at a time is read.
///
/// # Errors
/// If a tensor is missing, superfluous, of another shape, cannot be read, or holds what is no finite
/// number.
pub fn imported_network(
    published: &PublishedModel,
    located: &Located,
    spec: &ModelSpec,
    device: &Device,
) -> Result<Transformer, HubError> {
    let mut failure = None;
    let network = update_parameters(Transformer::new(spec, 0, device), |name, _, initial_n| {
        if failure.is_some() {
            return initial_n;
        }
        match published.values(located, name) {
            Ok(values) => Tensor::from_data(TensorData::new(values, initial_n.dims()), &initial_n.device()),
            Err(error) => {
                failure = Some(error);
                initial_n
            }
        }
    });
    failure.map_or(Ok(network), Err)
}

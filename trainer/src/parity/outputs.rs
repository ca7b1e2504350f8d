//! Logits, residual streams and routing.

use burn::tensor::Device;
use switchyard_experts::Route;
use switchyard_hub::{HubError, TensorFiles};
use switchyard_model::{Pass, Transformer};
use switchyard_router::RouterConfig;

use super::{Inputs, Parity, max_abs, max_difference, raise, reference, values};
use crate::flight::chosen_gates;

pub(super) fn compare_outputs(
    network: &Transformer,
    inputs: &Inputs,
    io: &TensorFiles,
    device: &Device,
    parity: &mut Parity,
) -> Result<(), HubError> {
    let input = inputs.upload(device);
    let (streams, output) = network.forward_with_streams(&input, Pass::Evaluation);
    let logits = values(network.logits(output.hidden_td.clone()));
    if let Some(expected) = reference(io, "logits", logits.len())? {
        parity.logits_max_abs = Some(max_abs(&expected));
        parity.logits_max_abs_diff = Some(max_difference(&logits, &expected));
    }
    let last = streams.len();
    let hidden = streams.into_iter().chain([output.hidden_td]).enumerate();
    for (index, stream_td) in hidden {
        // The stream before the head's norm is in no reference: its last is what the head reads.
        let number = if index == last {
            last - 1
        } else if index == last - 1 {
            continue;
        } else {
            index
        };
        let stream = values(stream_td);
        if let Some(expected) = reference(io, &format!("hidden.{number}"), stream.len())? {
            raise(&mut parity.hidden_max_abs_diff, max_difference(&stream, &expected));
        }
    }
    if output.moe_layers.is_empty() {
        parity.routing_mismatches = Some(0); // There is nothing to route.
    }
    for (layer, aux) in &output.moe_layers {
        if let (Some(route), Some(moe)) = (&aux.route, network.moe(*layer)) {
            compare_routing(*layer, (moe.router.config(), route), io, parity)?;
        }
    }
    Ok(())
}

/// The gate's logits, the experts of each token, and their weights.
fn compare_routing(
    layer: usize,
    (router, route): (&RouterConfig, &Route),
    io: &TensorFiles,
    parity: &mut Parity,
) -> Result<(), HubError> {
    let name = format!("router_logits.{layer}");
    if let Some(expected) = reference(io, &name, route.logits_te.len())? {
        let logits: Vec<f32> = route.logits_te.iter().map(|logit| *logit as f32).collect();
        raise(&mut parity.router_logits_max_abs_diff, max_difference(&logits, &expected));
    }
    let name = format!("topk_index.{layer}");
    if io.shape(&name).is_none() {
        return Ok(());
    }
    let k = route.choice.slots_per_token;
    let num_tokens = route.choice.expert_ids_tk.len() / k;
    let expected = io.read_integers(&name)?;
    let weights = reference(io, &format!("topk_weight.{layer}"), num_tokens * k)?;
    for (token, experts) in expected.chunks(k).enumerate() {
        let ours = chosen_gates(router, route, num_tokens, token);
        let gate_of =
            |expert: &i64| ours.iter().find(|(id, _)| i64::from(*id) == *expert).map(|(_, gate)| *gate);
        *parity.routed_tokens.get_or_insert(0) += 1;
        match experts.iter().map(gate_of).collect::<Option<Vec<f32>>>() {
            Some(gates) if gates.len() == ours.len() => {
                if let Some(weights) = &weights {
                    raise(&mut parity.gates_max_abs_diff, max_difference(&gates, &weights[token * k..][..k]));
                }
                parity.routing_mismatches.get_or_insert(0);
            }
            _ => *parity.routing_mismatches.get_or_insert(0) += 1,
        }
    }
    Ok(())
}

//! Attention heads whose logits are made smaller by their weights (QK-clip).

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData};

use crate::{AttentionPart, AttentionSpec, MixerSpec, Role, Transformer, update_parameters};

/// The network in which the logits of each attention head are `factors` times what they were, by
/// layer and head (Kimi K2, arXiv:2507.20534, algorithm 1).
///
/// A head's queries and its keys take the root of its factor each. Where heads share keys, or latent
/// attention's channels that are turned, its queries take the whole factor, and no other head
/// changes. Biases are scaled with the matrices.
///
/// # Panics
/// If a layer has no attention, or another number of heads.
pub fn with_scaled_logits(model: Transformer, factors: &BTreeMap<usize, Vec<f64>>) -> Transformer {
    let scales: BTreeMap<(usize, AttentionPart), Vec<f32>> = factors
        .iter()
        .flat_map(|(layer, factors)| {
            let spec = attention_of(&model, *layer);
            assert_eq!(factors.len(), spec.num_heads, "factors of the heads in layer {layer}");
            let parts = [AttentionPart::Query, AttentionPart::Key, AttentionPart::KeyValue];
            parts.map(|part| ((*layer, part), column_scales(spec, part, factors)))
        })
        .filter_map(|(place, scales)| Some((place, scales?)))
        .collect();
    update_parameters(model, |name, _, value_n| {
        let (Some(layer), Role::Attention(part, _)) = (name.layer, name.role) else { return value_n };
        let Some(scales) = scales.get(&(layer, part)) else { return value_n };
        let ([len], width) = (value_n.dims(), scales.len());
        let scales_1o = TensorData::new(scales.clone(), [1, width]);
        let scales_1o = Tensor::<2>::from_data(scales_1o, (&value_n.device(), value_n.dtype()));
        (value_n.reshape([len / width, width]) * scales_1o).reshape([len])
    })
}

fn attention_of(model: &Transformer, layer: usize) -> &AttentionSpec {
    match model.spec().layers.get(layer).map(|layer| &layer.mixer) {
        Some(MixerSpec::Attention(attention)) => attention,
        _ => panic!("layer {layer} has no attention"),
    }
}

/// What each column of a projection is multiplied by; `None` if it stays as it is.
fn column_scales(spec: &AttentionSpec, part: AttentionPart, factors: &[f64]) -> Option<Vec<f32>> {
    let shares_keys = spec.num_kv_heads < spec.num_heads;
    // The channels of a head: how many take the root of its factor, all of it, and none.
    let [roots, whole, same] = match (&spec.latent, part) {
        (None, AttentionPart::Query) if shares_keys => [0, spec.d_head, 0],
        (None, AttentionPart::Query) => [spec.d_head, 0, 0],
        (None, AttentionPart::Key) if !shares_keys => [spec.d_head, 0, 0],
        (Some(latent), AttentionPart::Query) => [spec.d_head - latent.d_rope, latent.d_rope, 0],
        // A head's values lie behind its keys.
        (Some(latent), AttentionPart::KeyValue) => [spec.d_head - latent.d_rope, 0, latent.d_value],
        _ => return None,
    };
    let of_head = |&factor: &f64| {
        let scales = [(factor.sqrt(), roots), (factor, whole), (1.0, same)];
        scales.into_iter().flat_map(|(scale, number)| std::iter::repeat_n(scale as f32, number))
    };
    Some(factors.iter().flat_map(of_head).collect())
}

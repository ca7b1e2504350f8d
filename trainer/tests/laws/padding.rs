//! Laws of sequences that end in padding: it is routed nowhere and counts nowhere.

use burn::tensor::Device;
use switchyard_datasets::TokenBatch;
use switchyard_model::{ModelInput, Pass, PassOptions, Transformer, parameter_data};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::optimizer::Optimizer;
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::step::{StepMeasurements, StepSettings, step_gradients};

use crate::routers::{ROUTERS, config, model};
use crate::tiny;

const SEQ_LEN: usize = 8;
/// Tokens of the two sequences.
const LENS: [usize; 2] = [7, 5];

/// Two sequences of one document each, with `padding` behind it.
fn batch(padding: i32) -> TokenBatch {
    let place = |index: usize| (index / SEQ_LEN, index % SEQ_LEN);
    let is_real = |index: usize| place(index).1 < LENS[place(index).0];
    let places = 0..LENS.len() * SEQ_LEN;
    let id = |index: usize| if is_real(index) { (index as i32 * 11 + 3) % 32 } else { padding };
    TokenBatch {
        input_ids: places.clone().map(id).collect(),
        target_ids: places.clone().map(|index| if is_real(index) { id(index) } else { 0 }).collect(),
        segment_ids: Some(places.clone().map(|index| i32::from(!is_real(index))).collect()),
        target_mask: Some(places.map(is_real).collect()),
        row_lens: Some(LENS.to_vec()),
        follows: false,
        domains: vec![0, 1],
        source_ids_b: vec![0; LENS.len()],
        num_sequences: LENS.len(),
        seq_len: SEQ_LEN,
    }
}

/// The parameters after a step on a batch with this `padding`, as bits, and what it measured.
fn stepped(config: &RunConfig, padding: i32) -> (Vec<Vec<u32>>, StepMeasurements) {
    let device = Device::flex();
    let plan = RunPlan::resolve(config).unwrap();
    let network = Transformer::new(&plan.model, config.seed, &device.clone().autodiff());
    let settings = StepSettings {
        seed: 1,
        step: 0,
        max_grad_norm: None,
        head_z_weight: None,
        options: PassOptions::default(),
        state: None,
    };
    let (gradients, measured) = step_gradients(&network, vec![batch(padding)], &settings, &device).unwrap();
    let network = Optimizer::new(&config.train, &plan.model).update(network, gradients, 1e-2);
    let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
    let parameters = parameter_data(&network).into_iter();
    (parameters.map(|named| bits(named.value.try_into_vec::<f32>().unwrap())).collect(), measured)
}

#[test]
fn which_token_pads_makes_no_difference_to_any_router() {
    let routed = ROUTERS.into_iter().filter(|(name, _)| *name != "soft");
    let kinds = routed.map(|(name, router)| (name, config(router))).chain([("capacity", tiny::moe())]);
    for (name, mut config) in kinds {
        config.train.seq_len = SEQ_LEN;
        let [(parameters, measured), (same_parameters, same)] = [0, 31].map(|id| stepped(&config, id));
        assert!(parameters == same_parameters, "{name}: parameters");
        assert_eq!(measured.total_loss, same.total_loss, "{name}");
        assert_eq!(measured.routing, same.routing, "{name}");
        assert_eq!(measured.balance, same.balance, "{name}");
        for (_, statistics) in &measured.routing {
            let load: u64 = statistics.tokens_per_expert().iter().sum();
            let top_k = config.model.ffn.moe.as_ref().unwrap().router.top_k;
            let expected = (top_k * LENS.iter().sum::<usize>()) as u64;
            assert!(
                load == expected
                    || ["expert_choice", "token_rounding"].contains(&name)
                    || name.starts_with("gshard"),
                "{name}: {load}"
            );
        }
        let pass = &measured.passes[0];
        assert_eq!(pass.token_ids_t.len(), LENS.iter().sum::<usize>());
        assert_eq!(pass.domains_of_tokens().collect::<Vec<_>>(), [[0; 7].as_slice(), &[1; 5]].concat());
    }
}

#[test]
fn a_padded_batch_is_its_sequences_without_padding() {
    for scope in ["micro_batch", "sequence"] {
        let router = format!(
            "top_k = 2\nload_balancing_weight = 0.01\nload_balancing_scope = \"{scope}\"\nz_loss_weight = 0.001"
        );
        let mut config = config(&router);
        (config.train.seq_len, config.model.dropout) = (SEQ_LEN, 0.0);
        let network = model(&config);
        let padded = batch(9);
        let forward = |input: ModelInput| {
            let noise = switchyard_model::StepNoise::new(1, 0, 0);
            network.forward(&input, Pass::training(noise))
        };
        let upload = |ids: &[i32], segments: Option<Vec<i32>>, shape| {
            ModelInput::upload(ids.to_vec(), segments, shape, &Device::flex())
        };
        let together =
            forward(upload(&padded.input_ids, padded.segment_ids.clone(), [2, SEQ_LEN]).with_padding(&LENS));
        let alone = [0, 1].map(|row| {
            let ids = &padded.input_ids[row * SEQ_LEN..][..LENS[row]];
            forward(upload(ids, None, [1, LENS[row]]))
        });
        for row in [0, 1] {
            let hidden = together.hidden_td.clone().narrow(0, row * SEQ_LEN, LENS[row]);
            let difference = (hidden - alone[row].hidden_td.clone()).abs().max().into_scalar::<f32>();
            assert!(difference < 1e-5, "row {row}: {difference}");
        }
        for layer in [0, 1] {
            let all = &together.moe_layers[layer].1;
            let parts = alone.each_ref().map(|output| &output.moe_layers[layer].1);
            let mut merged = parts[0].statistics.clone();
            merged.merge(&parts[1].statistics);
            assert_eq!(all.statistics.tokens_per_expert(), merged.tokens_per_expert());
            let entropies = [&all.statistics, &merged].map(|of| of.gate_entropy_nats());
            assert!((entropies[0] - entropies[1]).abs() < 1e-6, "{entropies:?}");
            for (index, loss) in all.losses.iter().enumerate() {
                let value = |loss: &switchyard_router::AuxLoss| loss.value_1.clone().into_scalar::<f32>();
                let of_parts = parts.map(|part| value(&part.losses[index]));
                let expected = match (loss.kind, scope) {
                    (switchyard_router::AuxLossKind::RouterZ, _) => {
                        (7.0 * of_parts[0] + 5.0 * of_parts[1]) / 12.0
                    }
                    (_, "sequence") => 0.5 * (of_parts[0] + of_parts[1]),
                    // Loads of both times probabilities of both is no mean of the two.
                    _ => continue,
                };
                assert!((value(loss) - expected).abs() < 1e-5 * expected.abs(), "{:?}", loss.kind);
            }
        }
    }
}

#[test]
fn packed_documents_are_not_mixed_softly() {
    let mut config = config("top_k = 2\nselection = { soft = {} }");
    config.data.packing = switchyard_datasets::Packing::BestFit;
    let message = RunPlan::resolve(&config).unwrap_err().to_string();
    assert!(message.contains("`data.packing` is \"best_fit\"") && message.contains("soft"), "{message}");
}

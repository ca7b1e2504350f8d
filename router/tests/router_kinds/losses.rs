//! Values of the losses: against the oracle, over every scope, and at their bounds.

use burn::tensor::{DType, Tensor};
use switchyard_router::{AuxLossKind, RouterConfig, RouterInput, RouterPass, Routing, Sequences};

use crate::case::{Kind, Values, chosen, config, kinds, route, tensor, training, values};
use crate::oracle;

fn loss(routing: &Routing, kind: AuxLossKind) -> Option<f64> {
    let loss = routing.losses.iter().find(|loss| loss.kind == kind)?;
    Some(loss.value_1.clone().into_scalar())
}

fn choices(routing: &Routing) -> Vec<Vec<usize>> {
    let ids = |slots: &Vec<(u32, f64)>| slots.iter().map(|(id, _)| *id as usize).collect();
    chosen(routing).iter().map(ids).collect()
}

/// The same router with another scope.
fn with_scope(kind: &Kind, scope: &str) -> Kind {
    let mut json = serde_json::to_value(&kind.config).unwrap();
    json["load_balancing_scope"] = scope.into();
    Kind { config: serde_json::from_value(json).unwrap(), ..kind.clone() }
}

/// Routers whose losses are functions of the input alone.
fn balanced_by_loss() -> Vec<Kind> {
    let repeats = |kind: &Kind| kind.config.jitter.is_none() && kind.config.load_balancing_weight.is_some();
    kinds().into_iter().filter(repeats).collect()
}

/// Sums of some dozen terms of size 1 in f64.
#[track_caller]
fn assert_loss(kind: &Kind, actual: Option<f64>, expected: f64) {
    let actual = actual.unwrap();
    assert!((actual - expected).abs() < 1e-12, "{}: {actual} instead of {expected}", kind.name);
}

#[test]
fn losses_are_those_of_the_papers() {
    for kind in kinds().iter().filter(|kind| kind.config.learns() && kind.config.jitter.is_none()) {
        let kind = with_scope(kind, "micro_batch");
        let values_ = Values::random(&kind, 9, 41);
        let routing = route(&kind, &values_, training(41));
        let (config, choices) = (&kind.config, choices(&routing));
        let flat = values(&routing.logits_te.clone().unwrap());
        let logits: Vec<Vec<f64>> = flat.chunks(kind.num_experts).map(<[f64]>::to_vec).collect();
        let kinds_given: Vec<AuxLossKind> = routing.losses.iter().map(|loss| loss.kind).collect();
        for kind_of_loss in kinds_given {
            let expected = match kind_of_loss {
                AuxLossKind::LoadBalancing => {
                    oracle::load_balancing(config, &logits, &oracle::loads(&choices, kind.num_experts))
                }
                AuxLossKind::RouterZ => oracle::z_loss(&logits),
                AuxLossKind::GateEntropy => oracle::entropy(config, &logits),
                AuxLossKind::Importance => oracle::importance(config, &logits, &choices),
                // Its own test compares it with the closed form.
                AuxLossKind::Load => continue,
            };
            assert_loss(&kind, loss(&routing, kind_of_loss), expected);
        }
    }
}

#[test]
fn a_loss_is_there_exactly_if_it_has_a_weight_and_the_router_trains() {
    for kind in kinds() {
        let values = Values::random(&kind, 4, 42);
        let given = |json: &serde_json::Value, key: &str| json[key].is_number();
        let json = serde_json::to_value(&kind.config).unwrap();
        let noisy = &json["selection"]["noisy"];
        let routing = route(&kind, &values, training(42));
        for (kind_of_loss, is_given) in [
            (AuxLossKind::LoadBalancing, given(&json, "load_balancing_weight")),
            (AuxLossKind::RouterZ, given(&json, "z_loss_weight")),
            (AuxLossKind::GateEntropy, given(&json, "entropy_weight")),
            (AuxLossKind::Importance, given(noisy, "importance_weight")),
            (AuxLossKind::Load, given(noisy, "load_weight")),
        ] {
            assert_eq!(loss(&routing, kind_of_loss).is_some(), is_given, "{}: {kind_of_loss:?}", kind.name);
        }
        for pass in [RouterPass::Evaluation, RouterPass::Generation] {
            let routing = route(&kind, &values, pass);
            assert!(routing.losses.is_empty() && routing.balance.is_none(), "{}", kind.name);
        }
    }
}

#[test]
fn the_sequence_scope_is_the_mean_over_sequences() {
    for kind in balanced_by_loss() {
        let kind = with_scope(&kind, "sequence");
        let values = Values::random(&kind, 7, 43);
        let routing = route(&kind, &values, training(43));
        let (choices, logits) = (choices(&routing), oracle::logits(&kind, &values));
        let of_sequence = |range: std::ops::Range<usize>| {
            let loads = oracle::loads(&choices[range.clone()], kind.num_experts);
            oracle::load_balancing(&kind.config, &logits[range], &loads)
        };
        let expected = (of_sequence(0..7) + of_sequence(7..14)) / 2.0;
        assert_loss(&kind, loss(&routing, AuxLossKind::LoadBalancing), expected);
    }
}

/// Loads add up over the step's micro-batches; probabilities are the micro-batch's own
/// (arXiv:2501.11873, section 3).
#[test]
fn the_global_scope_counts_the_earlier_micro_batches_loads() {
    for kind in balanced_by_loss() {
        let kind = with_scope(&kind, "global_batch");
        let (first, second) = (Values::random(&kind, 5, 44), Values::random(&kind, 5, 45));
        let earlier = route(&kind, &first, training(44));
        let RouterPass::Training { noise, .. } = training(45) else { panic!("a training pass") };
        let pass = RouterPass::Training { noise, earlier_tokens_per_expert: earlier.tokens_per_expert() };
        let routing = route(&kind, &second, pass);
        let summed: Vec<u64> = earlier
            .tokens_per_expert()
            .iter()
            .zip(oracle::loads(&choices(&routing), kind.num_experts))
            .map(|(earlier, now)| earlier + now)
            .collect();
        let expected = oracle::load_balancing(&kind.config, &oracle::logits(&kind, &second), &summed);
        assert_loss(&kind, loss(&routing, AuxLossKind::LoadBalancing), expected);

        let alone = with_scope(&kind, "micro_batch");
        let first_again = route(&alone, &first, training(44));
        let first_alone = loss(&first_again, AuxLossKind::LoadBalancing);
        assert_eq!(loss(&earlier, AuxLossKind::LoadBalancing), first_alone, "nothing came before the first");
    }
}

/// The routing of tokens whose logits are these: the gate matrix is the identity.
fn route_logits(logits_te: &[f64], num_experts: usize, config: &RouterConfig, dtype: DType) -> Routing {
    let identity: Vec<f64> = (0..num_experts * num_experts)
        .map(|i| f64::from(u8::from(i / num_experts == i % num_experts)))
        .collect();
    let square = [num_experts, num_experts];
    let gate = switchyard_router::GateWeights::linear(tensor(&identity, square, dtype));
    let x_td: Tensor<2> = tensor(logits_te, [logits_te.len() / num_experts, num_experts], dtype);
    let seq_len = x_td.dims()[0];
    let input =
        RouterInput { x_td, token_ids_t: &[], sequences: Sequences::OfLen(seq_len), pass: training(0) };
    config.init(num_experts, gate).forward(input)
}

/// With the scores divided by their sum plus 1e-20, a router could lower the loss below its bound
/// by pushing all scores far down (NVIDIA/Megatron-LM#1545). Here the bound holds however low they
/// are, and there is no gain in going there.
#[test]
fn megatron_lm_1545_low_sigmoid_scores_do_not_lower_the_balancing_loss() {
    let sigmoid =
        config(r#"{"top_k": 1, "renormalise": false, "sigmoid": {}, "load_balancing_weight": 1.0}"#);
    for dtype in [DType::F32, DType::F64] {
        for low in [0.0, -30.0, -60.0, -120.0, -1e4] {
            let balanced = [low + 2.0, low, low, low + 2.0].map(|x| x as f32 as f64);
            let at_balance = route_logits(&balanced, 2, &sigmoid, dtype);
            let value = loss(&at_balance, AuxLossKind::LoadBalancing).unwrap();
            // Two f32 shares of one token add up to 1 within two roundings.
            assert!((value - 1.0).abs() < 3e-7, "{value} at {low}");

            let collapsed = [low + 2.0, low, low + 1.0, low - 1.0].map(|x| x as f32 as f64);
            let value =
                loss(&route_logits(&collapsed, 2, &sigmoid, dtype), AuxLossKind::LoadBalancing).unwrap();
            assert!(value > 1.2, "{value} at {low}");
        }
    }
}

/// Where sigmoids are tiny they are exponentials, and their shares no longer depend on how low all
/// logits are: the gradient along a common shift vanishes instead of pointing down.
#[test]
fn megatron_lm_1545_there_is_no_gradient_towards_lower_scores() {
    let sigmoid = config(r#"{"top_k": 2, "sigmoid": {}, "load_balancing_weight": 1.0}"#);
    let low = [-90.0, -92.0, -91.0, -95.0, -90.5, -93.0];
    let routing = route_logits(&low, 3, &sigmoid, DType::F64);
    let logits_te = routing.logits_te.clone().unwrap();
    let gradients = routing.losses[0].value_1.clone().backward();
    let gradient = values(&logits_te.grad(&gradients).unwrap_or_else(|| logits_te.zeros_like()));
    for row in gradient.chunks(3) {
        assert!(row.iter().sum::<f64>().abs() < 1e-12, "{gradient:?}");
    }
}

/// The loss's extremes: 1 where the experts' loads are even, E / k where all tokens are sure of the
/// same k experts.
#[test]
fn the_balancing_loss_is_one_at_balance_and_e_over_k_at_collapse() {
    for json in [
        r#"{"top_k": 2, "load_balancing_weight": 1.0}"#,
        r#"{"top_k": 2, "sigmoid": {}, "load_balancing_weight": 1.0}"#,
        r#"{"top_k": 2, "load_balancing_weight": 1.0, "load_balancing_scope": "global_batch"}"#,
    ] {
        let config = config(json);
        let even = [2.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 2.0];
        let at_balance = route_logits(&even, 4, &config, DType::F64);
        assert!((loss(&at_balance, AuxLossKind::LoadBalancing).unwrap() - 1.0).abs() < 1e-12, "{json}");
        let sure = [50.0, 50.0, -50.0, -50.0].repeat(3);
        let collapsed = route_logits(&sure, 4, &config, DType::F64);
        assert!((loss(&collapsed, AuxLossKind::LoadBalancing).unwrap() - 2.0).abs() < 1e-12, "{json}");
    }
}

#[test]
fn a_gate_entropy_lies_between_none_and_ln_e() {
    let config = config(r#"{"top_k": 2, "entropy_weight": 1.0}"#);
    let entropy = |logits_te: &[f64]| {
        loss(&route_logits(logits_te, 4, &config, DType::F64), AuxLossKind::GateEntropy).unwrap()
    };
    assert!((entropy(&[0.0; 8]) - 4.0_f64.ln()).abs() < 1e-12);
    assert_eq!(entropy(&[1e4, 0.0, 0.0, -1e4]), 0.0);
}

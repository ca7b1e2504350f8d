//! What every router keeps, whatever its input.

use burn::tensor::{DType, Device, Distribution, Tensor};
use proptest::prelude::*;
use switchyard_router::{ExpertGroups, RouterPass, Routing, Selection, SoftmaxOrder};

use crate::case::{D, Kind, Values, chosen, kinds, route, route_with, router, training};

/// One of the routers, up to 24 tokens, weights of a size from undecided to sure.
fn any_case() -> impl Strategy<Value = (Kind, Values)> {
    (prop::sample::select(kinds()), 1_usize..=12, any::<u32>(), 0.01..30.0_f64).prop_map(
        |(kind, seq_len, seed, scale)| {
            let mut values = Values::random(&kind, seq_len, seed.into());
            values.weight_de.iter_mut().for_each(|weight| *weight *= scale);
            (kind, values)
        },
    )
}

fn passes() -> [RouterPass<'static>; 3] {
    [training(61), RouterPass::Evaluation, RouterPass::Generation]
}

fn is_expert_choice(kind: &Kind, pass: RouterPass<'_>) -> bool {
    matches!(kind.config.selection, Selection::ExpertChoice(_)) && pass != RouterPass::Generation
}

fn sum_to_one(kind: &Kind) -> bool {
    let softmax = kind.config.renormalise || kind.config.softmax == SoftmaxOrder::AfterSelection;
    !kind.config.learns() || (softmax && !matches!(kind.config.selection, Selection::ExpertChoice(_)))
}

/// The routing of the first `num_tokens` tokens alone, as one sequence.
fn prefix(kind: &Kind, values: &Values, num_tokens: usize, pass: RouterPass<'_>) -> Routing {
    let mut prefix = values.clone();
    prefix.x_td.truncate(num_tokens * D);
    prefix.token_ids_t.truncate(num_tokens);
    prefix.seq_len = num_tokens;
    route(kind, &prefix, pass)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_token_goes_to_distinct_experts_that_exist((kind, values) in any_case()) {
        for pass in passes() {
            let routing = route(&kind, &values, pass);
            for slots in chosen(&routing) {
                let mut ids: Vec<u32> = slots.iter().map(|(id, _)| *id).collect();
                let num_slots = ids.len();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), num_slots);
                prop_assert!(ids.iter().all(|&id| (id as usize) < kind.num_experts));
            }
        }
    }

    #[test]
    fn gates_are_shares((kind, values) in any_case()) {
        let scaling = kind.config.sigmoid.as_ref().map_or(1.0, |sigmoid| sigmoid.routed_scaling);
        for pass in passes() {
            let routing = route(&kind, &values, pass);
            let gates = crate::case::values(&routing.gates_tk);
            prop_assert!(gates.iter().all(|gate| (0.0..=scaling * (1.0 + 1e-12)).contains(gate)));
            // Both experts of a random second share one, also where the second is dropped.
            if sum_to_one(&kind) {
                for gates in gates.chunks(routing.choice.slots_per_token) {
                    let sum = gates.iter().sum::<f64>() / scaling;
                    prop_assert!((sum - 1.0).abs() < 1e-12, "{}: {}", kind.name, sum);
                }
            }
        }
    }

    #[test]
    fn every_choice_is_counted_once((kind, values) in any_case()) {
        let top_k = kind.config.top_k;
        for pass in passes() {
            let routing = route(&kind, &values, pass);
            let slots = chosen(&routing);
            let mut loads = vec![0_u64; kind.num_experts];
            slots.iter().flatten().for_each(|(id, _)| loads[*id as usize] += 1);
            prop_assert_eq!(routing.tokens_per_expert(), &loads);
            if is_expert_choice(&kind, pass) {
                prop_assert!(loads.iter().all(|&load| load == loads[0]), "an expert took more: {:?}", loads);
            } else if routing.choice.keep_tk.is_none() {
                prop_assert!(slots.iter().all(|slots| slots.len() == top_k));
            } else {
                prop_assert!(slots.iter().all(|slots| (1..=2).contains(&slots.len())));
            }
        }
    }

    #[test]
    fn a_token_stays_within_its_groups((kind, values) in any_case()) {
        let Some(ExpertGroups { num_groups, top_groups, .. }) = kind.config.groups else { return Ok(()) };
        for pass in passes() {
            for slots in chosen(&route(&kind, &values, pass)) {
                let mut groups: Vec<u32> =
                    slots.iter().map(|(id, _)| id / (kind.num_experts / num_groups) as u32).collect();
                groups.sort_unstable();
                groups.dedup();
                prop_assert!(groups.len() <= top_groups, "{}", kind.name);
            }
        }
    }

    #[test]
    fn no_token_depends_on_a_later_one_where_text_is_generated((kind, values) in any_case(), cut in 0.0..1.0_f64) {
        let num_tokens = 1 + (cut * values.num_tokens() as f64) as usize;
        let num_tokens = num_tokens.min(values.num_tokens());
        let causal = if kind.config.is_causal() { RouterPass::Evaluation } else { RouterPass::Generation };
        for pass in [causal, RouterPass::Generation] {
            let all = chosen(&route(&kind, &values, pass));
            let alone = chosen(&prefix(&kind, &values, num_tokens, pass));
            prop_assert_eq!(&all[..num_tokens], &alone[..], "{}", kind.name);
        }
    }

    /// Also in another thread, and after the device's own generator has moved on.
    #[test]
    fn the_same_noise_gives_the_same_routing((kind, values) in any_case()) {
        let one = route(&kind, &values, training(62));
        let _: Tensor<1> = Tensor::random([9], Distribution::Default, &Device::flex());
        let other = std::thread::scope(|scope| {
            scope.spawn(|| route(&kind, &values, training(62))).join().unwrap()
        });
        prop_assert_eq!(&one.choice, &other.choice);
        prop_assert_eq!(crate::case::values(&one.gates_tk), crate::case::values(&other.gates_tk));
        for (a, b) in one.losses.iter().zip(&other.losses) {
            prop_assert_eq!(crate::case::values(&a.value_1), crate::case::values(&b.value_1));
        }
    }

    /// The choice and the statistics are made in blocks of tokens, in parallel.
    #[test]
    fn routing_together_is_routing_alone((kind, values) in any_case()) {
        if !kind.config.is_causal() || matches!(kind.config.selection, Selection::Random {} | Selection::ForcedUniform {}) {
            return Ok(());
        }
        let router = router(&kind, &values, DType::F64);
        let together = chosen(&route_with(&router, &values, values.x_td(DType::F64), RouterPass::Evaluation));
        for (token, together) in together.iter().enumerate() {
            let mut alone = values.clone();
            alone.x_td = values.x_td[token * D..(token + 1) * D].to_vec();
            alone.token_ids_t = vec![values.token_ids_t[token]];
            alone.seq_len = 1;
            let alone = chosen(&route_with(&router, &alone, alone.x_td(DType::F64), RouterPass::Evaluation));
            prop_assert_eq!(&alone[0], together);
        }
    }

    /// Sinkhorn's plan keeps the columns' sums: what raises an expert for all tokens alike does not
    /// move it.
    #[test]
    fn sinkhorn_ignores_what_raises_an_expert_for_all_tokens(seed in any::<u32>(), favour in -2.0..2.0_f64) {
        let kind = crate::case::kind("sinkhorn");
        let mut values = Values::random(&kind, 12, seed.into());
        values.x_td.iter_mut().step_by(D).for_each(|first| *first = 1.0);
        let plain = route(&kind, &values, training(63));
        values.weight_de[3] += favour;
        prop_assert_eq!(plain.choice, route(&kind, &values, training(63)).choice);
    }

    /// Hash routing reads ids and nothing else.
    #[test]
    fn a_hash_depends_on_the_token_id_alone(seed in any::<u32>()) {
        let kind = crate::case::kind("hash");
        let values = Values::random(&kind, 6, seed.into());
        let mut other = Values::random(&kind, 6, u64::from(seed) + 1);
        other.token_ids_t = values.token_ids_t.clone();
        prop_assert_eq!(
            chosen(&route(&kind, &values, training(64))),
            chosen(&route(&kind, &other, RouterPass::Evaluation))
        );
    }
}

/// 24 tokens and 16 seeds: that all draws give one routing by chance is out of the question.
#[test]
fn other_noise_gives_other_routing_where_the_router_draws_and_nowhere_else() {
    const DRAWING: [&str; 6] = ["switch", "noisy_top_k", "noisy_top_1", "gshard", "gshard_sampled", "random"];
    for kind in kinds() {
        let values = Values::random(&kind, 12, 5);
        let routed = |seed| chosen(&route(&kind, &values, training(seed)));
        let first = routed(0);
        let differs = (1..16).any(|seed| routed(seed) != first);
        assert_eq!(differs, DRAWING.contains(&kind.name), "{}", kind.name);
    }
}

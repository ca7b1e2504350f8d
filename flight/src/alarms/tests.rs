//! Laws of the alarms, and one test per silent failure that users of other frameworks reported.

use switchyard_model::NonFinite;

use super::*;

/// Four experts, top-1, perfectly balanced, with all gradients alive.
fn healthy_layer(layer: usize) -> LayerObservation {
    LayerObservation {
        layer,
        num_tokens: 64,
        top_k: Some(1),
        tokens_per_expert: vec![16; 4],
        num_dropped: 0,
        gate_entropy_nats: 0.9,
        marginal_entropy_nats: 1.3,
        router_grad_norm: Some(0.1),
        balancing_grad_norm: Some(0.01),
        load_balancing_loss: Some(1.02),
        load_balancing_bound: Some(1.0),
        agreement: None,
    }
}

fn healthy_step(step: u64) -> StepObservation {
    StepObservation {
        step,
        num_steps: 1000,
        cross_entropy_nats: 3.0 + 0.01 * (step % 3) as f64,
        layers: vec![healthy_layer(0), healthy_layer(2)],
        non_finite: None,
        skipped: None,
    }
}

/// Small thresholds, so that tests are short.
fn config() -> AlarmsConfig {
    AlarmsConfig {
        dead_expert_steps: Some(5),
        window_steps: Some(4),
        zero_gradient_steps: Some(3),
        loss_spike_window_steps: Some(10),
        ..AlarmsConfig::default()
    }
}

/// All alarms of steps `1..=num_steps`, each a healthy one after `damage`.
fn run(num_steps: u64, damage: impl Fn(&mut StepObservation)) -> Vec<Alarm> {
    let mut alarms = Alarms::new(config());
    (1..=num_steps).flat_map(|step| alarms.observe(&damaged(step, &damage))).collect()
}

fn damaged(step: u64, damage: impl Fn(&mut StepObservation)) -> StepObservation {
    let mut observation = healthy_step(step);
    damage(&mut observation);
    observation
}

/// The only alarm of a run.
#[track_caller]
fn only(alarms: &[Alarm], kind: AlarmKind) -> &Alarm {
    assert_eq!(alarms.iter().map(|alarm| alarm.kind).collect::<Vec<_>>(), [kind], "{alarms:#?}");
    &alarms[0]
}

#[test]
fn a_healthy_run_raises_nothing() {
    assert_eq!(run(300, |_| {}), []);
}

#[test]
fn a_dense_run_and_a_single_expert_raise_nothing() {
    assert_eq!(run(50, |step| step.layers.clear()), []);
    let one_expert = |step: &mut StepObservation| {
        for layer in &mut step.layers {
            layer.tokens_per_expert = vec![64];
            (layer.gate_entropy_nats, layer.marginal_entropy_nats) = (0.0, 0.0);
            (layer.router_grad_norm, layer.balancing_grad_norm) = (Some(0.0), Some(0.0));
            (layer.load_balancing_loss, layer.agreement) = (Some(1.0), Some(1.0));
        }
    };
    assert_eq!(run(50, one_expert), []);
}

#[test]
fn would_have_caught_torchtitan_1246_collapse_seen_only_by_printing() {
    // Layer 2 of the report: topk_idx [19, 19, ...], every token to one expert.
    let alarms = run(20, |step| {
        if step.step > 6 {
            step.layers[1].tokens_per_expert = vec![0, 64, 0, 0];
            step.layers[1].load_balancing_loss = None;
        }
    });
    let violation = alarms.iter().find(|alarm| alarm.kind == AlarmKind::MaxViolation).unwrap();
    assert_eq!((violation.layer, violation.expert, violation.step), (Some(2), Some(1), 9));
    assert!(violation.message.starts_with("layer 2 expert 1: the busiest expert"), "{}", violation.message);
    let dead: Vec<_> = alarms.iter().filter(|alarm| alarm.kind == AlarmKind::DeadExpert).collect();
    assert_eq!(dead.iter().map(|alarm| alarm.expert).collect::<Vec<_>>(), [Some(0), Some(2), Some(3)]);
    assert!(dead.iter().all(|alarm| (alarm.step, alarm.since_step) == (11, 7)));
    assert!(
        dead[0].message.starts_with("layer 2 expert 0: no tokens since step 7 (5 steps, alarm at 5); try "),
        "{}",
        dead[0].message
    );
    assert_eq!(alarms.len(), 4);
}

#[test]
fn would_have_caught_megatron_2398_and_bridge_947_imbalance_that_no_log_shows() {
    // One layer of many; the mean over layers would hide it.
    let alarms = run(12, |step| step.layers[0].tokens_per_expert = vec![44, 10, 5, 5]);
    let alarm = only(&alarms, AlarmKind::MaxViolation);
    assert_eq!((alarm.layer, alarm.expert, alarm.step, alarm.since_step), (Some(0), Some(0), 4, 1));
    assert_eq!((alarm.value, alarm.threshold), (1.75, 1.5)); // 44 / 16 - 1, and half of E / k - 1 = 3.
}

#[test]
fn would_have_caught_automodel_1232_an_expert_that_died_unseen() {
    let alarms = run(40, |step| {
        if step.step >= 31 {
            step.layers[1].tokens_per_expert = vec![21, 21, 0, 22];
            step.layers[1].load_balancing_loss = None;
        }
    });
    let alarm = only(&alarms, AlarmKind::DeadExpert);
    assert_eq!((alarm.layer, alarm.expert), (Some(2), Some(2)));
    assert_eq!((alarm.step, alarm.since_step), (35, 31));
}

#[test]
fn would_have_caught_a_gate_that_sends_every_token_one_way_by_probability_alone() {
    let alarms = run(5, |step| step.layers[0].marginal_entropy_nats = 0.2);
    let alarm = only(&alarms, AlarmKind::EntropyCollapse);
    assert!(alarm.message.contains("the marginal entropy is 0.2000 nats at step 1"), "{}", alarm.message);
    assert!((alarm.threshold - 0.25 * 4.0_f64.ln()).abs() < 1e-15);
    let alarms = run(5, |step| step.layers[0].gate_entropy_nats = 0.001);
    assert!(only(&alarms, AlarmKind::EntropyCollapse).message.contains("the gate entropy is 0.0010 nats"));
}

#[test]
fn would_have_caught_transformers_28205_aux_loss_without_gradient() {
    let uneven = |step: &mut StepObservation| step.layers[0].tokens_per_expert = vec![20, 16, 16, 12];
    let alarms = run(9, |step| {
        uneven(step);
        step.layers[0].balancing_grad_norm = Some(0.0);
    });
    let alarm = only(&alarms, AlarmKind::AuxiliaryLossWithoutGradient);
    assert_eq!((alarm.layer, alarm.step, alarm.since_step), (Some(0), 3, 1));
    // Without a weight there is no gradient to expect, and at perfect balance it is rightly zero.
    assert_eq!(run(9, |step| step.layers[0].balancing_grad_norm = None), []);
    assert_eq!(run(9, |step| step.layers[0].balancing_grad_norm = Some(0.0)), []);
}

#[test]
fn would_have_caught_transformers_28093_balancing_loss_that_is_a_constant() {
    // Computed from the choice alone, it is finite, plausible, and pulls at nothing.
    let alarms = run(9, |step| {
        step.layers[1].tokens_per_expert = vec![10, 22, 10, 22];
        (step.layers[1].load_balancing_loss, step.layers[1].balancing_grad_norm) = (Some(1.5), Some(0.0));
    });
    assert_eq!(only(&alarms, AlarmKind::AuxiliaryLossWithoutGradient).layer, Some(2));
}

#[test]
fn would_have_caught_a_top_1_router_whose_renormalised_gate_is_always_one() {
    let alarms = run(9, |step| step.layers[0].router_grad_norm = Some(0.0));
    let alarm = only(&alarms, AlarmKind::RouterGradientZero);
    assert_eq!((alarm.layer, alarm.step, alarm.since_step), (Some(0), 3, 1));
    assert!(alarm.message.contains("renormalise = false"), "{}", alarm.message);
}

#[test]
fn would_have_caught_megatron_1545_loss_below_its_bound() {
    // The sigmoid scores s / (sum s + 1e-20) of every token shrink below the epsilon: the loss goes
    // to 0 while the load does not change.
    let shrunk_loss = |score: f64| {
        let probability = score / (4.0 * score + 1e-20);
        4.0 * [0.4, 0.3, 0.2, 0.1].iter().map(|share| share * probability).sum::<f64>()
    };
    let with_score = |score| {
        run(5, move |step| {
            step.layers[0].num_tokens = 10;
            step.layers[0].tokens_per_expert = vec![4, 3, 2, 1];
            step.layers[0].load_balancing_loss = Some(shrunk_loss(score));
            step.layers[0].load_balancing_bound = Some(balancing_bound_of_top_k(&[4, 3, 2, 1], 1));
        })
    };
    assert_eq!(with_score(0.5), []);
    let alarms = with_score(1e-21);
    let alarm = only(&alarms, AlarmKind::LossBelowBound);
    assert!((alarm.value - 0.4 / 1.4).abs() < 1e-12 && alarm.threshold > 0.7, "{alarm:?}");
}

#[test]
fn would_have_caught_torchtitan_1593_counts_doubled_by_recomputation() {
    let alarms = run(5, |step| step.layers[0].tokens_per_expert = vec![32; 4]);
    let alarm = only(&alarms, AlarmKind::DuplicatedCounts);
    assert_eq!((alarm.layer, alarm.value, alarm.threshold), (Some(0), 128.0, 64.0));
    // Expert choice has no k per token to compare with.
    let expert_choice = |step: &mut StepObservation| {
        step.layers[0].top_k = None;
        step.layers[0].tokens_per_expert = vec![20; 4];
    };
    assert_eq!(run(5, expert_choice), []);
}

#[test]
fn would_have_caught_vmoe_218_nan_gradient_at_perfect_balance() {
    let nan = NonFinite { layer: Some(2), expert: None, op: "gradient of the importance loss".into() };
    let alarms = run(9, |step| {
        step.non_finite = (step.step == 7).then(|| nan.clone());
        step.cross_entropy_nats = if step.step == 7 { f64::NAN } else { 3.0 };
    });
    let alarm = only(&alarms, AlarmKind::NonFinite);
    assert_eq!((alarm.step, alarm.layer, alarm.expert), (7, Some(2), None));
    assert!(
        alarm.message.starts_with(
            "layer 2: the first NaN or infinity of step 7 is in gradient of the importance loss; try "
        ),
        "{}",
        alarm.message
    );
}

#[test]
fn would_have_caught_marin_8134_tokens_dropped_without_a_word() {
    let alarms = run(9, |step| step.layers[1].num_dropped = 16);
    let alarm = only(&alarms, AlarmKind::CapacityDrops);
    assert_eq!((alarm.layer, alarm.value, alarm.threshold, alarm.step), (Some(2), 0.25, 0.1, 4));
    assert!(alarm.message.contains("25.0% of the assignments are dropped"), "{}", alarm.message);
}

#[test]
fn would_have_caught_a_router_frozen_before_its_experts_differ() {
    let frozen = |step: &mut StepObservation| step.layers[0].agreement = Some(0.999);
    let alarm = run(200, frozen);
    assert_eq!(only(&alarm, AlarmKind::EarlySaturation).step, 1);
    let late = |step: &mut StepObservation| {
        step.layers[0].agreement = Some(if step.step < 100 { 0.8 } else { 0.999 });
    };
    assert_eq!(run(200, late), []);
}

#[test]
fn a_jump_of_the_loss_is_a_spike_and_its_descent_is_none() {
    let alarms = run(40, |step| step.cross_entropy_nats = if step.step == 30 { 3.4 } else { 3.0 });
    let alarm = only(&alarms, AlarmKind::LossSpike);
    assert_eq!((alarm.step, alarm.layer, alarm.value), (30, None, 3.4));
    assert!((alarm.threshold - 3.1).abs() < 1e-12, "{alarm:?}"); // No deviation: the least rise decides.
    assert_eq!(run(40, |step| step.cross_entropy_nats = 10.0 / step.step as f64), []);
}

#[test]
fn each_step_that_is_skipped_is_an_alarm() {
    let alarms = run(40, |step| {
        let is_skipped = [30, 31, 35].contains(&step.step);
        step.skipped = is_skipped.then_some(SkippedStep { what: "gradient norm", value: 9.0, limit: 2.5 });
    });
    let steps: Vec<(u64, AlarmKind)> = alarms.iter().map(|alarm| (alarm.step, alarm.kind)).collect();
    assert_eq!(steps, [30, 31, 35].map(|step| (step, AlarmKind::SkippedStep)));
    assert!(
        alarms[1].message.starts_with("step 31 moved no parameter: its gradient norm of 9.0000 is above 2.5")
    );
}

#[test]
fn an_alarm_is_raised_again_only_after_it_has_cleared() {
    let share_at = |step: u64| match step {
        1..=10 => 0.2,
        11..=20 => 0.098, // Within the threshold, not clearly.
        21..=30 => 0.2,
        31..=40 => 0.0,
        _ => 0.2,
    };
    let alarms = run(60, |step| {
        step.layers[0].num_tokens = 1000;
        step.layers[0].tokens_per_expert = vec![250; 4];
        step.layers[0].num_dropped = (1000.0 * share_at(step.step)) as u64;
    });
    let steps: Vec<_> = alarms.iter().map(|alarm| alarm.step).collect();
    assert_eq!(steps, [4, 43], "{alarms:#?}"); // A window of 4 steps: the third at 0.2 lifts the mean above 0.1.
}

#[test]
fn the_busiest_expert_may_change_without_a_second_alarm() {
    let alarms = run(30, |step| {
        let mut loads = vec![4; 4];
        loads[(step.step % 4) as usize] = 52;
        step.layers[0].tokens_per_expert = loads;
    });
    only(&alarms, AlarmKind::MaxViolation);
}

#[test]
fn an_alarm_that_is_off_is_silent_and_one_in_stop_on_stops() {
    let kinds = |config: AlarmsConfig| {
        let mut alarms = Alarms::new(config);
        let raised = alarms.observe(&damaged(1, |step| step.layers[0].tokens_per_expert = vec![32; 4]));
        (raised.len(), alarms.stopping(&raised).map(|alarm| alarm.kind))
    };
    let kind = AlarmKind::DuplicatedCounts;
    assert_eq!(kinds(AlarmsConfig { off: vec![kind], ..config() }), (0, None));
    assert_eq!(kinds(config()), (1, None));
    assert_eq!(kinds(AlarmsConfig { stop_on: vec![kind], ..config() }), (1, Some(kind)));
}

#[test]
fn dead_steps_count_since_the_last_token_and_pause_without_tokens() {
    let mut alarms = Alarms::new(config());
    assert!(alarms.dead_steps(0).is_empty());
    for step in 1..=3 {
        alarms.observe(&damaged(step, |step| step.layers[0].tokens_per_expert = vec![0, 64, 0, 0]));
    }
    alarms.observe(&damaged(4, |step| step.layers[0] = LayerObservation::default()));
    assert_eq!(alarms.dead_steps(0), [3, 0, 3, 3]);
    alarms.observe(&damaged(5, |step| step.layers[0].tokens_per_expert = vec![0, 0, 64, 0]));
    assert_eq!(alarms.dead_steps(0), [4, 1, 0, 4]);
}

/// A run in which most alarms come and go.
fn troubled_step(step: u64) -> StepObservation {
    damaged(step, |observation| {
        let phase = step / 9 % 3;
        observation.layers[0].tokens_per_expert = if phase == 0 { vec![16; 4] } else { vec![0, 60, 4, 0] };
        observation.layers[0].router_grad_norm = step.is_multiple_of(2).then_some(phase as f64);
        observation.layers[1].num_dropped = 9 * phase;
        observation.layers[1].marginal_entropy_nats = 0.1 + 0.2 * phase as f64;
        observation.cross_entropy_nats = if step.is_multiple_of(23) { 9.0 } else { 3.0 + 0.1 / 3.0 };
    })
}

#[test]
fn a_run_resumed_at_any_step_raises_what_an_unbroken_one_does() {
    let mut unbroken = Alarms::new(config());
    let expected: Vec<Alarm> = (1..=80).flat_map(|step| unbroken.observe(&troubled_step(step))).collect();
    assert!(expected.len() > 10, "{}", expected.len());
    for resumed_at in 0..80 {
        let mut alarms = Alarms::new(config());
        let mut raised: Vec<_> =
            (1..=resumed_at).flat_map(|step| alarms.observe(&troubled_step(step))).collect();
        let saved = serde_json::to_string(alarms.state()).unwrap();
        let mut alarms = Alarms::resume(config(), serde_json::from_str(&saved).unwrap());
        raised.extend((resumed_at + 1..=80).flat_map(|step| alarms.observe(&troubled_step(step))));
        assert_eq!(raised, expected, "resumed at {resumed_at}");
        assert_eq!(alarms.state(), unbroken.state());
    }
}

#[test]
fn every_alarm_is_one_line_of_json_that_names_its_step_and_reads_back() {
    let mut alarms = Alarms::new(config());
    for alarm in (1..=80).flat_map(|step| alarms.observe(&troubled_step(step))) {
        let line = serde_json::to_string(&alarm).unwrap();
        assert!(!line.contains('\n') && !line.contains("null"), "{line}");
        assert_eq!(serde_json::from_str::<Alarm>(&line).unwrap(), alarm);
        assert!(alarm.message.contains(&format!("step {}", alarm.since_step)), "{}", alarm.message);
        assert!(alarm.since_step <= alarm.step);
    }
}

//! A router in words.

use switchyard_router::{
    BalancingScope, BiasRule, BiasUpdate, GatePrecision, RouterConfig, RouterSource, Selection, SoftmaxOrder,
};

use crate::model::ModelSpec;

/// How experts are chosen, what weighs them and what balances them, in one line.
pub(super) fn describe(spec: &ModelSpec, router: &RouterConfig) -> String {
    let clauses = [
        selection(spec, router),
        scores(router),
        groups(router),
        bias(router),
        losses(router),
        input(router),
    ];
    clauses.concat().join(", ")
}

/// What whoever reads the numbers of a router that is not causal should know; none for others.
pub(super) fn note_on_causality(router: &RouterConfig) -> Option<String> {
    let (table, what) = match router.selection() {
        Selection::ExpertChoice(_) => ("expert_choice", "a token's experts depend on later tokens"),
        Selection::Soft(_) => ("soft", "later tokens are mixed into every output"),
        _ => return None,
    };
    Some(format!(
        "`model.ffn.moe.router.selection.{table}` is not causal: {what}, so the validation loss sees what it should \
         predict and does not compare with that of a causal router"
    ))
}

fn selection(spec: &ModelSpec, router: &RouterConfig) -> Vec<String> {
    match router.selection() {
        Selection::TopK => Vec::new(),
        Selection::Noisy(_) => vec!["noisy logits".into()],
        Selection::RandomSecond(second) if second.sampled => vec!["second expert sampled".into()],
        Selection::RandomSecond(_) => vec!["second expert kept with twice its gate".into()],
        Selection::Sinkhorn(_) => vec!["balanced by Sinkhorn while training".into()],
        Selection::ExpertChoice(config) => vec![
            format!("experts take their best tokens, capacity factor {}", config.capacity_factor),
            "not causal".into(),
        ],
        Selection::Hash(hash) => vec![format!("by a hash of the token id, seed {}", hash.seed)],
        Selection::Soft(_) => {
            let slots = spec.soft_slots_per_expert(router).unwrap_or_default();
            vec![format!("soft mixing, {slots} slots per expert and sequence"), "not causal".into()]
        }
        Selection::Random => vec!["at random, a control".into()],
        Selection::ForcedUniform => vec!["in turn, a control".into()],
    }
}

fn scores(router: &RouterConfig) -> Vec<String> {
    if !router.learns() || matches!(router.selection(), Selection::Soft(_)) {
        return Vec::new();
    }
    let cosine = router.cosine.as_ref().map(|cosine| format!("cosine gate of width {}", cosine.d_projection));
    let among_chosen = !matches!(router.selection(), Selection::ExpertChoice(_));
    let scores = match (&router.sigmoid, router.softmax) {
        (Some(_), _) => "sigmoid scores",
        (None, SoftmaxOrder::AfterSelection) => "softmax over the chosen",
        (None, SoftmaxOrder::BeforeSelection) => "softmax scores",
    };
    let renormalised = router.renormalise && among_chosen && router.softmax == SoftmaxOrder::BeforeSelection;
    let scores = if renormalised { format!("{scores} renormalised") } else { scores.into() };
    let scaling =
        router.sigmoid.as_ref().map(|sigmoid| sigmoid.routed_scaling).filter(|scaling| *scaling != 1.0);
    cosine
        .into_iter()
        .chain([scores])
        .chain(scaling.map(|scaling| format!("gates times {scaling}")))
        .collect()
}

fn groups(router: &RouterConfig) -> Vec<String> {
    let within = |groups: &switchyard_router::ExpertGroups| {
        format!("within {} of {} groups", groups.top_groups, groups.num_groups)
    };
    router.groups.iter().map(within).collect()
}

fn bias(router: &RouterConfig) -> Vec<String> {
    let rule = match router.bias_rule() {
        None => return Vec::new(),
        Some(BiasRule::Quantile) => "quantile balancing".into(),
        Some(BiasRule::Step { update, rate }) => {
            let by = match update {
                BiasUpdate::Sign => "sign",
                BiasUpdate::Proportional => "proportion",
            };
            format!("loss-free balancing by {by}, rate {rate}")
        }
    };
    vec![rule]
}

fn losses(router: &RouterConfig) -> Vec<String> {
    let scope = match router.load_balancing_scope {
        BalancingScope::Sequence => " per sequence",
        BalancingScope::MicroBatch => "",
        BalancingScope::GlobalBatch => " over the whole step",
    };
    let (importance, load) = match router.selection() {
        Selection::Noisy(noisy) => (noisy.importance_weight, noisy.load_weight),
        _ => (None, None),
    };
    let balancing = router.load_balancing_weight.map(|weight| format!("balancing loss {weight}{scope}"));
    let others = [
        ("importance loss", importance),
        ("load loss", load),
        ("z-loss", router.z_loss_weight),
        ("entropy loss", router.entropy_weight),
    ];
    let others = others.into_iter().filter_map(|(name, weight)| Some(format!("{name} {}", weight?)));
    balancing.into_iter().chain(others).collect()
}

fn input(router: &RouterConfig) -> Vec<String> {
    let residual = (router.input == RouterSource::Residual).then(|| "reads the residual stream".into());
    let precision = (router.precision == GatePrecision::F64).then(|| "gate in f64".into());
    let jitter = router.jitter.map(|jitter| format!("jitter {jitter}"));
    [jitter, residual, precision].into_iter().flatten().collect()
}

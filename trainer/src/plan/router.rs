//! A router in words.

use switchyard_experts::{ExpertWork, FfnSpec};
use switchyard_router::{
    BalancingScope, BiasRateConfig, BiasRule, GatePrecision, RouterConfig, RouterSource, Selection,
    SoftmaxOrder, TokenRoundingConfig,
};

use super::RunPlan;

/// How the experts of a mixture are chosen, what weighs them and what balances them, in one line;
/// empty for other blocks.
pub(super) fn describe(ffn: &FfnSpec) -> String {
    let Some(router) = ffn.router().map(|router| &router.config) else { return String::new() };
    let clauses =
        [selection(ffn, router), scores(router), groups(router), bias(router), losses(router), input(router)];
    clauses.concat().join(", ")
}

/// Experts of each token, in words that go on from what the experts are; `None` unless the block is
/// a mixture.
pub(super) fn experts_of_token(plan: &RunPlan, ffn: &FfnSpec) -> Option<String> {
    let router = &ffn.router()?.config;
    Some(match &router.selection {
        Selection::Soft(_) => "all for each token".to_owned(),
        Selection::ExpertChoice(_) => {
            let mean = ffn.expert_work(plan.pass_size()).map_or(0.0, ExpertWork::per_token);
            format!("each token to {} on average", two_decimals(mean))
        }
        _ => format!("each token to {}", router.top_k),
    })
}

/// What limits the tokens of an expert; `None` if its selection does so itself.
pub(super) fn limit(ffn: &FfnSpec) -> Option<String> {
    let FfnSpec::Moe(moe) = ffn else { return None };
    let words =
        moe.capacity.as_ref().map_or("dropless".to_owned(), |it| format!("capacity factor {}", it.factor));
    moe.router.config.is_causal().then_some(words)
}

/// How the experts' work is counted; `None` where it is `top_k` experts for each token and nothing
/// else.
pub(super) fn counted_work(plan: &RunPlan, ffn: &FfnSpec) -> Option<String> {
    let (pass, work) = (plan.pass_size(), ffn.expert_work(plan.pass_size())?);
    let mean = two_decimals(work.per_token());
    let moe = match ffn {
        FfnSpec::SoftMoe(soft) => {
            return Some(format!(
                "the work of {mean} experts per token, as each works on {} slots per sequence of {} tokens, and the products \
                 that mix the slots",
                soft.slots_per_expert, pass.seq_len
            ));
        }
        FfnSpec::Moe(moe) => moe,
        FfnSpec::Dense(_) | FfnSpec::BlockSparse(_) | FfnSpec::Absent => return None,
    };
    match &moe.router.config.selection {
        Selection::ExpertChoice(_) => Some(format!(
            "{mean} experts per token, as each takes {} of the {} tokens of a micro-batch",
            work.rows / moe.experts.num_experts as u64,
            pass.micro_batch_tokens
        )),
        Selection::RandomSecond(config) if !config.sampled => {
            Some("2 experts per token, also where the second is not kept".to_owned())
        }
        Selection::TopK if moe.router.config.token_rounding.is_some() => {
            Some(format!("{} experts per token, which rounding may change a little", moe.router.config.top_k))
        }
        _ if moe.capacity.is_some() => {
            Some(format!("{} experts per token, dropped assignments too", moe.router.config.top_k))
        }
        _ => None,
    }
}

/// At most two decimals: `2`, `0.13`.
fn two_decimals(number: f64) -> String {
    ((100.0 * number).round() / 100.0).to_string()
}

fn selection(ffn: &FfnSpec, router: &RouterConfig) -> Vec<String> {
    match &router.selection {
        Selection::TopK => router.token_rounding.iter().map(token_rounding).collect(),
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
            let slots = if let FfnSpec::SoftMoe(soft) = ffn { soft.slots_per_expert } else { 0 };
            vec![format!("soft mixing, {slots} slots per expert and sequence"), "not causal".into()]
        }
        Selection::SparseMixer(_) => vec!["two in turn, each among those close to it".into()],
        Selection::Random {} => vec!["at random, a control".into()],
        Selection::ForcedUniform {} => vec!["in turn, a control".into()],
    }
}

fn token_rounding(rounding: &TokenRoundingConfig) -> String {
    format!("tokens of an expert rounded to a multiple of {} while training", rounding.tile)
}

fn scores(router: &RouterConfig) -> Vec<String> {
    if !router.learns() || matches!(router.selection, Selection::Soft(_)) {
        return Vec::new();
    }
    let cosine = router.cosine.as_ref().map(|cosine| format!("cosine gate of width {}", cosine.d_projection));
    let among_chosen = !matches!(router.selection, Selection::ExpertChoice(_));
    let scores = match (&router.sigmoid, router.softmax) {
        (Some(_), _) => "sigmoid scores",
        (None, SoftmaxOrder::AfterSelection) => "softmax over the chosen",
        (None, SoftmaxOrder::BeforeSelection) => "softmax scores",
    };
    let renormalised = router.renormalise && among_chosen && router.softmax == SoftmaxOrder::BeforeSelection;
    let scores = if renormalised { format!("{scores} renormalised") } else { scores.into() };
    let scaling = Some(router.gate_scale()).filter(|scaling| *scaling != 1.0);
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
    let by_steps =
        |by: &str, config: &BiasRateConfig| format!("loss-free balancing by {by}, rate {}", config.rate);
    let rule = match &router.bias {
        None => return Vec::new(),
        Some(BiasRule::Sign(config)) => by_steps("sign", config),
        Some(BiasRule::Proportional(config)) => by_steps("proportion", config),
        Some(BiasRule::Quantile {}) => "quantile balancing".into(),
        Some(BiasRule::Fixed {}) => "a fixed bias in the selection".into(),
    };
    vec![rule]
}

fn losses(router: &RouterConfig) -> Vec<String> {
    let scope = match router.load_balancing_scope {
        BalancingScope::Sequence => " per sequence",
        BalancingScope::MicroBatch => "",
        BalancingScope::AllLayers => " over all layers",
        BalancingScope::GlobalBatch => " over the whole step",
    };
    let (importance, load) = match &router.selection {
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

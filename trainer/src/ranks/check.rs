//! Which runs several ranks can do.

use switchyard_comm::tree::spreads_over;
use switchyard_experts::FfnSpec;
use switchyard_ground::key_error::KeyError;
use switchyard_router::BalancingScope;

use crate::config::RunConfig;
use crate::device::is_cpu;
use crate::plan::RunPlan;

/// Ok if so many ranks can do the run with the bits of one.
///
/// # Errors
/// The key that stands in the way.
pub(crate) fn check(config: &RunConfig, plan: &RunPlan, num_ranks: usize) -> Result<(), KeyError> {
    if num_ranks == 1 {
        return Ok(());
    }
    check_micro_batches(plan, num_ranks)?;
    check_experts(config, plan, num_ranks)?;
    if !is_cpu(&config.device) {
        let problem = format!("is `{}`, but {num_ranks} ranks compute on the CPU only", config.device);
        return Err(KeyError::new("device", problem, "use `cpu`, or start one process"));
    }
    if plan.carries_state {
        let problem = format!(
            "is on: what sequences leave to the next step stays with one process, and there are {num_ranks} ranks"
        );
        return Err(KeyError::new("train.carry_state", problem, "set it to false, or start one process"));
    }
    let routers = plan.model.layers.iter().filter_map(|layer| match &layer.ffn {
        FfnSpec::Moe(moe) => Some(&moe.router.config),
        _ => None,
    });
    if routers.into_iter().any(|router| router.load_balancing_scope == BalancingScope::GlobalBatch) {
        let problem = format!(
            "is `global_batch`: each micro-batch counts those before it in the step, which {num_ranks} ranks compute \
             at the same time"
        );
        let remedy = "use another scope, or start one process";
        return Err(KeyError::new("model.ffn.moe.router.load_balancing_scope", problem, remedy));
    }
    Ok(())
}

/// Experts are spread evenly over ranks, which are whole blocks of the tree by which gradients are
/// added.
fn check_experts(config: &RunConfig, plan: &RunPlan, num_ranks: usize) -> Result<(), KeyError> {
    let group_len = config.distributed.expert_parallel;
    if group_len == 1 {
        return Ok(());
    }
    let refuse = |problem: String, remedy: &str| {
        Err(KeyError::new("distributed.expert_parallel", format!("is {group_len}, {problem}"), remedy))
    };
    if !num_ranks.is_multiple_of(group_len) || !spreads_over(num_ranks, num_ranks / group_len) {
        let problem = format!("but there are {num_ranks} ranks");
        return refuse(problem, "use a power of two that divides their number, or all of them");
    }
    let mut mixtures = plan.model.layers.iter().filter_map(|layer| layer.ffn.routed()).peekable();
    if mixtures.peek().is_none() {
        return refuse("but no layer has experts".into(), "use 1");
    }
    if let Some((experts, _)) = mixtures.find(|(experts, _)| !experts.num_experts.is_multiple_of(group_len)) {
        let problem = format!("which does not divide the {} experts of a layer", experts.num_experts);
        return refuse(problem, "use a divisor");
    }
    let freezes = [
        ("train.groups", config.train.groups.iter().any(|group| group.freeze)),
        ("start.freeze", !config.start.freeze.is_empty()),
    ];
    if let Some((key, _)) = freezes.into_iter().find(|(_, freezes)| *freezes) {
        let problem =
            format!("but `{key}` freezes parameters, and a pass back through experts may then end early");
        return refuse(problem, "use 1, or train all parameters");
    }
    Ok(())
}

/// A step's micro-batches, spread over the ranks in order, are whole blocks of the tree by which
/// gradients are added.
fn check_micro_batches(plan: &RunPlan, num_ranks: usize) -> Result<(), KeyError> {
    let (num, tokens) = (plan.micro_batches_per_step, plan.tokens_per_step);
    if spreads_over(num, num_ranks) {
        return Ok(());
    }
    let of_one = tokens / num;
    let problem = format!(
        "is {of_one}, so a step of {tokens} tokens is {num} micro-batch{}, which cannot be spread over {num_ranks} ranks \
         (each takes as many, and 1, 2, 4 or another power of two)",
        if num == 1 { "" } else { "es" }
    );
    // One, two, four and so on micro-batches a rank, as far as the sequences allow: rather more than
    // there are, which need no more memory.
    let is_possible =
        |parts: &usize| tokens.is_multiple_of(*parts) && (tokens / parts).is_multiple_of(plan.seq_len);
    let doublings = std::iter::successors(Some(num_ranks), |parts| parts.checked_mul(2));
    let possible: Vec<usize> = doublings.take_while(|parts| *parts <= tokens).filter(is_possible).collect();
    let fits = possible.iter().find(|parts| **parts >= num).or(possible.last());
    let fewer = (1..num_ranks).rev().find(|fewer| spreads_over(num, *fewer)).unwrap_or(1);
    let other_run = match fits {
        Some(parts) => format!("use {}", tokens / parts),
        None => {
            let even = tokens.next_multiple_of(num_ranks * plan.seq_len);
            format!("use {}, with `train.batch_tokens = {even}`", even / num_ranks)
        }
    };
    let remedy =
        format!("start {fewer} rank{}, or {other_run}, for another run", if fewer == 1 { "" } else { "s" });
    Err(KeyError::new("train.micro_batch_tokens", problem, remedy))
}

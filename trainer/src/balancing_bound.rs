//! How small a load-balancing loss can be, given the loads of the experts.

use switchyard_experts::Route;
use switchyard_router::{BalancingScope, RouterConfig, Selection, Sequences};

use switchyard_flight::alarms::{balancing_bound_of_any_selection, balancing_bound_of_top_k};

/// Lower bound of the load-balancing loss, given the loads that it counted: those of this pass, or
/// with the step's `earlier` passes, whose loads are empty in the first.
pub(crate) fn balancing_bound(
    route: &Route,
    config: &RouterConfig,
    [loads, earlier]: [&[u64]; 2],
    seq_lens: &[usize],
) -> Option<f64> {
    let chooses_largest = matches!(config.selection, Selection::TopK | Selection::Noisy(_))
        && config.bias.is_none()
        && config.groups.is_none();
    let bound = |loads: &[u64]| match chooses_largest {
        true => balancing_bound_of_top_k(loads, config.top_k),
        false => balancing_bound_of_any_selection(loads),
    };
    match config.load_balancing_scope {
        BalancingScope::MicroBatch => Some(bound(loads)),
        // Other layers' tokens are in the loads.
        BalancingScope::AllLayers => None,
        // The probabilities are those of this pass alone, so its tokens need not have made these
        // loads.
        BalancingScope::GlobalBatch => {
            let before = |expert: usize| earlier.get(expert).copied().unwrap_or(0);
            let sums = loads.iter().enumerate().map(|(expert, load)| load + before(expert));
            Some(balancing_bound_of_any_selection(&sums.collect::<Vec<_>>()))
        }
        BalancingScope::Sequence => mean_over_sequences(route, loads.len(), seq_lens, bound),
    }
}

fn mean_over_sequences(
    route: &Route,
    num_experts: usize,
    seq_lens: &[usize],
    bound: impl Fn(&[u64]) -> f64,
) -> Option<f64> {
    if route.choice.keep_tk.is_some() {
        return None;
    }
    let ids_tk = &route.choice.expert_ids_tk;
    let sequences = Sequences::OfLens(seq_lens).ranges(ids_tk.len() / route.choice.slots_per_token);
    let num_sequences = sequences.len();
    let bounds = sequences.into_iter().map(|tokens| {
        let mut loads = vec![0; num_experts];
        let slots = tokens.start * route.choice.slots_per_token..tokens.end * route.choice.slots_per_token;
        ids_tk[slots].iter().for_each(|&expert| loads[expert as usize] += 1);
        bound(&loads)
    });
    Some(bounds.sum::<f64>() / num_sequences.max(1) as f64)
}

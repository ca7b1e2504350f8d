//! What each rank of a run would hold and send, known without the others.

use serde::Serialize;
use switchyard_comm::link::Link;
use switchyard_model::{Named, ParameterShape, Recompute, Transformer, parameter_shapes};

use super::step::divisible;
use super::{Ranks, check};
use crate::TrainError;
use crate::config::RunConfig;
use crate::memory::MemoryEstimate;
use crate::optimizer::Optimizer;
use crate::plan::RunPlan;
use crate::sharding::{Layout, Sharding, StepTraffic};
use crate::start::with_frozen_parameters;

/// Of rows, of a mixture in a micro-batch: to the experts and back, forward and backward.
const ROW_EXCHANGES: usize = 4;
/// Of a forward pass, which may be done again: those of rows, and before them one of counts.
const FORWARD_ROW_EXCHANGES: usize = 2;
const FLOAT_BYTES: usize = 4;

/// A run on several ranks, before it is run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RanksForecast {
    /// Ranks of the run.
    pub num_ranks: usize,
    /// Ranks over which the experts of each layer are spread.
    pub expert_parallel: usize,
    /// By rank.
    pub ranks: Vec<RankForecast>,
    /// What each rank sends to experts on other ranks; `None` if it has all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<TokenForecast>,
    /// Seconds that the messages of the rank that takes longest need in a step, one after another;
    /// `None` until a link is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub communication_secs_per_step: Option<f64>,
    /// Seconds of a step: the messages, and behind them an even share of what a process alone does.
    /// `None` until it is known how long that takes. Waiting for each other and copies on either side
    /// of a message are not in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_secs: Option<f64>,
}

/// One rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RankForecast {
    /// Parameters in its memory.
    pub parameters_held: u64,
    /// Those that it updates.
    pub parameters_updated: u64,
    /// Memory at its worst moment; that of the first rank while a checkpoint is written is told
    /// apart, as for a process alone.
    pub memory: MemoryEstimate,
    /// What it sends in each step for gradients and parameters, exactly.
    pub traffic: StepTraffic,
}

/// Rows of tokens that a rank sends in a step, if every expert gets as many as the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TokenForecast {
    /// Messages, with those that tell lengths.
    pub messages: u64,
    /// Bytes of rows; counts, lengths and gates, which are few, are not in it.
    pub bytes: u64,
}

impl RanksForecast {
    /// What the ranks of a run of `config` would hold and send, a model of any size.
    ///
    /// # Errors
    /// [`TrainError::Distributed`] if so many ranks cannot do the run, as the run says;
    /// [`TrainError::Start`].
    pub fn of(config: &RunConfig, plan: &RunPlan, num_ranks: usize) -> Result<Self, TrainError> {
        check(config, plan, num_ranks).map_err(TrainError::Distributed)?;
        let network = with_frozen_parameters(Transformer::outline(&plan.model), config)?;
        let optimizer = Optimizer::new(&config.train, &plan.model);
        let group_len = if num_ranks == 1 { 1 } else { config.distributed.expert_parallel };
        let layout = Layout { num_ranks, group_len, rank: 0 };
        let sharding = sharding_of(&network, &optimizer, layout);
        let memory = plan.memory_of_passes(config, plan.micro_batches_per_step / num_ranks);
        Ok(Self {
            num_ranks,
            expert_parallel: group_len,
            ranks: of_ranks(&network, &optimizer, &sharding, &memory),
            tokens: (group_len > 1).then(|| TokenForecast::of(plan, layout)),
            communication_secs_per_step: None,
            step_secs: None,
        })
    }

    /// The same with the seconds that messages take over `link`, and those of a step that takes a
    /// process alone `secs_alone`.
    #[must_use]
    pub fn over(mut self, link: Link, secs_alone: Option<f64>) -> Self {
        let of_tokens = self.tokens.map_or(0.0, |tokens| {
            tokens.messages as f64 * link.alpha_secs + tokens.bytes as f64 * link.beta_secs_per_byte
        });
        let secs =
            |rank: &RankForecast| link.secs(rank.traffic.gradients + rank.traffic.parameters) + of_tokens;
        let communication = self.ranks.iter().map(secs).fold(0.0, f64::max);
        self.communication_secs_per_step = Some(communication);
        self.step_secs = secs_alone.map(|alone| alone / self.num_ranks as f64 + communication);
        self
    }
}

impl Ranks {
    /// Memory of this rank.
    ///
    /// # Errors
    /// As [`RanksForecast::of`].
    pub(crate) fn memory(&self, config: &RunConfig, plan: &RunPlan) -> Result<MemoryEstimate, TrainError> {
        if self.number() == 1 {
            return Ok(plan.memory);
        }
        let forecast = RanksForecast::of(config, plan, self.number())?;
        Ok(forecast.ranks[self.comm.rank()].memory)
    }
}

impl TokenForecast {
    fn of(plan: &RunPlan, Layout { num_ranks, group_len, .. }: Layout) -> Self {
        let others = group_len - 1;
        let micro_batches = plan.micro_batches_per_step / num_ranks;
        let tokens = micro_batches * plan.micro_batch_tokens();
        let forward_again = usize::from(plan.recompute == Recompute::Block);
        let of_rows = ROW_EXCHANGES + forward_again * FORWARD_ROW_EXCHANGES;
        let of_counts = 1 + forward_again;
        let mut forecast = Self { messages: 0, bytes: 0 };
        for (_, router) in plan.model.layers.iter().filter_map(|layer| layer.ffn.routed()) {
            // A message of its own tells the length of each.
            forecast.messages += (micro_batches * (of_rows + of_counts) * 2 * others) as u64;
            let row_bytes = router.config.top_k * tokens * plan.model.d_model * FLOAT_BYTES;
            forecast.bytes += (row_bytes * of_rows * others / group_len) as u64;
        }
        forecast
    }
}

/// As each step of a run finds it from its gradients.
fn sharding_of(network: &Transformer, optimizer: &Optimizer, layout: Layout) -> Sharding {
    let trained = parameter_shapes(network).into_iter().filter(|parameter| parameter.value.learns);
    let lens = trained.map(|parameter| (parameter.name, parameter.value.shape.iter().product()));
    let (of_experts, whole): (Vec<_>, Vec<_>) = divisible(lens, network, optimizer)
        .into_iter()
        .partition(|parameter| layout.group_len > 1 && parameter.name.role.is_of_experts());
    Sharding::new(&whole, &of_experts, layout)
}

fn of_ranks(
    network: &Transformer,
    optimizer: &Optimizer,
    sharding: &Sharding,
    memory: &MemoryEstimate,
) -> Vec<RankForecast> {
    let layout = sharding.layout();
    let held = |parameter: Named<ParameterShape>| {
        let parts = if parameter.name.role.is_of_experts() { layout.group_len } else { 1 };
        (parameter.value.shape.iter().product::<usize>() / parts) as u64
    };
    let parameters_held: u64 = parameter_shapes(network).into_iter().map(held).sum();
    let [mut updated, mut moments_bytes] = [vec![0; layout.num_ranks], vec![0; layout.num_ranks]];
    for (rank, piece) in sharding.all_pieces() {
        let bytes: usize = optimizer.moment_dtypes(piece.of.name).iter().map(|dtype| dtype.size()).sum();
        updated[rank] += piece.elements.len() as u64;
        moments_bytes[rank] += (bytes * piece.elements.len()) as u64;
    }
    let whole_moments: u64 = moments_bytes.iter().sum();
    let of_rank = |(rank, traffic): (usize, StepTraffic)| RankForecast {
        parameters_held,
        parameters_updated: updated[rank],
        memory: memory.of_rank(
            FLOAT_BYTES as u64 * parameters_held,
            [moments_bytes[rank], whole_moments],
            rank == 0,
        ),
        traffic,
    };
    sharding.traffic().into_iter().enumerate().map(of_rank).collect()
}

//! The memory that this process can have, and whether a run fits into it.
//!
//! What a run needs is an estimate. Refused is only what would not fit if the estimate were too
//! high by as much as it can be ([`MEMORY_ERROR`]), or what parameters, gradients and moments alone
//! exceed, which is certain. So a run that is within the error above the limit starts, and may
//! still turn out to be too large. What a checkpoint takes that is written beside the loop is not
//! needed: without memory for it, the loop waits for the checkpoint.

use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};

use switchyard_ground::units::{bytes, exact, grouped};
use switchyard_model::{ParameterBreakdown, Recompute};

use crate::config::{MomentType, RunConfig};
use crate::device::is_cpu;
use crate::memory::{MEMORY_ERROR, MemoryEstimate};
use crate::plan::RunPlan;

/// An upper bound on the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The bound.
    pub limit_bytes: u64,
    /// Who sets it, for a person to look up.
    pub source: String,
}

/// A run that cannot fit into memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run needs about {} of memory, and at least {}, but this process can have {} ({}). {}, or use a machine with \
     more memory",
    bytes(*.estimate_bytes),
    bytes(*.needed_bytes),
    bytes(.limit.limit_bytes),
    .limit.source,
    .advice
)]
pub struct TooLargeForMemory {
    /// The estimate.
    pub estimate_bytes: u64,
    /// The least that it can be: the estimate less its error, or parameters, gradients and moments.
    pub needed_bytes: u64,
    /// What there is.
    pub limit: MemoryLimit,
    /// What most of it is for, and the keys that make it smaller.
    pub advice: String,
}

/// Ok if the run fits into the memory that this process can have, or nobody says how much that is.
/// `memory` is what the process needs for it: that of the plan, or of a rank of several. On another
/// device than the CPU it is its memory that counts, which nobody says here.
///
/// # Errors
/// [`TooLargeForMemory`], with both numbers.
pub fn check_memory(
    config: &RunConfig,
    plan: &RunPlan,
    memory: &MemoryEstimate,
) -> Result<(), TooLargeForMemory> {
    if !is_cpu(&config.device) {
        return Ok(());
    }
    tightest_limit().map_or(Ok(()), |limit| check_against((plan, memory), num_threads(config), limit))
}

/// Whether there is memory to go on beside a checkpoint that is being written, as far as anybody
/// says how much there is.
pub(crate) fn has_room_beside_checkpoints(config: &RunConfig, memory: &MemoryEstimate) -> bool {
    let needed = memory.total_bytes_with(num_threads(config)).saturating_add(memory.checkpoint_bytes);
    !is_cpu(&config.device) || tightest_limit().is_none_or(|limit| needed <= limit.limit_bytes)
}

fn num_threads(config: &RunConfig) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, NonZero::get);
    config.threads.unwrap_or_else(cores)
}

fn check_against(
    (plan, memory): (&RunPlan, &MemoryEstimate),
    threads: usize,
    limit: MemoryLimit,
) -> Result<(), TooLargeForMemory> {
    // A rank that will have some of the experts has all when the run begins.
    let at_the_start = plan.memory.weights_bytes;
    let estimate_bytes = memory.total_bytes_with(threads).max(at_the_start);
    // The estimate is at most so much above the peak.
    let least = estimate_bytes as f64 / (1.0 + MEMORY_ERROR);
    let needed_bytes = memory.parameter_bytes().max(least as u64).max(at_the_start);
    if needed_bytes <= limit.limit_bytes {
        return Ok(());
    }
    Err(TooLargeForMemory { estimate_bytes, needed_bytes, limit, advice: advice((plan, memory), threads) })
}

/// What most of the memory is for, and what to make smaller.
fn advice((plan, memory): (&RunPlan, &MemoryEstimate), threads: usize) -> String {
    let of_passes = memory.activations_bytes.saturating_add(memory.temporaries_bytes);
    let of_threads = memory.thread_bytes.saturating_mul(threads as u64);
    if of_threads > of_passes.max(memory.parameter_bytes()) {
        return format!("Most of it is for the buffers of {threads} threads: make `threads` smaller");
    }
    if of_passes < memory.parameter_bytes() {
        let (part, keys) = largest_part(&plan.counts.params);
        let params = exact(plan.counts.total_params);
        return format!(
            "Most of it is for {params} parameters with gradients and moments, most of them in {part}: make {keys} smaller{}",
            if plan.optimizer.moments == MomentType::F32 {
                ", set `train.adamw.moments = \"bf16\"`"
            } else {
                ""
            }
        );
    }
    let tokens = plan.micro_batch_tokens();
    let key = if tokens > plan.seq_len { "train.micro_batch_tokens" } else { "train.seq_len" };
    format!(
        "Most of it is for what a pass over {} tokens keeps: make `{key}` smaller{}",
        grouped(tokens as u64),
        if plan.recompute == Recompute::Block { "" } else { ", set `train.recompute = \"block\"`" }
    )
}

/// The part with most parameters, and the keys that decide its size.
fn largest_part(params: &ParameterBreakdown) -> (&'static str, &'static str) {
    let parts = [
        (params.embedding + params.head, "the embedding and the head", "`data.tokenizer` or `model.d_model`"),
        (params.position, "the positions", "`train.seq_len` or `model.d_model`"),
        (params.attention, "attention", "`model.num_layers`, `model.d_model` or `model.attention.num_heads`"),
        (params.lstm, "the LSTMs", "`model.num_layers`, `model.d_model` or `model.lstm.d_hidden`"),
        (params.norm, "the norms", "`model.num_layers` or `model.d_model`"),
        (
            params.dense_ffn,
            "the dense feed-forward blocks",
            "`model.num_layers`, `model.d_model` or `model.ffn.d_ff`",
        ),
        (
            params.block_sparse_ffn,
            "the block-sparse feed-forward blocks",
            "`model.num_layers`, `model.d_model`, `model.ffn.block_sparse.d_ff` or `model.ffn.block_sparse.density`",
        ),
        (
            params.router,
            "the routers",
            "`model.num_layers`, `model.d_model`, `model.ffn.moe.num_experts` or the sizes under `model.ffn.moe.router`",
        ),
        (
            params.routed_experts,
            "the routed experts",
            "`model.num_layers`, `model.d_model`, `model.ffn.moe.num_experts` or `model.ffn.moe.d_expert`",
        ),
        (
            params.shared_experts,
            "the shared experts",
            "`model.num_layers`, `model.d_model` or `model.ffn.moe.d_shared_expert`",
        ),
    ];
    let largest = parts.into_iter().max_by_key(|(number, ..)| *number);
    largest.map_or(("the model", "`model`"), |(_, part, keys)| (part, keys))
}

/// The lowest bound on the memory of this process; `None` where nobody says one, as outside of
/// Linux.
pub fn tightest_limit() -> Option<MemoryLimit> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let in_file = |path: &str, limits_in: fn(&str) -> Vec<MemoryLimit>| {
        read(Path::new(path)).map(|text| limits_in(&text)).unwrap_or_default()
    };
    let of_groups = read(Path::new("/proc/self/cgroup")).map(|text| group_limits(&text, read));
    let limits = [
        in_file("/proc/meminfo", available_limit),
        in_file("/proc/self/limits", process_limits),
        of_groups.unwrap_or_default(),
    ];
    limits.into_iter().flatten().min_by_key(|limit| limit.limit_bytes)
}

/// What `/proc/meminfo` says can be had without swapping.
fn available_limit(meminfo: &str) -> Vec<MemoryLimit> {
    let kibibytes = meminfo.lines().find_map(|line| {
        line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    });
    let limit = |kibibytes: u64| MemoryLimit {
        limit_bytes: kibibytes.saturating_mul(1024),
        source: "`MemAvailable` in /proc/meminfo".into(),
    };
    kibibytes.map(limit).into_iter().collect()
}

/// The soft limits in `/proc/self/limits` that memory of a program counts against.
fn process_limits(limits: &str) -> Vec<MemoryLimit> {
    let kinds = [("Max address space", "ulimit -v"), ("Max data size", "ulimit -d")];
    let limit = |(name, command): (&str, &str)| {
        let soft = limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())?;
        let limit_bytes = soft.parse().ok()?; // Or `unlimited`.
        Some(MemoryLimit { limit_bytes, source: format!("`{command}`") })
    };
    kinds.into_iter().filter_map(limit).collect()
}

/// The limits of the control groups in `/proc/self/cgroup`, of every group from the process's own
/// up to the root: each binds.
fn group_limits(groups: &str, read: impl Fn(&Path) -> Option<String>) -> Vec<MemoryLimit> {
    let files = groups.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, group) = line.split_once(':')?;
        // An empty list of controllers is version 2, which has one tree for all.
        match controllers {
            "" => Some(("/sys/fs/cgroup", "memory.max", group)),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                Some(("/sys/fs/cgroup/memory", "memory.limit_in_bytes", group))
            }
            _ => None,
        }
    });
    let paths = files.flat_map(|(root, file, group)| {
        // Inside a container the group may be named as the host sees it; its folder is then not
        // there, the root's is.
        let groups: Vec<&Path> = Path::new(group.trim_start_matches('/')).ancestors().collect();
        groups.into_iter().map(|group| Path::new(root).join(group).join(file)).collect::<Vec<PathBuf>>()
    });
    let limit = |path: PathBuf| {
        let limit_bytes = read(&path)?.trim().parse().ok()?; // Or `max`.
        Some(MemoryLimit { limit_bytes, source: path.display().to_string() })
    };
    paths.filter_map(limit).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(found: Vec<MemoryLimit>) -> Vec<(u64, String)> {
        found.into_iter().map(|limit| (limit.limit_bytes, limit.source)).collect()
    }

    #[test]
    fn the_kernel_says_what_can_be_had_in_kibibytes() {
        let text = "MemTotal:       24731708 kB\nMemFree: 5 kB\nMemAvailable:   22494604 kB\n";
        let found = limits(available_limit(text));
        assert_eq!(found, [(23_034_474_496, "`MemAvailable` in /proc/meminfo".to_owned())]);
        assert!(available_limit("MemTotal: 1 kB\n").is_empty());
    }

    #[test]
    fn a_limit_of_the_shell_binds_unless_it_is_unlimited() {
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max data size             unlimited            unlimited            bytes\n\
                    Max address space         4294967296           unlimited            bytes\n";
        assert_eq!(limits(process_limits(text)), [(4_294_967_296, "`ulimit -v`".to_owned())]);
        assert!(process_limits("Max data size unlimited unlimited bytes\n").is_empty());
    }

    #[test]
    fn every_control_group_up_to_the_root_binds() {
        let read = |path: &Path| {
            let text = match path.to_str()? {
                "/sys/fs/cgroup/jobs/one/memory.max" => "max\n",
                "/sys/fs/cgroup/jobs/memory.max" => "2000\n",
                "/sys/fs/cgroup/memory/batch/memory.limit_in_bytes" => "3000\n",
                _ => return None,
            };
            Some(text.to_owned())
        };
        let groups = "9:name=systemd:/\n4:cpu,memory:/batch\n2:cpuset:/other\n0::/jobs/one\n";
        let found = limits(group_limits(groups, read));
        let expected = [
            (3000, "/sys/fs/cgroup/memory/batch/memory.limit_in_bytes".to_owned()),
            (2000, "/sys/fs/cgroup/jobs/memory.max".to_owned()),
        ];
        assert_eq!(found, expected);
    }

    /// A dense model of 3 layers, `d_model` wide.
    fn plan(d_model: usize, seq_len: usize, micro_batch_tokens: usize) -> RunPlan {
        let text = format!(
            "name = \"a\"\n[data.synthetic]\nnum_domains = 1\nvocab_size = 64\nnum_documents = 9\n\
             document_tokens = 8\nbranching = 2\n[model]\nnum_layers = 3\nd_model = {d_model}\n\
             [model.attention]\nnum_heads = 1\n[model.ffn]\nactivation = \"swiglu\"\nd_ff = 256\n\
             [train]\nnum_steps = 1\nseq_len = {seq_len}\nbatch_tokens = 65536\n\
             micro_batch_tokens = {micro_batch_tokens}\n[train.adamw]\nlearning_rate = 1e-3\n"
        );
        RunPlan::resolve(&toml::from_str(&text).unwrap()).unwrap()
    }

    fn limit(limit_bytes: u64) -> MemoryLimit {
        MemoryLimit { limit_bytes, source: "a test".to_owned() }
    }

    /// The estimate may be too high by its error, and a run that then fits is not refused.
    #[test]
    fn a_run_is_refused_once_it_is_too_large_even_if_the_estimate_is_too_high() {
        let plan = plan(128, 256, 65536);
        let estimate = plan.memory.total_bytes_with(2);
        let least = (estimate as f64 / 1.15) as u64;
        assert_eq!(check_against((&plan, &plan.memory), 2, limit(estimate)), Ok(()));
        assert_eq!(check_against((&plan, &plan.memory), 2, limit(least)), Ok(()));
        let refused = check_against((&plan, &plan.memory), 2, limit(least - 1)).unwrap_err();
        assert_eq!((refused.estimate_bytes, refused.needed_bytes), (estimate, least));
        // Each thread takes its own.
        assert!(check_against((&plan, &plan.memory), 40, limit(least)).is_err());
    }

    #[test]
    fn a_refusal_says_what_takes_most_and_what_to_make_smaller() {
        let refused = |plan: &RunPlan| {
            check_against((plan, &plan.memory), 1, limit(100_000_000)).unwrap_err().to_string()
        };
        let many = refused(&plan(128, 256, 65536));
        assert!(many.contains("but this process can have 100 MB (a test)"), "{many}");
        assert!(
            many.contains("a pass over 65,536 tokens keeps: make `train.micro_batch_tokens` smaller"),
            "{many}"
        );
        let long = refused(&plan(128, 65536, 65536));
        assert!(long.contains("make `train.seq_len` smaller"), "{long}");
        let wide = refused(&plan(4096, 256, 256));
        assert!(wide.contains("parameters with gradients and moments, most of them in attention"), "{wide}");
    }

    /// Parameters, gradients and moments are certain: nothing is taken off them.
    #[test]
    fn what_the_parameters_alone_take_is_the_least_that_a_run_needs() {
        let plan = plan(4096, 256, 256);
        let certain = 16 * plan.counts.total_params;
        assert!(
            check_against((&plan, &plan.memory), 1, limit(certain - 1)).unwrap_err().needed_bytes >= certain
        );
    }

    #[test]
    fn the_largest_part_names_the_keys_that_make_it_smaller() {
        let params = ParameterBreakdown {
            embedding: 6,
            position: 0,
            attention: 9,
            lstm: 0,
            norm: 1,
            dense_ffn: 0,
            block_sparse_ffn: 0,
            router: 2,
            routed_experts: 8,
            shared_experts: 3,
            head: 4,
        };
        // 6 and 4 together are more than 9.
        assert_eq!(largest_part(&params).0, "the embedding and the head");
        let sparse = ParameterBreakdown { routed_experts: 11, ..params };
        assert!(largest_part(&sparse).1.contains("`model.ffn.moe.num_experts`"));
    }
}

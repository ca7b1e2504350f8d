//! The memory that this process can have, and whether a run fits into it.
//!
//! Compared is only what is certain: parameters, their gradients and the optimizer's moments. What a step keeps for its
//! backward pass is an estimate, so a run that passes may still be too large.

use std::fs;
use std::path::{Path, PathBuf};

use switchyard_model::ParameterBreakdown;

use crate::plan::{RunPlan, bytes, exact};

/// An upper bound on the memory of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// The bound.
    pub limit_bytes: u64,
    /// Who sets it, for a person to look up.
    pub source: String,
}

/// A run that cannot fit into memory, whatever its activations take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the run needs at least {} for its {} parameters, their gradients and two moments each (16 bytes a parameter), but \
     this process can have {} ({}). Most parameters are in {}: make {} smaller, or use a machine with more memory",
    bytes(*.needed_bytes),
    exact(*.total_params),
    bytes(.limit.limit_bytes),
    .limit.source,
    .largest.0,
    .largest.1
)]
pub struct TooLargeForMemory {
    /// Bytes of parameters, gradients and moments.
    pub needed_bytes: u64,
    /// All parameters.
    pub total_params: u64,
    /// What there is.
    pub limit: MemoryLimit,
    /// The largest part of the parameters, and the keys that decide its size.
    pub largest: (&'static str, &'static str),
}

/// Ok if parameters, gradients and moments of `plan` fit into the memory that this process can have, or nobody says how much
/// that is.
///
/// # Errors
/// [`TooLargeForMemory`], with both numbers.
pub fn check_memory(plan: &RunPlan) -> Result<(), TooLargeForMemory> {
    tightest_limit().map_or(Ok(()), |limit| check_against(plan, limit))
}

fn check_against(plan: &RunPlan, limit: MemoryLimit) -> Result<(), TooLargeForMemory> {
    let memory = &plan.memory;
    let needed_bytes =
        memory.weights_bytes.saturating_add(memory.gradients_bytes).saturating_add(memory.moments_bytes);
    if needed_bytes <= limit.limit_bytes {
        return Ok(());
    }
    Err(TooLargeForMemory {
        needed_bytes,
        total_params: plan.counts.total_params,
        limit,
        largest: largest_part(&plan.counts.params),
    })
}

/// The part with most parameters, and the keys that decide its size.
fn largest_part(params: &ParameterBreakdown) -> (&'static str, &'static str) {
    let parts = [
        (params.embedding + params.head, "the embedding and the head", "`data.tokenizer` or `model.d_model`"),
        (params.position, "the positions", "`train.seq_len` or `model.d_model`"),
        (params.attention, "attention", "`model.num_layers`, `model.d_model` or `model.attention.num_heads`"),
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

/// The lowest bound on the memory of this process; `None` where nobody says one, as outside of Linux.
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

/// The limits of the control groups in `/proc/self/cgroup`, of every group from the process's own up to the root: each binds.
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
        // Inside a container the group may be named as the host sees it; its folder is then not there, the root's is.
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

    #[test]
    fn the_largest_part_names_the_keys_that_make_it_smaller() {
        let params = ParameterBreakdown {
            embedding: 6,
            position: 0,
            attention: 9,
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

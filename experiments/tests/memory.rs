//! The memory that `plan` states, held against the peak of a process that trains.
//!
//! Linux only: the peak is `VmHWM` of `/proc/<pid>/status`. The recipes train some steps of a model
//! whose parameters or activations outweigh the process around them several times.

#![cfg(target_os = "linux")]
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking, and its table is for who reads it"
)]

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use switchyard_trainer::memory::MEMORY_ERROR;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_switchyard");

/// Parts of the estimate, as `plan` names them.
const PARTS: [&str; 7] =
    ["weights", "gradients", "moments", "activations", "temporaries", "process", "thread"];

/// A recipe, as what is not the same in all of them.
struct Recipe {
    name: &'static str,
    threads: usize,
    vocab_size: usize,
    /// Tokens of a sequence, of a micro-batch and of a step.
    tokens: [usize; 3],
    /// From the second one on the moments are there; mixtures need some more until the allocator
    /// holds what it holds.
    num_steps: usize,
    /// Below `[train]`.
    train: &'static str,
    /// Below `[model]`.
    model: &'static str,
}

const RECIPES: &[Recipe] = &[
    Recipe {
        name: "dense",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 3,
        train: "",
        model: "num_layers = 4\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 768\n",
    },
    Recipe {
        name: "long sequences, one thread",
        threads: 1,
        vocab_size: 1024,
        tokens: [2048, 8192, 8192],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 128\n[model.attention]\nnum_heads = 8\nnum_kv_heads = 2\n\
                [model.ffn]\nactivation = \"gelu\"\nd_ff = 512\n",
    },
    Recipe {
        name: "many parameters",
        threads: 2,
        vocab_size: 4096,
        tokens: [128, 256, 256],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 768\n[model.attention]\nnum_heads = 12\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 2048\n",
    },
    Recipe {
        name: "accumulated",
        threads: 2,
        vocab_size: 4096,
        tokens: [128, 512, 2048],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 512\n[model.attention]\nnum_heads = 8\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 1024\n",
    },
    Recipe {
        name: "one wide layer",
        threads: 2,
        vocab_size: 1024,
        tokens: [128, 8192, 8192],
        num_steps: 3,
        train: "",
        model: "num_layers = 1\nd_model = 64\n[model.attention]\nnum_heads = 2\n\
                [model.ffn]\nactivation = \"gelu\"\nd_ff = 2048\n",
    },
    Recipe {
        name: "a large vocabulary, tied",
        threads: 2,
        vocab_size: 16384,
        tokens: [128, 2048, 2048],
        num_steps: 3,
        train: "",
        model: "num_layers = 2\nd_model = 192\ntie_embeddings = true\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 512\n",
    },
    Recipe {
        name: "mixture",
        threads: 2,
        vocab_size: 2048,
        tokens: [128, 2048, 2048],
        num_steps: 20,
        train: "",
        model: "num_layers = 4\nd_model = 128\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 8\nd_expert = 192\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.04\n",
    },
    Recipe {
        name: "mixture, accumulated, one thread",
        threads: 1,
        vocab_size: 2048,
        tokens: [128, 4096, 8192],
        num_steps: 4,
        train: "",
        model: "num_layers = 3\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 16\nd_expert = 192\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n",
    },
    Recipe {
        name: "expert choice, a shared expert",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 4,
        train: "",
        model: "num_layers = 3\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 8\nd_expert = 256\n\
                d_shared_expert = 192\nshared_expert_gate = true\n\
                [model.ffn.moe.router]\ntop_k = 2\nselection.expert_choice = {}\n",
    },
    Recipe {
        name: "soft mixing",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 3,
        train: "",
        model: "num_layers = 2\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 8\nd_expert = 256\n\
                [model.ffn.moe.router]\ntop_k = 2\nselection.soft = {}\n",
    },
    Recipe {
        name: "many parameters, moments in bf16",
        threads: 2,
        vocab_size: 4096,
        tokens: [128, 256, 256],
        num_steps: 3,
        train: "adamw.moments = \"bf16\"\n",
        model: "num_layers = 3\nd_model = 768\n[model.attention]\nnum_heads = 12\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 2048\n",
    },
    Recipe {
        name: "many experts, moments in bf16",
        threads: 2,
        vocab_size: 2048,
        tokens: [128, 512, 512],
        num_steps: 4,
        train: "adamw.moments = \"bf16\"\n",
        model: "num_layers = 2\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 32\nd_expert = 512\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n",
    },
    Recipe {
        name: "many parameters, Muon",
        threads: 2,
        vocab_size: 4096,
        tokens: [128, 256, 256],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 768\n[model.attention]\nnum_heads = 12\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 2048\n[train.muon]\n",
    },
    Recipe {
        name: "many experts, Muon",
        threads: 2,
        vocab_size: 2048,
        tokens: [128, 512, 512],
        num_steps: 4,
        train: "",
        model: "num_layers = 2\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 32\nd_expert = 512\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n[train.muon]\n",
    },
    Recipe {
        name: "block-sparse",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 2048, 2048],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.block_sparse]\nd_ff = 1024\ndensity = 0.25\n",
    },
    Recipe {
        name: "block-sparse, clamped",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 2048, 2048],
        num_steps: 3,
        train: "",
        model: "num_layers = 3\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = { clamped_swiglu = {} }\n[model.ffn.block_sparse]\nd_ff = 1024\ndensity = 0.25\n",
    },
    Recipe {
        name: "dense in bf16",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 3,
        train: "precision.compute = \"bf16\"\n",
        model: "num_layers = 4\nd_model = 256\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 1024\n",
    },
    Recipe {
        name: "dense, projections computed anew",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 3,
        train: "recompute = \"ffn\"\n",
        model: "num_layers = 6\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 1536\n",
    },
    Recipe {
        name: "dense, blocks computed anew",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 8192, 8192],
        num_steps: 3,
        train: "recompute = \"block\"\n",
        model: "num_layers = 8\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\nd_ff = 1536\n",
    },
    Recipe {
        name: "mixture, blocks computed anew",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 8192],
        num_steps: 4,
        train: "recompute = \"block\"\n",
        model: "num_layers = 6\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 8\nd_expert = 384\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n",
    },
    Recipe {
        name: "mixture in bf16",
        threads: 2,
        vocab_size: 2048,
        tokens: [256, 4096, 4096],
        num_steps: 10,
        train: "precision.compute = \"bf16\"\n",
        model: "num_layers = 3\nd_model = 192\n[model.attention]\nnum_heads = 4\n\
                [model.ffn]\nactivation = \"swiglu\"\n[model.ffn.moe]\nnum_experts = 8\nd_expert = 384\n\
                [model.ffn.moe.router]\ntop_k = 2\nload_balancing_weight = 0.01\n",
    },
];

impl Recipe {
    fn to_toml(&self) -> String {
        let [seq_len, micro_batch_tokens, batch_tokens] = self.tokens;
        // Enough for some batches, a tenth of it for validation.
        let num_documents = 15 * batch_tokens.max(2048) / 512;
        format!(
            "name = \"memory\"\nthreads = {}\n\
             [data.synthetic]\nnum_domains = 1\nvocab_size = {}\nnum_documents = {num_documents}\n\
             document_tokens = 512\nbranching = 4\n[data.split.by_document_hash]\nvalidation_fraction = 0.1\n\
             [train]\nnum_steps = {}\nseq_len = {seq_len}\nbatch_tokens = {batch_tokens}\n\
             micro_batch_tokens = {micro_batch_tokens}\nmax_grad_norm = 1.0\nadamw.learning_rate = 1e-3\n{}\
             [sample]\nnum_tokens = 0\n[model]\n{}",
            self.threads, self.vocab_size, self.num_steps, self.train, self.model
        )
    }
}

/// The program in `folder`, with a cache of its own there.
fn program(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(arguments)
        .current_dir(folder)
        .env("SWITCHYARD_CACHE_DIR", folder.join("cache"))
        .stdin(Stdio::null());
    command
}

/// The parts of the estimate in bytes, as `plan` states them.
fn estimated_parts(folder: &Path) -> [f64; PARTS.len()] {
    let output = program(folder, &["plan", "recipe.toml", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let plan: Value = serde_json::from_slice(&output.stdout).unwrap();
    let memory = &plan["memory"];
    PARTS.map(|name| {
        let bytes =
            memory[format!("{name}_bytes")].as_f64().unwrap_or_else(|| panic!("no {name} in {memory}"));
        if name == "thread" { bytes * memory["threads"].as_f64().unwrap() } else { bytes }
    })
}

/// Most memory that was resident in the process which trains.
fn peak_bytes(folder: &Path) -> f64 {
    let mut command = program(folder, &["train", "recipe.toml", "--out", "run"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kibibytes = 0.0;
    loop {
        // Once it has ended it has no memory: the last look before counts.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(number) = line.and_then(|line| line.trim().strip_suffix("kB")) {
            peak_kibibytes = number.trim().parse::<f64>().unwrap();
        }
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success(), "training ended with {status}");
            return peak_kibibytes * 1024.0;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A recipe, what `plan` said, and what was measured.
struct Measured {
    name: &'static str,
    parts: [f64; PARTS.len()],
    peak: f64,
}

impl Measured {
    fn new(recipe: &Recipe) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("recipe.toml"), recipe.to_toml()).unwrap();
        // Data is prepared by a process of its own, whose memory is not that of training.
        let prepared = program(folder.path(), &["data", "prepare", "recipe.toml"]).output().unwrap();
        assert!(prepared.status.success(), "{}", String::from_utf8_lossy(&prepared.stderr));
        let parts = estimated_parts(folder.path());
        Self { name: recipe.name, parts, peak: peak_bytes(folder.path()) }
    }

    /// The sum of the parts but for one, as a share of the peak.
    fn ratio_without(&self, part: Option<usize>) -> f64 {
        let left_out = part.map_or(0.0, |part| self.parts[part]);
        (self.parts.iter().sum::<f64>() - left_out) / self.peak
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let estimate = self.parts.iter().sum::<f64>() / 1e6;
        let (peak, ratio) = (self.peak / 1e6, self.ratio_without(None));
        write!(f, "{:<34} estimate {estimate:4.0} MB, peak {peak:4.0} MB, ratio {ratio:.3}", self.name)
    }
}

#[test]
fn the_estimate_is_within_its_error_of_the_measured_peak_and_needs_each_of_its_parts() {
    let measured: Vec<Measured> =
        RECIPES.iter().map(Measured::new).inspect(|measured| println!("{measured}")).collect();
    let is_wrong = |measured: &&Measured, part| (measured.ratio_without(part) - 1.0).abs() > MEMORY_ERROR;
    let wrong: Vec<String> =
        measured.iter().filter(|measured| is_wrong(measured, None)).map(ToString::to_string).collect();
    assert!(wrong.is_empty(), "further off than {MEMORY_ERROR}:\n{}", wrong.join("\n"));
    for (index, part) in PARTS.into_iter().enumerate() {
        let without: Vec<_> = measured.iter().filter(|measured| is_wrong(measured, Some(index))).collect();
        let names: Vec<_> = without.iter().map(|measured| measured.name).collect();
        println!("without {part}: wrong for {}", names.join("; "));
        assert!(!names.is_empty(), "no recipe tells whether {part} is counted");
    }
}

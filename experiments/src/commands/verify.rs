//! `switchyard verify`: that a comparison with a recipe is fair, proved by doing it.

mod coordinates;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::anyhow;
use switchyard_comm::Comm;
use switchyard_model::{BaseShapeConfig, ParametrisationConfig, Role};
use switchyard_trainer::TrainError;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::metrics::{Record, read_metrics};
use switchyard_trainer::moved_data::with_missing_path;
use switchyard_trainer::run_folder::{OpenMode, RunPaths, RunStatus};
use switchyard_trainer::train::{TrainRequest, train};

use super::{load_to_run, print_text};
use crate::cli::VerifyArgs;
use crate::failure::Failure;
use crate::interrupt::Interruption;

/// Takes the feed-forward block out of a recipe, to make room for another.
const FORGET_FFN: [&str; 3] = ["model.ffn.moe=", "model.ffn.d_ff=", "model.ffn.block_sparse="];

/// Steps of the proof, unless given.
const STEPS: u64 = 20;

pub(super) fn run(args: &VerifyArgs, interruption: &Interruption) -> Result<(), Failure> {
    if args.coordinates {
        return coordinates::run(args, interruption);
    }
    let (loaded, _) = load_to_run(&args.config.file, &args.config.overrides)?;
    let ffn = &loaded.config.model.ffn;
    if ffn.bias {
        return Err(Failure::Mistake(format!(
            "{}: `model.ffn.bias` is true, but experts have no biases: a dense model with them has no mixture of one expert",
            loaded.locate("model.ffn.bias")
        )));
    }
    let width = match (&ffn.moe, ffn.d_ff) {
        (Some(moe), _) => moe.d_expert * moe.router.top_k,
        (None, Some(d_ff)) => d_ff,
        (None, None) => ffn.block_sparse.as_ref().map_or(1, |block| block.d_ff),
    };
    let mut dense = vec![format!("model.ffn.d_ff={width}")];
    let mut one_expert =
        vec![format!("model.ffn.moe={{ num_experts = 1, d_expert = {width}, router = {{ top_k = 1 }} }}")];
    if let Some(ParametrisationConfig { base }) = &loaded.config.model.parametrisation {
        let [of_dense, of_expert] = base_shapes(base);
        dense.extend(of_dense);
        one_expert.extend(of_expert);
    }
    let folder =
        tempfile::tempdir().map_err(|error| Failure::Fault(anyhow!("cannot make a folder: {error}")))?;
    let stop = interruption.watch("stopping after this step")?;
    let dense = Trained::new(args, &folder.path().join("dense"), dense, &stop)?;
    let moe = Trained::new(args, &folder.path().join("one-expert"), one_expert, &stop)?;
    let rows = compare_rows(&dense.records, &moe.records)?;
    let params = compare_parameters(&dense.checkpoint, &moe.checkpoint)?;
    print_text(&format!(
        "{}: a mixture of one expert is the dense model, bit for bit: {rows} rows (losses, gradient norms) and {params} \
         parameter tensors after {} steps, hidden width {width}\n",
        args.config.file.display(),
        args.steps.unwrap_or(STEPS)
    ))
}

/// The base shape of each of the two, whose block is as wide as what a token uses of the recipe's.
fn base_shapes(base: &BaseShapeConfig) -> [Vec<String>; 2] {
    let width = match (base.d_expert, base.top_k) {
        (Some(d_expert), Some(top_k)) => d_expert * top_k,
        _ => base.d_ff.unwrap_or(1),
    };
    let forget = ["num_experts", "d_expert", "top_k", "d_shared_expert", "d_ff"];
    let set = |keys: &[(&str, usize)]| {
        let key = |name: &str| format!("model.parametrisation.base.{name}");
        let given = keys.iter().map(|(name, value)| format!("{}={value}", key(name)));
        forget.iter().map(|name| format!("{}=", key(name))).chain(given).collect()
    };
    [set(&[("d_ff", width)]), set(&[("num_experts", 1), ("d_expert", width), ("top_k", 1)])]
}

/// A short run and what it left.
struct Trained {
    records: Vec<Record>,
    checkpoint: Checkpoint,
}

impl Trained {
    fn new(args: &VerifyArgs, out: &Path, ffn: Vec<String>, stop: &Arc<AtomicBool>) -> Result<Self, Failure> {
        let mut overrides = args.config.overrides.clone();
        overrides.extend(FORGET_FFN.map(String::from));
        overrides.extend(ffn);
        overrides.extend([format!("train.num_steps={}", args.steps.unwrap_or(STEPS))]);
        overrides.extend(
            ["train.schedule.warmup_steps=0", "train.eval_every_steps=", "sample.num_tokens=0"]
                .map(String::from),
        );
        // They are rounded at random by the names of parameters, which the two do not share.
        overrides.push("train.adamw.moments=".into());
        let (loaded, plan) = load_to_run(&args.config.file, &overrides)?;
        let request = TrainRequest {
            config: loaded.config,
            plan,
            out: out.into(),
            mode: OpenMode::New,
            show_progress: false,
            stop: stop.clone(),
            comm: Comm::single(),
        };
        let data = &request.config.data;
        let summary = train(&request).map_err(|error| match with_missing_path(error, data) {
            TrainError::Start(error) if error.path.starts_with("train.groups") => Failure::Mistake(format!(
                "{error}; this is of the dense model or the mixture of one expert that are compared, which need not have \
                 all that the recipe has: leave the groups out with `--set train.groups=`"
            )),
            error => error.into(),
        })?;
        if summary.manifest.status == RunStatus::Interrupted {
            return Err(TrainError::Interrupted.into());
        }
        let checkpoint = Checkpoint::read(&find_checkpoint(out)?)?;
        Ok(Self { records: read_metrics(&RunPaths::new(out).metrics())?, checkpoint })
    }
}

/// Number of rows, all equal but for the clock and for what only a mixture has.
fn compare_rows(dense: &[Record], moe: &[Record]) -> Result<usize, Failure> {
    if dense.len() != moe.len() {
        return Err(Failure::Fault(anyhow!("{} rows against {}", dense.len(), moe.len())));
    }
    for (dense, moe) in dense.iter().zip(moe) {
        let numbers = |record: &Record| match record {
            Record::Step(row) => [row.cross_entropy_nats, row.total_loss, row.grad_norm].map(f64::to_bits),
            Record::Eval(row) => [row.cross_entropy_nats, 0.0, 0.0].map(f64::to_bits),
        };
        if numbers(dense) != numbers(moe) {
            return Err(Failure::Fault(anyhow!(
                "a mixture of one expert is not the dense model: step {} differs (losses and gradient norm {:?} against {:?})",
                dense.step(),
                numbers(dense).map(f64::from_bits),
                numbers(moe).map(f64::from_bits)
            )));
        }
    }
    Ok(dense.len())
}

/// Number of tensors, all equal bit for bit; a router is the mixture's own.
fn compare_parameters(dense: &Checkpoint, moe: &Checkpoint) -> Result<usize, Failure> {
    let bytes_of = |checkpoint: &Checkpoint| -> Result<Vec<Vec<u8>>, Failure> {
        let mut all: Vec<Vec<u8>> = checkpoint
            .parameters()?
            .iter()
            .filter(|(name, _)| !matches!(name.role, Role::Router(_)))
            .map(|(_, data)| data.as_bytes().to_vec())
            .collect();
        all.sort();
        Ok(all)
    };
    let (dense, moe) = (bytes_of(dense)?, bytes_of(moe)?);
    if dense != moe {
        return Err(Failure::Fault(anyhow!(
            "a mixture of one expert ends with other parameters than the dense model"
        )));
    }
    Ok(dense.len())
}

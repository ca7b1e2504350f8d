//! `switchyard export`

use switchyard_ground::say;
use switchyard_hub::Family;
use switchyard_hub::export::ExpertForm;
use switchyard_hub::tensor_files::Element;
use switchyard_trainer::checkpoint::{Checkpoint, find_checkpoint};
use switchyard_trainer::export::{ExportSettings, export};
use switchyard_trainer::train::with_threads;

use super::print_text;
use crate::cli::{DtypeArg, ExpertsArg, ExportArgs};
use crate::failure::Failure;

pub(super) fn run(args: &ExportArgs) -> Result<(), Failure> {
    let family = match &args.family {
        None => None,
        Some(name) => Some(Family::of_model_type(name).ok_or_else(|| {
            let known: Vec<&str> = Family::ALL.iter().map(|family| family.names().0).collect();
            Failure::Mistake(format!("--family {name} is none of {}", known.join(", ")))
        })?),
    };
    let settings = ExportSettings {
        to: args.to.clone(),
        element: match args.dtype {
            DtypeArg::F32 => Element::F32,
            DtypeArg::F16 => Element::F16,
            DtypeArg::Bf16 => Element::Bf16,
        },
        experts: match args.experts {
            ExpertsArg::PerExpert => ExpertForm::Published,
            ExpertsArg::Fused => ExpertForm::Fused,
        },
        family,
    };
    let checkpoint = Checkpoint::read(&find_checkpoint(&args.path)?)?;
    let certificate = with_threads(checkpoint.config.threads, || export(&checkpoint, &settings))?;
    if let Some(deviation) = &certificate.deviation {
        say!("note: {deviation}");
    }
    print_text(&format!(
        "{}: a {} model of step {}; logits within {:.1e} of the checkpoint's, of which the largest is {:.3}\n",
        args.to.display(),
        certificate.family,
        certificate.step,
        certificate.logits_max_abs_diff,
        certificate.logits_max_abs,
    ))
}

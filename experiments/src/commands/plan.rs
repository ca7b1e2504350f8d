//! `switchyard plan`

use super::{load_args, print_json, print_text};
use crate::cli::PlanArgs;
use crate::failure::Failure;

pub(super) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let (_, plan) = load_args(&args.config)?;
    if args.json { print_json(&plan) } else { print_text(&plan.describe()) }
}

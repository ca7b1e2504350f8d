//! `switchyard plan`

use switchyard_ground::say;
use switchyard_trainer::available_memory::check_memory;

use super::{load_args, print_json, print_text};
use crate::cli::PlanArgs;
use crate::failure::Failure;

pub(super) fn run(args: &PlanArgs) -> Result<(), Failure> {
    let (loaded, plan) = load_args(&args.config)?;
    // Said beside the plan and not in it: the plan is the same on every machine.
    if let Err(error) = check_memory(&loaded.config, &plan) {
        say!("note: `train` would refuse this plan here: {error}");
    }
    if args.json { print_json(&plan) } else { print_text(&plan.describe()) }
}

//! Names of checkpoint folders.

const STEP_PREFIX: &str = "step-";

/// The name of the folder of `step`.
pub fn step_name(step: u64) -> String {
    format!("{STEP_PREFIX}{step}")
}

/// The step in the name `step-<n>` of a checkpoint's folder, as this program writes it.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(STEP_PREFIX)?;
    let step: u64 = digits.parse().ok()?;
    // No sign and no leading zeros: two names must not mean one step.
    (step.to_string() == digits).then_some(step)
}

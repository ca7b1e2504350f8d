use switchyard_trainer::device::{self, DeviceKind, ListedDevice};

use super::{print_json, print_text};
use crate::failure::Failure;

/// Show what there is to compute on.
pub(super) fn run(json: bool) -> Result<(), Failure> {
    let kinds = device::list();
    if json { print_json(&kinds) } else { print_text(&describe(&kinds)) }
}

/// A block for each device, and a line for each kind that has none.
fn describe(kinds: &[DeviceKind]) -> String {
    let mut text = String::new();
    for DeviceKind { kind, devices, missing } in kinds {
        for ListedDevice { name, hardware, computes } in devices {
            text += &format!("{name:<9}{hardware}\n{:<9}{}\n", "", computes.join(", "));
        }
        if let Some(missing) = missing {
            text += &format!("{kind:<9}none: {missing}\n");
        }
    }
    text
}

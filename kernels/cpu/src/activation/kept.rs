//! Activations of projections that are kept in either type: the functions themselves are f32.

use std::mem::MaybeUninit;

use super::{Activation, activate, backward};
use crate::bf16::Bf16;
use crate::panel_product::Stored;
use crate::rounding::{widen, write_rounded};

/// Elements that are widened at a time: a few kilobytes of the first-level cache.
const CHUNK_LEN: usize = 512;

/// What a feed-forward block keeps of its projections.
#[expect(private_bounds, reason = "a closed set: f32 and bf16")]
pub trait Kept: Stored {
    /// As [`activate`]; the hidden values are rounded.
    fn activate<'h>(
        activation: Activation,
        hidden: &'h mut [MaybeUninit<Self>],
        up: &[Self],
        gate: Option<&[Self]>,
    ) -> &'h mut [Self];

    /// As [`backward`]; what replaces the slices is rounded.
    fn differentiate(
        activation: Activation,
        up: &mut [Self],
        gate: Option<&mut [Self]>,
        dhidden: &mut [Self],
        weight: f32,
    ) -> f32;
}

impl Kept for f32 {
    fn activate<'h>(
        activation: Activation,
        hidden: &'h mut [MaybeUninit<Self>],
        up: &[Self],
        gate: Option<&[Self]>,
    ) -> &'h mut [Self] {
        activate(activation, hidden, up, gate)
    }

    fn differentiate(
        activation: Activation,
        up: &mut [Self],
        gate: Option<&mut [Self]>,
        dhidden: &mut [Self],
        weight: f32,
    ) -> f32 {
        backward(activation, up, gate, dhidden, weight)
    }
}

impl Kept for Bf16 {
    fn activate<'h>(
        activation: Activation,
        hidden: &'h mut [MaybeUninit<Self>],
        up: &[Self],
        gate: Option<&[Self]>,
    ) -> &'h mut [Self] {
        assert_eq!(hidden.len(), up.len(), "lengths of hidden values and up projection");
        for (chunk, hidden) in hidden.chunks_mut(CHUNK_LEN).enumerate() {
            let elements = chunk * CHUNK_LEN..chunk * CHUNK_LEN + hidden.len();
            let up = Widened::new(&up[elements.clone()]);
            let gate = gate.map(|gate| Widened::new(&gate[elements]));
            let mut values = [MaybeUninit::uninit(); CHUNK_LEN];
            let gate = gate.as_ref().map(Widened::values);
            let values = activate(activation, &mut values[..hidden.len()], up.values(), gate);
            write_rounded(hidden, values);
        }
        // SAFETY: each chunk has just been written.
        unsafe { hidden.assume_init_mut() }
    }

    fn differentiate(
        activation: Activation,
        up: &mut [Self],
        mut gate: Option<&mut [Self]>,
        dhidden: &mut [Self],
        weight: f32,
    ) -> f32 {
        let mut dweight = 0.0;
        for (chunk, up) in up.chunks_mut(CHUNK_LEN).enumerate() {
            let elements = chunk * CHUNK_LEN..chunk * CHUNK_LEN + up.len();
            let dhidden = &mut dhidden[elements.clone()];
            let mut gate = gate.as_mut().map(|gate| &mut gate[elements]);
            let (mut wide_up, mut wide_dhidden) = (Widened::new(up), Widened::new(dhidden));
            let mut wide_gate = gate.as_ref().map(|gate| Widened::new(gate));
            let gate_values = wide_gate.as_mut().map(Widened::values_mut);
            dweight +=
                backward(activation, wide_up.values_mut(), gate_values, wide_dhidden.values_mut(), weight);
            wide_up.round_into(up);
            wide_dhidden.round_into(dhidden);
            if let Some((gate, wide)) = gate.as_mut().zip(wide_gate) {
                wide.round_into(gate);
            }
        }
        dweight
    }
}

/// A chunk in f32.
struct Widened {
    values: [f32; CHUNK_LEN],
    len: usize,
}

impl Widened {
    fn new(from: &[Bf16]) -> Self {
        let mut values = [0.0; CHUNK_LEN];
        widen(&mut values[..from.len()], from);
        Self { values, len: from.len() }
    }

    fn values(&self) -> &[f32] {
        &self.values[..self.len]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }

    fn round_into(&self, to: &mut [Bf16]) {
        // SAFETY: the same layout, and only values are written.
        let to = unsafe { &mut *(std::ptr::from_mut(to) as *mut [MaybeUninit<Bf16>]) };
        write_rounded(to, self.values());
    }
}

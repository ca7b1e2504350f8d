//! Gradients of a rank's experts, which no tape adds up.

use std::sync::{Mutex, PoisonError};

use switchyard_kernels_cpu::feed_forward::Matrices;

/// Gradients of one rank's experts from the tokens of one rank, elements in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertGradients {
    /// Of the gate projections, `[e, d, f]`.
    pub w_gate_edf: Option<Vec<f32>>,
    /// Of the up projections, `[e, d, f]`.
    pub w_up_edf: Vec<f32>,
    /// Of the down projections, `[e, f, d]`.
    pub w_down_efd: Vec<f32>,
    /// Of the biases of the gate projections, `[e, f]`.
    pub b_gate_ef: Option<Vec<f32>>,
    /// Of the biases of the up projections, `[e, f]`.
    pub b_up_ef: Option<Vec<f32>>,
    /// Of the biases of the down projections, `[e, d]`.
    pub b_down_ed: Option<Vec<f32>>,
}

impl ExpertGradients {
    /// Those that are there, in the order of the fields.
    pub fn into_stacks(self) -> Vec<Vec<f32>> {
        let Self { w_gate_edf, w_up_edf, w_down_efd, b_gate_ef, b_up_ef, b_down_ed } = self;
        let all = [w_gate_edf, Some(w_up_edf), Some(w_down_efd), b_gate_ef, b_up_ef, b_down_ed];
        all.into_iter().flatten().collect()
    }
}

impl From<Matrices<Vec<f32>>> for ExpertGradients {
    fn from(matrices: Matrices<Vec<f32>>) -> Self {
        let Matrices { up, down, gate, up_bias, down_bias, gate_bias } = matrices;
        Self {
            w_gate_edf: gate,
            w_up_edf: up,
            w_down_efd: down,
            b_gate_ef: gate_bias,
            b_up_ef: up_bias,
            b_down_ed: down_bias,
        }
    }
}

/// What backward passes leave. They return nothing to their caller but gradients of tensors, and
/// the sum over ranks is not theirs to make: whoever sums over micro-batches in a fixed order takes
/// them from here.
#[derive(Debug, Default)]
pub struct ExpertGradientSink {
    deposits: Mutex<Vec<Vec<ExpertGradients>>>,
}

impl ExpertGradientSink {
    /// Everything since the last call: for each backward pass, in order, the gradients from the
    /// tokens of each rank, by rank.
    pub fn take(&self) -> Vec<Vec<ExpertGradients>> {
        std::mem::take(&mut self.deposits.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn deposit(&self, by_rank: Vec<ExpertGradients>) {
        self.deposits.lock().unwrap_or_else(PoisonError::into_inner).push(by_rank);
    }
}

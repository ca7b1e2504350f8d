//! Every router as a whole: choices, gates, losses and gradients against plain loops, laws that
//! each keeps, and input that breaks lesser ones.

#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod balance;
mod case;
mod degenerate;
mod gradients;
mod laws;
mod losses;
mod noisy;
mod noisy_laws;
mod normal;
mod oracle;
mod parity;

//! Laws of the network and of a whole run.

#![expect(clippy::unwrap_used, reason = "a test says what it expects by failing")]

mod model;
mod resume;
mod routers;
mod tiny;

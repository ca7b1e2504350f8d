//! Laws of the network and of a whole run.

mod model;
mod resume;
mod tiny;

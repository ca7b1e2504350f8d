//! The flight recorder: what every router did, kept so that it can be asked later which expert in which layer
//! misbehaves, and since when. Host code on plain numbers; nothing here reads a device or changes a model.
//!
//! | question | module |
//! |---|---|
//! | what is on disk, in which format | [`columns`] |

pub mod columns;


//! Other people's models: read from and written to the files in which they are published.
//!
//! No family has a network of its own: a family is a map of `config.json` both ways and a table that
//! says, for each of our parameters, where its values lie in the published tensors.
//!
//! | question | module |
//! |---|---|
//! | which families there are, and what is theirs | [`families`] |
//! | how a parameter is made of published tensors | [`layout`], and tables of them: `table` |
//! | what a key of `config.json` means | `keys`, `decoder_config`, `rope` |
//! | which files hold the tensors, and in which types | [`tensor_files`] |
//! | where a published model lies, here or on the Hugging Face hub | `published_folder` |
//! | a model read, and written | [`import`], [`export`] |

mod decoder_config;
mod error;
pub mod export;
pub mod families;
pub mod import;
mod keys;
pub mod layout;
mod published_folder;
mod rope;
mod table;
pub mod tensor_files;

pub use error::HubError;
pub use families::Family;
pub use import::{Located, PublishedModel, SpecialIds};
pub use published_folder::published_folder;
pub use tensor_files::TensorFiles;

//! `switchyard import`

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::json;
use switchyard_ground::units::{exact, grouped};
use switchyard_hub::PublishedModel;
use switchyard_model::ModelCounts;

use super::{print_json, print_text};
use crate::cli::ImportArgs;
use crate::failure::Failure;

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    let published = PublishedModel::open(&args.dir)?;
    let spec = published.spec(published.config.num_positions.unwrap_or(1))?;
    let located = published.locate(&spec)?;
    // Every value is read once: a file that ends early, or holds a NaN, is told now.
    for (name, _) in located.names() {
        published.values(&located, name)?;
    }
    if args.toml {
        let table = BTreeMap::from([("model", &published.config)]);
        return print_text(&toml::to_string(&table).map_err(|error| Failure::Fault(error.into()))?);
    }
    let counts = ModelCounts::of(&spec, spec.max_seq_len);
    let (family, _) = published.family.names();
    if args.json {
        return print_json(&json!({
            "family": family,
            "total_params": counts.total_params,
            "active_params": counts.active_params,
            "num_layers": spec.num_layers(),
            "model": published.config,
            "unknown_keys": published.unknown_keys,
        }));
    }
    let mut page = format!(
        "{}: {family}, {} layers of width {}, {} parameters, {} active per token, {} ids\n",
        args.dir.display(),
        spec.num_layers(),
        spec.d_model,
        exact(counts.total_params),
        exact(counts.active_params),
        grouped(spec.vocab_size as u64),
    );
    for (key, value) in &published.unknown_keys {
        let _ = writeln!(page, "note: `{key}` = {value} in config.json is no key of this family");
    }
    print_text(&page)
}

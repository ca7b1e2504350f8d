//! `switchyard import`

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::json;
use switchyard_ground::say;
use switchyard_ground::shell::quoted_path;
use switchyard_ground::units::{exact, grouped};
use switchyard_hub::{PublishedModel, published_folder};
use switchyard_model::{ModelCounts, ModelSpec};
use switchyard_trainer::import::{ImportRequest, import_run};
use switchyard_trainer::run_folder::OpenMode;

use super::{next_command, print_json, print_text};
use crate::cli::ImportArgs;
use crate::failure::Failure;

pub(super) fn run(args: &ImportArgs) -> Result<(), Failure> {
    // Without config.json the error is that of the folder.
    let dir = published_folder(&args.dir)?.unwrap_or_else(|| args.dir.clone());
    let published = PublishedModel::open(&dir)?;
    let spec = published.spec(published.config.num_positions.unwrap_or(1))?;
    match &args.out {
        Some(out) => write_run(args, &dir, out, &published)?,
        None => read_all(&published, &spec)?,
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

/// Reads every value once: a file that ends early, or holds a NaN, is told now.
fn read_all(published: &PublishedModel, spec: &ModelSpec) -> Result<(), Failure> {
    let located = published.locate(spec)?;
    for (name, _) in located.names() {
        published.values(&located, name)?;
    }
    Ok(())
}

fn write_run(args: &ImportArgs, dir: &Path, out: &Path, published: &PublishedModel) -> Result<(), Failure> {
    let mode = if args.overwrite { OpenMode::Overwrite } else { OpenMode::New };
    let request = ImportRequest { out: out.to_owned(), mode, seq_len: args.seq_len };
    let written = import_run(dir, published, &request)?;
    if !dir.join("tokenizer.json").exists() {
        say!("note: no tokenizer.json lies beside the model: its texts are ids, written as numbers");
    }
    say!("written: {}", quoted_path(&written));
    say!("next: {}", next_command::generate(out));
    Ok(())
}

//! Damaged recipes, and odd `--set` overrides of sound ones.

use std::fs;
use std::path::{Path, PathBuf};

use rand::RngExt;
use switchyard_trainer::config_file::{self, ConfigError, Override, config_hash, to_toml};

use crate::engine::mutation::{self, pick};
use crate::engine::{Input, Random, Target, Verdict};
use crate::toml_text::TomlSeeds;

/// The file of an input that holds the recipe, and the one with its overrides, a line each.
const RECIPE: &str = "recipe.toml";
const OVERRIDES: &str = "overrides";

struct Recipes {
    seeds: TomlSeeds,
    folder: PathBuf,
    /// Whether the overrides are damaged, or the recipe.
    damages_overrides: bool,
}

/// Opens the target of recipes.
pub(crate) fn open(folder: &Path) -> Box<dyn Target> {
    Box::new(Recipes { seeds: seeds(), folder: folder.to_owned(), damages_overrides: false })
}

/// Opens the target of overrides.
pub(crate) fn open_overrides(folder: &Path) -> Box<dyn Target> {
    Box::new(Recipes { seeds: seeds(), folder: folder.to_owned(), damages_overrides: true })
}

/// All recipes of the repository.
fn seeds() -> TomlSeeds {
    let experiments = Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
    TomlSeeds::open(&experiments, |name| name != "Cargo.toml" && !name.starts_with("studies"))
}

impl Recipes {
    fn overrides(&self, random: &mut Random) -> Vec<u8> {
        let mut text = String::new();
        for _ in 0..random.random_range(1..5) {
            let mut key = pick(&self.seeds.keys, random).clone();
            match random.random_range(0..8) {
                0 => key += &format!(".{}", pick(&self.seeds.keys, random)),
                1 => key = key.rsplit_once('.').map_or(key.clone(), |(parent, _)| parent.to_owned()),
                2 => key = format!("{key}.").repeat(1 << random.random_range(0..10)) + "x",
                _ => {}
            }
            let value = if random.random_range(0..8) == 0 { String::new() } else { self.seeds.value(random) };
            text += &format!("{key}={}\n", value.replace('\n', " "));
        }
        let mut bytes = text.into_bytes();
        if random.random_range(0..4) == 0 {
            mutation::mutate(&mut bytes, &[], &self.seeds.keys, random);
        }
        bytes
    }
}

impl Target for Recipes {
    fn input(&self, index: u64, random: &mut Random) -> Input {
        let mut input = Input::default();
        if let Some(seed) = self.seeds.files.get(index as usize) {
            input.files.push((RECIPE.to_owned(), seed.bytes.clone()));
        } else if self.damages_overrides {
            input.files.push((RECIPE.to_owned(), pick(&self.seeds.files, random).bytes.clone()));
            input.files.push((OVERRIDES.to_owned(), self.overrides(random)));
        } else {
            input.files.push((RECIPE.to_owned(), self.seeds.damaged(random)));
        }
        input
    }

    fn run(&self, input: &Input) -> Verdict {
        let path = self.folder.join(RECIPE);
        fs::write(&path, &input.files[0].1).expect("a recipe can be written");
        let overrides = input.files.get(1).map_or("".into(), |(_, bytes)| String::from_utf8_lossy(bytes));
        match load_and_plan(&path, &overrides) {
            Ok(Ok(())) => Verdict::Accepted,
            Ok(Err(law)) => Verdict::Broken(law),
            Err(error) => Verdict::Refused(error.to_string()),
        }
    }
}

/// Does what `switchyard plan` does; inside is a law that does not hold.
fn load_and_plan(path: &Path, overrides: &str) -> Result<Result<(), String>, ConfigError> {
    let overrides = overrides.lines().map(Override::parse).collect::<Result<Vec<_>, _>>()?;
    let loaded = config_file::load(path, &overrides)?;
    let plan = loaded.resolve()?;
    plan.describe();
    let again = path.with_file_name("again.toml");
    fs::write(&again, to_toml(&loaded.config)).expect("a recipe can be written");
    let reread = match config_file::load(&again, &[]) {
        Ok(reread) => reread,
        Err(error) => return Ok(Err(format!("a configuration that was written cannot be read: {error}"))),
    };
    // By its hash: a NaN, were one accepted, would not equal itself.
    let is_same = config_hash(&reread.config) == config_hash(&loaded.config);
    Ok(if is_same { Ok(()) } else { Err("a configuration that was written and read is another".to_owned()) })
}

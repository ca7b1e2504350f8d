//! What a key of the configuration takes, from the JSON schema, for errors that say more than
//! serde's.

use serde_json::Value as Json;
use switchyard_ground::printable::excerpt;
use toml::{Table, Value};

use super::keys::{
    alternatives_of, child, choices_of, collect_paths, has_type, is_required, join, keys_of, node_at, resolve,
};
use super::schema;

/// A mistake in keys or types.
pub(super) struct Mistake {
    /// The key to change.
    pub(super) key: String,
    /// The key, its value, and what is allowed.
    pub(super) message: String,
}

/// What serde's `message` about `path` means for whoever wrote `table`; `is_override` says whether
/// a key was set on the command line.
pub(super) fn explain(
    path: &str,
    message: &str,
    table: &Table,
    is_override: impl Fn(&str) -> bool,
) -> Mistake {
    let path = path.trim_start_matches('.');
    let root = schema();
    if let Some(field) = quoted_after(message, "unknown field ") {
        let key = match path.strip_suffix(field) {
            Some("") => path.to_owned(),
            Some(parent) if parent.ends_with('.') => path.to_owned(),
            _ => join(path, field),
        };
        let message = unknown_key(root, &key);
        return Mistake { key, message };
    }
    if let Some(field) = quoted_after(message, "missing field ") {
        let key = join(path, field);
        let message = missing_key(root, path, field);
        return Mistake { key, message };
    }
    let path = choice_around(root, path, table);
    if let Some(mistake) = wrong_choice(root, path, table, is_override) {
        return mistake;
    }
    let key = path.split('[').next().unwrap_or(path);
    let message = wrong_value(root, path, key, table, message);
    Mistake { key: path.to_owned(), message }
}

/// A list in the place of a table, which serde would take as the table's values in the order of
/// their declaration.
pub(super) fn list_for_table(table: &Table) -> Option<Mistake> {
    let root = schema();
    table.iter().find_map(|(key, value)| list_in(root, node_at(root, key)?, key.clone(), value))
}

fn list_in(root: &Json, node: &Json, path: String, value: &Value) -> Option<Mistake> {
    let node = resolve(root, node);
    match value {
        Value::Table(inner) => inner
            .iter()
            .find_map(|(key, value)| list_in(root, child(root, node, key)?, join(&path, key), value)),
        Value::Array(_) if !has_type(node, "array") && !keys_of(root, node).is_empty() => {
            let message = format!("`{path}` is a list: use {}", expected(root, node));
            Some(Mistake { key: path, message })
        }
        Value::Array(elements) => {
            let of_element = node.get("items")?;
            let mut places = elements.iter().enumerate();
            places.find_map(|(index, value)| list_in(root, of_element, format!("{path}[{index}]"), value))
        }
        _ => None,
    }
}

/// Nothing, if the configuration has such a key.
///
/// # Errors
/// A message that names the keys there are.
pub(crate) fn check_known(key: &str) -> Result<(), String> {
    let root = schema();
    match node_at(root, key) {
        Some(_) => Ok(()),
        None => Err(unknown_key(root, key)),
    }
}

/// Characters of a value or a name that a message repeats.
const SHOWN_CHARS: usize = 57;

/// A value as it would be written, shortened if it is long.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => excerpt(&value.to_string(), SHOWN_CHARS),
        Value::String(text) if text.chars().count() > SHOWN_CHARS => {
            format!("\"{}\"", excerpt(text, SHOWN_CHARS))
        }
        short => short.to_string(),
    }
}

/// Whether the configuration has a key of that name whose value is a number with a fraction.
pub(super) fn takes_number(key: &str) -> bool {
    let root = schema();
    node_at(root, key).is_some_and(|node| has_type(resolve(root, node), "number"))
}

fn unknown_key(root: &Json, key: &str) -> String {
    // The outermost part that is unknown is the mistake; what lies inside it follows from it.
    let mut parent = "";
    let mut name = key;
    for (index, _) in key.match_indices('.') {
        if node_at(root, &key[..index]).is_none() {
            name = &key[parent.len()..index];
            break;
        }
        parent = &key[..index];
        name = &key[index + 1..];
    }
    let name = name.trim_start_matches('.');
    let known = node_at(root, parent).map(|node| keys_of(root, node)).unwrap_or_default();
    let place = if parent.is_empty() { "the top level".to_owned() } else { format!("[{parent}]") };
    let takes = match known.as_slice() {
        [] => format!("{place} takes no keys"),
        known => format!("{place} takes {}", known.join(", ")),
    };
    let hint = match nearest(name, &known) {
        Some(near) => format!(" Did you mean `{near}`?"),
        None => elsewhere(root, name),
    };
    let key = excerpt(&join(parent, name), 2 * SHOWN_CHARS);
    format!("`{key}` is not a key of the configuration: {takes}.{hint}")
}

/// Suggests the same name in another table.
fn elsewhere(root: &Json, name: &str) -> String {
    let mut paths = Vec::new();
    collect_paths(root, root, "", &mut paths);
    let suffix = format!(".{name}");
    let same: Vec<String> = paths
        .into_iter()
        .filter(|path| path == name || path.ends_with(&suffix))
        .take(3)
        .map(|path| format!("`{path}`"))
        .collect();
    if same.is_empty() { String::new() } else { format!(" Did you mean {}?", same.join(" or ")) }
}

fn missing_key(root: &Json, table: &str, field: &str) -> String {
    let key = join(table, field);
    let place = if table.is_empty() { "the configuration".to_owned() } else { format!("[{table}]") };
    let Some(node) = node_at(root, &key) else {
        return format!("{place} lacks `{field}`");
    };
    let about = node["description"].as_str().map(first_sentence).unwrap_or_default();
    let takes = expected(root, node);
    if keys_of(root, node).is_empty() {
        // The command line names no element of a list.
        let or_set = if key.contains('[') { String::new() } else { format!(", or pass `--set {key}=VALUE`") };
        format!("{place} lacks `{field}` ({about}): add {takes}{or_set}")
    } else {
        format!("{place} lacks `{field}` ({about}): add [{key}], {takes}")
    }
}

/// `path`, or the choice around it if `path` is a variant's name that is no key of `table`: serde
/// names the variant of a choice that was written as a string.
fn choice_around<'a>(root: &Json, path: &'a str, table: &Table) -> &'a str {
    let Some((parent, _)) = path.rsplit_once('.') else { return path };
    let is_choice = node_at(root, parent).is_some_and(|node| !alternatives_of(root, node).is_empty());
    if is_choice && value_at(table, path).is_none() { parent } else { path }
}

/// The mistake in a table at `path` that holds none of its alternatives, several, or an unknown
/// one; `None` if it is another.
fn wrong_choice(
    root: &Json,
    path: &str,
    table: &Table,
    is_override: impl Fn(&str) -> bool,
) -> Option<Mistake> {
    let node = node_at(root, path)?;
    let names = alternatives_of(root, node);
    let written = value_at(table, path)?.as_table().filter(|_| !names.is_empty())?;
    let known = keys_of(root, node);
    if let Some(unknown) = written.keys().find(|key| !known.contains(&key.as_str())) {
        let key = join(path, unknown);
        let message = unknown_key(root, &key);
        return Some(Mistake { key, message });
    }
    let given: Vec<String> =
        names.iter().filter(|name| written.contains_key(**name)).map(|name| join(path, name)).collect();
    match given.as_slice() {
        [] if is_required(root, path) => {
            let tables: Vec<String> = names.iter().map(|name| format!("[{}]", join(path, name))).collect();
            let message = format!("[{path}] needs exactly one of {}", in_words(&tables));
            Some(Mistake { key: path.to_owned(), message })
        }
        [] => {
            let keys: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
            let absence = node["description"].as_str().and_then(|text| text.split_once("; absent "));
            let absence = absence.map(|(_, rest)| format!(" (absent {})", first_sentence(rest)));
            let message = format!(
                "`{path}` is empty: give {}, or remove it{}",
                in_words(&keys),
                absence.unwrap_or_default()
            );
            Some(Mistake { key: path.to_owned(), message })
        }
        [_] => None,
        [first, second, ..] => {
            // What was set on the command line is meant to stay.
            let (kept, other) =
                if is_override(first) && !is_override(second) { (first, second) } else { (second, first) };
            let mut message = format!("`{kept}` is given beside `{other}`: keep one of them");
            if !other.contains('[') {
                message.push_str(&format!(" (on the command line, `--set {other}=` removes the other)"));
            }
            Some(Mistake { key: kept.clone(), message })
        }
    }
}

/// `a, b or c`.
fn in_words(names: &[String]) -> String {
    match names {
        [] => String::new(),
        [one] => one.clone(),
        [firsts @ .., last] => format!("{} or {last}", firsts.join(", ")),
    }
}

/// What a type of ours says that it expects, in words; serde itself names primitive types.
fn own_words(message: &str) -> Option<&str> {
    let (_, expected) = message.strip_prefix("invalid value: ")?.split_once(", expected ")?;
    expected.contains(' ').then_some(expected)
}

fn wrong_value(root: &Json, path: &str, key: &str, table: &Table, message: &str) -> String {
    let given = value_at(table, path);
    let (Some(node), Some(given)) = (node_at(root, path), given) else {
        return format!("`{}`: {}", excerpt(key, SHOWN_CHARS), excerpt(message, 4 * SHOWN_CHARS));
    };
    let allowed = own_words(message).map_or_else(|| expected(root, node), str::to_owned);
    let mut text = format!("`{path}` is {}: use {allowed}", show(given));
    let choices = choices_of(resolve(root, node));
    let choices: Vec<&str> = choices.iter().map(String::as_str).collect();
    if let Some(near) = given.as_str().and_then(|given| nearest(given, &choices)) {
        text.push_str(&format!(". Did you mean \"{near}\"?"));
    }
    if given.as_str().is_some_and(|given| alternatives_of(root, node).contains(&given)) {
        text.push_str(&format!(", as in `{key} = {{ {} = {{}} }}`", given.as_str().unwrap_or_default()));
    }
    if has_type(resolve(root, node), "string") && !given.is_table() && !given.is_array() {
        text.push_str(&format!(", as in `{key} = \"{given}\"` or `--set '{key}=\"{given}\"'`"));
    }
    text
}

/// What a value at `node` looks like, in words.
fn expected(root: &Json, node: &Json) -> String {
    let node = resolve(root, node);
    let choices = choices_of(node);
    if !choices.is_empty() {
        let mut written: Vec<String> = choices.iter().map(|choice| format!("\"{choice}\"")).collect();
        written.extend(alternatives_of(root, node).iter().map(|table| format!("{{ {table} = {{}} }}")));
        return format!("one of {}", written.join(", "));
    }
    if has_type(node, "integer") {
        "a whole number, 0 or more".to_owned()
    } else if has_type(node, "number") {
        "a number".to_owned()
    } else if has_type(node, "boolean") {
        "true or false".to_owned()
    } else if has_type(node, "string") {
        "a string".to_owned()
    } else if has_type(node, "array") {
        format!("a list, each element {}", expected(root, &node["items"]))
    } else {
        let keys = keys_of(root, node);
        match keys.as_slice() {
            [] => "an empty table, `{}`".to_owned(),
            keys if keys.len() == alternatives_of(root, node).len() => {
                format!("a table with one of the keys {}", keys.join(", "))
            }
            keys => format!("a table with the keys {}", keys.join(", ")),
        }
    }
}

pub(super) fn value_at<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let mut words = path.split('.');
    let element = |table: &'a Table, word: &str| match word.split_once('[') {
        Some((name, index)) => table.get(name)?.get(index.trim_end_matches(']').parse::<usize>().ok()?),
        None => table.get(word),
    };
    let first = element(table, words.next()?)?;
    words.try_fold(first, |value, word| element(value.as_table()?, word))
}

/// The candidate that differs by the fewest edits, if these are few enough for a slip of the
/// finger.
fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    let word = word.to_lowercase();
    candidates
        .iter()
        .map(|candidate| (edit_distance(&word, candidate), *candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 5)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions and replacements of characters that turn one word into the other
/// (Levenshtein).
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, char_a) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, char_b) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(char_a != *char_b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

fn quoted_after<'a>(message: &'a str, start: &str) -> Option<&'a str> {
    message.strip_prefix(start)?.split('`').nth(1)
}

fn first_sentence(text: &str) -> String {
    let text = text.replace('\n', " ");
    let end = [". ", "; ", ": "].iter().filter_map(|stop| text.find(stop)).min().unwrap_or(text.len());
    text[..end].trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted() {
        assert_eq!(edit_distance("", "abc"), 3);
        assert_eq!(edit_distance("top_k", "top_k"), 0);
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn only_slips_of_the_finger_are_guessed() {
        let keys = ["num_layers", "d_model", "dropout"];
        assert_eq!(nearest("n_layers", &keys), Some("num_layers"));
        assert_eq!(nearest("D_MODEL", &keys), Some("d_model"));
        assert_eq!(nearest("hidden_size", &keys), None);
    }

    #[test]
    fn every_key_of_the_schema_says_what_it_takes() {
        let root = schema();
        let mut paths = Vec::new();
        collect_paths(root, root, "", &mut paths);
        assert!(paths.contains(&"model.ffn.moe.router.top_k".to_owned()));
        for path in paths {
            let node = node_at(root, &path).unwrap();
            assert!(!expected(root, node).is_empty(), "{path}");
            let (parent, name) = path.rsplit_once('.').unwrap_or(("", &path));
            let parent = resolve(root, node_at(root, parent).unwrap());
            let members = parent["oneOf"].as_array().into_iter().flatten();
            let mut described = [node].into_iter().chain(members.filter(|it| it["required"][0] == name));
            assert!(described.any(|node| node["description"].is_string()), "{path} has no description");
        }
    }
}

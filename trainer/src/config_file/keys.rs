//! What the JSON schema says about a key.

use serde_json::Value as Json;

/// The schema of a key path; an element of a list is `path[index]`.
pub(super) fn node_at<'a>(root: &'a Json, path: &str) -> Option<&'a Json> {
    path.split('.').filter(|word| !word.is_empty()).try_fold(root, |node, word| {
        // On the command line the entry of a list is a word of its own.
        if let Some(entries) = resolve(root, node).get("items") {
            return Some(entries);
        }
        let (name, index) = word.split_once('[').map_or((word, None), |(name, index)| (name, Some(index)));
        let value = child(root, node, name)?;
        match index {
            Some(_) => resolve(root, value).get("items"),
            None => Some(value),
        }
    })
}

/// The schema of the key `name` in the table of `node`.
pub(super) fn child<'a>(root: &'a Json, node: &'a Json, name: &str) -> Option<&'a Json> {
    properties(root, node).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// The schema itself behind references and behind "this or nothing".
pub(super) fn resolve<'a>(root: &'a Json, node: &'a Json) -> &'a Json {
    if let Some(name) = node["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/")) {
        return resolve(root, &root["$defs"][name]);
    }
    match node["anyOf"].as_array() {
        Some(choices) => choices
            .iter()
            .find(|choice| choice["type"] != "null")
            .map_or(node, |choice| resolve(root, choice)),
        None => node,
    }
}

/// The keys of a table with their schemas: those of every alternative, where it holds one of
/// several.
fn properties<'a>(root: &'a Json, node: &'a Json) -> impl Iterator<Item = (&'a str, &'a Json)> {
    let node = resolve(root, node);
    [node]
        .into_iter()
        .chain(members(node))
        .filter_map(|table| table["properties"].as_object())
        .flatten()
        .map(|(key, value)| (key.as_str(), value))
}

fn members(node: &Json) -> impl Iterator<Item = &Json> {
    node["oneOf"].as_array().into_iter().flatten()
}

/// The keys of a table, sorted: the order of serde_json's maps depends on the features of the
/// build.
pub(super) fn keys_of<'a>(root: &'a Json, node: &'a Json) -> Vec<&'a str> {
    let mut keys: Vec<&str> = properties(root, node).map(|(key, _)| key).collect();
    keys.sort_unstable();
    keys
}

/// The keys of a table that exclude each other, in the order of their declaration; empty if none
/// do.
pub(super) fn alternatives_of<'a>(root: &'a Json, node: &'a Json) -> Vec<&'a str> {
    members(resolve(root, node)).filter_map(|member| member["required"][0].as_str()).collect()
}

/// Whether the table around `path` cannot do without it.
pub(super) fn is_required(root: &Json, path: &str) -> bool {
    let (parent, name) = path.rsplit_once('.').unwrap_or(("", path));
    let required = node_at(root, parent).and_then(|parent| resolve(root, parent)["required"].as_array());
    required.is_some_and(|names| names.iter().any(|other| other == name))
}

/// The values of a closed set; empty if the node is not one.
pub(super) fn choices_of(node: &Json) -> Vec<String> {
    let constants = members(node).map(|choice| &choice["const"]);
    let listed = node["enum"].as_array().into_iter().flatten();
    constants.chain(listed).filter_map(Json::as_str).map(str::to_owned).collect()
}

/// Whether a value of the JSON type `name` is allowed.
pub(super) fn has_type(node: &Json, name: &str) -> bool {
    match &node["type"] {
        Json::Array(names) => names.iter().any(|other| other == name),
        other => other == name,
    }
}

/// Adds the path of every key below `node`, which lies at `prefix`.
pub(super) fn collect_paths(root: &Json, node: &Json, prefix: &str, paths: &mut Vec<String>) {
    for (name, child) in properties(root, node) {
        let path = join(prefix, name);
        collect_paths(root, child, &path, paths);
        paths.push(path);
    }
}

/// The path of `key` in the table at the path `table`.
pub(super) fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") }
}

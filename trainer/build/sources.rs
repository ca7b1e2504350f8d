//! What of the sources decides a run's numbers.
//!
//! Left out are comments, documentation, tests, messages, lints and files that only report: a
//! change of any of them makes no other program of it, and must not make a study train again what
//! it has.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// Crates whose every source counts.
pub(crate) const WHOLE_CRATES: [&str; 6] =
    ["kernels/cpu", "kernels", "router", "experts", "model", "datasets"];

/// The packages of those crates.
pub(crate) const PACKAGES: [&str; 6] = [
    "switchyard-kernels-cpu",
    "switchyard-kernels",
    "switchyard-router",
    "switchyard-experts",
    "switchyard-model",
    "switchyard-datasets",
];

/// What of `trainer/src` reads, reports, measures or finds files, and changes no number of a run.
pub(crate) const REPORTING: [&str; 22] = [
    "available_memory.rs",
    "average.rs",
    "benchmark.rs",
    "benchmark/",
    "config_file.rs",
    "config_file/",
    "coordinates.rs",
    "energy.rs",
    "error.rs",
    "flight/",
    "generate.rs",
    "host.rs",
    "metrics/",
    "memory.rs",
    "moved_data.rs",
    "observers.rs",
    "plan/describe.rs",
    "plan/router.rs",
    "run_folder.rs",
    "run_folder/",
    "sampling.rs",
    "throughput.rs",
];

/// Whether the file of `trainer/src` decides numbers.
pub(crate) fn decides_numbers(path: &str) -> bool {
    !REPORTING.iter().any(|left_out| match left_out.strip_suffix('/') {
        Some(_) => path.starts_with(left_out),
        None => path == *left_out,
    })
}

/// The tokens of a source that decide what it computes, one a line; `None` if it is no Rust.
pub(crate) fn deciding_tokens(source: &str) -> Option<String> {
    let mut out = String::new();
    write_tokens(source.parse().ok()?, &mut out);
    Some(out)
}

fn write_tokens(tokens: TokenStream, out: &mut String) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while at < tokens.len() {
        if let Some((attribute, length)) = attribute_at(&tokens[at..]) {
            at += length;
            match first_word(&attribute).as_str() {
                "doc" | "error" | "expect" | "allow" | "must_use" | "track_caller" => continue,
                "cfg" if is_test(&attribute) => at += item_length(&tokens[at..]),
                _ => push(&attribute.to_string(), out),
            }
            continue;
        }
        match &tokens[at] {
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                push(open, out);
                write_tokens(group.stream(), out);
                push(close, out);
            }
            TokenTree::Literal(literal) if is_message(&literal.to_string()) => push("\"\"", out),
            token => push(&token.to_string(), out),
        }
        at += 1;
    }
}

fn push(token: &str, out: &mut String) {
    out.push_str(token);
    out.push('\n');
}

/// What is between the brackets of the attribute that `tokens` begin with, and its length in
/// tokens.
fn attribute_at(tokens: &[TokenTree]) -> Option<(TokenStream, usize)> {
    let is =
        |token: Option<&TokenTree>, mark| matches!(token, Some(TokenTree::Punct(it)) if it.as_char() == mark);
    if !is(tokens.first(), '#') {
        return None;
    }
    let length = if is(tokens.get(1), '!') { 3 } else { 2 };
    match tokens.get(length - 1) {
        Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Bracket => {
            Some((group.stream(), length))
        }
        _ => None,
    }
}

fn first_word(attribute: &TokenStream) -> String {
    attribute.clone().into_iter().next().map(|token| token.to_string()).unwrap_or_default()
}

fn is_test(attribute: &TokenStream) -> bool {
    attribute.to_string().replace(' ', "") == "cfg(test)"
}

/// Tokens up to the end of an item: its body, or a semicolon.
fn item_length(tokens: &[TokenTree]) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(mark) => mark.as_char() == ';',
        _ => false,
    };
    tokens.iter().position(ends).map_or(tokens.len(), |last| last + 1)
}

/// Whether a literal is a text of several words: what is said to people, where a key or a name is
/// one word.
fn is_message(literal: &str) -> bool {
    let is_text = literal.starts_with('"') || literal.starts_with("r\"") || literal.starts_with("r#");
    let words = literal.split_whitespace();
    is_text && words.filter(|word| word.chars().any(char::is_alphabetic)).count() > 1
}

/// Names and versions of the packages in `lock` that the packages `of` need, directly or through
/// others, sorted.
pub(crate) fn dependencies(lock: &str, of: &[&str]) -> Vec<String> {
    let packages = packages(lock);
    let mut needed = BTreeSet::new();
    let mut open: Vec<String> = of.iter().map(|name| (*name).to_owned()).collect();
    while let Some(name) = open.pop() {
        for (version, dependencies) in packages.get(&name).into_iter().flatten() {
            if needed.insert(format!("{name} {version}")) {
                open.extend(dependencies.iter().cloned());
            }
        }
    }
    needed.into_iter().collect()
}

/// The lines of the workspace's manifest that choose how the program and the packages `needed` are
/// compiled.
pub(crate) fn settings(manifest: &str, needed: &[String]) -> Vec<String> {
    let names: BTreeSet<&str> = needed.iter().filter_map(|package| package.split(' ').next()).collect();
    let mut section = "";
    let mut settings = Vec::new();
    for line in manifest.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if line.starts_with('[') {
            section = line;
        }
        let counts = match section {
            "[workspace.dependencies]" => {
                line.split([' ', '=']).next().is_some_and(|name| names.contains(name))
            }
            _ => section.starts_with("[profile"),
        };
        if counts {
            settings.push(line.to_owned());
        }
    }
    settings
}

/// Versions of each package, with the names of what it depends on.
fn packages(lock: &str) -> BTreeMap<String, Vec<(String, Vec<String>)>> {
    let quoted = |line: &str| line.split('"').nth(1).unwrap_or_default().to_owned();
    let mut packages: BTreeMap<String, Vec<(String, Vec<String>)>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let value =
            |key: &str| package.lines().find(|line| line.starts_with(key)).map(quoted).unwrap_or_default();
        // A name alone, or with a version where there are several.
        let name_of = |line: &str| quoted(line).split(' ').next().unwrap_or_default().to_owned();
        let dependencies = package.lines().filter(|line| line.starts_with(" \"")).map(name_of).collect();
        packages.entry(value("name = ")).or_default().push((value("version = "), dependencies));
    }
    packages
}

//! The file of `generate --prompts`.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::failure::Failure;

/// A line of the file.
#[derive(Deserialize)]
#[serde(untagged)]
enum PromptLine {
    Text(String),
    Object { prompt: String },
}

/// The prompts of a file, a line of JSON for each; empty lines are passed over.
pub(super) fn read(path: &Path) -> Result<Vec<String>, Failure> {
    let refused = |problem: String| Failure::Mistake(format!("`--prompts {}`: {problem}", path.display()));
    let text = fs::read_to_string(path)
        .map_err(|error| refused(format!("it cannot be read ({error}): name a file of JSON lines")))?;
    let prompts = parse(&text).map_err(refused)?;
    if prompts.is_empty() {
        return Err(refused("it holds no prompt: write one a line, such as \"Once upon a time\"".into()));
    }
    Ok(prompts)
}

fn parse(text: &str) -> Result<Vec<String>, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
    let prompt = |(number, line): (usize, &str)| match serde_json::from_str(line) {
        Ok(PromptLine::Text(prompt) | PromptLine::Object { prompt }) => Ok(prompt),
        Err(_) => Err(format!(
            "line {number} is no prompt: write a JSON string, such as \"Once upon a time\", or {{\"prompt\": \"...\"}}"
        )),
    };
    lines.map(prompt).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_a_string_or_an_object_a_line() {
        let parsed = parse("\u{feff}\"one\"\n\n{\"prompt\": \"t\\nwo\", \"id\": 3}\n");
        assert_eq!(parsed, Ok(vec!["one".to_owned(), "t\nwo".to_owned()]));
        assert!(parse("\"one\"\ntwo").unwrap_err().starts_with("line 2 is no prompt: write a JSON string"));
        assert!(parse("3").is_err() && parse("{\"text\": \"x\"}").is_err());
    }
}

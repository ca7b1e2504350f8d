//! `--set key.path=value`.

use std::fmt;

use toml::{Table, Value};

use switchyard_ground::printable::excerpt;

use super::{ConfigError, explain};

/// Words that the path of a key may have: no key of the configuration has half as many, and tables
/// nested without end would use up the stack.
const MAX_KEY_WORDS: usize = 16;

/// Bytes that a `--set` may have: enough for any prompt.
const MAX_ARGUMENT_BYTES: usize = 1 << 16;

/// Characters of a `--set` that a message repeats.
const SHOWN_CHARS: usize = 120;

/// One `--set key.path=value`: changes, adds or removes a key of the configuration file.
///
/// The value is TOML (`10`, `1e-3`, `true`, `[0, 2]`, `"text"`, `{}`); what is not is taken as a
/// string, so that `data.text.path=my file.txt` needs no quotes. An empty value removes the key,
/// which makes room for another choice: `train.schedule.cosine=` and
/// `train.schedule.linear.min_learning_rate=0`. An entry of a list is named by its place, from 0, or by
/// its `name`: `data.sources.0.weight=2`, `data.sources.code.weight=2`.
#[derive(Debug, Clone, PartialEq)]
pub struct Override {
    /// As given.
    argument: String,
    key: String,
    /// Absent removes the key.
    value: Option<Value>,
}

impl Override {
    /// The override that `argument` states.
    ///
    /// # Errors
    /// If there is no `=`, or the key is not a path of words joined by dots.
    pub fn parse(argument: &str) -> Result<Self, ConfigError> {
        let error = |message: &str| ConfigError::Override {
            argument: excerpt(argument, SHOWN_CHARS),
            message: message.into(),
        };
        if argument.len() > MAX_ARGUMENT_BYTES {
            let problem =
                format!("it has {} bytes: use at most {MAX_ARGUMENT_BYTES}, or a file", argument.len());
            return Err(error(&problem));
        }
        let Some((key, value)) = argument.split_once('=') else {
            return Err(error("no `=`: write `key.path=value`, such as `train.num_steps=100`"));
        };
        let key = key.trim();
        let is_word = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c))
        };
        if !key.split('.').all(is_word) {
            return Err(error("the key is not a path of words joined by dots, such as `train.num_steps`"));
        }
        let num_words = key.split('.').count();
        if num_words > MAX_KEY_WORDS {
            let problem = format!("the key has {num_words} words, no key has more than {MAX_KEY_WORDS}");
            return Err(error(&problem));
        }
        Ok(Self { argument: argument.into(), key: key.into(), value: parse_value(key, value) })
    }

    /// Path of the key, such as `train.num_steps`.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether it gives `key` a value, by name or inside a table.
    pub fn sets(&self, key: &str) -> bool {
        let Some(value) = &self.value else { return false };
        match key.strip_prefix(&self.key) {
            Some("") => true,
            Some(inner) => inner.strip_prefix('.').is_some_and(|inner| has_key(value, inner)),
            None => false,
        }
    }

    /// Whether it gives `key`, or something inside it, a value.
    pub(super) fn is_about(&self, key: &str) -> bool {
        let is_inside = self.key.strip_prefix(key).is_some_and(|inner| inner.starts_with('.'));
        self.sets(key) || is_inside && self.value.is_some()
    }

    /// Put the value into `table`, or take the key out.
    ///
    /// # Errors
    /// A message, if the key to remove is unknown, or lies inside something that is not a table.
    pub(super) fn apply(&self, table: &mut Table) -> Result<(), String> {
        let (parents, last) = self.key.rsplit_once('.').unwrap_or(("", &self.key));
        let Some(value) = &self.value else {
            // serde only sees what is left, so a misspelt key to remove has to be caught here.
            explain::check_known(&self.key)?;
            if explain::value_at(table, parents).is_some_and(Value::is_array) {
                return Err(format!(
                    "`{parents}` is a list, and `{last}` of it cannot be taken out alone: remove it whole with \
                     `--set {parents}=`, or give another with `--set {parents}=[...]`"
                ));
            }
            if let Some(parent) = find_table(table, parents) {
                parent.remove(last);
            }
            return Ok(());
        };
        let mut parent = table;
        let mut path = String::new();
        let mut words = parents.split('.').filter(|word| !word.is_empty());
        while let Some(word) = words.next() {
            path = if path.is_empty() { word.to_owned() } else { format!("{path}.{word}") };
            let mut next = parent.entry(word).or_insert_with(|| Value::Table(Table::new()));
            if next.is_array()
                && let Some(entry) = words.next()
            {
                next = entry_of(next, entry).map_err(|problem| format!("`{path}` {problem}"))?;
                path = format!("{path}.{entry}");
            }
            let shown = explain::show(next);
            parent = next.as_table_mut().ok_or_else(|| format!("`{path}` is {shown}, not a table"))?;
        }
        parent.insert(last.to_owned(), value.clone());
        Ok(())
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--set {}", excerpt(&self.argument, SHOWN_CHARS))
    }
}

fn parse_value(key: &str, text: &str) -> Option<Value> {
    if text.trim().is_empty() {
        return None;
    }
    let parsed = toml::from_str::<Table>(&format!("value = {text}")).ok();
    // A line break in the text could smuggle in further keys: then it was not one value.
    let value = parsed.filter(|table| table.len() == 1).and_then(|mut table| table.remove("value"));
    let value = value.or_else(|| loose_float(text).filter(|_| explain::takes_number(key)).map(Value::Float));
    Some(value.unwrap_or_else(|| Value::String(text.to_owned())))
}

/// A number as people write it and TOML does not: `.001`, `1.`, `2.e-3`.
pub(super) fn loose_float(text: &str) -> Option<f64> {
    let text = text.trim();
    let is_number = text.contains('.') && text.chars().all(|c| c.is_ascii_digit() || "+-.eE".contains(c));
    text.parse().ok().filter(|_| is_number)
}

/// Whether `value` is a table with something at `path`.
fn has_key(value: &Value, path: &str) -> bool {
    path.split('.').try_fold(value, |value, word| value.get(word)).is_some()
}

/// The table at `path`; the empty path is the table itself.
fn find_table<'a>(table: &'a mut Table, path: &str) -> Option<&'a mut Table> {
    let mut words = path.split('.').filter(|word| !word.is_empty());
    let mut found = table;
    while let Some(word) = words.next() {
        let mut next = found.get_mut(word)?;
        if next.is_array() {
            next = entry_of(next, words.next()?).ok()?;
        }
        found = next.as_table_mut()?;
    }
    Some(found)
}

/// The entry of `list` at the place `word`, from 0, or of that `name`.
fn entry_of<'a>(list: &'a mut Value, word: &str) -> Result<&'a mut Value, String> {
    let entries = list.as_array_mut().map_or(&mut [][..], Vec::as_mut_slice);
    let named = |entry: &Value| entry.get("name").and_then(Value::as_str) == Some(word);
    let index = entries.iter().position(named).or_else(|| word.parse().ok());
    let num_entries = entries.len();
    index.and_then(|index| entries.get_mut(index)).ok_or_else(|| {
        format!("is a list of {num_entries}, and `{word}` is neither a place in it, from 0, nor a `name`")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(argument: &str) -> Option<Value> {
        Override::parse(argument).unwrap().value
    }

    fn applied(text: &str, argument: &str) -> Result<Table, String> {
        let mut table: Table = toml::from_str(text).unwrap();
        Override::parse(argument).unwrap().apply(&mut table)?;
        Ok(table)
    }

    #[test]
    fn a_value_is_toml_or_else_a_string() {
        assert_eq!(value("a=10"), Some(Value::Integer(10)));
        assert_eq!(value("a = 1e-3"), Some(Value::Float(1e-3)));
        assert_eq!(value("a=true"), Some(Value::Boolean(true)));
        assert_eq!(value("a=\"10\""), Some(Value::String("10".into())));
        assert_eq!(value("a={}"), Some(Value::Table(Table::new())));
        assert_eq!(value("a=/tmp/my file=1.txt"), Some(Value::String("/tmp/my file=1.txt".into())));
        assert_eq!(value("a=1\nb = 2"), Some(Value::String("1\nb = 2".into())));
        assert_eq!(value("a= "), None);
    }

    #[test]
    fn a_number_may_begin_or_end_with_its_point_where_a_number_is_wanted() {
        for (text, number) in [(".001", 0.001), ("1.", 1.0), ("+.5", 0.5), ("-.5", -0.5), ("2.e-3", 0.002)] {
            assert_eq!(value(&format!("train.adamw.learning_rate={text}")), Some(Value::Float(number)));
            assert_eq!(value(&format!("sample.prompt={text}")), Some(Value::String(text.into())));
        }
        for text in [".", "1.2.3", "..1", ".e1", "1,5"] {
            let given = value(&format!("train.adamw.learning_rate={text}"));
            assert_eq!(given, Some(Value::String(text.into())), "{text}");
        }
    }

    #[test]
    fn a_key_without_end_and_a_value_without_end_are_refused_with_an_excerpt() {
        for (argument, problem) in [
            (format!("{}=1", ["a"; 30_000].join(".")), "the key has 30000 words"),
            (format!("{}=1", ["a"; 17].join(".")), "the key has 17 words, no key has more than 16"),
            (format!("a={}", "x".repeat(100_000)), "it has 100002 bytes: use at most 65536"),
            ("x".repeat(60_000), "no `=`"),
        ] {
            let message = Override::parse(&argument).unwrap_err().to_string();
            assert!(message.contains(problem) && message.len() < 300, "{message}");
        }
        assert_eq!(Override::parse(&format!("a={}", "x".repeat(1_000))).unwrap().to_string().len(), 129);
        // TOML bounds how deep a value is; what it refuses is a text.
        let deep = format!("a={}1{}", "[".repeat(20_000), "]".repeat(20_000));
        assert!(matches!(value(&deep), Some(Value::String(_))));
    }

    #[test]
    fn an_argument_that_is_no_assignment_says_what_one_looks_like() {
        let message = |argument: &str| Override::parse(argument).unwrap_err().to_string();
        assert_eq!(
            message("train.num_steps"),
            "--set train.num_steps: no `=`: write `key.path=value`, such as `train.num_steps=100`"
        );
        for argument in ["=1", "a..b=1", "a b=1", ".a=1"] {
            assert_eq!(
                message(argument),
                format!(
                    "--set {argument}: the key is not a path of words joined by dots, such as `train.num_steps`"
                )
            );
        }
    }

    #[test]
    fn a_key_is_set_by_name_or_inside_a_table() {
        let sets = |argument: &str| Override::parse(argument).unwrap().sets("model.ffn.moe.d_expert");
        assert!(sets("model.ffn.moe.d_expert=64"));
        assert!(sets("model.ffn.moe={ num_experts = 4, d_expert = 64 }"));
        assert!(sets("model.ffn={ moe = { d_expert = 64 } }"));
        for other in
            ["model.ffn.moe={ num_experts = 4 }", "model.ffn.moe.d_expert=", "model.ffn.mo=1", "model=1"]
        {
            assert!(!sets(other), "{other}");
        }
    }

    #[test]
    fn keys_are_changed_added_and_removed() {
        let before = "name = 'a'\n[train]\nnum_steps = 1\n[train.schedule.cosine]\n";
        assert_eq!(
            applied(before, "train.num_steps=2").unwrap(),
            toml::from_str::<Table>("name = 'a'\n[train]\nnum_steps = 2\n[train.schedule.cosine]\n").unwrap()
        );
        assert_eq!(
            applied(before, "train.schedule.cosine=").unwrap(),
            toml::from_str::<Table>("name = 'a'\n[train]\nnum_steps = 1\n[train.schedule]\n").unwrap()
        );
        assert_eq!(applied(before, "train.schedule.wsd=").unwrap(), toml::from_str::<Table>(before).unwrap());
        assert_eq!(applied("", "a.b.c=1").unwrap(), toml::from_str::<Table>("a.b.c = 1").unwrap());
        assert_eq!(applied("", "name=x").unwrap(), toml::from_str::<Table>("name = 'x'").unwrap());
        assert_eq!(applied(before, "name.x=1").unwrap_err(), "`name` is \"a\", not a table");
    }

    #[test]
    fn an_entry_of_a_list_is_named_by_its_place_or_its_name() {
        let before =
            "[[data.sources]]\nname = 'code'\nweight = 1\n[[data.sources]]\nname = 'news'\ntext.path = 'n'\n";
        let sources =
            |argument: &str| applied(before, argument).map(|table| table["data"]["sources"].clone());
        let changed = sources("data.sources.code.weight=2").unwrap();
        assert_eq!((&changed[0]["weight"], &changed[1]["name"]), (&2.into(), &"news".into()));
        assert_eq!(sources("data.sources.1.text.path=/m").unwrap()[1]["text"]["path"], "/m".into());
        assert_eq!(
            sources("data.sources.news.split.tail.validation_fraction=0.5").unwrap()[1]["split"]["tail"]["validation_fraction"],
            0.5.into()
        );
        assert!(sources("data.sources.code.weight=").unwrap()[0].get("weight").is_none());
        for argument in ["data.sources.0=", "data.sources.code="] {
            let message = sources(argument).unwrap_err();
            assert!(message.contains("`data.sources` is a list"), "{message}");
        }
        assert_eq!(
            sources("data.sources.2.weight=1").unwrap_err(),
            "`data.sources` is a list of 2, and `2` is neither a place in it, from 0, nor a `name`"
        );
    }
}

//! Multiple choice: which of some continuations a model finds likeliest, as lm-evaluation-harness
//! (its task type `multiple_choice`) counts it.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use serde::{Deserialize, Serialize};
use switchyard_datasets::Tokenizer;
use switchyard_ground::regular_file;
use switchyard_model::Transformer;

use crate::TrainError;
use crate::token_scores::{ToScore, TokenScore, check_causal, token_scores};

/// Far more than any published task.
const MAX_BYTES: u64 = 1 << 30;

/// A question with its possible answers: a line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// What comes before the answer.
    pub context: String,
    /// The answers.
    pub choices: Vec<String>,
    /// Index of the right one.
    pub answer: usize,
}

/// How likely the answers to one question are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answers {
    /// Log-likelihood of each choice, in nats.
    pub log_likelihoods: Vec<f64>,
    /// Whether each choice is what the model says at temperature 0.
    pub is_greedy: Vec<bool>,
    /// Index of the likeliest choice.
    pub chosen: usize,
    /// Index of the likeliest choice per character.
    pub chosen_norm: usize,
    /// Index of the right one.
    pub answer: usize,
}

/// A share with its standard error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accuracy {
    /// Share of the questions, in 0..=1.
    pub value: f64,
    /// Standard error of the mean, from the sample's variance; `None` for one question.
    pub standard_error: Option<f64>,
}

/// The questions in the JSON lines file at `path`.
///
/// # Errors
/// [`TrainError::Choices`] naming the line.
pub fn read_questions(path: &Path) -> Result<Vec<Question>, TrainError> {
    let refused = |reason: String| TrainError::Choices { path: path.to_path_buf(), reason };
    let text = regular_file::read_to_string(path, MAX_BYTES).map_err(|error| refused(error.to_string()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let question = |(index, line): (usize, &str)| {
        let refused = |reason: String| refused(format!("line {}: {reason}", index + 1));
        let question: Question = serde_json::from_str(line).map_err(|error| {
            let form = r#"{"context": "...", "choices": ["...", "..."], "answer": 0}"#;
            refused(format!("{error}; lines such as {form} are expected"))
        })?;
        let num_choices = question.choices.len();
        if num_choices == 1 {
            return Err(refused(
                "there is one choice, which is right whatever the model says: give at least two".into(),
            ));
        }
        if question.answer >= num_choices {
            let answer = question.answer;
            return Err(refused(format!(
                "`answer` is {answer}, but there are {num_choices} choices, from 0"
            )));
        }
        match question.choices.iter().position(String::is_empty) {
            Some(empty) => Err(refused(format!("`choices[{empty}]` is empty: give it a text"))),
            None => Ok(question),
        }
    };
    let questions = lines.map(question).collect::<Result<Vec<_>, _>>()?;
    if questions.is_empty() { Err(refused("there is no question in it".into())) } else { Ok(questions) }
}

/// The tokens of `context` and `continuation`, of which those of the continuation are scored: the
/// last `max_inputs + 1` of them.
///
/// Both are encoded together, and cut where the context alone ends; spaces at the end of the context
/// go to the continuation. An empty context is the mark between documents.
///
/// # Errors
/// Why the continuation cannot be scored.
pub fn continuation(
    tokenizer: &Tokenizer,
    context: &str,
    continuation: &str,
    max_inputs: usize,
) -> Result<ToScore, String> {
    let encode = |text: &str| tokenizer.encode(text).map_err(|error| error.to_string());
    let with_begin = |ids: Vec<u32>| tokenizer.begin_of_document().into_iter().chain(ids).collect::<Vec<_>>();
    let (kept, text) = (context.trim_end(), context.to_owned() + continuation);
    let (ids, num_scored) = if kept.is_empty() {
        let mark = tokenizer.begin_of_document().or(tokenizer.end_of_document());
        let of_text = encode(&text)?;
        let given = mark.filter(|mark| of_text.first() != Some(mark));
        let ids: Vec<u32> = given.into_iter().chain(of_text).collect();
        let num_scored = ids.len().saturating_sub(usize::from(mark.is_some()));
        (ids, num_scored)
    } else {
        let whole = with_begin(encode(&text)?);
        let of_context = with_begin(encode(kept)?).len();
        let num_scored = whole.len().saturating_sub(of_context);
        (whole, num_scored)
    };
    if num_scored == 0 {
        return Err("the continuation has no token of its own".into());
    }
    if num_scored >= ids.len() {
        return Err("no token comes before the continuation: give a `context` with text".into());
    }
    if num_scored > max_inputs {
        return Err(format!(
            "the continuation has {num_scored} tokens, and the model {max_inputs} positions"
        ));
    }
    let cut = ids.len().saturating_sub(max_inputs + 1);
    Ok(ToScore { ids: ids[cut..].to_vec(), num_scored })
}

/// The tokens of every choice of `questions`, in order, for a model of `max_inputs` positions.
/// `delimiter` stands between context and choice.
///
/// # Errors
/// [`TrainError::Choices`] for a choice that cannot be scored.
pub fn to_score(
    tokenizer: &Tokenizer,
    (questions, path): (&[Question], &Path),
    delimiter: &str,
    max_inputs: usize,
) -> Result<Vec<ToScore>, TrainError> {
    let mut requests = Vec::new();
    for (index, question) in questions.iter().enumerate() {
        for (number, choice) in question.choices.iter().enumerate() {
            let request =
                continuation(tokenizer, &question.context, &format!("{delimiter}{choice}"), max_inputs);
            requests.push(request.map_err(|reason| TrainError::Choices {
                path: path.to_path_buf(),
                reason: format!("question {}, `choices[{number}]`: {reason}", index + 1),
            })?);
        }
    }
    Ok(requests)
}

/// The answers of `model` to `questions`. `delimiter` stands between context and choice.
///
/// # Errors
/// [`TrainError::Choices`] for a choice that cannot be scored; if the device fails, or `stop` is
/// set.
pub fn answer(
    model: &Transformer,
    tokenizer: &Tokenizer,
    (questions, path): (&[Question], &Path),
    delimiter: &str,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Vec<Answers>, TrainError> {
    check_causal(model.spec())?;
    let requests = to_score(tokenizer, (questions, path), delimiter, model.spec().max_seq_len)?;
    let mut scores = token_scores(model, &requests, 0, device, stop)?.into_iter();
    let answers = questions.iter().map(|question| {
        let of_question: Vec<_> = scores.by_ref().take(question.choices.len()).collect();
        Answers::new(question, &of_question)
    });
    Ok(answers.collect())
}

impl Answers {
    fn new(question: &Question, scores: &[Vec<TokenScore>]) -> Self {
        let log_likelihoods: Vec<f64> =
            scores.iter().map(|tokens| tokens.iter().map(|token| token.log_prob).sum()).collect();
        let characters = question.choices.iter().map(|choice| choice.chars().count() as f64);
        let per_character: Vec<f64> =
            log_likelihoods.iter().zip(characters).map(|(nats, count)| nats / count).collect();
        Self {
            chosen: first_largest(&log_likelihoods),
            chosen_norm: first_largest(&per_character),
            is_greedy: scores.iter().map(|tokens| tokens.iter().all(|token| token.is_greedy)).collect(),
            log_likelihoods,
            answer: question.answer,
        }
    }
}

/// Index of the largest number, of equals the first.
fn first_largest(values: &[f64]) -> usize {
    (0..values.len()).reduce(|best, next| if values[next] > values[best] { next } else { best }).unwrap_or(0)
}

impl Accuracy {
    /// `acc`: how often the likeliest choice is right.
    pub fn of_likeliest(answers: &[Answers]) -> Self {
        Self::of(answers.iter().map(|answers| answers.chosen == answers.answer))
    }

    /// `acc_norm`: how often the likeliest choice per character is right.
    pub fn of_likeliest_per_character(answers: &[Answers]) -> Self {
        Self::of(answers.iter().map(|answers| answers.chosen_norm == answers.answer))
    }

    fn of(is_right: impl Iterator<Item = bool> + Clone) -> Self {
        let num = is_right.clone().count() as f64;
        let value = is_right.filter(|is_right| *is_right).count() as f64 / num;
        // The sum of squares of 0s and 1s around their mean.
        let variance = value * (1.0 - value) * num / (num - 1.0);
        let standard_error = (num > 1.0).then(|| (variance / num).sqrt());
        Self { value, standard_error }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(context: &str, choice: &str, max_inputs: usize) -> Result<ToScore, String> {
        continuation(&Tokenizer::Bytes, context, choice, max_inputs)
    }

    fn to_score(text: &str, num_scored: usize) -> ToScore {
        ToScore { ids: text.bytes().map(u32::from).collect(), num_scored }
    }

    #[test]
    fn spaces_at_the_end_of_the_context_belong_to_the_continuation() {
        assert_eq!(score("a b", " c", 9).unwrap(), to_score("a b c", 2));
        assert_eq!(score("a b \n", "c", 9).unwrap(), to_score("a b \nc", 3));
    }

    #[test]
    fn an_empty_context_is_the_mark_between_documents() {
        assert_eq!(score("", "cd", 9).unwrap(), to_score("\0cd", 2));
        assert_eq!(score(" ", "cd", 9).unwrap(), to_score("\0 cd", 3));
        assert_eq!(score("", "\0cd", 9).unwrap(), to_score("\0cd", 2), "a mark that is there is the context");
        let without_mark = Tokenizer::Ids { vocab_size: 9, end_of_document: None };
        assert!(continuation(&without_mark, "", "1", 9).unwrap_err().contains("give a `context`"));
    }

    #[test]
    fn a_long_context_loses_its_beginning_and_a_long_continuation_is_refused() {
        assert_eq!(score("abcdef", "gh", 4).unwrap(), to_score("defgh", 2));
        assert_eq!(score("abcdef", "ghij", 4).unwrap(), to_score("fghij", 4));
        assert!(score("abcdef", "ghijk", 4).unwrap_err().contains("5 tokens, and the model 4 positions"));
    }

    #[test]
    fn accuracy_has_the_standard_error_of_the_mean() {
        let accuracy = Accuracy::of([true, false, false, true, true].into_iter());
        assert_eq!(accuracy.value, 0.6);
        // The sample's standard deviation of 1, 0, 0, 1, 1 over the root of 5.
        assert!((accuracy.standard_error.unwrap() - (0.3f64 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(Accuracy::of([true].into_iter()).standard_error, None);
    }

    #[test]
    fn lines_that_are_no_question_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("questions.jsonl");
        let good = r#"{"context": "a", "choices": ["b", "c"], "answer": 1}"#;
        for (line, reason) in [
            ("", "no question"),
            ("{}", "line 1: missing field `context`"),
            (r#"{"context": 1, "choices": [], "answer": 0}"#, "line 1: invalid type"),
            (r#"{"context": "a", "choices": ["b"], "answer": 0}"#, "there is one choice"),
            (
                r#"{"context": "a", "choices": ["b", "c"], "answer": 2}"#,
                "`answer` is 2, but there are 2 choices",
            ),
            (r#"{"context": "a", "choices": ["b", ""], "answer": 1}"#, "`choices[1]` is empty"),
            (r#"{"context": "a", "choices": ["b"], "answer": -1}"#, "line 1: invalid value"),
        ] {
            std::fs::write(&path, line).unwrap();
            let message = read_questions(&path).unwrap_err().to_string();
            assert!(message.contains(reason) && message.contains("questions.jsonl"), "{message}");
        }
        std::fs::write(&path, format!("{good}\n\n{good}\n")).unwrap();
        assert_eq!(read_questions(&path).unwrap().len(), 2);
    }
}

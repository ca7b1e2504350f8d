//! How likely given tokens are: held to a forward pass over each text alone.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::module::Module;
use burn::tensor::{DType, Device};
use switchyard_datasets::{Progress, TokenStore, Tokenizer, prepare};
use switchyard_model::{ModelInput, Pass, Transformer};
use switchyard_trainer::TrainError;
use switchyard_trainer::choices::{Question, answer, continuation};
use switchyard_trainer::completion::{CompletionSettings, complete};
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::evaluate::{EvaluationSettings, evaluate};
use switchyard_trainer::generate::{GenerationSettings, generate};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::sampling::SamplingSettings;
use switchyard_trainer::token_scores::{ToScore, token_scores};
use tempfile::TempDir;

use crate::tiny;

const SEQ_LEN: usize = 16;

fn model(config: &RunConfig) -> Transformer {
    Transformer::new(&RunPlan::resolve(config).unwrap().model, 3, &Device::flex())
}

/// A mixture without a capacity, whose tokens do not compete.
fn mixture() -> RunConfig {
    tiny::routed("top_k = 2")
}

fn ids() -> Tokenizer {
    Tokenizer::Ids { vocab_size: 32, end_of_document: Some(0) }
}

/// Logarithms of the probabilities of the tokens after the first, from one forward pass over all and
/// a softmax in double precision.
fn log_probs(model: &Transformer, ids: &[u32]) -> Vec<f64> {
    let model = model.valid();
    let input_ids = ids[..ids.len() - 1].iter().map(|id| *id as i32).collect();
    let input = ModelInput::upload(input_ids, None, [1, ids.len() - 1], &Device::flex());
    let logits = model.logits(model.forward(&input, Pass::Evaluation).hidden_td).cast(DType::F64);
    let values: Vec<f64> = logits.into_data().iter().collect();
    let rows = values.chunks(values.len() / (ids.len() - 1));
    rows.zip(&ids[1..])
        .map(|(row, id)| row[*id as usize] - row.iter().map(|logit| logit.exp()).sum::<f64>().ln())
        .collect()
}

#[test]
fn scores_of_many_requests_are_those_of_each_alone() {
    for config in [tiny::dense(), mixture()] {
        let model = model(&config);
        let requests: Vec<ToScore> = (0..23usize)
            .map(|n| {
                let len = 2 + n * 5 % 14;
                let ids = (0..len).map(|place| ((n * 7 + place * 11) % 32) as u32).collect();
                ToScore { ids, num_scored: 1 + n % (len - 1) }
            })
            .collect();
        let found = token_scores(&model, &requests, 2, &Device::flex(), &AtomicBool::new(false)).unwrap();
        for (request, found) in requests.iter().zip(found) {
            let all = log_probs(&model, &request.ids);
            let expected = &all[all.len() - request.num_scored..];
            assert_eq!(found.len(), expected.len());
            for (score, expected) in found.iter().zip(expected) {
                // Single precision in another order of sums.
                assert!((score.log_prob - expected).abs() < 1e-5, "{} {expected}", score.log_prob);
                assert_eq!(score.is_greedy, score.top[0].1 == score.log_prob);
            }
        }
        let stop = AtomicBool::new(true);
        let stopped = token_scores(&model, &requests, 0, &Device::flex(), &stop).unwrap_err();
        assert!(matches!(stopped, TrainError::Interrupted));
    }
}

#[test]
fn answers_are_the_choices_that_the_model_finds_likeliest() {
    let model = model(&mixture());
    let words = |ids: &[u32]| ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
    let questions: Vec<Question> = (0..9u32)
        .map(|n| {
            let ids = |from: u32, len: u32| (0..len).map(|k| (from * 5 + k * 3) % 32).collect::<Vec<_>>();
            Question {
                context: words(&ids(n, 3 + n * 3)),
                choices: (0..3).map(|choice| words(&ids(n + 7 * choice, 1 + choice))).collect(),
                answer: n as usize % 3,
            }
        })
        .collect();
    let stop = AtomicBool::new(false);
    let of = (&questions[..], Path::new("questions.jsonl"));
    let found = answer(&model, &ids(), of, " ", &Device::flex(), &stop).unwrap();
    for (question, answers) in questions.iter().zip(found) {
        let encode = |text: &str| ids().encode(text).unwrap();
        let nats: Vec<f64> = question
            .choices
            .iter()
            .map(|choice| {
                let whole = [encode(&question.context), encode(choice)].concat();
                let seen = &whole[whole.len().saturating_sub(SEQ_LEN + 1)..];
                log_probs(&model, seen)[seen.len() - 1 - encode(choice).len()..].iter().sum()
            })
            .collect();
        let best =
            |values: Vec<f64>| (0..3).max_by(|a, b| values[*a].partial_cmp(&values[*b]).unwrap()).unwrap();
        for (found, expected) in answers.log_likelihoods.iter().zip(&nats) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
        assert_eq!(answers.chosen, best(nats.clone()));
        let per_character = nats.iter().zip(&question.choices).map(|(nats, text)| nats / text.len() as f64);
        assert_eq!(answers.chosen_norm, best(per_character.collect()));
    }
    let too_long = continuation(&ids(), "1", &format!(" {}", words(&[1; SEQ_LEN + 1])), SEQ_LEN).unwrap_err();
    assert!(too_long.contains("positions"), "{too_long}");
}

#[test]
fn a_completion_has_the_tokens_of_generate() {
    let model = model(&mixture());
    for temperature in [0.0, 1.0] {
        let sampling = SamplingSettings {
            top_p: Some(0.9),
            repetition_penalty: Some(1.3),
            ..SamplingSettings::new(temperature)
        };
        let settings = GenerationSettings {
            prompt: Some("1 2 3".into()),
            seed: 5,
            keeps_cache: false,
            ..GenerationSettings::new(20, sampling)
        };
        let mut text = String::new();
        generate(&model, &ids(), &settings, &Device::flex(), |piece| {
            text.push_str(piece);
            Ok(())
        })
        .unwrap();
        let mut found = Vec::new();
        let settings = CompletionSettings { max_tokens: 20, seed: 5, sampling };
        complete(&model, &[1, 2, 3], &settings, &Device::flex(), |id, _| {
            found.push(id);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(ids().encode(&text).unwrap(), found);
    }
}

#[test]
fn sliding_windows_give_each_token_its_context() {
    let folder = TempDir::new().unwrap();
    let mut config = mixture();
    config.data.cache_dir = Some(folder.path().join("cache"));
    let dataset = prepare(&config.data, &Progress::silent()).unwrap();
    let store: Arc<TokenStore> = dataset.validation;
    let model = model(&config);
    let mut tokens = vec![0; store.len()];
    store.read(0, &mut tokens).unwrap();
    let tokens: Vec<u32> = tokens.into_iter().map(|id| id as u32).collect();
    for stride in [SEQ_LEN, 5] {
        let settings = EvaluationSettings {
            seq_len: SEQ_LEN,
            sequences_per_batch: 4,
            max_tokens: Some(90),
            stride: Some(stride),
            mask_documents: false,
            carries_state: false,
            by_document: false,
        };
        let found = evaluate(&model, &store, &settings, &Device::flex()).unwrap();
        assert!(found.num_tokens <= 90 && !found.whole_split);
        let (mut nats, mut previous_end, mut begin) = (0.0, 0, 0);
        while previous_end < found.num_tokens as usize {
            let end = begin + SEQ_LEN;
            let all = log_probs(&model, &tokens[begin..=end]);
            nats -= all[all.len() - (end - previous_end)..].iter().sum::<f64>();
            (previous_end, begin) = (end, begin + stride);
        }
        assert_eq!(previous_end as u64, found.num_tokens);
        assert!((nats / found.num_tokens as f64 - found.cross_entropy_nats).abs() < 1e-5, "stride {stride}");
    }
    let whole = EvaluationSettings {
        seq_len: SEQ_LEN,
        sequences_per_batch: 32,
        max_tokens: None,
        stride: Some(SEQ_LEN),
        mask_documents: false,
        carries_state: false,
        by_document: false,
    };
    let found = evaluate(&model, &store, &whole, &Device::flex()).unwrap();
    assert_eq!((found.num_tokens, found.whole_split), (store.len() as u64 - 1, true));
}

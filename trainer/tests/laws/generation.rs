//! Generated text does not depend on what is kept, on what else is generated, or on who looks.

use burn::tensor::Device;
use switchyard_datasets::Tokenizer;
use switchyard_model::Transformer;
use switchyard_trainer::config::RunConfig;
use switchyard_trainer::generate::{
    GeneratedText, GenerationEvent, GenerationSettings, TokenTrace, generate_all,
};
use switchyard_trainer::plan::RunPlan;
use switchyard_trainer::sampling::SamplingSettings;

use crate::recurrent::recurrent;
use crate::tiny;

/// Of longer texts than positions.
const NUM_TOKENS: usize = 30;

fn model(config: &RunConfig) -> Transformer {
    let mut plan = RunPlan::resolve(config).unwrap();
    plan.model.vocab_size = 256;
    // Large, so that scores differ.
    plan.model.init.std = 0.5;
    Transformer::new(&plan.model, 3, &Device::flex())
}

fn settings() -> GenerationSettings {
    let sampling = SamplingSettings { repetition_penalty: Some(1.2), ..SamplingSettings::new(0.9) };
    GenerationSettings { seed: 5, ..GenerationSettings::new(NUM_TOKENS, sampling) }
}

fn generated(
    model: &Transformer,
    prompts: &[&str],
    settings: &GenerationSettings,
) -> (Vec<GeneratedText>, Vec<TokenTrace>) {
    let prompts: Vec<Option<&str>> = prompts.iter().map(|prompt| Some(*prompt)).collect();
    let (mut traces, mut shown) = (Vec::new(), vec![String::new(); prompts.len()]);
    let generated = generate_all(model, &Tokenizer::Bytes, &prompts, settings, &Device::flex(), |event| {
        match event {
            GenerationEvent::Text { sequence, text } => shown[sequence].push_str(text),
            GenerationEvent::Routed(token) => traces.push(token),
        }
        Ok(())
    })
    .unwrap();
    let texts: Vec<String> = generated.texts.iter().map(|text| text.text.clone()).collect();
    assert_eq!(texts, shown);
    (generated.texts, traces)
}

fn configs() -> Vec<(&'static str, RunConfig)> {
    let mut with_position = tiny::dense();
    with_position.model.position =
        Some(toml::from_str("[rope.scaling.dynamic]\nfactor = 2.0\noriginal_len = 10\n").unwrap());
    let mut of_capacity = tiny::moe();
    if let Some(moe) = &mut of_capacity.model.ffn.moe
        && let Some(capacity) = &mut moe.capacity
    {
        capacity.evaluation_factor = Some(1.0);
    }
    vec![
        ("dense", tiny::dense()),
        ("mixture", tiny::moe()),
        ("capacity while generating", of_capacity),
        ("random experts", tiny::routed("top_k = 2\nselection = { random = {} }")),
        ("hashed experts", tiny::routed("top_k = 2\nselection = { hash = {} }")),
        (
            "expert choice",
            tiny::routed("top_k = 2\nselection = { expert_choice = { generation = \"top_k\" } }"),
        ),
        ("dynamic angles", with_position),
        // Which has no positions to run out of.
        ("lstm", recurrent()),
    ]
}

#[test]
fn what_is_kept_changes_no_text() {
    for (name, config) in configs() {
        let model = model(&config);
        let kept = generated(&model, &["a", "the longest prompt of them all", "b c"], &settings());
        let anew = GenerationSettings { keeps_cache: false, ..settings() };
        assert_eq!(kept, generated(&model, &["a", "the longest prompt of them all", "b c"], &anew), "{name}");
    }
}

#[test]
fn a_text_in_a_batch_is_the_one_that_its_prompt_gives_alone() {
    for (name, config) in configs() {
        let model = model(&config);
        let prompts = ["a", "a longer prompt", "b c"];
        let together = generated(&model, &prompts, &settings()).0;
        let alone = prompts.map(|prompt| generated(&model, &[prompt], &settings()).0.remove(0));
        assert_eq!(together, alone, "{name}");
    }
}

#[test]
fn each_token_but_the_last_tells_its_experts_once_and_changes_no_text() {
    let model = model(&tiny::moe());
    let telling = GenerationSettings { traces_experts: true, num_tokens: 5, ..settings() };
    let (texts, traces) = generated(&model, &["ab", "cde"], &telling);
    assert_eq!(
        texts,
        generated(&model, &["ab", "cde"], &GenerationSettings { traces_experts: false, ..telling.clone() }).0
    );
    for (sequence, len) in [(0, 2 + 4), (1, 3 + 4)] {
        let of_text: Vec<_> = traces.iter().filter(|token| token.sequence == sequence).collect();
        let positions: Vec<usize> = of_text.iter().map(|token| token.position).collect();
        assert_eq!(positions, (0..len).collect::<Vec<_>>());
        for layer in of_text.iter().flat_map(|token| &token.layers) {
            assert_eq!((layer.experts.len(), layer.gates.len()), (2, 2));
            assert!((layer.gates.iter().sum::<f32>() - 1.0).abs() < 1e-5);
        }
    }
}

#[test]
fn a_text_ends_before_its_stop_string_and_the_others_go_on() {
    let model = model(&tiny::dense());
    let (whole, _) = generated(&model, &["a", "b"], &settings());
    let stop: String = whole[0].text.chars().skip(4).take(2).collect();
    let stopping = GenerationSettings { stop: vec![stop.clone()], ..settings() };
    let (texts, _) = generated(&model, &["a", "b"], &stopping);
    assert_eq!(texts[0].text, whole[0].text.split(&stop).next().unwrap());
    assert!(texts[0].is_stopped && texts[0].num_tokens < NUM_TOKENS);
    assert!(texts[1].is_stopped || texts[1] == whole[1]);
}

#[test]
fn a_text_ends_at_the_mark_of_a_documents_end_unless_it_is_to_go_on() {
    let model = model(&tiny::dense());
    let text = |end: Option<u32>, ends_with_document: bool| {
        let tokenizer = Tokenizer::Ids { vocab_size: 256, end_of_document: end };
        let settings = GenerationSettings { ends_with_document, ..settings() };
        let generated =
            generate_all(&model, &tokenizer, &[Some("7")], &settings, &Device::flex(), |_| Ok(())).unwrap();
        generated.texts.into_iter().next().unwrap()
    };
    let whole = text(None, true);
    let ids: Vec<&str> = whole.text.split_whitespace().collect();
    let mark = ids[6];
    let before = ids.iter().position(|id| *id == mark).unwrap();
    let ended = text(mark.parse().ok(), true);
    assert_eq!(ended.text.split_whitespace().collect::<Vec<_>>(), ids[..before]);
    assert!(ended.is_stopped && ended.num_tokens == before + 1);
    assert_eq!(text(mark.parse().ok(), false), whole);
}

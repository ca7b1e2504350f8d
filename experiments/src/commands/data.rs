//! `switchyard data`

use std::fmt::Write as _;

use switchyard_datasets::{Dataset, DatasetStatistics, Overlap, Progress, SplitStatistics, prepare};
use switchyard_trainer::moved_data::with_missing_path;

use super::{load_args, print_json, print_text};
use crate::cli::{ConfigArgs, DataCommand};
use crate::failure::Failure;
use crate::interrupt::Interruption;

pub(super) fn run(command: &DataCommand, interruption: &Interruption) -> Result<(), Failure> {
    match command {
        DataCommand::Prepare(config) => {
            let dataset = prepared(config, interruption)?;
            match &dataset.folder {
                Some(folder) => print_text(&format!("{}\n", folder.display())),
                None => print_text("nothing to prepare: files of token ids are read where they lie\n"),
            }
        }
        DataCommand::Stats { config, json } => {
            let dataset = prepared(config, interruption)?;
            let statistics = DatasetStatistics::compute(&dataset)?;
            if *json { print_json(&statistics) } else { print_text(&describe(&statistics)?) }
        }
    }
}

fn prepared(config: &ConfigArgs, interruption: &Interruption) -> Result<Dataset, Failure> {
    let (loaded, _) = load_args(config)?;
    let data = &loaded.config.data;
    let progress = Progress::stderr().with_stop(interruption.watch("stopping: nothing half-made is kept")?);
    Ok(prepare(data, &progress).map_err(|error| with_missing_path(error.into(), data))?)
}

fn describe(statistics: &DatasetStatistics) -> Result<String, Failure> {
    let mut text = String::new();
    let mut line = |line: String| writeln!(text, "{line}").map_err(|error| Failure::Fault(error.into()));
    line(format!("source           {}", statistics.source))?;
    line(format!(
        "tokenizer        {}, {} ids, {} of them used",
        statistics.tokenizer, statistics.vocab_size, statistics.num_used_ids
    ))?;
    line(format!("train            {}", describe_split(&statistics.train)))?;
    line(format!("validation       {}", describe_split(&statistics.validation)))?;
    if let Some(test) = &statistics.test {
        line(format!("test             {}", describe_split(test)))?;
    }
    for (name, split) in [("validation", Some(&statistics.validation)), ("test", statistics.test.as_ref())] {
        if let Some(overlap) = split.and_then(|split| split.overlap) {
            line(format!("also in train    {}", describe_overlap(name, &overlap)))?;
        }
    }
    line(format!(
        "unigram entropy  {:.4} nats; validation cross-entropy under it {:.4} nats",
        statistics.unigram_entropy_nats, statistics.validation_unigram_cross_entropy_nats
    ))?;
    if statistics.repeats.documents > 0 {
        line(format!("repeated         {}", describe_repeats(statistics)))?;
    }
    if let Some(floor) = statistics.entropy_floor_nats {
        line(format!("entropy floor    {floor:.4} nats per token, with the domain known"))?;
    }
    line("largest domains".into())?;
    for domain in &statistics.top_domains {
        line(format!(
            "  {:>10} tokens  {:>5.1} %  {}",
            domain.num_tokens,
            100.0 * domain.share,
            domain.name
        ))?;
    }
    line("most frequent tokens".into())?;
    for token in &statistics.top_tokens {
        line(format!("  {:>10} times   {:>5.1} %  {:?}", token.count, 100.0 * token.share, token.text))?;
    }
    Ok(text)
}

fn describe_split(split: &SplitStatistics) -> String {
    let SplitStatistics { num_documents, num_bytes, num_tokens, .. } = split;
    let mut text = format!("{num_documents} documents, {num_bytes} bytes, {num_tokens} tokens");
    if let Some(bytes_per_token) = split.bytes_per_token {
        text += &format!(", {bytes_per_token:.3} bytes per token");
    }
    if split.num_documents > 0 {
        let share = 100.0 * split.largest_document_tokens as f64 / split.num_tokens as f64;
        text += &format!(", the largest document {share:.1} %");
    }
    if split.unknown_tokens > 0 {
        let share = 100.0 * split.unknown_tokens as f64 / split.num_tokens as f64;
        text += &format!(", {} of the tokens ({share:.2} %) for unknown text", split.unknown_tokens);
    }
    text
}

fn describe_overlap(name: &str, overlap: &Overlap) -> String {
    let Overlap { passage_len, documents, near_duplicates, documents_left_out, .. } = overlap;
    let mut text = format!(
        "{:.1} % of the {name} text, word for word in passages of {passage_len} or more bytes (or ids); {near_duplicates} of \
         {documents} documents have more than half of theirs there",
        100.0 * overlap.share()
    );
    if *documents_left_out > 0 {
        text += &format!("; {documents_left_out} documents were left out for it");
    }
    text
}

fn describe_repeats(statistics: &DatasetStatistics) -> String {
    let DatasetStatistics { repeats, train, validation, test, .. } = statistics;
    let num_test = test.as_ref().map_or(0, |test| test.num_documents);
    let num_documents = train.num_documents + validation.num_documents + num_test;
    let share = 100.0 * repeats.documents as f64 / num_documents as f64;
    let mut text =
        format!("{} of {num_documents} documents ({share:.1} %) equal an earlier one", repeats.documents);
    if repeats.held_out_documents_in_train > 0 {
        text += &format!("; {} outside the train split are in it too", repeats.held_out_documents_in_train);
    }
    text
}

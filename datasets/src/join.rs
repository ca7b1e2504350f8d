//! The corpora of several sources as one.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use switchyard_ground::digest::hex;

use crate::config::MixtureSourceConfig;
use crate::dataset::{Dataset, DatasetSource};
use crate::manifest::{FORMAT_VERSION, Manifest, Overlap, Repeats, SplitManifest};
use crate::split::Split;
use crate::store::TokenStore;
use crate::tokenizer::Tokenizer;

/// The corpus of `sources`, each prepared alone, with ids of the same `tokenizer`.
pub(crate) fn joined(
    sources: &[MixtureSourceConfig],
    corpora: Vec<Dataset>,
    tokenizer: Tokenizer,
) -> Dataset {
    let manifest = joined_manifest(sources, &corpora, &tokenizer);
    let mut first_domain = 0_usize;
    let mut parts = Vec::new();
    for (source, corpus) in sources.iter().zip(corpora) {
        let first = u16::try_from(first_domain).unwrap_or(u16::MAX);
        first_domain += num_domains(&corpus.manifest);
        let numbered = |store: &Arc<TokenStore>| Arc::new(store.with_first_domain(first));
        parts.push(DatasetSource {
            name: source.name.clone(),
            weights: source.weights.clone(),
            train: numbered(&corpus.train),
            validation: numbered(&corpus.validation),
            test: corpus.test.as_ref().map(numbered),
            manifest: corpus.manifest,
            folder: corpus.folder,
        });
    }
    let all = |split: Split, stores: Vec<&Arc<TokenStore>>| {
        let stores: Vec<&TokenStore> = stores.into_iter().map(Arc::as_ref).collect();
        Arc::new(TokenStore::joined(split, &stores))
    };
    let tests: Vec<_> = parts.iter().filter_map(|part| part.test.as_ref()).collect();
    Dataset {
        train: all(Split::Train, parts.iter().map(|part| &part.train).collect()),
        validation: all(Split::Validation, parts.iter().map(|part| &part.validation).collect()),
        test: (!tests.is_empty()).then(|| all(Split::Test, tests)),
        tokenizer,
        manifest,
        folder: None,
        sources: parts,
    }
}

/// Domains of a corpus; one where none is known, so that every source has a number of its own.
fn num_domains(manifest: &Manifest) -> usize {
    manifest.domain_names.len().max(1)
}

/// The facts of all corpora together: sums, and each name and note with its source in front.
fn joined_manifest(sources: &[MixtureSourceConfig], corpora: &[Dataset], tokenizer: &Tokenizer) -> Manifest {
    let named =
        || sources.iter().map(|source| &source.name).zip(corpora.iter().map(|corpus| &corpus.manifest));
    let mut hasher = Sha256::new();
    hasher.update("switchyard mixture, format 1\n");
    named().for_each(|(name, manifest)| hasher.update(format!("{name} {}\n", manifest.key)));
    let words = |of: &dyn Fn(&Manifest) -> &str| {
        named().map(|(name, manifest)| format!("{name}: {}", of(manifest))).collect::<Vec<_>>().join("; ")
    };
    let domain_names = |(name, manifest): (&String, &Manifest)| match manifest.domain_names.as_slice() {
        [] => vec![name.clone()],
        names => names.iter().map(|domain| format!("{name}/{domain}")).collect(),
    };
    let notes = |(name, manifest): (&String, &Manifest)| {
        manifest.notes.iter().map(|note| format!("{name}: {note}")).collect::<Vec<_>>()
    };
    let splits = |of: &dyn Fn(&Manifest) -> Option<&SplitManifest>| joined_split(corpora, of);
    let mark_of_all = |of: &dyn Fn(&Manifest) -> Option<u32>| {
        let mut marks = corpora.iter().map(|corpus| of(&corpus.manifest));
        let first = marks.next().flatten();
        first.filter(|_| marks.all(|mark| mark == first))
    };
    Manifest {
        format_version: FORMAT_VERSION,
        key: hex(&hasher.finalize()),
        source: words(&|manifest| &manifest.source),
        split: words(&|manifest| &manifest.split),
        tokenizer: tokenizer.kind().to_owned(),
        tokenizer_hash: tokenizer.hash(),
        vocab_size: corpora.iter().map(|corpus| corpus.manifest.vocab_size).max().unwrap_or(0),
        begin_of_document: mark_of_all(&|manifest| manifest.begin_of_document),
        end_of_document: mark_of_all(&|manifest| manifest.end_of_document),
        entropy_floor_nats: None,
        domain_uncertainty_nats: None,
        domain_names: named().flat_map(domain_names).collect(),
        train: splits(&|manifest| Some(&manifest.train)).unwrap_or_default(),
        validation: splits(&|manifest| Some(&manifest.validation)).unwrap_or_default(),
        test: splits(&|manifest| manifest.test.as_ref()),
        repeats: joined_repeats(corpora),
        notes: named().flat_map(notes).collect(),
    }
}

/// The sums of the splits that `of` takes; `None` if no corpus has one. Their shards lie in several
/// folders, and are named by the sources' own manifests.
fn joined_split(
    corpora: &[Dataset],
    of: &dyn Fn(&Manifest) -> Option<&SplitManifest>,
) -> Option<SplitManifest> {
    let mut all = SplitManifest::default();
    let (mut is_there, mut are_bytes_known) = (false, true);
    for manifest in corpora.iter().map(|corpus| &corpus.manifest) {
        let none = SplitManifest::default();
        let split = of(manifest).inspect(|_| is_there = true).unwrap_or(&none);
        all.num_documents += split.num_documents;
        all.num_bytes += split.num_bytes;
        are_bytes_known &= split.num_bytes > 0 || split.num_tokens == 0;
        all.num_tokens += split.num_tokens;
        all.largest_document_tokens = all.largest_document_tokens.max(split.largest_document_tokens);
        all.unknown_tokens += split.unknown_tokens;
        all.lost_bytes += split.lost_bytes;
        match manifest.domain_names.len() {
            0 => all.tokens_per_domain.push(split.num_tokens),
            len => {
                all.tokens_per_domain.extend((0..len).map(|n| split.tokens_per_domain.get(n).unwrap_or(&0)))
            }
        }
        all.overlap = match (all.overlap, split.overlap) {
            (Some(one), Some(other)) => Some(sum(one, other)),
            (one, other) => one.or(other),
        };
    }
    if !are_bytes_known {
        all.num_bytes = 0;
    }
    is_there.then_some(all)
}

fn sum(one: Overlap, other: Overlap) -> Overlap {
    Overlap {
        passage_len: one.passage_len,
        documents: one.documents + other.documents,
        len: one.len + other.len,
        shared_len: one.shared_len + other.shared_len,
        near_duplicates: one.near_duplicates + other.near_duplicates,
        documents_left_out: one.documents_left_out + other.documents_left_out,
    }
}

/// Repeats within the sources; between two of them none is looked for.
fn joined_repeats(corpora: &[Dataset]) -> Repeats {
    let mut all = Repeats::default();
    for Repeats { documents, len, held_out_documents_in_train } in
        corpora.iter().map(|corpus| corpus.manifest.repeats)
    {
        all.documents += documents;
        all.len += len;
        all.held_out_documents_in_train += held_out_documents_in_train;
    }
    all
}

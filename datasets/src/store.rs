//! One split's tokens: shards, one after the other, addressed as if they were one array.

use std::ops::Range;
use std::sync::Arc;

use crate::error::DatasetError;
use crate::shard::TokenFile;
use crate::split::Split;

/// All tokens of a split, in open files; positions count from its first token.
#[derive(Debug)]
pub struct TokenStore {
    /// Which one.
    split: Split,
    files: Vec<Arc<TokenFile>>,
    /// Number of the first domain of each file.
    first_domains: Vec<u16>,
    /// First position of each file, and the number of tokens.
    file_starts: Vec<usize>,
    /// Number of documents before each file.
    documents_before: Vec<usize>,
    num_documents: usize,
}

impl TokenStore {
    pub(crate) fn new(split: Split, files: Vec<TokenFile>) -> Self {
        let first_domains = vec![0; files.len()];
        Self::of_files(split, files.into_iter().map(Arc::new).collect(), first_domains)
    }

    /// The same tokens, with domains that are numbered from `first_domain` on; what is beyond the
    /// last number shares it.
    pub(crate) fn with_first_domain(&self, first_domain: u16) -> Self {
        let first_domains = self.first_domains.iter().map(|first| first.saturating_add(first_domain));
        Self::of_files(self.split, self.files.clone(), first_domains.collect())
    }

    /// The tokens of `stores`, one after the other, in the files that are open already.
    pub(crate) fn joined(split: Split, stores: &[&Self]) -> Self {
        let files = stores.iter().flat_map(|store| store.files.iter().cloned()).collect();
        let first_domains = stores.iter().flat_map(|store| store.first_domains.iter().copied()).collect();
        Self::of_files(split, files, first_domains)
    }

    fn of_files(split: Split, files: Vec<Arc<TokenFile>>, first_domains: Vec<u16>) -> Self {
        let mut file_starts = vec![0];
        let mut documents_before = Vec::new();
        let (mut num_tokens, mut num_documents) = (0, 0);
        for file in &files {
            documents_before.push(num_documents);
            num_tokens += file.num_tokens();
            num_documents += file.num_documents();
            file_starts.push(num_tokens);
        }
        Self { split, files, first_domains, file_starts, documents_before, num_documents }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.file_starts.last().copied().unwrap_or(0)
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of documents; 0 for files of ids that carry no borders.
    pub fn num_documents(&self) -> usize {
        self.num_documents
    }

    /// Copies `out.len()` tokens from position `start` on into `out`; after the last position
    /// follows the first.
    ///
    /// # Errors
    /// If a file cannot be read, or is not as it was when it was opened.
    ///
    /// # Panics
    /// If the store is empty.
    pub fn read(&self, start: usize, out: &mut [i32]) -> Result<(), DatasetError> {
        assert!(!self.is_empty(), "read of {} tokens from an empty store", out.len());
        let mut position = start % self.len();
        let mut rest = out;
        while !rest.is_empty() {
            let file = self.file_of(position);
            let num_here = rest.len().min(self.file_starts[file + 1] - position);
            let (here, after) = rest.split_at_mut(num_here);
            self.files[file].read(position - self.file_starts[file], here)?;
            rest = after;
            position = (position + num_here) % self.len();
        }
        Ok(())
    }

    /// Index of the document that holds `position`; `None` where no borders are known.
    pub fn document_index(&self, position: usize) -> Option<usize> {
        let file = self.file_of(position);
        let within = self.files[file].document_at(position - self.file_starts[file])?;
        Some(self.documents_before[file] + within)
    }

    /// The positions of the document with this index.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document_span(&self, document: usize) -> Range<usize> {
        assert!(document < self.num_documents, "document {document} of {}", self.num_documents);
        let file = self.documents_before.partition_point(|before| *before <= document) - 1;
        let within = document - self.documents_before[file];
        let position = |index: usize| self.file_starts[file] + self.files[file].document_start(index);
        position(within)..position(within + 1)
    }

    /// The documents that the `len` tokens from position `start` on belong to, in order, each with
    /// how many of them are its; `None` where no borders are known.
    ///
    /// # Panics
    /// If the span does not lie in the store.
    pub fn documents_of(&self, start: usize, len: usize) -> Option<Vec<(usize, usize)>> {
        let (mut position, end) = (start, start + len);
        let mut documents = Vec::new();
        while position < end {
            let document = self.document_index(position)?;
            let next = self.document_end(position).min(end);
            documents.push((document, next - position));
            position = next;
        }
        Some(documents)
    }

    /// Domain of the document that holds `position`; 0 where none is known.
    pub fn domain(&self, position: usize) -> u16 {
        let file = self.file_of(position);
        let document = self.files[file].document_at(position - self.file_starts[file]);
        let within = document.map_or(0, |document| self.files[file].domain(document));
        within.saturating_add(self.first_domains[file])
    }

    /// For each of `len` tokens from `start` on, how many documents of this row begin before it: 0
    /// for the first.
    pub(crate) fn segment_ids(&self, start: usize, len: usize) -> Vec<i32> {
        let mut ids = Vec::with_capacity(len);
        let (mut position, mut segment) = (start % self.len(), 0);
        while ids.len() < len {
            let end = self.document_end(position);
            let num_here = (end - position).min(len - ids.len());
            ids.extend(std::iter::repeat_n(segment, num_here));
            segment += 1;
            position = end % self.len();
        }
        ids
    }

    /// First position after the document that holds `position`, or the end of its file.
    fn document_end(&self, position: usize) -> usize {
        let file = self.file_of(position);
        let start = self.file_starts[file];
        match self.files[file].document_at(position - start) {
            Some(document) => start + self.files[file].document_start(document + 1),
            None => self.file_starts[file + 1],
        }
    }

    /// Index of the file that holds `position`; files without tokens hold none.
    fn file_of(&self, position: usize) -> usize {
        assert!(position < self.len(), "position {position} in a store of {} tokens", self.len());
        self.file_starts.partition_point(|start| *start <= position) - 1
    }

    /// An error if the store is too short for one sequence of `seq_len` inputs with their targets.
    pub(crate) fn require_sequence(&self, seq_len: usize) -> Result<(), DatasetError> {
        if seq_len == 0 {
            return Err(DatasetError::Zero { name: "seq_len" });
        }
        if self.len() <= seq_len {
            return Err(DatasetError::TooShort { split: self.split.name(), num_tokens: self.len(), seq_len });
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::progress::Progress;
    use crate::shard::ShardWriter;

    /// A store of shards of documents of consecutive ids from 0; the domain is the document's
    /// number.
    pub(crate) fn counting_store(shards: &[&[usize]]) -> TokenStore {
        let folder = tempfile::tempdir().unwrap();
        let (mut next_id, mut domain) = (0, 0);
        let mut write = |lengths: &&[usize]| {
            let path = folder.path().join(format!("{next_id}.shard"));
            let mut writer = ShardWriter::create(&path, 1 << 20, [0; 32]).unwrap();
            for len in *lengths {
                writer.begin_document(domain);
                writer.append(&(next_id..next_id + *len as u32).collect::<Vec<_>>()).unwrap();
                next_id += *len as u32;
                domain += 1;
            }
            let checksum = writer.finish().unwrap().checksum;
            TokenFile::open_shard(&path, &checksum, &Progress::silent()).unwrap()
        };
        TokenStore::new(Split::Train, shards.iter().map(&mut write).collect())
    }

    #[test]
    fn shards_read_as_one_ring() {
        let store = counting_store(&[&[3, 2], &[4], &[1]]);
        assert_eq!((store.len(), store.num_documents()), (10, 4));
        for start in 0..10 {
            let mut ids = [0; 23];
            store.read(start, &mut ids).unwrap();
            let expected: Vec<i32> = (0..23).map(|offset| (start as i32 + offset) % 10).collect();
            assert_eq!(ids.as_slice(), expected);
        }
    }

    #[test]
    fn joined_stores_read_as_one_after_the_other_with_domains_of_their_own() {
        let (one, two) = (counting_store(&[&[3, 2]]), counting_store(&[&[4], &[1]]));
        let joined = TokenStore::joined(Split::Train, &[&one, &two.with_first_domain(2)]);
        let mut ids = [0; 12];
        joined.read(0, &mut ids).unwrap();
        assert_eq!(ids, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]);
        let domains: Vec<u16> = (0..10).map(|position| joined.domain(position)).collect();
        assert_eq!(domains, [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]);
        assert_eq!(joined.document_index(9), Some(3));
    }

    #[test]
    fn documents_are_numbered_across_shards() {
        let store = counting_store(&[&[3, 2], &[4], &[1]]);
        let owners: Vec<_> = (0..10).map(|position| store.document_index(position).unwrap()).collect();
        assert_eq!(owners, [0, 0, 0, 1, 1, 2, 2, 2, 2, 3]);
        let domains: Vec<_> = (0..10).map(|position| usize::from(store.domain(position))).collect();
        assert_eq!(domains, owners);
    }

    #[test]
    fn a_span_is_divided_among_the_documents_that_have_a_part_of_it() {
        let store = counting_store(&[&[3, 2], &[4], &[1]]);
        assert_eq!(store.documents_of(1, 7).unwrap(), [(0, 2), (1, 2), (2, 3)]);
        assert_eq!(store.documents_of(8, 2).unwrap(), [(2, 1), (3, 1)]);
    }

    #[test]
    fn segments_count_documents_within_the_row() {
        let store = counting_store(&[&[3, 2], &[4], &[1]]);
        assert_eq!(store.segment_ids(1, 6), [0, 0, 1, 1, 2, 2]);
        assert_eq!(store.segment_ids(8, 5), [0, 1, 2, 2, 2]);
    }

    #[test]
    fn too_little_data_is_named_with_its_numbers() {
        let store = counting_store(&[&[4]]);
        assert!(store.require_sequence(3).is_ok());
        assert_eq!(
            store.require_sequence(4).unwrap_err().to_string(),
            "the train split has 4 tokens, but one sequence of 4 needs 5: use more data, a smaller validation split, or a \
             smaller `train.seq_len`"
        );
    }
}

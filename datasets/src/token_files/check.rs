//! Every id of a file looked at once: is it in the vocabulary, and is it an id at all?

use crate::config::TokenDtype;
use crate::token_width::TokenWidth;

/// Ids below which nothing is concluded from how they look.
const MIN_TELLING_IDS: usize = 16;
/// The upper half of a 32-bit id is at most this in any vocabulary of half a million.
const MAX_UPPER_HALF: u32 = 7;

/// Looks at every id of a file.
pub(super) struct Check {
    width: TokenWidth,
    /// Whether a header or an index has told the width.
    is_told: bool,
    vocab_size: usize,
    /// Ids seen.
    pub(super) position: usize,
    /// The bytes of an id of which a block held only the first.
    rest: Vec<u8>,
    /// Largest id at even and at odd positions.
    largest: [u32; 2],
}

impl Check {
    /// A check of ids of `width`, which a header or an index has told or not.
    pub(super) fn new(width: TokenWidth, is_told: bool, vocab_size: usize) -> Self {
        Self { width, is_told, vocab_size, position: 0, rest: Vec::new(), largest: [0; 2] }
    }

    /// Looks at the ids in the next `block`, or finds one that the vocabulary does not have.
    pub(super) fn add(&mut self, block: &[u8]) -> Result<(), String> {
        let width = self.width.bytes();
        let num_missing = if self.rest.is_empty() { 0 } else { width - self.rest.len() };
        let (first, block) = block.split_at(num_missing.min(block.len()));
        self.rest.extend_from_slice(first);
        if self.rest.len() == width {
            let first = std::mem::take(&mut self.rest);
            self.ids(&first)?;
        }
        let (whole, rest) = block.split_at(block.len() - block.len() % width);
        self.rest.extend_from_slice(rest);
        self.ids(whole)
    }

    /// Looks at `bytes`, which are whole ids.
    fn ids(&mut self, bytes: &[u8]) -> Result<(), String> {
        let mut ids = vec![0; bytes.len() / self.width.bytes()];
        self.width.read(bytes, &mut ids);
        for id in ids {
            let id = id as u32;
            if id as usize >= self.vocab_size {
                return Err(format!(
                    "holds id {id} at position {}, not below `data.tokens.vocab_size` = {}: raise it, or name a file of raw \
                     little-endian {}-bit ids{}",
                    self.position,
                    self.vocab_size,
                    8 * self.width.bytes(),
                    self.guess().map_or(String::new(), |guess| format!(". {guess}"))
                ));
            }
            let largest = &mut self.largest[self.position % 2];
            *largest = id.max(*largest);
            self.position += 1;
        }
        Ok(())
    }

    /// Nothing, if the ids that were looked at end with the file and look like what they are taken for.
    pub(super) fn finish(&self, configured: Option<TokenDtype>) -> Result<(), String> {
        if !self.rest.is_empty() {
            return Err(match self.width {
                TokenWidth::Four => {
                    "has a number of bytes that is no multiple of 4: 32-bit ids are expected".to_owned()
                }
                _ => "has an odd number of bytes: 16-bit ids are expected".to_owned(),
            });
        }
        match self.guess() {
            Some(guess) if configured.is_none() || self.width == TokenWidth::Four => {
                Err(format!("does not look like {}-bit ids. {guess}", 8 * self.width.bytes()))
            }
            _ => Ok(()),
        }
    }

    /// What the ids look like instead; nothing if they look right.
    fn guess(&self) -> Option<&'static str> {
        let [even, odd] = self.largest;
        let are_halves = !self.is_told
            && self.position >= MIN_TELLING_IDS
            && even > 0
            && (odd == 0 || odd <= MAX_UPPER_HALF && even > 0xff);
        match self.width {
            _ if !are_halves => None,
            TokenWidth::Two => Some(
                "Every second number is (nearly) zero, as in a file of 32-bit ids: set `data.tokens.dtype = \"u32\"`, or \
                 \"u16\" if it is right as it is",
            ),
            TokenWidth::Four if odd == 0 => Some(
                "Every second number is zero, as in a file of 64-bit ids, which are not read: write them with \
                 `array.astype('uint32').tofile(path)`",
            ),
            TokenWidth::One | TokenWidth::Four => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_may_end_within_an_id() {
        let bytes: Vec<u8> = [1_u32, 70_000, 3, 4].iter().flat_map(|id| id.to_le_bytes()).collect();
        for split in 0..bytes.len() {
            let mut check = Check::new(TokenWidth::Four, false, 70_001);
            let (head, tail) = bytes.split_at(split);
            let (middle, tail) = tail.split_at(tail.len().min(1));
            [head, middle, tail].iter().for_each(|block| check.add(block).unwrap());
            check.finish(None).unwrap();
            assert_eq!((check.position, check.largest), (4, [3, 70_000]));
        }
    }
}

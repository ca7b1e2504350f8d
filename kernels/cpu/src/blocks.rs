//! Slices cut into blocks for parallel work.

use rayon::prelude::*;

/// Elements of one parallel task of an element-wise operation: small enough for the second-level
/// cache, and the same for every number of threads.
pub const BLOCK_LEN: usize = 16 * 1024;

/// Elements to be updated where they lie, or copied first from elsewhere, each block by the task
/// that updates it, so that the copy is as parallel as the update.
#[derive(Debug)]
pub struct InPlace<'a, T = f32> {
    /// What is updated.
    pub target: &'a mut [T],
    /// The values before the update, as many; `None` if `target` holds them.
    pub source: Option<&'a [T]>,
}

impl<'a, T: Copy + Send + Sync> InPlace<'a, T> {
    /// The elements to update, in blocks of [`BLOCK_LEN`].
    ///
    /// # Panics
    /// If there are fewer source elements.
    pub(crate) fn par_blocks(self) -> impl IndexedParallelIterator<Item = &'a mut [T]> {
        let Self { target, source } = self;
        target.par_chunks_mut(BLOCK_LEN).enumerate().map(move |(index, block)| {
            if let Some(source) = source {
                block.copy_from_slice(&source[index * BLOCK_LEN..][..block.len()]);
            }
            block
        })
    }
}

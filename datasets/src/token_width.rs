//! How wide the tokens of a file are.

/// Width of a stored token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenWidth {
    /// One byte.
    One,
    /// Two bytes.
    Two,
    /// Four bytes.
    Four,
}

impl TokenWidth {
    /// The narrowest that holds every id below `vocab_size`.
    pub(crate) fn for_vocabulary(vocab_size: u64) -> Self {
        match vocab_size {
            0..=0x100 => Self::One,
            0x101..=0x1_0000 => Self::Two,
            _ => Self::Four,
        }
    }

    /// Bytes of a token.
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
            Self::Four => 4,
        }
    }

    /// Appends `id` to `bytes`, the lowest byte first.
    pub(crate) fn push(self, id: u32, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&id.to_le_bytes()[..self.bytes()]);
    }

    /// The ids in `bytes`.
    pub(crate) fn read(self, bytes: &[u8], out: &mut [i32]) {
        match self {
            Self::One => out.iter_mut().zip(bytes).for_each(|(id, byte)| *id = i32::from(*byte)),
            Self::Two => {
                let pairs = bytes.as_chunks::<2>().0;
                out.iter_mut().zip(pairs).for_each(|(id, pair)| *id = i32::from(u16::from_le_bytes(*pair)));
            }
            Self::Four => {
                let quads = bytes.as_chunks::<4>().0;
                out.iter_mut().zip(quads).for_each(|(id, quad)| *id = i32::from_le_bytes(*quad));
            }
        }
    }
}

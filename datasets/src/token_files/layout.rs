//! What a file of raw ids says about itself: nothing as nanoGPT writes it, a header as llm.c does.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use crate::config::TokenDtype;
use crate::token_width::TokenWidth;

/// The header that llm.c and those who took its format over write: 256 numbers of 32 bits.
pub(super) const LLM_C_HEADER_BYTES: u64 = 1024;
/// Its first number says how wide the ids are.
pub(super) const LLM_C_MAGIC_16_BIT: u32 = 20_240_520;
pub(super) const LLM_C_MAGIC_32_BIT: u32 = 20_240_801;

const NUMPY_MAGIC: &[u8] = b"\x93NUMPY";
const MEGATRON_MAGIC: &[u8] = b"MMIDIDX";

/// Where and how wide the ids in a file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) header_bytes: u64,
    pub(super) dtype: TokenDtype,
}

impl Default for Layout {
    /// nanoGPT's.
    fn default() -> Self {
        Self { header_bytes: 0, dtype: TokenDtype::U16 }
    }
}

impl TokenDtype {
    pub(super) fn width(self) -> TokenWidth {
        match self {
            Self::U16 => TokenWidth::Two,
            Self::U32 => TokenWidth::Four,
        }
    }

    fn num_bytes(self) -> u64 {
        self.width().bytes() as u64
    }

    fn num_bits(self) -> u64 {
        8 * self.num_bytes()
    }
}

/// The first bytes of `file`, as many as a header has, and its size; reading goes on from the
/// start.
pub(super) fn head_of(file: &mut File) -> std::io::Result<(Vec<u8>, u64)> {
    let mut head = Vec::new();
    file.by_ref().take(LLM_C_HEADER_BYTES).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    Ok((head, file.metadata()?.len()))
}

/// The layout of a file of `num_bytes` that begins with `head`, with what there is to say about it.
pub(super) fn layout(
    head: &[u8],
    num_bytes: u64,
    configured: Option<TokenDtype>,
) -> Result<(Layout, Option<String>), String> {
    if head.starts_with(NUMPY_MAGIC) {
        return Err("is a file of NumPy's own format: write the ids alone, as by \
                    `array.astype('uint16').tofile(path)`"
            .to_owned());
    }
    if head.starts_with(MEGATRON_MAGIC) {
        return Err(
            "is the index of a Megatron dataset: give it the ending `.idx`, beside a `.bin` of its name"
                .to_owned(),
        );
    }
    let number = |index: usize| head.as_chunks::<4>().0.get(index).map(|bytes| u32::from_le_bytes(*bytes));
    let dtype = match number(0) {
        Some(LLM_C_MAGIC_16_BIT) => TokenDtype::U16,
        Some(LLM_C_MAGIC_32_BIT) => TokenDtype::U32,
        _ => {
            let layout = Layout { header_bytes: 0, dtype: configured.unwrap_or(TokenDtype::U16) };
            return Ok((layout, None));
        }
    };
    let num_tokens = u64::from(number(2).unwrap_or(0));
    if num_bytes != LLM_C_HEADER_BYTES + num_tokens * dtype.num_bytes() {
        return match configured {
            // Two ids can happen to look like the first number of a header.
            Some(dtype) => Ok((Layout { header_bytes: 0, dtype }, None)),
            None => Err(format!(
                "begins like a file of llm.c, whose header promises {num_tokens} ids of {} bits, but has {num_bytes} bytes: it \
                 is cut or damaged. If it has no header, say so with `data.tokens.dtype = \"u16\"` or \"u32\"",
                dtype.num_bits()
            )),
        };
    }
    if configured.is_some_and(|configured| configured != dtype) {
        return Err(format!(
            "has the header of llm.c for ids of {} bits: remove `data.tokens.dtype`",
            dtype.num_bits()
        ));
    }
    let note =
        format!("has the header of llm.c: read as {num_tokens} ids of {} bits after it", dtype.num_bits());
    Ok((Layout { header_bytes: LLM_C_HEADER_BYTES, dtype }, Some(note)))
}

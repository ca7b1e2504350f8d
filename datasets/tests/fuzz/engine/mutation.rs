//! Blind changes to bytes, and those that know what numbers and words of a format look like.

use rand::RngExt;

use super::{Random, Seed};

/// Inputs do not grow beyond this: what matters about size is tested by repeating a little of it.
const MAX_BYTES: usize = 1 << 18;

/// Numbers at which types, sizes and products of sizes end.
pub(crate) const BOUNDARY_NUMBERS: [&str; 26] = [
    "0",
    "-0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "127",
    "128",
    "255",
    "256",
    "65535",
    "65536",
    "2147483647",
    "-2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "-9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e308",
    "-1e-320",
    "1e999",
    "0.1",
    "1.5",
];

/// Words that mean something to a parser or to what lies behind it.
pub(crate) const WORDS: [&str; 24] = [
    "null",
    "true",
    "false",
    "NaN",
    "inf",
    "-inf",
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\n",
    "../",
    "/dev/zero",
    "/etc/passwd",
    "\u{feff}",
    "\u{202e}",
    "\u{1b}]52;c;eA==\u{7}",
    "\u{301}\u{301}\u{301}",
];

/// One of `items`.
pub(crate) fn pick<'a, T>(items: &'a [T], random: &mut Random) -> &'a T {
    &items[random.random_range(0..items.len())]
}

/// How many changes to make: one as a rule, rarely many.
pub(crate) fn num_changes(random: &mut Random) -> usize {
    1 + (random.random::<u32>() | 1 << 6).trailing_zeros() as usize
}

/// Changes `bytes` in a few places; `others` give pieces, `words` belong to the format.
pub(crate) fn mutate(bytes: &mut Vec<u8>, others: &[Seed], words: &[String], random: &mut Random) {
    for _ in 0..num_changes(random) {
        change_once(bytes, others, words, random);
        bytes.truncate(MAX_BYTES);
    }
}

fn change_once(bytes: &mut Vec<u8>, others: &[Seed], words: &[String], random: &mut Random) {
    let at = random.random_range(0..=bytes.len());
    let span = span_from(at, bytes.len(), random);
    match random.random_range(0..14) {
        0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = random.random(),
        2 => {
            let fresh: Vec<u8> = (0..random.random_range(1..17)).map(|_| random.random()).collect();
            insert(bytes, at, &fresh);
        }
        3 => drop(bytes.drain(span)),
        4 => {
            let piece = bytes[span].to_vec();
            insert(bytes, at, &piece);
        }
        5 if !others.is_empty() => splice(bytes, at, &pick(others, random).bytes, random),
        6 if !others.is_empty() => {
            let other = &pick(others, random).bytes;
            let start = random.random_range(0..=other.len());
            let piece = other[span_from(start, other.len(), random)].to_vec();
            insert(bytes, at, &piece);
        }
        7 => insert(bytes, at, pick(&WORDS, random).as_bytes()),
        8 if !words.is_empty() => insert(bytes, at, pick(words, random).as_bytes()),
        9 if !words.is_empty() => {
            let word = pick(words, random).as_bytes().to_vec();
            bytes.splice(span, word);
        }
        10 => set_decimal(bytes, random),
        11 => set_binary(bytes, at, random),
        12 => bytes.truncate(at),
        _ => repeat(bytes, span, random),
    }
}

/// A short span that begins at `at`.
fn span_from(at: usize, len: usize, random: &mut Random) -> std::ops::Range<usize> {
    at..(at + random.random_range(1..65)).min(len)
}

fn insert(bytes: &mut Vec<u8>, at: usize, piece: &[u8]) {
    bytes.splice(at..at, piece.iter().copied());
}

/// The head of one and the tail of the other.
fn splice(bytes: &mut Vec<u8>, at: usize, other: &[u8], random: &mut Random) {
    let from = random.random_range(0..=other.len());
    bytes.truncate(at);
    bytes.extend_from_slice(&other[from..]);
}

/// Puts a boundary in the place of a number in digits.
fn set_decimal(bytes: &mut Vec<u8>, random: &mut Random) {
    let is_start = |at: &usize| bytes[*at].is_ascii_digit() && (*at == 0 || !bytes[at - 1].is_ascii_digit());
    let starts: Vec<usize> = (0..bytes.len()).filter(is_start).collect();
    if starts.is_empty() {
        return;
    }
    let start = *pick(&starts, random);
    let num_digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let number = pick(&BOUNDARY_NUMBERS, random).bytes();
    bytes.splice(start..start + num_digits, number);
}

/// Puts a boundary in the place of a little-endian number.
fn set_binary(bytes: &mut [u8], at: usize, random: &mut Random) {
    let value: u64 = match random.random_range(0..6) {
        0 => 0,
        1 => u64::MAX,
        2 => 1 << random.random_range(0..64),
        3 => (1 << random.random_range(1..64)) - 1,
        4 => i64::MIN as u64,
        _ => bytes.len() as u64,
    };
    let width = 1 << random.random_range(0..4);
    for (byte, fresh) in bytes.iter_mut().skip(at).zip(value.to_le_bytes()).take(width) {
        *byte = fresh;
    }
}

/// Repeats a piece until it is long: what is cheap once may cost the square of its length.
fn repeat(bytes: &mut Vec<u8>, span: std::ops::Range<usize>, random: &mut Random) {
    let piece = bytes[span.clone()].repeat(1 << random.random_range(1..12));
    insert(bytes, span.start, &piece);
}

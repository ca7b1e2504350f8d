//! How the rows of tokens are cut into heads, and what is known of positions beside rotation.

/// How the rows of tokens are cut into heads, and what attention knows of positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads: query head i reads head `i / (num_heads / num_kv_heads)`
    /// (arXiv:2305.13245).
    pub num_kv_heads: usize,
    /// What is added to scores by position.
    pub alibi: Option<Alibi>,
    /// Tokens that a token sees, itself included; `None` sees all earlier ones.
    pub window: Option<usize>,
    /// Factor of the scores; `None` is `1 / sqrt(d_head)`.
    pub scale: Option<f32>,
}

/// Scores that fall with the distance (arXiv:2108.12409, section 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alibi {
    /// The key's distance times the head's slope is subtracted.
    Distance,
    /// As Falcon's published code has it: the key's position times the slope is added, both and
    /// their product rounded to bfloat16, divided by `sqrt(d_head)`.
    Falcon,
}

impl Heads {
    /// Heads that see all earlier tokens alike.
    pub fn new(num_heads: usize, num_kv_heads: usize) -> Self {
        Self { num_heads, num_kv_heads, alibi: None, window: None, scale: None }
    }

    /// Factor of the scores of heads of width `d_head`.
    pub fn scale_of(&self, d_head: usize) -> f32 {
        self.scale.unwrap_or_else(|| 1.0 / (d_head as f32).sqrt())
    }
}

/// The slope of each head: the powers of `2^(-8/n)` from the first for n heads, n a power of two;
/// for other numbers, those of the next lower power of two, then every other one of the next higher
/// (arXiv:2108.12409, section 3 and the authors' code).
pub fn alibi_slopes(num_heads: usize) -> Vec<f32> {
    let powers = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64) as f32);
    let lower = if num_heads.is_power_of_two() { num_heads } else { num_heads.next_power_of_two() / 2 };
    powers(lower).chain(powers(2 * lower).step_by(2)).take(num_heads).collect()
}

impl Alibi {
    /// What is added to the score of a head with this slope.
    pub fn bias(self, slope: f32, query: usize, key: usize, d_head: usize) -> f32 {
        match self {
            Self::Distance => slope * (key as f32 - query as f32),
            Self::Falcon => rounded(rounded(slope) * rounded(key as f32)) / (d_head as f32).sqrt(),
        }
    }
}

/// To the nearest bfloat16, ties to even; of finite numbers.
fn rounded(value: f32) -> f32 {
    let bits = value.to_bits();
    let half = 0x7fff + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half) & 0xffff_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alibi_slopes_are_those_of_the_paper() {
        assert_eq!(alibi_slopes(8), [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]);
        let twelve = alibi_slopes(12);
        assert_eq!(twelve[..8], alibi_slopes(8));
        let expected = [1, 3, 5, 7].map(|i| 2f64.powf(-0.5 * f64::from(i)) as f32);
        assert_eq!(twelve[8..], expected);
    }

    #[test]
    fn bfloat16_keeps_eight_bits_and_rounds_ties_to_even() {
        for (value, expected) in [(1.0, 1.0), (257.0, 256.0), (259.0, 260.0), (258.0, 258.0), (0.0, 0.0)] {
            assert_eq!(rounded(value), expected);
        }
    }
}

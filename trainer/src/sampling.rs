//! From logits to the next token. Pure functions: the same logits, settings and uniform number give
//! the same token.
//!
//! Shapes: v vocabulary.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

/// How the next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SamplingSettings {
    /// Divides the logits; 0 always takes the likeliest token.
    pub temperature: f64,
    /// Draw among the k likeliest tokens only; `None` means all.
    pub top_k: Option<usize>,
    /// Draw among the fewest tokens whose probabilities, of those that `top_k` left, reach this sum
    /// (nucleus sampling, arXiv:1904.09751, section 3.1); `None` means all.
    pub top_p: Option<f64>,
    /// Draw only among tokens at least so many times as probable as the likeliest (arXiv:2407.01082),
    /// of those that `top_k` and `top_p` left; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// See [`penalise_repetition`]; `None` leaves the logits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

/// A setting out of its range.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SamplingError {
    /// Negative, NaN or infinite.
    #[error("`temperature` is {0}: use 0 for the likeliest token, or a positive number such as 0.8")]
    Temperature(f64),
    /// No token at all.
    #[error("`top_k` is 0: use at least 1, or leave it out to draw among all tokens")]
    TopK,
    /// No token at all, or no probability.
    #[error("`top_p` is {0}: use a number above 0 and up to 1, or leave it out to draw among all tokens")]
    TopP(f64),
    /// No token at all, or no share.
    #[error("`min_p` is {0}: use a number from 0 to 1, or leave it out to draw among all tokens")]
    MinP(f64),
    /// Not a factor.
    #[error(
        "`repetition_penalty` is {0}: use a positive number, such as 1.1 for less repetition, or leave it out"
    )]
    RepetitionPenalty(f64),
}

impl SamplingSettings {
    /// All tokens at this temperature.
    pub fn new(temperature: f64) -> Self {
        Self { temperature, top_k: None, top_p: None, min_p: None, repetition_penalty: None }
    }

    /// Ok if every setting is in its range.
    ///
    /// # Errors
    /// The first setting that is not.
    pub fn check(&self) -> Result<(), SamplingError> {
        if !self.temperature.is_finite() || self.temperature < 0.0 {
            return Err(SamplingError::Temperature(self.temperature));
        }
        if self.top_k == Some(0) {
            return Err(SamplingError::TopK);
        }
        if let Some(top_p) = self.top_p.filter(|top_p| !(*top_p > 0.0 && *top_p <= 1.0)) {
            return Err(SamplingError::TopP(top_p));
        }
        if let Some(min_p) = self.min_p.filter(|min_p| !(0.0..=1.0).contains(min_p)) {
            return Err(SamplingError::MinP(min_p));
        }
        match self.repetition_penalty {
            Some(penalty) if !(penalty > 0.0 && penalty.is_finite()) => {
                Err(SamplingError::RepetitionPenalty(penalty))
            }
            _ => Ok(()),
        }
    }
}

/// Divides positive logits of the ids in `context` by `penalty`, and multiplies negative ones, each
/// once, as Hugging Face does (arXiv:1909.05858, section 4.1).
///
/// # Shapes
/// - `logits_v`: `[vocab_size]`; ids outside it are passed over
pub fn penalise_repetition(logits_v: &mut [f32], context: &[u32], penalty: f64) {
    let ids: std::collections::BTreeSet<usize> = context.iter().map(|&id| id as usize).collect();
    for id in ids {
        if let Some(logit) = logits_v.get_mut(id) {
            let penalty = penalty as f32;
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The id of the next token: the likeliest at temperature 0, else a draw that `uniform`, in
/// `[0, 1)`, decides.
///
/// Among equal logits the lowest id counts as likeliest. A NaN counts as minus infinity, and minus
/// infinity is never drawn; if nothing else is there, the answer is 0.
///
/// # Shapes
/// - `logits_v`: `[vocab_size]`
pub fn sample_token(logits_v: &[f32], settings: &SamplingSettings, uniform: f64) -> u32 {
    let mut ids: Vec<u32> = (0u32..).take(logits_v.len()).collect();
    let logit = |id: u32| {
        let logit = f64::from(logits_v[id as usize]);
        if logit.is_nan() { f64::NEG_INFINITY } else { logit }
    };
    // No two keys are equal, so an unstable sort has one result.
    let likelier_first =
        |&a: &u32, &b: &u32| logit(b).partial_cmp(&logit(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b));
    if settings.temperature <= 0.0 || ids.len() <= 1 {
        return ids.into_iter().min_by(likelier_first).unwrap_or(0);
    }
    if let Some(top_k) = settings.top_k.map(|top_k| top_k.max(1)).filter(|&top_k| top_k < ids.len()) {
        ids.select_nth_unstable_by(top_k - 1, likelier_first);
        ids.truncate(top_k);
    }
    ids.sort_unstable_by(likelier_first);
    let max_logit = logit(ids[0]);
    let weights: Vec<f64> =
        ids.iter().map(|&id| boltzmann_weight(logit(id), max_logit, settings.temperature)).collect();
    let kept = settings.top_p.map_or(weights.len(), |top_p| nucleus_len(&weights, top_p));
    let is_probable = |weight: &&f64| settings.min_p.is_none_or(|min_p| **weight >= min_p * weights[0]);
    let kept = weights[..kept].iter().take_while(is_probable).count().max(1);
    ids[draw(&weights[..kept], uniform)]
}

/// `exp((logit - max_logit) / temperature)`, in `[0, 1]`, with the limits where the formula gives
/// NaN.
fn boltzmann_weight(logit: f64, max_logit: f64, temperature: f64) -> f64 {
    if logit == f64::NEG_INFINITY {
        0.0
    } else if logit == max_logit {
        1.0 // Also for two infinities.
    } else {
        ((logit - max_logit) / temperature).exp()
    }
}

/// How many of the falling `weights` it takes until their share of the sum reaches `top_p`, at
/// least 1.
fn nucleus_len(weights: &[f64], top_p: f64) -> usize {
    let needed = top_p * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let short = weights.iter().take_while(|&&weight| {
        sum += weight;
        sum < needed
    });
    (short.count() + 1).min(weights.len())
}

/// The first index at which the running sum of `weights` passes `uniform` times the whole sum.
fn draw(weights: &[f64], uniform: f64) -> usize {
    let target = uniform * weights.iter().sum::<f64>();
    let mut sum = 0.0;
    let found = weights.iter().position(|weight| {
        sum += weight;
        sum > target
    });
    // Nothing passes if `uniform` is 1 or every weight is 0: the last token that has a weight, else
    // the first.
    found.unwrap_or_else(|| weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::f32::consts::LN_2;

    use super::*;
    use proptest::prelude::*;
    use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};

    fn settings(temperature: f64, top_k: Option<usize>, top_p: Option<f64>) -> SamplingSettings {
        SamplingSettings { top_k, top_p, ..SamplingSettings::new(temperature) }
    }

    /// Times that each token was drawn.
    fn counts(logits: &[f32], settings: &SamplingSettings, draws: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..draws {
            counts[sample_token(logits, settings, rng.random()) as usize] += 1.0;
        }
        counts
    }

    /// Pearson's statistic over the tokens with a probability; a token without one must never be
    /// drawn.
    fn chi_square(counts: &[f64], probabilities: &[f64]) -> f64 {
        let draws: f64 = counts.iter().sum();
        let term = |(&count, &probability): (&f64, &f64)| {
            if probability == 0.0 {
                assert_eq!(count, 0.0, "drawn without a probability");
                return 0.0;
            }
            (count - draws * probability).powi(2) / (draws * probability)
        };
        counts.iter().zip(probabilities).map(term).sum()
    }

    // Logits whose probabilities at temperature 1 are 1, 8, 2, 1, 4 sixteenths.
    const LOGITS: [f32; 5] = [0.0, 3.0 * LN_2, LN_2, 0.0, 2.0 * LN_2];
    const DRAWS: u64 = 20_000;

    #[test]
    fn draws_follow_the_softmax_the_temperature_and_both_cuts() {
        let sixteenths: [(SamplingSettings, [f64; 5]); 6] = [
            (settings(1.0, None, None), [1.0, 8.0, 2.0, 1.0, 4.0]),
            // Half the temperature squares the odds: 1 : 64 : 4 : 1 : 16 of 86.
            (settings(0.5, None, None), [16.0 / 86.0, 1024.0 / 86.0, 64.0 / 86.0, 16.0 / 86.0, 256.0 / 86.0]),
            (settings(1.0, Some(2), None), [0.0, 32.0 / 3.0, 0.0, 0.0, 16.0 / 3.0]),
            (settings(1.0, None, Some(0.8)), [0.0, 64.0 / 7.0, 16.0 / 7.0, 0.0, 32.0 / 7.0]),
            // Of the two that top-k leaves the first has 2/3, which alone reaches 0.6.
            (settings(1.0, Some(2), Some(0.6)), [0.0, 16.0, 0.0, 0.0, 0.0]),
            // A quarter of the likeliest's 8 is 2.
            (
                SamplingSettings { min_p: Some(0.24), ..settings(1.0, None, None) },
                [0.0, 64.0 / 7.0, 16.0 / 7.0, 0.0, 32.0 / 7.0],
            ),
        ];
        for (settings, sixteenths) in sixteenths {
            let statistic =
                chi_square(&counts(&LOGITS, &settings, DRAWS), &sixteenths.map(|share| share / 16.0));
            // The 0.999 quantile of chi-square with 4 degrees of freedom; the draws are fixed by
            // the seed.
            assert!(statistic < 18.47, "{settings:?}: {statistic}");
        }
    }

    #[test]
    fn zero_temperature_takes_the_likeliest_and_the_lowest_id_of_equals() {
        for uniform in [0.0, 0.5, 1.0f64.next_down()] {
            assert_eq!(sample_token(&[1.0, 3.0, f32::NAN, 3.0], &settings(0.0, None, None), uniform), 1);
            assert_eq!(sample_token(&[1.0, 3.0, 2.0, 3.0], &settings(1.0, Some(1), None), uniform), 1);
            assert_eq!(sample_token(&[1.0, 3.0, 2.0, 3.0], &settings(1.0, None, Some(1e-12)), uniform), 1);
            assert_eq!(sample_token(&[1.0, 3.0, 2.0, 3.0], &settings(1e-300, Some(1), None), uniform), 1);
        }
    }

    #[test]
    fn a_top_p_that_is_reached_exactly_takes_no_further_token() {
        assert_eq!(nucleus_len(&[1.0, 1.0, 1.0, 1.0], 0.5), 2);
        assert_eq!(nucleus_len(&[1.0, 1.0, 1.0, 1.0], 1.0), 4);
        assert_eq!(nucleus_len(&[1.0, 0.0], 1.0), 1);
    }

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let message =
            |temperature, top_k, top_p| settings(temperature, top_k, top_p).check().unwrap_err().to_string();
        assert!(message(-0.5, None, None).starts_with("`temperature` is -0.5: use 0"));
        assert!(message(f64::NAN, None, None).starts_with("`temperature` is NaN"));
        assert!(message(1.0, Some(0), None).starts_with("`top_k` is 0: use at least 1"));
        assert!(message(1.0, None, Some(1.5)).starts_with("`top_p` is 1.5: use a number above 0"));
        assert_eq!(settings(0.0, Some(1), Some(1.0)).check(), Ok(()));
        let min_p = SamplingSettings { min_p: Some(1.5), ..SamplingSettings::new(1.0) };
        assert!(
            min_p.check().unwrap_err().to_string().starts_with("`min_p` is 1.5: use a number from 0 to 1")
        );
        let penalty = SamplingSettings { repetition_penalty: Some(0.0), ..SamplingSettings::new(1.0) };
        assert!(penalty.check().unwrap_err().to_string().starts_with("`repetition_penalty` is 0: use"));
    }

    #[test]
    fn repetition_is_penalised_once_per_token() {
        let mut logits = [2.0, -2.0, 0.0, 4.0, f32::NEG_INFINITY];
        penalise_repetition(&mut logits, &[1, 0, 1, 4, 0, 99], 2.0);
        assert_eq!(logits, [1.0, -4.0, 0.0, 4.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn no_logits_and_nothing_but_impossible_tokens_give_token_zero() {
        for temperature in [0.0, 1.0] {
            let settings = settings(temperature, None, Some(0.9));
            assert_eq!(sample_token(&[], &settings, 0.5), 0);
            assert_eq!(sample_token(&[f32::NAN, f32::NEG_INFINITY], &settings, 0.5), 0);
        }
    }

    proptest! {
        #[test]
        fn any_logits_and_settings_give_a_possible_token(
            logits in prop::collection::vec(prop_oneof![
                any::<f32>(),
                prop::sample::select(vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 0.0]),
            ], 1..40),
            temperature in prop_oneof![Just(0.0), Just(1e-300), 0.01f64..10.0, Just(f64::MAX)],
            top_k in prop::option::of(1usize..50),
            top_p in prop::option::of(1e-9f64..=1.0),
            uniform in 0.0f64..1.0,
        ) {
            let token = sample_token(&logits, &settings(temperature, top_k, top_p), uniform) as usize;
            prop_assert!(token < logits.len());
            let is_possible = |logit: f32| !logit.is_nan() && logit != f32::NEG_INFINITY;
            prop_assert!(is_possible(logits[token]) || !logits.iter().any(|&logit| is_possible(logit)));
            let likelier = logits.iter().filter(|&&other| other > logits[token]).count();
            prop_assert!(top_k.is_none_or(|top_k| likelier < top_k));
        }
    }
}

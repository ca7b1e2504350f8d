//! The runs of a study that a form describes: it has no term for what it holds fixed.

use super::form::Form;
use super::variety::is_same_size;
use super::{Observation, Point};

/// What a fitted form holds fixed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scope {
    expansion_rate: Option<f64>,
    /// Of sparse models; a dense one has none.
    granularity: Option<f64>,
    /// Of sparse models, too.
    width_granularity: Option<f64>,
    tokens: Option<f64>,
    /// Whether dense models are left out.
    only_sparse: bool,
}

impl Scope {
    /// The scope that keeps most of `observations`.
    pub(super) fn of(form: Form, observations: &[&Observation]) -> Self {
        let any = Self {
            expansion_rate: None,
            granularity: None,
            width_granularity: None,
            tokens: None,
            only_sparse: false,
        };
        let sparse: Vec<&Observation> =
            observations.iter().copied().filter(|run| run.point.is_sparse()).collect();
        let granularity = most_frequent(&sparse, &|point| point.granularity);
        match form {
            Form::Dense => Self { expansion_rate: Some(1.0), ..any },
            Form::Krajewski => Self { expansion_rate: most_frequent(&sparse, &Point::expansion_rate), ..any },
            Form::Joint => Self { granularity, ..any },
            Form::FiveFactor => Self { only_sparse: true, ..any },
            Form::Leverage if form.has_granularity_terms(observations) => any,
            Form::Leverage => {
                Self { width_granularity: most_frequent(&sparse, &|point| point.width_granularity), ..any }
            }
            Form::Clark => {
                let at_granularity = Self { granularity, ..any };
                let covered = at_granularity.select(observations);
                Self { tokens: most_frequent(&covered, &|point| point.tokens), ..at_granularity }
            }
        }
    }

    /// Whether the form describes a run at `point`.
    pub(super) fn covers(&self, point: &Point) -> bool {
        let agrees = |fixed: Option<f64>, value: f64| fixed.is_none_or(|fixed| is_same_size(fixed, value));
        agrees(self.expansion_rate, point.expansion_rate())
            && agrees(self.tokens, point.tokens)
            && if point.is_sparse() {
                agrees(self.granularity, point.granularity)
                    && agrees(self.width_granularity, point.width_granularity)
            } else {
                !self.only_sparse
            }
    }

    /// Those of `observations` that the form describes.
    pub(super) fn select<'runs>(&self, observations: &[&'runs Observation]) -> Vec<&'runs Observation> {
        observations.iter().copied().filter(|run| self.covers(&run.point)).collect()
    }

    /// What it holds fixed, in words; empty if nothing.
    pub(super) fn in_words(&self) -> String {
        let fixed = [
            (self.expansion_rate, "expansion rate"),
            (self.granularity, "granularity"),
            (self.width_granularity, "granularity 2 d_model/d_expert"),
            (self.tokens, "tokens"),
        ];
        let numbers = fixed.iter().filter_map(|&(value, name)| Some(format!("{name} {}", short(value?))));
        let words: Vec<String> =
            self.only_sparse.then(|| "several experts".to_string()).into_iter().chain(numbers).collect();
        words.join(", ")
    }
}

/// Whole where it is small, otherwise with an exponent.
fn short(value: f64) -> String {
    if value < 1e4 { format!("{value}") } else { format!("{value:.3e}") }
}

/// The value that most runs share, the larger of two as frequent.
fn most_frequent(observations: &[&Observation], value: &dyn Fn(&Point) -> f64) -> Option<f64> {
    let mut values: Vec<f64> = observations.iter().map(|run| value(&run.point)).collect();
    values.sort_by(f64::total_cmp);
    values
        .chunk_by(|one, next| is_same_size(*next, *one))
        .max_by_key(|same| same.len())
        .and_then(|same| same.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::planted::{grid, observe, point};

    fn study() -> Vec<Observation> {
        let layers = [(1.0, 1.0), (8.0, 1.0), (8.0, 4.0), (32.0, 1.0)];
        let points = [grid(&layers, &[1e9, 2e9]), grid(&layers[..1], &[4e9])].concat();
        observe(&points, |_| 3.0, 0.0)
    }

    fn scope(form: Form) -> Scope {
        let observations = study();
        Scope::of(form, &observations.iter().collect::<Vec<_>>())
    }

    #[test]
    fn the_dense_form_describes_dense_runs_only() {
        assert!(scope(Form::Dense).covers(&point(1e8, 1.0, 1.0, 7e9)));
        assert!(!scope(Form::Dense).covers(&point(1e8, 2.0, 1.0, 7e9)));
    }

    #[test]
    fn a_form_without_a_token_term_keeps_to_one_length() {
        assert!(scope(Form::Clark).covers(&point(1e8, 64.0, 1.0, 2e9)));
        assert!(!scope(Form::Clark).covers(&point(1e8, 64.0, 1.0, 1e9)));
    }

    #[test]
    fn the_krajewski_form_keeps_to_the_commonest_sparse_rate() {
        assert!(scope(Form::Krajewski).covers(&point(1e8, 8.0, 2.0, 7e9)));
        assert!(!scope(Form::Krajewski).covers(&point(1e8, 32.0, 1.0, 1e9)));
        assert_eq!(scope(Form::Krajewski).in_words(), "expansion rate 8");
    }

    #[test]
    fn a_form_without_a_granularity_term_keeps_dense_runs_and_the_commonest_granularity() {
        assert!(scope(Form::Joint).covers(&point(1e8, 1.0, 1.0, 1e9)));
        assert!(scope(Form::Joint).covers(&point(1e8, 64.0, 1.0, 1e9)));
        assert!(!scope(Form::Joint).covers(&point(1e8, 8.0, 4.0, 1e9)));
    }

    #[test]
    fn the_five_factor_form_leaves_dense_runs_out() {
        assert!(!scope(Form::FiveFactor).covers(&point(1e8, 1.0, 1.0, 1e9)));
        assert!(scope(Form::FiveFactor).covers(&point(1e8, 8.0, 4.0, 1e9)));
        assert_eq!(scope(Form::FiveFactor).in_words(), "several experts");
    }

    #[test]
    fn leverage_of_few_granularities_is_that_of_the_commonest() {
        assert!(scope(Form::Leverage).covers(&point(1e8, 1.0, 1.0, 1e9)));
        assert!(scope(Form::Leverage).covers(&point(1e8, 32.0, 1.0, 1e9)));
        assert!(!scope(Form::Leverage).covers(&point(1e8, 8.0, 4.0, 1e9)));
    }
}

//! The four forms: what each needs of a study and which of its runs it can describe.

use std::fmt;

use serde::Serialize;

use super::{Observation, Point};

/// A published scaling law.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Form {
    /// Hoffmann et al., arXiv:2203.15556: dense models over size and tokens.
    Dense,
    /// Clark et al., arXiv:2202.01169: size and number of experts at one token count.
    Clark,
    /// Krajewski et al., arXiv:2402.07871: total size, tokens and granularity at one expansion
    /// rate.
    Krajewski,
    /// Ludziejewski et al., arXiv:2502.05172: active size, tokens and number of experts.
    Joint,
}

/// Why a form was not fitted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Refusal {
    pub(crate) form: Form,
    pub(crate) reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)
    }
}

/// Relative difference below which two sizes are one: a router's weights do not make another size.
const SAME_SIZE: f64 = 0.02;

/// Distinct expansion rates from which E_start and E_max follow; fewer leave a family of equal
/// fits, since the factors and exponents absorb any shift and stretch of ln E_hat.
const EXPANSION_RATES_OF_A_TRANSFORM: usize = 4;

/// Distinct granularities from which gamma follows; with two, `a`, `g` and `gamma` have a family of
/// equal fits.
const GRANULARITIES_OF_AN_EXPONENT: usize = 3;

/// Observations beyond the number of coefficients, below which the residuals would say nothing.
const SPARE_OBSERVATIONS: usize = 2;

impl Form {
    pub(crate) const ALL: [Self; 4] = [Self::Dense, Self::Clark, Self::Krajewski, Self::Joint];

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Clark => "Clark",
            Self::Krajewski => "Krajewski",
            Self::Joint => "joint",
        }
    }

    /// Its equation, with the paper.
    pub(crate) fn equation(self) -> &'static str {
        match self {
            Self::Dense => "L = E + A/N^alpha + B/D^beta, N active (arXiv:2203.15556)",
            Self::Clark => {
                "log10 L = a log10 N + b log10 E_hat + c log10 N log10 E_hat + d, N active (arXiv:2202.01169)"
            }
            Self::Krajewski => {
                "L = c + (g/G^gamma + a)/N^alpha + b/D^beta, N total without embeddings and routers (arXiv:2402.07871)"
            }
            Self::Joint => {
                "L = a E_hat^delta N^(alpha + gamma ln E_hat) + b E_hat^omega D^(beta + zeta ln E_hat) + c, N active \
                 (arXiv:2502.05172)"
            }
        }
    }

    /// Names of its coefficients, in the order of its parameters.
    pub(super) fn coefficient_names(self) -> &'static [&'static str] {
        match self {
            Self::Dense => &["E", "A", "alpha", "B", "beta"],
            Self::Clark => &["d", "a", "b", "c", "E_start", "E_max"],
            Self::Krajewski => &["c", "a", "alpha", "b", "beta", "g", "gamma"],
            Self::Joint => {
                &["c", "a", "alpha", "b", "beta", "delta", "gamma", "omega", "zeta", "E_start", "E_max"]
            }
        }
    }

    /// The size that the form calls N.
    pub(super) fn params(self, point: &Point) -> f64 {
        match self {
            Self::Krajewski => point.inner_params(),
            Self::Dense | Self::Clark | Self::Joint => point.active_params,
        }
    }

    /// Distinct values that a fit needs at least, per quantity.
    fn needs(self) -> Variety {
        match self {
            Self::Dense => Variety { sizes: 3, tokens: 3, ..Variety::ONE },
            Self::Clark => Variety { sizes: 2, expansion_rates: 2, ..Variety::ONE },
            Self::Krajewski => Variety { sizes: 3, tokens: 3, granularities: 2, ..Variety::ONE },
            Self::Joint => Variety { sizes: 3, tokens: 3, expansion_rates: 2, ..Variety::ONE },
        }
    }

    /// Coefficients that `observations`, all of which the form must cover, can determine.
    ///
    /// # Errors
    /// What the observations lack.
    pub(super) fn num_fitted(self, observations: &[&Observation]) -> Result<usize, String> {
        let (needs, has) = (self.needs(), Variety::of(self, observations));
        let num_free = self.num_free(&has, observations.len());
        let num_needed = num_free + SPARE_OBSERVATIONS;
        if observations.len() < num_needed || !has.reaches(&needs) {
            return Err(format!(
                "needs at least {num_needed} observations with {}; the study has {} with {}",
                needs.in_words(&needs),
                observations.len(),
                has.in_words(&needs),
            ));
        }
        Ok(num_free)
    }

    /// Coefficients that `variety` determines; the form's last ones are held.
    fn num_free(self, variety: &Variety, num_observations: usize) -> usize {
        let all = self.coefficient_names().len();
        let (is_determined, num_held) = match self {
            Self::Dense => (true, 0),
            Self::Clark | Self::Joint => (variety.expansion_rates >= EXPANSION_RATES_OF_A_TRANSFORM, 2),
            Self::Krajewski => (variety.granularities >= GRANULARITIES_OF_AN_EXPONENT, 1),
        };
        if is_determined && num_observations >= all + SPARE_OBSERVATIONS { all } else { all - num_held }
    }
}

/// How many distinct values the runs have.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Variety {
    sizes: usize,
    tokens: usize,
    expansion_rates: usize,
    granularities: usize,
}

impl Variety {
    const ONE: Self = Self { sizes: 1, tokens: 1, expansion_rates: 1, granularities: 1 };

    fn of(form: Form, observations: &[&Observation]) -> Self {
        let count = |value: &dyn Fn(&Point) -> f64| {
            num_distinct(observations.iter().map(|run| value(&run.point)).collect())
        };
        Self {
            sizes: count(&|point| form.params(point)),
            tokens: count(&|point| point.tokens),
            expansion_rates: count(&Point::expansion_rate),
            granularities: count(&|point| point.granularity),
        }
    }

    fn reaches(&self, needs: &Self) -> bool {
        self.sizes >= needs.sizes
            && self.tokens >= needs.tokens
            && self.expansion_rates >= needs.expansion_rates
            && self.granularities >= needs.granularities
    }

    /// The quantities of which `needs` asks several.
    fn in_words(&self, needs: &Self) -> String {
        let quantities = [
            (needs.sizes, self.sizes, "model size"),
            (needs.tokens, self.tokens, "token count"),
            (needs.expansion_rates, self.expansion_rates, "number of experts"),
            (needs.granularities, self.granularities, "granularity"),
        ];
        let asked: Vec<String> = quantities
            .iter()
            .filter(|(needed, ..)| *needed > 1)
            .map(|&(_, count, name)| counted(count, name))
            .collect();
        match asked.split_last() {
            Some((last, [])) => last.clone(),
            Some((last, others)) => format!("{} and {last}", others.join(", ")),
            None => String::new(),
        }
    }
}

/// "1 granularity", "2 granularities".
fn counted(count: usize, name: &str) -> String {
    match (count, name) {
        (1, _) => format!("1 {name}"),
        (_, "granularity") => format!("{count} granularities"),
        (_, "number of experts") => format!("{count} numbers of experts"),
        _ => format!("{count} {name}s"),
    }
}

/// Whether two sizes count as one.
pub(super) fn is_same_size(one: f64, other: f64) -> bool {
    (one / other).ln().abs() <= SAME_SIZE
}

/// How many of `values` differ from the ones below them by more than [`SAME_SIZE`].
fn num_distinct(mut values: Vec<f64>) -> usize {
    values.sort_by(f64::total_cmp);
    values.chunk_by(|one, next| is_same_size(*next, *one)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::planted::{grid, observe};
    use crate::scaling::{Fit, FitOptions};

    fn refusal(form: Form, points: &[Point]) -> String {
        let observations = observe(points, |point| 2.0 + 1e3 / point.active_params.sqrt(), 0.0);
        let options = FitOptions { num_bootstrap_samples: 0, seed: 0 };
        Fit::new(form, &observations, &options).unwrap_err().to_string()
    }

    #[test]
    fn a_refusal_names_what_the_study_lacks() {
        assert_eq!(
            refusal(Form::Krajewski, &grid(&[(8.0, 1.0)], &[1e9, 2e9])),
            "Krajewski needs at least 8 observations with 3 model sizes, 3 token counts and 2 granularities; the \
             study has 10 with 5 model sizes, 2 token counts and 1 granularity (those with expansion rate 8)"
        );
        assert_eq!(
            refusal(Form::Clark, &grid(&[(1.0, 1.0)], &[1e9])),
            "Clark needs at least 6 observations with 2 model sizes and 2 numbers of experts; the study has 5 with \
             5 model sizes and 1 number of experts (those with tokens 1.000e9)"
        );
    }

    #[test]
    fn an_empty_study_is_refused_by_every_form() {
        for form in Form::ALL {
            assert!(refusal(form, &[]).contains("the study has 0 with 0 model sizes"), "{form:?}");
        }
    }

    #[test]
    fn sizes_that_differ_by_a_router_are_one() {
        assert_eq!(num_distinct(vec![1.01e7, 1e7, 3e7, 1e9]), 3);
        assert_eq!(num_distinct(Vec::new()), 0);
    }
}

//! The six forms: what each needs of a study and which of its runs it can describe.

use std::fmt;

use serde::Serialize;

use super::variety::{Quantity, counts_in_words};
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
    /// Zhao et al., arXiv:2509.23678: total and active size, tokens, number of active experts and
    /// share of the shared ones among them.
    FiveFactor,
    /// Tian et al., arXiv:2507.17702: compute, activation ratio and granularity, against dense
    /// models.
    Leverage,
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

/// Distinct expansion rates from which E_start and E_max, or A_start, follow; fewer leave a family
/// of equal fits, since the factors and exponents absorb any shift and stretch of ln E_hat.
const EXPANSION_RATES_OF_A_TRANSFORM: usize = 4;

/// Distinct granularities from which gamma follows; with two, `a`, `g` and `gamma` have a family of
/// equal fits.
const GRANULARITIES_OF_AN_EXPONENT: usize = 3;

/// Distinct granularities from which a parabola in ln G follows.
const GRANULARITIES_OF_A_PARABOLA: usize = 3;

/// Observations beyond the number of coefficients, below which the residuals would say nothing.
const SPARE_OBSERVATIONS: usize = 2;

impl Form {
    pub(crate) const ALL: [Self; 6] =
        [Self::Dense, Self::Clark, Self::Krajewski, Self::Joint, Self::FiveFactor, Self::Leverage];

    /// Its name in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::Clark => "Clark",
            Self::Krajewski => "Krajewski",
            Self::Joint => "joint",
            Self::FiveFactor => "five-factor",
            Self::Leverage => "leverage",
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
            Self::FiveFactor => {
                "L = (e G + f/G + m S^2 + n S) (1/N^alpha + k/N_a^alpha + h N_a/N) + a/N^alpha + b/D^beta + c/N_a^alpha \
                 + epsilon, N total, N_a active (arXiv:2509.23678)"
            }
            Self::Leverage => {
                "L = alpha_D (EL C)^-beta_D, EL = 1 of dense models and (A + A_start)^(a + d ln C + beta ln G + gamma \
                 ln^2 G) of mixtures, C training FLOPs, A active experts over all, G = 2 d_model/d_expert \
                 (arXiv:2507.17702)"
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
            Self::FiveFactor => &["epsilon", "a", "alpha", "b", "beta", "c", "k", "h", "e", "f", "m", "n"],
            Self::Leverage => &["alpha_D", "beta_D", "a", "d", "A_start", "beta", "gamma"],
        }
    }

    /// The size that the form calls N.
    pub(super) fn params(self, point: &Point) -> f64 {
        match self {
            Self::Krajewski => point.inner_params(),
            Self::FiveFactor => point.total_params,
            Self::Dense | Self::Clark | Self::Joint | Self::Leverage => point.active_params,
        }
    }

    /// Distinct values that a fit needs at least, per quantity.
    fn needs(self) -> &'static [(Quantity, usize)] {
        match self {
            Self::Dense => &[(Quantity::Sizes, 3), (Quantity::Tokens, 3)],
            Self::Clark => &[(Quantity::Sizes, 2), (Quantity::ExpansionRates, 2)],
            Self::Krajewski => &[(Quantity::Sizes, 3), (Quantity::Tokens, 3), (Quantity::Granularities, 2)],
            Self::Joint => &[(Quantity::Sizes, 3), (Quantity::Tokens, 3), (Quantity::ExpansionRates, 2)],
            // Two shares of shared experts would leave m and n a family of equal fits, two numbers
            // of active experts e, f and a.
            Self::FiveFactor => &[
                (Quantity::Sizes, 3),
                (Quantity::ActiveShares, 3),
                (Quantity::Tokens, 3),
                (Quantity::ActiveExperts, 3),
                (Quantity::SharedRatios, 3),
            ],
            // The dense runs are the measure of the mixtures.
            Self::Leverage => {
                &[(Quantity::DenseBudgets, 3), (Quantity::MixtureBudgets, 3), (Quantity::ExpansionRates, 3)]
            }
        }
    }

    /// Whether it tells the losses of runs that divide their compute between size and tokens in
    /// different ways; the leverage does not look at the two.
    pub(super) fn covers_any_allocation(self) -> bool {
        self != Self::Leverage
    }

    /// Coefficients that `observations`, all of which the form must cover, can determine.
    ///
    /// # Errors
    /// What the observations lack.
    pub(super) fn num_fitted(self, observations: &[&Observation]) -> Result<usize, String> {
        let count = |quantity: Quantity| self.count(quantity, observations);
        let has: Vec<(Quantity, usize)> =
            self.needs().iter().map(|&(quantity, _)| (quantity, count(quantity))).collect();
        let is_rich = self.needs().iter().zip(&has).all(|((_, needed), (_, count))| count >= needed);
        let num_free = self.num_free(observations);
        let num_needed = num_free + SPARE_OBSERVATIONS;
        if observations.len() < num_needed || !is_rich {
            return Err(format!(
                "needs at least {num_needed} observations with {}; the study has {} with {}",
                counts_in_words(self.needs()),
                observations.len(),
                counts_in_words(&has),
            ));
        }
        Ok(num_free)
    }

    /// Coefficients that the distinct values of `observations` determine; the form's last ones are
    /// held.
    fn num_free(self, observations: &[&Observation]) -> usize {
        let count = |quantity: Quantity| self.count(quantity, observations);
        let has_transform = || count(Quantity::ExpansionRates) >= EXPANSION_RATES_OF_A_TRANSFORM;
        let all = self.coefficient_names().len();
        let (is_determined, num_held) = match self {
            Self::Dense | Self::FiveFactor => (true, 0),
            Self::Clark | Self::Joint => (has_transform(), 2),
            Self::Krajewski => (count(Quantity::Granularities) >= GRANULARITIES_OF_AN_EXPONENT, 1),
            Self::Leverage if self.has_granularity_terms(observations) => return all,
            Self::Leverage => return if has_transform() { all - 2 } else { all - 3 },
        };
        if is_determined && observations.len() >= all + SPARE_OBSERVATIONS { all } else { all - num_held }
    }

    fn count(self, quantity: Quantity, observations: &[&Observation]) -> usize {
        quantity.count(|point| self.params(point), observations)
    }

    /// Whether `observations` tell the granularity's effect on the leverage from that of the
    /// activation ratio. A study that does not is fitted at one granularity.
    pub(super) fn has_granularity_terms(self, observations: &[&Observation]) -> bool {
        self.count(Quantity::WidthGranularities, observations) >= GRANULARITIES_OF_A_PARABOLA
            && self.count(Quantity::ExpansionRates, observations) >= EXPANSION_RATES_OF_A_TRANSFORM
    }
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
            assert!(refusal(form, &[]).contains("the study has 0 with 0 "), "{form:?}");
        }
    }
}

//! The logarithms of the forms' terms, with exact gradients.
//!
//! Every form is a sum of terms whose logarithms are simple, so the log loss is a log-sum-exp of
//! them, as in arXiv:2203.15556, appendix D.2, eq. 11. Positive parameters come as logarithms,
//! exponents of falling powers as the logarithm of their size.

use super::coordinates::Coordinates;
use super::expert_saturation::{ExpertSaturation, LogEffectiveExperts};

/// Parameters of the largest form, the five-factor one.
pub(super) const MAX_PARAMETERS: usize = 12;

/// One number per parameter; those that a form lacks are zero.
pub(super) type Row = [f64; MAX_PARAMETERS];

/// A logarithm and its slope in each parameter.
#[derive(Debug, Clone, Copy)]
pub(super) struct LogTerm {
    pub(super) value: f64,
    pub(super) gradient: Row,
}

/// ln of the sum of the terms' exponentials; the gradient is the terms' weighted by their shares.
pub(super) fn log_sum_exp(terms: &[LogTerm]) -> LogTerm {
    let largest = terms.iter().map(|term| term.value).fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = terms.iter().map(|term| (term.value - largest).exp()).sum();
    let value = largest + total.ln();
    let mut gradient = [0.0; MAX_PARAMETERS];
    for term in terms {
        let share = (term.value - value).exp();
        for (sum, slope) in gradient.iter_mut().zip(term.gradient) {
            *sum += share * slope;
        }
    }
    LogTerm { value, gradient }
}

/// `E + A/N^alpha + B/D^beta`, arXiv:2203.15556, eq. 2: the logarithms of its three terms.
pub(super) fn chinchilla_terms(at: &Coordinates, row: &Row) -> [LogTerm; 3] {
    let [log_floor, log_a, log_alpha, log_b, log_beta, ..] = *row;
    [
        term(log_floor, &[(0, 1.0)]),
        falling(log_a, log_alpha, at.params, 1),
        falling(log_b, log_beta, at.tokens, 3),
    ]
}

/// `c + (g/G^gamma + a)/N^alpha + b/D^beta`, arXiv:2402.07871, eq. 9: the logarithms of its four
/// terms.
pub(super) fn krajewski_terms(at: &Coordinates, row: &Row) -> [LogTerm; 4] {
    let [floor, size, tokens] = chinchilla_terms(at, row);
    let [_, _, log_alpha, _, _, log_g, log_gamma, ..] = *row;
    let by_size = log_alpha.exp() * at.params;
    let by_granularity = log_gamma.exp() * at.log_granularity;
    let slopes = [(2, -by_size), (5, 1.0), (6, -by_granularity)];
    [floor, size, tokens, term(log_g - by_size - by_granularity, &slopes)]
}

/// `a E_hat^delta N^(alpha + gamma ln E_hat) + b E_hat^omega D^(beta + zeta ln E_hat) + c`,
/// arXiv:2502.05172, eq. 6: the logarithms of its three terms.
pub(super) fn joint_terms(at: &Coordinates, row: &Row, log_experts_centre: f64) -> [LogTerm; 3] {
    let [floor, size, tokens] = chinchilla_terms(at, row);
    let [_, _, _, _, _, delta, gamma, omega, zeta, log_start, log_ratio, ..] = *row;
    let experts = log_experts(at, log_start, log_ratio, log_experts_centre);
    [
        floor,
        with_experts(size, &experts, [delta, gamma], at.params, 5),
        with_experts(tokens, &experts, [omega, zeta], at.tokens, 7),
    ]
}

/// `a ln N + b ln E_hat + c ln N ln E_hat + d`, arXiv:2202.01169, eq. 1.
pub(super) fn clark_term(at: &Coordinates, row: &Row, log_experts_centre: f64) -> LogTerm {
    let [level, a, b, c, log_start, log_ratio, ..] = *row;
    let experts = log_experts(at, log_start, log_ratio, log_experts_centre);
    let slope_experts = b + c * at.params;
    term(
        level + a * at.params + slope_experts * experts.value,
        &[
            (0, 1.0),
            (1, at.params),
            (2, experts.value),
            (3, at.params * experts.value),
            (4, slope_experts * experts.slope_log_start),
            (5, slope_experts * experts.slope_log_ratio),
        ],
    )
}

/// ln E_hat less its centre.
fn log_experts(at: &Coordinates, log_start: f64, log_ratio: f64, centre: f64) -> LogEffectiveExperts {
    let saturation = ExpertSaturation::from_logs(log_start, log_ratio);
    let experts = saturation.log_effective_experts(at.expansion_rate);
    LogEffectiveExperts { value: experts.value - centre, ..experts }
}

/// A term of the given slopes.
pub(super) fn term(value: f64, slopes: &[(usize, f64)]) -> LogTerm {
    let mut gradient = [0.0; MAX_PARAMETERS];
    for &(parameter, slope) in slopes {
        gradient[parameter] = slope;
    }
    LogTerm { value, gradient }
}

/// A power of a size with a negative exponent; its factor is parameter `first`, its exponent the
/// next.
pub(super) fn falling(log_factor: f64, log_exponent: f64, log_size: f64, first: usize) -> LogTerm {
    let decline = log_exponent.exp() * log_size;
    term(log_factor - decline, &[(first, 1.0), (first + 1, -decline)])
}

/// `base` times a power of E_hat whose exponent depends on the size; `[power, interaction]` are
/// parameters `first` and the next.
fn with_experts(
    mut base: LogTerm,
    experts: &LogEffectiveExperts,
    [power, interaction]: [f64; 2],
    log_size: f64,
    first: usize,
) -> LogTerm {
    let slope_experts = power + interaction * log_size;
    base.value += slope_experts * experts.value;
    base.gradient[first] = experts.value;
    base.gradient[first + 1] = log_size * experts.value;
    base.gradient[9] = slope_experts * experts.slope_log_start;
    base.gradient[10] = slope_experts * experts.slope_log_ratio;
    base
}

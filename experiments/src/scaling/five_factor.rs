//! The law of arXiv:2509.23678, eq. 11, in five factors: tokens, all parameters, active ones, the
//! number of active experts and the share of the shared ones among them.
//!
//! `L = (e G + f/G + m S^2 + n S) (1/N^alpha + k/N_a^alpha + h N_a/N) + a/N^alpha + b/D^beta +
//! c/N_a^alpha + epsilon`. Unlike the other forms' terms, `n S` may be negative, so the first
//! product is added to the others and not to their logarithms.
//!
//! The paper leaves open whether embeddings count in N and N_a; here they do.

use super::coordinates::{Centre, Coordinates};
use super::terms::{LogTerm, MAX_PARAMETERS, Row, falling, log_sum_exp, term};

/// ln of the loss at `at`.
pub(super) fn five_factor_term(at: &Coordinates, row: &Row) -> LogTerm {
    let [log_floor, log_a, log_alpha, log_b, log_beta, log_c, ..] = *row;
    let by_active = log_alpha.exp() * at.active_params;
    let size_and_tokens = log_sum_exp(&[
        term(log_floor, &[(0, 1.0)]),
        falling(log_a, log_alpha, at.params, 1),
        falling(log_b, log_beta, at.tokens, 3),
        term(log_c - by_active, &[(5, 1.0), (2, -by_active)]),
    ]);
    let (structure, structure_gradient) = structure_and_gradient(at, row);
    let capacity = capacity_term(at, row);
    let (apart, coupled) = (size_and_tokens.value.exp(), structure * capacity.value.exp());
    // A search may try coefficients that make a loss negative; the next step leaves them.
    let loss = (apart + coupled).max(f64::MIN_POSITIVE);
    let mut gradient = [0.0; MAX_PARAMETERS];
    for (parameter, slope) in gradient.iter_mut().enumerate() {
        let of_coupled =
            coupled * capacity.gradient[parameter] + structure_gradient[parameter] * capacity.value.exp();
        *slope = (apart * size_and_tokens.gradient[parameter] + of_coupled) / loss;
    }
    LogTerm { value: loss.ln(), gradient }
}

/// `e G + f/G + m S^2 + n S` with its gradient.
fn structure_and_gradient(at: &Coordinates, row: &Row) -> (f64, Row) {
    let [_, _, _, _, _, _, _, _, log_e, log_f, log_m, n] = *row;
    let experts = at.active_experts.exp();
    let (rising, falling) = (log_e.exp() * experts, log_f.exp() / experts);
    let square = log_m.exp() * at.shared_ratio * at.shared_ratio;
    let mut gradient = [0.0; MAX_PARAMETERS];
    gradient[8..].copy_from_slice(&[rising, falling, square, at.shared_ratio]);
    (rising + falling + square + n * at.shared_ratio, gradient)
}

/// ln of `1/N^alpha + k/N_a^alpha + h N_a/N`.
fn capacity_term(at: &Coordinates, row: &Row) -> LogTerm {
    let [_, _, log_alpha, _, _, _, log_k, log_h, ..] = *row;
    let by_size = log_alpha.exp() * at.params;
    let by_active = log_alpha.exp() * at.active_params;
    log_sum_exp(&[
        term(-by_size, &[(2, -by_size)]),
        term(log_k - by_active, &[(6, 1.0), (2, -by_active)]),
        term(log_h + at.active_params - at.params, &[(7, 1.0)]),
    ])
}

/// The published coefficients of `row`, which is seen from `centre`.
pub(super) fn five_factor_coefficients(centre: &Centre, row: &Row) -> Row {
    let Centre { log_params, log_active, log_tokens, log_active_experts, log_loss, .. } = *centre;
    let [log_floor, log_a, log_alpha, log_b, log_beta, log_c, log_k, log_h, log_e, log_f, log_m, n] = *row;
    let (alpha, beta) = (log_alpha.exp(), log_beta.exp());
    // The first term of the capacity has no factor: the structure takes the scale of N and of L.
    let scale = alpha * log_params + log_loss;
    [
        (log_floor + log_loss).exp(),
        (log_a + scale).exp(),
        alpha,
        (log_b + log_loss + beta * log_tokens).exp(),
        beta,
        (log_c + log_loss + alpha * log_active).exp(),
        (log_k + alpha * (log_active - log_params)).exp(),
        (log_h + log_params - log_active - alpha * log_params).exp(),
        (log_e + scale - log_active_experts).exp(),
        (log_f + scale + log_active_experts).exp(),
        (log_m + scale).exp(),
        n * scale.exp(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// arXiv:2509.23678, Table 2.
    fn published() -> Row {
        let logs = [1.8182, 38.051, 0.2383, 27129.05, 0.4694, 31.096, 0.0013, 0.0450, 0.1577, 7.2446, 5.1395];
        let mut row = [-3.2363; MAX_PARAMETERS];
        row[..11].copy_from_slice(&logs.map(f64::ln));
        row
    }

    /// Loss of a model of `params`, of which the share `active` is active.
    fn loss(params: f64, active: f64, active_experts: f64, shared_ratio: f64) -> f64 {
        let at = Coordinates {
            params: params.ln(),
            active_params: (active * params).ln(),
            tokens: 1e12_f64.ln(),
            active_experts: active_experts.ln(),
            shared_ratio,
            ..Coordinates::default()
        };
        five_factor_term(&at, &published()).value.exp()
    }

    fn argmin(values: impl Iterator<Item = f64>, loss: impl Fn(f64) -> f64) -> f64 {
        values.min_by(|one, other| loss(*one).total_cmp(&loss(*other))).unwrap()
    }

    /// The paper's optima: 7 active experts, 31% of them shared, and 40% of 30 billion parameters
    /// active but 22% of 671 billion.
    #[test]
    fn the_published_coefficients_have_the_published_optima() {
        let percents = || (1..=100).map(|percent| f64::from(percent) / 100.0);
        let active_experts = argmin((1..=32).map(f64::from), |experts| loss(3e10, 0.1, experts, 0.31));
        assert!((active_experts - 7.0).abs() < 1e-9, "{active_experts}");
        let shared_ratio = argmin(percents(), |shared| loss(3e10, 0.1, 7.0, shared));
        assert!((shared_ratio - 0.31).abs() < 0.006, "{shared_ratio}");
        for (params, published) in [(3e10, 0.40), (6.71e11, 0.22)] {
            let active = argmin(percents(), |active| loss(params, active, 7.0, 0.31));
            assert!((active - published).abs() < 0.011, "{params}: {active}");
        }
    }
}

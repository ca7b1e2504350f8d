//! The efficiency leverage of arXiv:2507.17702: how much more compute a dense model takes to the
//! loss of a mixture.
//!
//! `EL = C_dense / C` at equal loss (definition 3.1), of mixtures `A_hat^(a + d ln C + beta ln G +
//! gamma ln^2 G)` (eq. 13) with `A_hat = A + A_start` (eq. 10, whose A_max the paper finds to be
//! beyond any activation ratio: 5e16). A dense model has the leverage 1 and a loss `alpha_D
//! C^-beta_D` (section 3), so a mixture has that of a dense model of EL times its compute.
//!
//! The paper leaves open which logarithms it takes; here they are natural.

use super::coordinates::{Centre, Coordinates};
use super::terms::{LogTerm, MAX_PARAMETERS, Row, term};

/// ln of the loss at `at`.
pub(super) fn leverage_term(at: &Coordinates, row: &Row) -> LogTerm {
    let [level, log_beta_d, ..] = *row;
    let leverage = log_leverage(at, row);
    let beta_d = log_beta_d.exp();
    let decline = beta_d * (at.flops + leverage.value);
    let mut gradient = leverage.gradient.map(|slope| -beta_d * slope);
    gradient[0] = 1.0;
    gradient[1] = -decline;
    LogTerm { value: level - decline, gradient }
}

/// ln EL.
pub(super) fn log_leverage(at: &Coordinates, row: &Row) -> LogTerm {
    let [_, _, a, d, log_start, beta, gamma, ..] = *row;
    if !at.is_sparse {
        return term(0.0, &[]);
    }
    let (flops, granularity) = (at.flops, at.width_granularity);
    let start = log_start.exp();
    let saturated = 1.0 / at.expansion_rate + start;
    let exponent = a + d * flops + beta * granularity + gamma * granularity * granularity;
    let log = saturated.ln();
    term(
        exponent * log,
        &[
            (2, log),
            (3, flops * log),
            (4, exponent * start / saturated),
            (5, granularity * log),
            (6, granularity * granularity * log),
        ],
    )
}

/// ln of the dense compute whose loss is `exp(log_loss)` times the study's mean, less the study's
/// mean ln of compute.
pub(super) fn log_dense_flops(log_loss: f64, row: &Row) -> f64 {
    let [level, log_beta_d, ..] = *row;
    (level - log_loss) / log_beta_d.exp()
}

/// The published coefficients of `row`, which is seen from `centre`.
pub(super) fn leverage_coefficients(centre: &Centre, row: &Row) -> Row {
    let Centre { log_flops, log_width_granularity, log_loss, .. } = *centre;
    let [level, log_beta_d, a, d, log_start, beta, gamma, ..] = *row;
    let beta_d = log_beta_d.exp();
    let mut values = [0.0; MAX_PARAMETERS];
    values[..7].copy_from_slice(&[
        (level + log_loss + beta_d * log_flops).exp(),
        beta_d,
        a - d * log_flops - beta * log_width_granularity + gamma * log_width_granularity.powi(2),
        d,
        log_start.exp(),
        beta - 2.0 * gamma * log_width_granularity,
        gamma,
    ]);
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Coordinates = Coordinates {
        params: 0.0,
        active_params: 0.0,
        tokens: 0.0,
        flops: 0.4,
        log_granularity: 0.0,
        active_experts: 0.0,
        shared_ratio: 0.0,
        width_granularity: 0.7,
        expansion_rate: 16.0,
        is_sparse: true,
    };

    fn row() -> Row {
        let mut row = [0.0; MAX_PARAMETERS];
        row[..7].copy_from_slice(&[0.1, 0.06_f64.ln(), -0.5, -0.03, 0.02_f64.ln(), -0.1, 0.02]);
        row
    }

    #[test]
    fn a_dense_model_of_el_times_the_compute_has_the_mixtures_loss() {
        let leverage = log_leverage(&AT, &row()).value;
        assert!(leverage > 1.0, "{leverage}");
        let dense = Coordinates { flops: AT.flops + leverage, is_sparse: false, ..AT };
        let (mixture, dense) = (leverage_term(&AT, &row()).value, leverage_term(&dense, &row()).value);
        assert!((mixture - dense).abs() < 1e-12);
        assert!((log_dense_flops(mixture, &row()) - AT.flops - leverage).abs() < 1e-12);
    }

    #[test]
    fn leverage_grows_with_sparsity_and_with_compute() {
        let leverage = |at: Coordinates| log_leverage(&at, &row()).value;
        assert!(leverage(Coordinates { expansion_rate: 32.0, ..AT }) > leverage(AT));
        assert!(leverage(Coordinates { flops: 2.0, ..AT }) > leverage(AT));
        assert!(leverage(Coordinates { is_sparse: false, ..AT }).abs() < 1e-12);
    }
}

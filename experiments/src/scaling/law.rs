//! A form as a function of its parameters, and those as the published coefficients.
//!
//! The parameters are the coefficients seen from the [`Centre`] of the study, positive ones as
//! logarithms.

use std::f64::consts::LN_10;

use super::coordinates::{Centre, Coordinates};
use super::expert_saturation::ExpertSaturation;
use super::five_factor::{five_factor_coefficients, five_factor_term};
use super::form::Form;
use super::leverage_terms::{leverage_coefficients, leverage_term, log_dense_flops, log_leverage};
use super::parameters::{CLARK, FIVE_FACTOR, JOINT, KRAJEWSKI, LEVERAGE, Parameter};
use super::terms::{
    LogTerm, MAX_PARAMETERS, Row, chinchilla_terms, clark_term, joint_terms, krajewski_terms, log_sum_exp,
};
use super::{Observation, Point};

/// A form, ready to be fitted to one study.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Law {
    pub(super) form: Form,
    pub(super) centre: Centre,
    /// Parameters that are fitted; the rest of the form's keep their default.
    pub(super) num_free: usize,
}

impl Law {
    /// The law of `form` for `observations`, all of which the form must cover.
    ///
    /// # Errors
    /// What the observations lack.
    pub(super) fn new(form: Form, observations: &[&Observation]) -> Result<Self, String> {
        let num_free = form.num_fitted(observations)?;
        Ok(Self { form, centre: Centre::of(form, observations), num_free })
    }

    /// The form's parameters: first those that are fitted, then those that are held.
    fn all_parameters(&self) -> &'static [Parameter] {
        match self.form {
            Form::Dense => &KRAJEWSKI[..5],
            Form::Clark => &CLARK,
            Form::Krajewski => &KRAJEWSKI,
            Form::Joint => &JOINT,
            Form::FiveFactor => &FIVE_FACTOR,
            Form::Leverage => &LEVERAGE,
        }
    }

    /// The fitted parameters.
    pub(super) fn parameters(&self) -> &'static [Parameter] {
        &self.all_parameters()[..self.num_free]
    }

    /// Fitted values followed by the held ones.
    fn row(&self, free: &[f64]) -> Row {
        let held = self.all_parameters().iter().skip(self.num_free).map(|parameter| parameter.held);
        let mut row = [0.0; MAX_PARAMETERS];
        for (slot, value) in row.iter_mut().zip(free.iter().copied().chain(held)) {
            *slot = value;
        }
        row
    }

    /// Predicted loss at `point`, in nats.
    pub(super) fn loss_nats(&self, point: &Point, free: &[f64]) -> f64 {
        self.log_loss(&self.centre.coordinates(self.form, point), free).value.exp()
    }

    /// Log of the predicted loss in nats, with its gradient in the parameters.
    pub(super) fn log_loss(&self, at: &Coordinates, free: &[f64]) -> LogTerm {
        let row = self.row(free);
        let mut sum = match self.form {
            Form::Dense => log_sum_exp(&chinchilla_terms(at, &row)),
            Form::Clark => clark_term(at, &row, self.centre.log_experts),
            Form::Krajewski => log_sum_exp(&krajewski_terms(at, &row)),
            Form::Joint => log_sum_exp(&joint_terms(at, &row, self.centre.log_experts)),
            Form::FiveFactor => five_factor_term(at, &row),
            Form::Leverage => leverage_term(at, &row),
        };
        sum.value += self.centre.log_loss;
        sum
    }

    /// Efficiency leverage of a model at `point`; the form must be [`Form::Leverage`].
    pub(super) fn leverage(&self, point: &Point, free: &[f64]) -> f64 {
        log_leverage(&self.centre.coordinates(self.form, point), &self.row(free)).value.exp()
    }

    /// Compute that the dense models need for `loss_nats`; the form must be [`Form::Leverage`].
    pub(super) fn dense_flops(&self, loss_nats: f64, free: &[f64]) -> f64 {
        let log_loss = loss_nats.ln() - self.centre.log_loss;
        (log_dense_flops(log_loss, &self.row(free)) + self.centre.log_flops).exp()
    }

    /// The published coefficients, fitted and held, each with its name.
    pub(super) fn coefficients(&self, free: &[f64]) -> Vec<(&'static str, f64)> {
        let row = self.row(free);
        let values = match self.form {
            Form::Dense | Form::Krajewski => self.krajewski_coefficients(&row),
            Form::Clark => self.clark_coefficients(&row),
            Form::Joint => self.joint_coefficients(&row),
            Form::FiveFactor => five_factor_coefficients(&self.centre, &row),
            Form::Leverage => leverage_coefficients(&self.centre, &row),
        };
        self.form.coefficient_names().iter().copied().zip(values).collect()
    }

    fn krajewski_coefficients(&self, row: &Row) -> Row {
        let Centre { log_params, log_tokens, log_loss, .. } = self.centre;
        let [log_floor, log_a, log_alpha, log_b, log_beta, log_g, log_gamma, ..] = *row;
        let (alpha, beta) = (log_alpha.exp(), log_beta.exp());
        let mut values = [0.0; MAX_PARAMETERS];
        values[..7].copy_from_slice(&[
            (log_floor + log_loss).exp(),
            (log_a + log_loss + alpha * log_params).exp(),
            alpha,
            (log_b + log_loss + beta * log_tokens).exp(),
            beta,
            (log_g + log_loss + alpha * log_params).exp(),
            log_gamma.exp(),
        ]);
        values
    }

    fn joint_coefficients(&self, row: &Row) -> Row {
        let centre = &self.centre;
        let [
            log_floor,
            log_a,
            log_alpha,
            log_b,
            log_beta,
            delta,
            gamma,
            omega,
            zeta,
            log_start,
            log_ratio,
            ..,
        ] = *row;
        let power = |log_factor: f64, log_exponent: f64, of_experts: f64, interaction: f64, log_size: f64| {
            let exponent = -log_exponent.exp() - interaction * centre.log_experts;
            let of_experts = of_experts - interaction * log_size;
            let shift = of_experts * centre.log_experts
                + exponent * log_size
                + interaction * centre.log_experts * log_size;
            ((log_factor + centre.log_loss - shift).exp(), exponent, of_experts)
        };
        let (a, alpha, delta) = power(log_a, log_alpha, delta, gamma, centre.log_params);
        let (b, beta, omega) = power(log_b, log_beta, omega, zeta, centre.log_tokens);
        let saturation = ExpertSaturation::from_logs(log_start, log_ratio);
        let floor = (log_floor + centre.log_loss).exp();
        [floor, a, alpha, b, beta, delta, gamma, omega, zeta, saturation.start, saturation.max, 0.0]
    }

    /// In base 10, as arXiv:2202.01169 states them: its published cutoff 10^(-b/c) is right in that
    /// base only.
    fn clark_coefficients(&self, row: &Row) -> Row {
        let Centre { log_params, log_experts, log_loss, .. } = self.centre;
        let [level, a, b, c, log_start, log_ratio, ..] = *row;
        let saturation = ExpertSaturation::from_logs(log_start, log_ratio);
        let (a, b) = (a - c * log_experts, b - c * log_params);
        let level = level + log_loss - a * log_params - b * log_experts - c * log_params * log_experts;
        let mut values = [0.0; MAX_PARAMETERS];
        values[..6].copy_from_slice(&[level / LN_10, a, b, c * LN_10, saturation.start, saturation.max]);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::parameters::starting_points;

    fn no_centre() -> Centre {
        Centre::default()
    }

    fn centre() -> Centre {
        Centre {
            log_params: 18.0,
            log_active: 16.5,
            log_tokens: 21.0,
            log_flops: 39.0,
            log_experts: 1.7,
            log_active_experts: 1.2,
            log_width_granularity: 0.8,
            log_loss: 1.1,
        }
    }

    fn law(form: Form, centre: Centre) -> Law {
        Law { form, centre, num_free: form.coefficient_names().len() }
    }

    fn point(params: f64, expansion_rate: f64, granularity: f64, tokens: f64) -> Point {
        let num_experts = expansion_rate * granularity;
        Point {
            active_params: params,
            total_params: params,
            outer_params: 0.0,
            num_experts,
            granularity,
            shared_ratio: 0.0,
            width_granularity: granularity,
            tokens,
            training_flops: 6.0 * params * tokens,
        }
    }

    #[test]
    fn gradients_match_central_differences() {
        let at = Coordinates {
            params: 1.3,
            active_params: 0.9,
            tokens: -0.8,
            flops: 0.6,
            log_granularity: 1.4,
            active_experts: 0.5,
            shared_ratio: 0.25,
            width_granularity: -0.4,
            expansion_rate: 8.0,
            is_sparse: true,
        };
        let step = 1e-6;
        for form in Form::ALL {
            let law = law(form, centre());
            // Off the starts, where some parameters are zero and hide errors.
            let start: Vec<f64> =
                starting_points(law.parameters())[1].iter().map(|value| value + 0.07).collect();
            let gradient = law.log_loss(&at, &start).gradient;
            for parameter in 0..law.num_free {
                let moved = |by: f64| {
                    let mut values = start.clone();
                    values[parameter] += by;
                    law.log_loss(&at, &values).value
                };
                let difference = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((gradient[parameter] - difference).abs() < 1e-8, "{form:?} {parameter}");
            }
        }
    }

    /// arXiv:2502.05172, Table 3 against its Table 4, where the authors reduce the form per number
    /// of experts. The bound is the rounding of the printed exponents.
    #[test]
    fn the_joint_form_reduces_to_the_published_chinchilla_forms() {
        let free = [
            1.3637_f64.ln(),
            35.91_f64.ln(),
            0.1889_f64.ln(),
            35.98_f64.ln(),
            0.1775_f64.ln(),
            -0.2285,
            0.0098,
            0.5529,
            -0.0259,
            2.0732_f64.ln(),
            (290.4521_f64 / 2.0732).ln(),
        ];
        let reduced = [
            (1.0, 30.3640, -0.1817, 53.9838, -0.1965),
            (2.0, 27.7982, -0.1780, 66.8401, -0.2065),
            (4.0, 24.8462, -0.1731, 87.7022, -0.2192),
            (8.0, 21.8330, -0.1676, 119.9126, -0.2338),
            (16.0, 19.0159, -0.1617, 167.5073, -0.2494),
            (32.0, 16.5424, -0.1557, 234.6726, -0.2652),
        ];
        let law = law(Form::Joint, no_centre());
        for (experts, m, mu, n, nu) in reduced {
            let (params, tokens) = (1e9_f64, 2e10_f64);
            let published = m * params.powf(mu) + n * tokens.powf(nu) + 1.3637;
            let ours = law.loss_nats(&point(params, experts, 1.0, tokens), &free);
            assert!((ours / published - 1.0).abs() < 1.5e-3, "{experts}: {ours} for {published}");
        }
    }

    /// arXiv:2402.07871, Table 2, with the coefficients of Table 1. A model of "64 x 1B" has 516/12
    /// billion parameters there (section 6.1). The bound is the rounding of the printed exponents.
    #[test]
    fn the_krajewski_form_gives_the_published_losses() {
        let free = [0.47, 18.1, 0.115, 30.8, 0.147, 2.1, 0.58].map(f64::ln);
        let law = law(Form::Krajewski, no_centre());
        let published = [
            (100e6, 4.37e9, 8.0, 3.133),
            (1e9, 28.94e9, 16.0, 2.491),
            (7e9, 137.6e9, 32.0, 2.076),
            (300e9, 2.96e12, 64.0, 1.503),
        ];
        for (active, tokens, granularity, loss) in published {
            let ours = law.loss_nats(&point(active * 516.0 / 12.0, 64.0, granularity, tokens), &free);
            assert!((ours / loss - 1.0).abs() < 0.012, "{ours} for {loss}");
        }
    }

    /// arXiv:2202.01169: by its eq. 1, at 10^(-b/c) parameters, experts no longer help.
    #[test]
    fn in_the_clark_form_experts_stop_helping_at_the_cutoff() {
        let (a, b, c, d) = (-0.082, -0.108, 0.009, 1.104);
        let free = [d * LN_10, a, b, c / LN_10, 1.847_f64.ln(), (314.478_f64 / 1.847).ln()];
        let law = law(Form::Clark, no_centre());
        let loss = |params: f64, experts: f64| law.loss_nats(&point(params, experts, 1.0, 1e10), &free);
        let cutoff = 10_f64.powf(-b / c);
        assert!((loss(cutoff, 1.0) / loss(cutoff, 256.0) - 1.0).abs() < 1e-9);
        assert!(loss(1e8, 256.0) < loss(1e8, 1.0) && loss(10.0 * cutoff, 256.0) > loss(10.0 * cutoff, 1.0));
        assert!((law.coefficients(&free)[3].1 - c).abs() < 1e-12);
    }

    #[test]
    fn the_centre_does_not_change_what_the_coefficients_mean() {
        let point = Point { total_params: 9e8, shared_ratio: 0.25, ..point(3e8, 8.0, 4.0, 5e9) };
        for form in Form::ALL {
            let (law, plain) = (law(form, centre()), law(form, no_centre()));
            let start: Vec<f64> =
                starting_points(law.parameters())[1].iter().map(|value| value + 0.07).collect();
            let values: Vec<f64> = law.coefficients(&start).iter().map(|&(_, value)| value).collect();
            let back = match form {
                Form::Dense | Form::Krajewski => values.iter().map(|value| value.ln()).collect(),
                Form::Clark => vec![
                    values[0] * LN_10,
                    values[1],
                    values[2],
                    values[3] / LN_10,
                    values[4].ln(),
                    (values[5] / values[4]).ln(),
                ],
                Form::Joint => {
                    let logs = values[..5].iter().map(|value| value.abs().ln());
                    let last = [values[9].ln(), (values[10] / values[9]).ln()];
                    logs.chain(values[5..9].iter().copied()).chain(last).collect()
                }
                Form::FiveFactor => values[..11].iter().map(|value| value.ln()).chain([values[11]]).collect(),
                Form::Leverage => {
                    let [alpha_d, beta_d, a, d, start, beta, gamma] = values[..] else { unreachable!() };
                    vec![alpha_d.ln(), beta_d.ln(), a, d, start.ln(), beta, gamma]
                }
            };
            let (centred, direct) = (law.loss_nats(&point, &start), plain.loss_nats(&point, &back));
            assert!((centred / direct - 1.0).abs() < 1e-10, "{form:?}: {centred} for {direct}");
        }
    }
}

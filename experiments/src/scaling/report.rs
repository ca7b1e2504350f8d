//! All forms fitted to one study, as text and as JSON.

use serde::Serialize;

use super::flops::FlopsPerToken;
use super::next_runs::{NextRun, Prediction, recommend};
use super::table::{aligned, four_digits};
use super::{Coefficient, Fit, FitOptions, Form, HeldOut, Leverage, Observation, Refusal};

/// The forms fitted to a study; its JSON form is `fit.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct ScalingReport {
    /// Runs given, fitted or not.
    pub(crate) num_observations: usize,
    /// The forms that the study allows.
    pub(crate) fits: Vec<Fit>,
    /// The others, with what the study lacks.
    pub(crate) refusals: Vec<Refusal>,
    /// The most telling first.
    pub(crate) next_runs: Vec<NextRun>,
    /// How the compute of the runs and of the next ones is counted.
    pub(crate) flops: String,
    /// What concerns all forms.
    pub(crate) notes: Vec<String>,
}

impl ScalingReport {
    /// Every form fitted to `observations`, or refused.
    pub(crate) fn new(observations: &[Observation], options: &FitOptions) -> Self {
        let (mut fits, mut refusals) = (Vec::new(), Vec::new());
        for form in Form::ALL {
            match Fit::new(form, observations, options) {
                Ok(fit) => fits.push(fit),
                Err(refusal) => refusals.push(refusal),
            }
        }
        let usable: Vec<&Observation> = observations.iter().filter(|run| run.is_usable()).collect();
        let flops_per_token = FlopsPerToken::of(&usable);
        Self {
            num_observations: observations.len(),
            next_runs: recommend(&fits, &usable, &flops_per_token),
            flops: flops_per_token.in_words(&usable),
            fits,
            refusals,
            notes: notes(observations),
        }
    }

    /// The report for a terminal.
    pub(crate) fn to_text(&self) -> String {
        let fits: String = self.fits.iter().map(|fit| fit.to_text() + "\n").collect();
        let refusals: String =
            self.refusals.iter().map(|refusal| format!("not fitted: {refusal}\n")).collect();
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        let flops = format!("{}\n", self.flops);
        [fits, refusals, next_runs_text(&self.next_runs), flops, notes].concat()
    }
}

fn notes(observations: &[Observation]) -> Vec<String> {
    let unusable: Vec<&str> =
        observations.iter().filter(|run| !run.is_usable()).map(|run| run.label.as_str()).collect();
    if unusable.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "left out, since a size, the loss or the weight is not a positive number: {}",
        unusable.join(", ")
    )]
}

impl Fit {
    /// The fit for a terminal: coefficients, quality, errors, notes.
    pub(crate) fn to_text(&self) -> String {
        let heading = format!("{}: {}\n", self.form.name(), self.form.equation());
        let rows = [vec!["coefficient".into(), "value".into(), "95% interval".into()]];
        let rows: Vec<Vec<String>> =
            rows.into_iter().chain(self.coefficients.iter().map(Coefficient::row)).collect();
        let quality = format!(
            "{} runs, Huber loss {}, R^2 {:.5}, mean error {} on the fitted runs; {} of {} starts ended here\n",
            self.num_observations,
            four_digits(self.huber_loss),
            self.r_squared,
            percent(self.in_sample_relative_error),
            self.converged_starts,
            self.starts,
        );
        let held_out: String = self.held_out.iter().map(HeldOut::to_line).collect();
        let notes: String = self.notes.iter().map(|note| format!("- {note}\n")).collect();
        [heading, aligned(&rows), leverages_text(&self.leverages), quality, held_out, notes].concat()
    }
}

fn leverages_text(leverages: &[Leverage]) -> String {
    if leverages.is_empty() {
        return String::new();
    }
    let heading =
        ["activation ratio", "granularity", "FLOPs", "efficiency leverage", "95% interval", "measured"];
    let rows: Vec<Vec<String>> =
        [heading.map(String::from).to_vec()].into_iter().chain(leverages.iter().map(Leverage::row)).collect();
    aligned(&rows)
}

impl Leverage {
    fn row(&self) -> Vec<String> {
        vec![
            four_digits(self.activation_ratio),
            four_digits(self.width_granularity),
            format!("{:.2e}", self.training_flops),
            four_digits(self.value),
            interval_text(self.interval),
            four_digits(self.measured),
        ]
    }
}

impl Coefficient {
    fn row(&self) -> Vec<String> {
        vec![self.name.into(), four_digits(self.value), interval_text(self.interval)]
    }
}

impl HeldOut {
    fn to_line(&self) -> String {
        format!(
            "left out {}: mean error {}, largest {}, up to {:.2}x the fitted compute\n",
            self.how,
            percent(self.mean_relative_error),
            percent(self.max_relative_error),
            self.extrapolation_factor,
        )
    }
}

fn interval_text(interval: Option<(f64, f64)>) -> String {
    interval
        .map_or_else(|| "-".into(), |(low, high)| format!("{} .. {}", four_digits(low), four_digits(high)))
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}

fn next_runs_text(runs: &[NextRun]) -> String {
    if runs.is_empty() {
        return String::new();
    }
    let heading = ["next run", "active", "total", "experts", "granularity", "tokens", "FLOPs"];
    let heading = vec![heading.map(String::from).to_vec()];
    let rows: Vec<Vec<String>> = heading.into_iter().chain(runs.iter().zip(1..).map(next_run_row)).collect();
    let reasons: String = runs.iter().zip(1..).map(reason_text).collect();
    format!("{}{reasons}", aligned(&rows))
}

fn next_run_row((run, number): (&NextRun, usize)) -> Vec<String> {
    let point = &run.point;
    vec![
        number.to_string(),
        format!("{:.3e}", point.active_params),
        format!("{:.3e}", point.total_params),
        point.num_experts.to_string(),
        point.granularity.to_string(),
        format!("{:.3e}", point.tokens),
        format!("{:.2e}", run.point.training_flops),
    ]
}

fn reason_text((run, number): (&NextRun, usize)) -> String {
    let predicted: Vec<String> = run.predicted.iter().map(Prediction::in_words).collect();
    format!("{number}: {}. Expected: {}\n", run.why, predicted.join(", "))
}

impl Prediction {
    fn in_words(&self) -> String {
        let interval = match self.interval {
            Some((low, high)) => format!(" ({low:.4} .. {high:.4})"),
            None => String::new(),
        };
        format!("{} {:.4}{interval}", self.form.name(), self.loss_nats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scaling::planted::{grid, observe};

    fn report(edit: fn(&mut Vec<Observation>)) -> ScalingReport {
        let points = grid(&[(1.0, 1.0)], &[2e8, 2e9, 2e10]);
        let loss =
            |point: &super::super::Point| 1.7 + 400.0 / point.active_params.powf(0.34) + 5e8 / point.tokens;
        let mut observations = observe(&points, loss, 1e-3);
        edit(&mut observations);
        ScalingReport::new(&observations, &FitOptions { num_bootstrap_samples: 50, seed: 2 })
    }

    #[test]
    fn a_dense_study_fits_one_form_and_refuses_the_others() {
        let report = report(|_| {});
        assert_eq!(report.fits.iter().map(|fit| fit.form).collect::<Vec<_>>(), [Form::Dense]);
        let refused: Vec<Form> = report.refusals.iter().map(|refusal| refusal.form).collect();
        assert_eq!(refused, Form::ALL[1..]);
        assert!(report.notes.is_empty());
    }

    #[test]
    fn the_text_has_every_coefficient_and_every_refusal() {
        let text = report(|_| {}).to_text();
        for part in [
            "dense: L = E",
            "alpha",
            "95% interval",
            "left out the largest fifth",
            "not fitted: Clark",
            "next run",
            "FLOPs are those of training as `switchyard plan`",
            "6.000 N per token",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_run_without_a_loss_is_left_out_and_named() {
        let report = report(|observations| observations[4].loss_nats = f64::NAN);
        assert_eq!(report.fits[0].num_observations, 14);
        assert!(report.notes[0].ends_with("not a positive number: run 4"), "{:?}", report.notes);
        assert!(
            report.fits[0].notes[0].starts_with("fitted to 14 of the 15 runs"),
            "{:?}",
            report.fits[0].notes
        );
    }

    #[test]
    fn the_json_has_what_a_program_needs() {
        let json = serde_json::to_value(report(|_| {})).unwrap();
        assert_eq!(json["fits"][0]["form"], "dense");
        assert!(json["fits"][0]["coefficients"][0]["interval"][1].is_f64());
        assert!(json["fits"][0]["held_out"][0]["max_relative_error"].is_f64());
        assert!(json["next_runs"][0]["tokens"].is_f64());
        assert!(json["refusals"][0]["reason"].as_str().unwrap().starts_with("Clark needs"));
    }
}

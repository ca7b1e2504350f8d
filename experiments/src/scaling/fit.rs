//! A law fitted to a study, with its uncertainty.

use serde::Serialize;

use super::bootstrap::{TAIL, percentile_interval, refits};
use super::form::{Form, Refusal};
use super::held_out::{HeldOut, held_out};
use super::law::Law;
use super::leverage::{Leverage, leverages};
use super::optimizer::{Search, search};
use super::scope::Scope;
use super::{Observation, Point};

/// How a fit is made; the same options give the same fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FitOptions {
    /// Resamples behind the intervals; 0 leaves them out.
    pub(crate) num_bootstrap_samples: usize,
    /// Of the resampling and of the cross-validation's parts.
    pub(crate) seed: u64,
}

/// A coefficient as the form's paper defines it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Coefficient {
    pub(crate) name: &'static str,
    pub(crate) value: f64,
    /// 95% over the bootstrap; `None` if the coefficient is held or too few resamples could be
    /// fitted.
    pub(crate) interval: Option<(f64, f64)>,
}

/// A form fitted to the runs of a study that it covers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Fit {
    pub(crate) form: Form,
    /// Runs fitted.
    pub(crate) num_observations: usize,
    pub(crate) coefficients: Vec<Coefficient>,
    /// Weighted sum of the Huber losses of the log loss.
    pub(crate) huber_loss: f64,
    /// Share of the log loss's variance that the fit explains.
    pub(crate) r_squared: f64,
    /// Mean |predicted / measured - 1| of the loss, over the fitted runs.
    pub(crate) in_sample_relative_error: f64,
    /// Errors on runs left out; empty if the study is too small for that.
    pub(crate) held_out: Vec<HeldOut>,
    /// Of the study's mixtures, each at its largest compute; empty but in [`Form::Leverage`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) leverages: Vec<Leverage>,
    /// Searches made, each from another starting point.
    pub(crate) starts: usize,
    /// Searches that ended at the best loss.
    pub(crate) converged_starts: usize,
    /// What a reader must know before believing the coefficients.
    pub(crate) notes: Vec<String>,
    #[serde(skip)]
    law: Law,
    #[serde(skip)]
    scope: Scope,
    #[serde(skip)]
    parameters: Vec<f64>,
    /// Parameters on each resample.
    #[serde(skip)]
    refits: Vec<Vec<f64>>,
}

impl Fit {
    /// `form` fitted to those of `observations` that it covers.
    ///
    /// # Errors
    /// What the study lacks for this form.
    pub(crate) fn new(
        form: Form,
        observations: &[Observation],
        options: &FitOptions,
    ) -> Result<Self, Refusal> {
        let usable: Vec<&Observation> = observations.iter().filter(|run| run.is_usable()).collect();
        let scope = Scope::of(form, &usable);
        let covered = scope.select(&usable);
        let refuse = |reason: String| Refusal { form, reason: with_scope(form, &reason, &scope) };
        let law = Law::new(form, &covered).map_err(refuse)?;
        let no_minimum =
            "ended at no finite loss from any start: look for a loss that is far off".to_string();
        let found = search(&law, &covered).ok_or_else(|| refuse(no_minimum))?;
        let refits =
            refits(&law, &covered, &found.best.parameters, options.num_bootstrap_samples, options.seed);
        let mut fit = Self::from_search(law, scope, found, refits, &covered);
        fit.held_out = held_out(form, &covered, options.seed);
        if form == Form::Leverage {
            fit.leverages = leverages(&fit.law, &fit.parameters, &fit.refits, &covered);
        }
        fit.notes = fit.notes(&covered, observations.len(), options);
        Ok(fit)
    }

    fn from_search(
        law: Law,
        scope: Scope,
        found: Search,
        refits: Vec<Vec<f64>>,
        covered: &[&Observation],
    ) -> Self {
        let Search { best, starts, converged_starts } = found;
        Self {
            form: law.form,
            num_observations: covered.len(),
            coefficients: coefficients(&law, &best.parameters, &refits),
            huber_loss: best.huber_loss,
            r_squared: r_squared(&law, &best.parameters, covered),
            in_sample_relative_error: mean_relative_error(&law, &best.parameters, covered),
            held_out: Vec::new(),
            leverages: Vec::new(),
            starts,
            converged_starts,
            notes: Vec::new(),
            law,
            scope,
            parameters: best.parameters,
            refits,
        }
    }

    /// Predicted loss in nats per token.
    pub(crate) fn predict(&self, point: &Point) -> f64 {
        self.law.loss_nats(point, &self.parameters)
    }

    /// 95% interval of the prediction over the bootstrap; it holds the form to be true.
    pub(crate) fn prediction_interval(&self, point: &Point) -> Option<(f64, f64)> {
        percentile_interval(
            self.refits.iter().map(|parameters| self.law.loss_nats(point, parameters)).collect(),
        )
    }

    /// Whether the form has a term for all in which `point` differs from the fitted runs.
    pub(crate) fn covers(&self, point: &Point) -> bool {
        self.scope.covers(point)
    }

    fn notes(&self, covered: &[&Observation], num_given: usize, options: &FitOptions) -> Vec<String> {
        let mut notes = Vec::new();
        if self.num_observations < num_given {
            notes.push(format!(
                "fitted to {} of the {num_given} runs{}",
                self.num_observations,
                parenthesised(&self.scope.in_words())
            ));
        }
        notes.extend(self.leverage_notes(covered));
        notes.extend(self.held_note());
        notes.extend(self.bound_notes());
        notes.extend(self.zero_notes());
        if self.refits.len() < options.num_bootstrap_samples {
            notes.push(format!(
                "only {} of {} resamples had what the form needs: add configurations",
                self.refits.len(),
                options.num_bootstrap_samples
            ));
        }
        if self.held_out.is_empty() {
            notes.push("too few configurations to leave any out: the errors are those of fitted runs".into());
        }
        notes
    }

    fn held_note(&self) -> Option<String> {
        let held = &self.coefficients[self.law.num_free..];
        let values = |held: &[Coefficient]| {
            let values: Vec<String> =
                held.iter().map(|held| format!("{} = {:.4}", held.name, held.value)).collect();
            values.join(" and ")
        };
        let as_published = |held: &[Coefficient], source: &str, lacking: &str| {
            format!("{} held as published in {source}: fitting takes {lacking} and enough runs", values(held))
        };
        let without_granularity = "beta and gamma left out, so that `a` is that of this granularity: fitting takes 3 \
                                   granularities and 4 numbers of experts";
        match (self.form, held) {
            (_, []) | (Form::Dense | Form::FiveFactor, _) => None,
            (Form::Clark | Form::Joint, held) => {
                Some(as_published(held, "arXiv:2502.05172", "4 numbers of experts"))
            }
            (Form::Krajewski, held) => Some(as_published(held, "arXiv:2402.07871", "3 granularities")),
            (Form::Leverage, [start, _, _]) => {
                let start =
                    as_published(std::slice::from_ref(start), "arXiv:2507.17702", "4 numbers of experts");
                Some(format!("{start}; {without_granularity}"))
            }
            (Form::Leverage, _) => Some(without_granularity.into()),
        }
    }

    /// What the leverage takes for granted, and how far the study is from it; empty in other forms.
    fn leverage_notes(&self, covered: &[&Observation]) -> Vec<String> {
        if self.form != Form::Leverage {
            return Vec::new();
        }
        let dense: Vec<&Observation> = covered.iter().copied().filter(|run| !run.point.is_sparse()).collect();
        let largest = dense.iter().map(|run| run.point.training_flops).fold(0.0, f64::max);
        let is_beyond = |leverage: &&Leverage| leverage.value * leverage.training_flops > largest;
        let num_beyond = self.leverages.iter().filter(is_beyond).count();
        let allocation = format!(
            "a loss is taken to follow from compute alone, of runs that share it between size and tokens by one \
             rule: dense runs are off by {:.2}% in the mean",
            100.0 * mean_relative_error(&self.law, &self.parameters, &dense)
        );
        let extrapolation = format!(
            "the dense compute of equal loss lies beyond the largest dense run for {num_beyond} of {} leverages",
            self.leverages.len()
        );
        [Some(allocation), (num_beyond > 0).then_some(extrapolation)].into_iter().flatten().collect()
    }

    fn bound_notes(&self) -> impl Iterator<Item = String> {
        let parameters = self.law.parameters().iter().zip(&self.coefficients).enumerate();
        parameters.filter_map(|(index, (parameter, coefficient))| {
            let name = coefficient.name;
            let at_bound = self.refits.iter().filter(|refit| parameter.is_at_bound(refit[index])).count();
            if parameter.is_at_bound(self.parameters[index]) {
                Some(format!("{name} ended at the bound of its range: the study does not determine it"))
            } else if at_bound as f64 > TAIL * self.refits.len() as f64 {
                Some(format!(
                    "the interval of {name} reaches the bound of its range: one end is not determined"
                ))
            } else {
                None
            }
        })
    }

    fn zero_notes(&self) -> impl Iterator<Item = String> {
        let includes_zero = |coefficient: &&Coefficient| {
            coefficient.interval.is_some_and(|(low, high)| low <= 0.0 && high >= 0.0)
        };
        self.coefficients.iter().filter(includes_zero).map(|coefficient| {
            format!("the interval of {} includes zero: its effect is not established", coefficient.name)
        })
    }
}

fn with_scope(form: Form, reason: &str, scope: &Scope) -> String {
    format!("{} {reason}{}", form.name(), parenthesised(&scope.in_words()))
}

fn parenthesised(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!(" (those with {words})") }
}

fn coefficients(law: &Law, parameters: &[f64], refits: &[Vec<f64>]) -> Vec<Coefficient> {
    let resampled: Vec<Vec<(&str, f64)>> = refits.iter().map(|refit| law.coefficients(refit)).collect();
    let interval = |index: usize| {
        let values = resampled.iter().map(|coefficients| coefficients[index].1).collect();
        percentile_interval(values).filter(|_| index < law.num_free)
    };
    let fitted = law.coefficients(parameters).into_iter().enumerate();
    fitted.map(|(index, (name, value))| Coefficient { name, value, interval: interval(index) }).collect()
}

/// Weighted, of the log losses; 0 where they do not vary.
fn r_squared(law: &Law, parameters: &[f64], observations: &[&Observation]) -> f64 {
    let total_weight: f64 = observations.iter().map(|run| run.weight).sum();
    let mean = observations.iter().map(|run| run.weight * run.loss_nats.ln()).sum::<f64>() / total_weight;
    let squares = |expected: &dyn Fn(&Observation) -> f64| {
        let square = |run: &&Observation| run.weight * (run.loss_nats.ln() - expected(run)).powi(2);
        observations.iter().map(square).sum::<f64>()
    };
    let (left, all) = (squares(&|run| law.loss_nats(&run.point, parameters).ln()), squares(&|_| mean));
    if all > 0.0 { 1.0 - left / all } else { 0.0 }
}

fn mean_relative_error(law: &Law, parameters: &[f64], observations: &[&Observation]) -> f64 {
    let error = |run: &&Observation| (law.loss_nats(&run.point, parameters) / run.loss_nats - 1.0).abs();
    observations.iter().map(error).sum::<f64>() / observations.len() as f64
}

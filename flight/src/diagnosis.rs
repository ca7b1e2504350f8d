//! Which expert in which layer misbehaves, and since which step.

use std::collections::BTreeMap;
use std::fmt;

use crate::RunStep;
use crate::columns::ExpertRow;

/// What counts as misbehaving.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DiagnosisSettings {
    /// Steps without a token after which an expert is dead.
    pub dead_steps: u64,
    /// Multiple of the fair share of the tokens above which an expert is overloaded.
    pub overload: f64,
    /// Distance of a selection bias from the mean of its layer above which it runs away: a bias
    /// larger than any probability decides alone.
    pub bias: f64,
    /// Recorded steps over which loads are averaged, so that one odd batch neither begins nor ends
    /// an overload.
    pub smoothing_steps: usize,
}

impl Default for DiagnosisSettings {
    fn default() -> Self {
        Self { dead_steps: 10, overload: 2.0, bias: 1.0, smoothing_steps: 10 }
    }
}

/// What an expert does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Misbehaviour {
    /// It gets no tokens.
    Dead,
    /// It gets too many.
    Overloaded,
    /// Its selection bias runs away from those of its layer.
    BiasRunsAway,
}

/// An expert that misbehaved up to the last recorded step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finding {
    /// What it does wrong.
    pub misbehaviour: Misbehaviour,
    /// Index of the Transformer block.
    pub layer: usize,
    /// Index of the expert.
    pub expert: usize,
    /// First step of those, without a gap, at which it does.
    pub since_step: u64,
    /// Last recorded step.
    pub last_step: u64,
    /// Multiple of the fair share of the tokens, or distance of the bias from the layer's mean, at
    /// the last step.
    pub value: f64,
    /// How far from normal, to compare findings: distance of the load from the fair share, in fair
    /// shares, or of the bias from the mean, in thresholds.
    pub severity: f64,
}

/// Every expert that misbehaves at the end of the rows, the worst first. Rows ascend by step;
/// `experts` may be empty, and then no bias is judged.
pub fn diagnose(steps: &[RunStep], experts: &[ExpertRow], settings: &DiagnosisSettings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for ((layer, expert), series) in load_series(steps) {
        findings.extend(dead(&series, settings).map(|run| run.finding(Misbehaviour::Dead, layer, expert)));
        let overloaded = overloaded(&series, settings);
        findings.extend(overloaded.map(|run| run.finding(Misbehaviour::Overloaded, layer, expert)));
    }
    for ((layer, expert), series) in bias_series(experts) {
        let run = Run::at_the_end(&series, |distance| distance.abs() > settings.bias);
        let run = run.map(|run| Run { severity: run.value.abs() / settings.bias, ..run });
        findings.extend(run.map(|run| run.finding(Misbehaviour::BiasRunsAway, layer, expert)));
    }
    findings.sort_by(|a, b| {
        let place = |finding: &Finding| (finding.layer, finding.expert, finding.misbehaviour);
        (b.severity.total_cmp(&a.severity))
            .then(a.since_step.cmp(&b.since_step))
            .then(place(a).cmp(&place(b)))
    });
    findings
}

/// A value of one expert at each recorded step.
type Series = Vec<(u64, f64)>;

/// Load of each expert over the fair share, by layer and expert; a layer without tokens says
/// nothing.
fn load_series(steps: &[RunStep]) -> BTreeMap<(usize, usize), Series> {
    let mut series: BTreeMap<_, Series> = BTreeMap::new();
    for step in steps {
        for layer in &step.layers {
            // As real numbers: a damaged log may hold counts whose sum is none.
            let num_tokens: f64 = layer.tokens_per_expert.iter().map(|&tokens| tokens as f64).sum();
            let fair = num_tokens / layer.tokens_per_expert.len() as f64;
            for (expert, &tokens) in layer.tokens_per_expert.iter().enumerate().filter(|_| num_tokens > 0.0) {
                series.entry((layer.layer, expert)).or_default().push((step.step, tokens as f64 / fair));
            }
        }
    }
    series
}

/// Distance of each expert's bias from the mean of its layer in the same step.
fn bias_series(experts: &[ExpertRow]) -> BTreeMap<(usize, usize), Series> {
    let mut series: BTreeMap<_, Series> = BTreeMap::new();
    for rows in experts.chunk_by(|a, b| (a.step, a.layer) == (b.step, b.layer)) {
        let biases: Vec<f64> = rows.iter().filter_map(|row| row.bias).collect();
        let mean = biases.iter().sum::<f64>() / biases.len() as f64;
        for (row, bias) in rows.iter().filter_map(|row| Some((row, row.bias?))) {
            series
                .entry((row.layer as usize, row.expert as usize))
                .or_default()
                .push((row.step, bias - mean));
        }
    }
    series
}

/// The steps at the end of a series at which something holds.
#[derive(Clone, Copy)]
struct Run {
    since_step: u64,
    last_step: u64,
    value: f64,
    severity: f64,
}

impl Run {
    /// `None` if it does not hold at the last step.
    fn at_the_end(series: &[(u64, f64)], holds: impl Fn(f64) -> bool) -> Option<Self> {
        let &(last_step, value) = series.last()?;
        let held = series.iter().rev().take_while(|&&(_, value)| holds(value));
        let &(since_step, _) = held.last()?;
        Some(Self { since_step, last_step, value, severity: (value - 1.0).abs() })
    }

    fn num_steps(&self) -> u64 {
        self.last_step - self.since_step + 1
    }

    fn finding(&self, misbehaviour: Misbehaviour, layer: usize, expert: usize) -> Finding {
        let Self { since_step, last_step, value, severity } = *self;
        Finding { misbehaviour, layer, expert, since_step, last_step, value, severity }
    }
}

fn dead(series: &[(u64, f64)], settings: &DiagnosisSettings) -> Option<Run> {
    Run::at_the_end(series, |load| load == 0.0).filter(|run| run.num_steps() >= settings.dead_steps)
}

fn overloaded(series: &[(u64, f64)], settings: &DiagnosisSettings) -> Option<Run> {
    let smoothing_steps = settings.smoothing_steps.max(1);
    // An average of fewer steps than asked for, at the start of a run, would say that its first
    // batch was typical.
    let smoothed: Series = series
        .windows(smoothing_steps)
        .map(|window| {
            let mean = window.iter().map(|(_, load)| load).sum::<f64>() / smoothing_steps as f64;
            (window[smoothing_steps - 1].0, mean)
        })
        .collect();
    Run::at_the_end(&smoothed, |load| load > settings.overload)
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layer {} expert {}: ", self.layer, self.expert)?;
        match self.misbehaviour {
            Misbehaviour::Dead => write!(f, "no tokens")?,
            Misbehaviour::Overloaded => write!(f, "{:.1} times its fair share of the tokens", self.value)?,
            Misbehaviour::BiasRunsAway => {
                write!(f, "selection bias {:+.2} from the mean of its layer", self.value)?;
            }
        }
        let num_steps = self.last_step - self.since_step + 1;
        let plural = if num_steps == 1 { "" } else { "s" };
        write!(f, " since step {} ({num_steps} step{plural})", self.since_step)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::LayerLoad;

    fn steps(steps: std::ops::RangeInclusive<u64>, loads: impl Fn(u64) -> Vec<u64>) -> Vec<RunStep> {
        let step = |step| RunStep {
            step,
            cross_entropy_nats: 3.0,
            grad_norm: 1.0,
            layers: vec![LayerLoad { layer: 2, tokens_per_expert: loads(step) }],
        };
        steps.map(step).collect()
    }

    fn biased(step: u64, expert: u32, bias: Option<f64>) -> ExpertRow {
        ExpertRow {
            step,
            layer: 0,
            expert,
            tokens: 1,
            dropped: 0,
            bias,
            dead_steps: 0,
            router_grad_norm: 0.0,
            router_weight_norm: 0.0,
            expert_grad_norm: None,
            expert_weight_norm: None,
        }
    }

    fn lines(steps: &[RunStep], experts: &[ExpertRow]) -> Vec<String> {
        let findings = diagnose(steps, experts, &DiagnosisSettings::default());
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dead_expert_is_named_with_its_first_step() {
        let rows = steps(1..=399, |step| if step < 310 { vec![4; 6] } else { vec![5, 5, 5, 5, 4, 0] });
        assert_eq!(lines(&rows, &[]), ["layer 2 expert 5: no tokens since step 310 (90 steps)"]);
    }

    #[test]
    fn an_expert_that_came_back_is_not_reported() {
        let rows = steps(1..=100, |step| if step < 90 { vec![8, 0] } else { vec![4, 4] });
        assert_eq!(lines(&rows, &[]), [""; 0]);
        let short = steps(1..=100, |step| if step < 95 { vec![4, 4, 4] } else { vec![6, 6, 0] });
        assert_eq!(lines(&short, &[]), [""; 0], "six steps are too few");
    }

    #[test]
    fn the_worst_comes_first() {
        let collapsed = steps(1..=60, |step| if step <= 40 { vec![4; 4] } else { vec![0, 16, 0, 0] });
        assert_eq!(
            lines(&collapsed, &[]),
            [
                // Its average over ten steps passes twice the fair share with the fourth step.
                "layer 2 expert 1: 4.0 times its fair share of the tokens since step 44 (17 steps)",
                "layer 2 expert 0: no tokens since step 41 (20 steps)",
                "layer 2 expert 2: no tokens since step 41 (20 steps)",
                "layer 2 expert 3: no tokens since step 41 (20 steps)",
            ]
        );
    }

    #[test]
    fn one_odd_batch_neither_begins_nor_ends_an_overload() {
        let odd = steps(1..=60, |step| if step == 60 { vec![16, 0, 0, 0] } else { vec![4; 4] });
        assert_eq!(lines(&odd, &[]), [""; 0]);
        let loaded = |step| if step == 50 { vec![4; 4] } else { vec![10, 2, 2, 2] };
        let interrupted = lines(&steps(1..=60, loaded), &[]);
        assert_eq!(
            interrupted,
            ["layer 2 expert 0: 2.5 times its fair share of the tokens since step 10 (51 steps)"]
        );
    }

    #[test]
    fn a_bias_is_judged_against_its_layer() {
        let rows: Vec<ExpertRow> = (1..=20)
            .flat_map(|step| {
                // All biases drift together, which changes no choice; expert 1 leaves them behind.
                let drift = step as f64;
                let apart = if step < 15 { 0.0 } else { -3.0 };
                [biased(step, 0, Some(drift)), biased(step, 1, Some(drift + apart)), biased(step, 2, None)]
            })
            .collect();
        assert_eq!(
            lines(&[], &rows),
            [
                "layer 0 expert 0: selection bias +1.50 from the mean of its layer since step 15 (6 steps)",
                "layer 0 expert 1: selection bias -1.50 from the mean of its layer since step 15 (6 steps)",
            ]
        );
    }

    #[test]
    fn nothing_recorded_is_nothing_wrong() {
        assert_eq!(lines(&[], &[]), [""; 0]);
        assert_eq!(lines(&steps(1..=50, |_| vec![0; 4]), &[biased(1, 0, None)]), [""; 0]);
    }

    proptest! {
        /// The oracle walks back from the end.
        #[test]
        fn dead_since_is_one_step_after_the_last_token(
            loads in prop::collection::vec(prop::sample::select(vec![0_u64, 0, 0, 1]), 1..60),
        ) {
            let rows = steps(1..=loads.len() as u64, |step| vec![loads[step as usize - 1], 7]);
            let last_token = loads.iter().rposition(|&load| load > 0).map_or(0, |index| index as u64 + 1);
            let num_dead = loads.len() as u64 - last_token;
            let settings = DiagnosisSettings { overload: 9.0, ..DiagnosisSettings::default() };
            let findings = diagnose(&rows, &[], &settings);
            prop_assert_eq!(findings.len(), usize::from(num_dead >= settings.dead_steps));
            prop_assert!(findings.iter().all(|finding| finding.since_step == last_token + 1 && finding.expert == 0));
        }
    }
}

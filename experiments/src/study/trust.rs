//! What else than the arms moves a difference: the last bits, the initial values, the order of the
//! data.

use super::evidence::Evidence;
use super::matrix::Stage;
use super::result::{ArmComparison, Question};
use super::words::small;
use crate::statistics::{Interval, SeedComponents, Stopping, Verdict, standard_deviation_of};

impl Evidence<'_> {
    /// What initial values and data order decide of the difference, from the square of crossed
    /// seeds; `None` without it, or while one of its runs is missing.
    pub(super) fn seed_components(&self, arm: usize) -> Option<SeedComponents> {
        let study = &self.loaded.study;
        let seeds = &study.seeds[..study.crossed_seeds as usize];
        let split = self.judged_split();
        let loss = |arm: usize, seed: u64, data_seed: u64| {
            if seed == data_seed {
                return self.outcome(arm, self.num_budgets() - 1, seed)??.final_loss(split);
            }
            let mut crossed = self.finished.iter().filter(|(stage, run)| {
                *stage == Stage::Crossed && run.arm == arm && run.data_seed == Some(data_seed)
            });
            crossed.find(|(_, run)| run.result.seed == seed).and_then(|(_, run)| run.final_loss(split))
        };
        let difference = |seed, data_seed| Some(loss(arm, seed, data_seed)? - loss(0, seed, data_seed)?);
        let row = |&seed: &u64| seeds.iter().map(|&data_seed| difference(seed, data_seed)).collect();
        let square: Option<Vec<Vec<f64>>> = seeds.iter().map(row).collect();
        SeedComponents::new(&square?)
    }

    /// Deviation of the difference of two single runs that last bits decide: both arms' runs of the
    /// first seed and their repeats.
    pub(super) fn noise_floor(&self, arm: usize) -> Option<f64> {
        let split = self.judged_split();
        let deviation = |arm: usize| {
            let losses: Vec<f64> = self
                .finished
                .iter()
                .filter(|(stage, run)| *stage == Stage::Noise && run.arm == arm)
                .filter_map(|(_, run)| run.final_loss(split))
                .collect();
            let seed = *self.loaded.study.seeds.first()?;
            let main = self.outcome(arm, self.num_budgets() - 1, seed)??.final_loss(split)?;
            standard_deviation_of(&[&losses[..], &[main]].concat())
        };
        Some(deviation(arm)?.hypot(deviation(0)?))
    }
}

/// Calls a verdict fragile that is nearer to its margin than the noise floor.
pub(super) fn call_fragile(comparison: &mut ArmComparison, question: &Question, stopping: Stopping) {
    let Some(floor) = comparison.noise_floor.filter(|floor| *floor > 0.0) else { return };
    let measure = question.metric.measure();
    for on in &mut comparison.axes {
        let by_itself = on.difference.interval(stopping).copied();
        let Some(Interval { low, high }) = on.adjusted_interval.or(by_itself) else { continue };
        let to_win = (high + question.margin).abs();
        let to_lose = (low - question.margin).abs();
        let distance = match on.verdict {
            Verdict::Wins => to_win,
            Verdict::Loses => to_lose,
            Verdict::Undecided | Verdict::Fragile => to_win.min(to_lose),
        };
        if distance < floor {
            on.reasons.push(format!(
                "The interval by which it is judged ends {} from where the verdict would change, and the last bits of the \
                 initial values alone move a difference by {}.",
                measure.amount(format_args!("{distance:.5}")),
                measure.amount(small(floor))
            ));
            on.verdict = Verdict::Fragile;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::result::Axis;
    use super::*;
    use crate::statistics::PairedDifference;

    /// The published case: an interval that ends 0.00002 nats beyond its margin, with a noise floor
    /// of 0.0025 nats.
    #[test]
    fn a_verdict_nearer_to_its_margin_than_the_last_bits_is_fragile() {
        let question = Question::of_nats(Axis::Tokens, 0.005);
        let judged = |floor: Option<f64>, differences: &[f64]| {
            let difference = PairedDifference::new(differences, 0.95).unwrap();
            let mut arm = ArmComparison::of_differences(differences);
            arm.axes[0].verdict = difference.verdict(0.005, Stopping::Planned);
            arm.axes[0].difference = difference;
            arm.noise_floor = floor;
            call_fragile(&mut arm, &question, Stopping::Planned);
            arm.axes.remove(0)
        };
        // Mean -0.0248, interval [-0.0446, -0.00503].
        let published = [-0.0094, -0.01141, -0.03915, -0.02002, -0.04403];
        assert_eq!(judged(None, &published).verdict, Verdict::Wins);
        let fragile = judged(Some(0.0025), &published);
        assert_eq!(fragile.verdict, Verdict::Fragile);
        assert!(fragile.reasons[0].contains("judged ends 0.000"), "{:?}", fragile.reasons);
        let clear = [-0.05, -0.055, -0.06, -0.052, -0.058];
        assert_eq!(judged(Some(0.0025), &clear).verdict, Verdict::Wins);
    }
}

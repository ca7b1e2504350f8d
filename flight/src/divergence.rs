//! Where two runs part: the first step, and in it the first layer and expert with another load.

use std::fmt;

use crate::{LayerLoad, RunStep};

/// How two runs compare, over the steps that both have.
#[derive(Debug, Clone, PartialEq)]
pub enum Divergence {
    /// No step is in both.
    NothingInCommon,
    /// Loss, gradient norm and loads are equal bit for bit.
    Identical {
        /// Steps that both have.
        num_steps: usize,
    },
    /// They part.
    Parted(Box<FirstDifference>),
}

/// The first step at which two runs differ.
#[derive(Debug, Clone, PartialEq)]
pub struct FirstDifference {
    /// The step.
    pub step: u64,
    /// Steps before it that both have, identical.
    pub num_identical_steps: usize,
    /// The first layer and expert with another load; `None` if only the numbers below differ.
    pub load: Option<LoadDifference>,
    /// Cross-entropy of the two runs.
    pub cross_entropy_nats: (f64, f64),
    /// Gradient norm of the two runs.
    pub grad_norm: (f64, f64),
}

/// An expert that got another number of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadDifference {
    /// Index of the Transformer block.
    pub layer: usize,
    /// Index of the expert.
    pub expert: usize,
    /// Its tokens in the two runs; `None` in a run that has no such layer or expert.
    pub tokens: (Option<u64>, Option<u64>),
}

/// The first difference between two runs, whose rows ascend by step. Floats are compared by their
/// bits: two runs that are not identical differ somewhere first, and everything after it is a
/// consequence.
pub fn first_divergence(a: &[RunStep], b: &[RunStep]) -> Divergence {
    let mut num_identical_steps = 0;
    for (a, b) in common_steps(a, b) {
        let load = first_load_difference(&a.layers, &b.layers);
        let numbers = |run: &RunStep| [run.cross_entropy_nats, run.grad_norm].map(f64::to_bits);
        if load.is_some() || numbers(a) != numbers(b) {
            return Divergence::Parted(Box::new(FirstDifference {
                step: a.step,
                num_identical_steps,
                load,
                cross_entropy_nats: (a.cross_entropy_nats, b.cross_entropy_nats),
                grad_norm: (a.grad_norm, b.grad_norm),
            }));
        }
        num_identical_steps += 1;
    }
    match num_identical_steps {
        0 => Divergence::NothingInCommon,
        num_steps => Divergence::Identical { num_steps },
    }
}

fn common_steps<'a>(a: &'a [RunStep], b: &'a [RunStep]) -> impl Iterator<Item = (&'a RunStep, &'a RunStep)> {
    let partner = |step| b.binary_search_by_key(&step, |row| row.step).ok().map(|index| &b[index]);
    a.iter().filter_map(move |row| Some((row, partner(row.step)?)))
}

/// The first layer counts, not the largest difference: the layers below it agree, so it is where
/// the difference began.
fn first_load_difference(a: &[LayerLoad], b: &[LayerLoad]) -> Option<LoadDifference> {
    let mut layers: Vec<usize> = a.iter().chain(b).map(|load| load.layer).collect();
    layers.sort_unstable();
    layers.dedup();
    layers.into_iter().find_map(|layer| {
        let tokens = |run: &[LayerLoad]| {
            let load = run.iter().find(|load| load.layer == layer);
            load.map_or_else(Vec::new, |load| load.tokens_per_expert.clone())
        };
        let (a, b) = (tokens(a), tokens(b));
        let of_expert = |expert| (a.get(expert).copied(), b.get(expert).copied());
        let expert = (0..a.len().max(b.len())).find(|&expert| of_expert(expert).0 != of_expert(expert).1)?;
        Some(LoadDifference { layer, expert, tokens: of_expert(expert) })
    })
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NothingInCommon => write!(f, "no step is in both runs"),
            Self::Identical { num_steps } => write!(f, "identical over {num_steps} common steps"),
            Self::Parted(difference) => difference.fmt(f),
        }
    }
}

impl fmt::Display for FirstDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "they part at step {}, after {} identical steps: ", self.step, self.num_identical_steps)?;
        match &self.load {
            Some(load) => {
                let tokens = |tokens: Option<u64>| tokens.map_or("no".into(), |tokens| tokens.to_string());
                let (a, b) = (tokens(load.tokens.0), tokens(load.tokens.1));
                write!(f, "layer {} expert {} got {a} tokens in A and {b} in B; ", load.layer, load.expert)?;
            }
            None => write!(f, "every expert got the same number of tokens, but the numbers differ; ")?,
        }
        let ((loss_a, loss_b), (norm_a, norm_b)) = (self.cross_entropy_nats, self.grad_norm);
        write!(f, "loss {loss_a} and {loss_b} nats, gradient norm {norm_a} and {norm_b}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn step(step: u64, loads: &[&[u64]]) -> RunStep {
        let layer =
            |(i, load): (usize, &&[u64])| LayerLoad { layer: 2 * i, tokens_per_expert: load.to_vec() };
        let layers = loads.iter().enumerate().map(layer).collect();
        RunStep { step, cross_entropy_nats: 5.0 - 0.1 * step as f64, grad_norm: 1.0, layers }
    }

    fn run(steps: std::ops::RangeInclusive<u64>) -> Vec<RunStep> {
        steps.map(|i| step(i, &[&[3, 1], &[2, 2]])).collect()
    }

    fn difference(a: &[RunStep], b: &[RunStep]) -> FirstDifference {
        let Divergence::Parted(difference) = first_divergence(a, b) else { panic!("they do not part") };
        *difference
    }

    #[test]
    fn the_first_layer_and_expert_are_named() {
        let (a, mut b) = (run(1..=5), run(1..=5));
        b[3] = step(4, &[&[3, 1], &[1, 3]]);
        b[4] = step(5, &[&[0, 4], &[2, 2]]);
        let found = difference(&a, &b);
        assert_eq!((found.step, found.num_identical_steps), (4, 3));
        assert_eq!(found.load, Some(LoadDifference { layer: 2, expert: 0, tokens: (Some(2), Some(1)) }));
        assert_eq!(
            first_divergence(&a, &b).to_string(),
            "they part at step 4, after 3 identical steps: layer 2 expert 0 got 2 tokens in A and 1 in B; \
             loss 4.6 and 4.6 nats, gradient norm 1 and 1"
        );
    }

    #[test]
    fn the_last_bit_of_a_loss_is_a_difference_without_a_load() {
        let (a, mut b) = (run(1..=3), run(1..=3));
        b[1].cross_entropy_nats = b[1].cross_entropy_nats.next_up();
        let found = difference(&a, &b);
        assert_eq!((found.step, found.load), (2, None));
        assert!(found.to_string().contains("every expert got the same number of tokens"), "{found}");
        let (a, mut b) = (run(1..=3), run(1..=3));
        b[2].grad_norm = -0.0;
        assert_eq!(difference(&a, &b).step, 3);
    }

    #[test]
    fn a_layer_or_expert_that_only_one_run_has_is_a_difference() {
        let three_experts = [step(1, &[&[3, 1, 0], &[2, 2]])];
        let found = difference(&run(1..=1), &three_experts);
        assert_eq!(found.load, Some(LoadDifference { layer: 0, expert: 2, tokens: (None, Some(0)) }));
        let found = difference(&run(1..=1), &[step(1, &[&[3, 1]])]);
        assert_eq!(found.load, Some(LoadDifference { layer: 2, expert: 0, tokens: (Some(2), None) }));
        assert!(found.to_string().contains("layer 2 expert 0 got 2 tokens in A and no in B"), "{found}");
    }

    #[test]
    fn only_common_steps_are_compared() {
        assert_eq!(first_divergence(&run(1..=9), &run(4..=20)), Divergence::Identical { num_steps: 6 });
        assert_eq!(first_divergence(&run(1..=2), &run(3..=4)), Divergence::NothingInCommon);
        assert_eq!(first_divergence(&run(1..=9), &run(1..=9)).to_string(), "identical over 9 common steps");
    }

    proptest! {
        #[test]
        fn a_change_is_found_where_it_was_made(
            at in 0_usize..12, layer in 0_usize..2, expert in 0_usize..2, swap in any::<bool>(),
        ) {
            let (a, mut b) = (run(1..=12), run(1..=12));
            b[at].layers[layer].tokens_per_expert[expert] += 1;
            b[at..].iter_mut().for_each(|row| row.grad_norm *= 2.0);
            let found = if swap { difference(&b, &a) } else { difference(&a, &b) };
            prop_assert_eq!((found.step, found.num_identical_steps), (at as u64 + 1, at));
            let load = found.load.unwrap();
            prop_assert_eq!((load.layer, load.expert), (2 * layer, expert));
        }
    }
}

//! How long messages take: a measured line of start-up time and time for each byte.
//!
//! A training step ends when its slowest rank does, and in its collectives all ranks send and
//! receive at once. So [`measure`] does not play ping-pong on an idle network: all pairs of ranks at
//! one distance swap messages of one length at the same time, and the slowest pair counts. The
//! distances are those of the rounds of a sum by halves, 1, 2, 4 ...: few for any number of ranks,
//! and where neighbours are numbered one after another, each level of a cluster shows in one of
//! them.
//!
//! To predict a step, give [`Link::secs`] of the slowest link what a rank sends in it
//! ([`crate::cost`]). That errs to the slow side: nearer links are faster, and messages to several
//! ranks travel together. Work between the messages, as the additions of a sum, is not in it.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::collectives::Comm;
use crate::transport::{Incoming, Outgoing};
use crate::{CommError, Traffic};

/// From a message that is all start-up to one that is all bytes.
const LENS_BYTES: [usize; 12] =
    [1, 4, 16, 64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
/// Of which the median is taken; one more goes first, untimed.
const NUM_SWAPS: usize = 41;

/// Time of a message as a line over its length.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)] // Of a file that a person may edit.
pub struct Link {
    /// Of each message, however short.
    pub alpha_secs: f64,
    /// Of each byte of it.
    pub beta_secs_per_byte: f64,
}

impl Link {
    /// How long the messages take, one after another.
    pub fn secs(&self, traffic: Traffic) -> f64 {
        traffic.messages as f64 * self.alpha_secs + traffic.bytes as f64 * self.beta_secs_per_byte
    }

    /// The line nearest to the times of messages by their bytes. What it makes small are the
    /// squares of the *relative* errors: else the longest messages alone would decide, and the
    /// start-up would be their noise. Neither number is negative.
    fn fit(times: &[(usize, f64)]) -> Self {
        let [mut one, mut len, mut len_len, mut time, mut time_len] = [0.0; 5];
        for &(bytes, secs) in times {
            // Both sides of `alpha + beta bytes = secs` over `secs`.
            let (of_alpha, of_beta) = (1.0 / secs, bytes as f64 / secs);
            one += of_alpha * of_alpha;
            len += of_alpha * of_beta;
            len_len += of_beta * of_beta;
            time += of_alpha;
            time_len += of_beta;
        }
        let determinant = one * len_len - len * len;
        let alpha = (time * len_len - len * time_len) / determinant;
        let beta = (one * time_len - len * time) / determinant;
        let (alpha_secs, beta_secs_per_byte) = match (alpha < 0.0, beta < 0.0) {
            (true, _) => (0.0, time_len / len_len),
            (_, true) => (time / one, 0.0),
            _ => (alpha, beta),
        };
        Self { alpha_secs, beta_secs_per_byte }
    }
}

/// The link between ranks whose numbers differ in one binary digit.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// By how much their numbers differ: 1, 2, 4 ...
    pub distance: usize,
    /// The line through the times of the slowest pair.
    pub link: Link,
    /// The furthest that the line is from a time that was measured, as a part of that time. A real
    /// link is no line: a transport treats long messages in another way than short ones.
    pub worst_error: f64,
}

/// The links of the group by distance, the same on every rank; none for a rank alone. Every rank
/// calls it, while nothing else uses the machines or the network; it sends some 240 MB a distance
/// from each rank, which are counted in [`Comm::traffic`].
///
/// # Errors
/// [`CommError`].
pub fn measure(comm: &Comm) -> Result<Vec<Measured>, CommError> {
    let distances =
        (0..usize::BITS).map(|digit| 1_usize << digit).take_while(|&distance| distance < comm.size());
    distances.map(|distance| measure_at(comm, distance)).collect()
}

fn measure_at(comm: &Comm, distance: usize) -> Result<Measured, CommError> {
    let partner = Some(comm.rank() ^ distance).filter(|&partner| partner < comm.size());
    let mut own_times = Vec::with_capacity(LENS_BYTES.len());
    for len in LENS_BYTES {
        comm.barrier()?;
        own_times.push(match partner {
            Some(partner) => median_of_swaps(comm, partner, len)?,
            // Without a partner, nothing slower than what others have.
            None => 0.0,
        });
    }
    let own_times: Vec<u8> = own_times.into_iter().flat_map(f64::to_le_bytes).collect();
    let mut times = LENS_BYTES.map(|len| (len, 0.0_f64));
    for of_rank in comm.all_gather(&own_times)? {
        for ((_, slowest), secs) in times.iter_mut().zip(of_rank.as_chunks().0) {
            *slowest = slowest.max(f64::from_le_bytes(*secs));
        }
    }
    let link = Link::fit(&times);
    let error = |(len, secs): (usize, f64)| {
        (link.secs(Traffic { messages: 1, bytes: len as u64 }) - secs).abs() / secs
    };
    Ok(Measured { distance, link, worst_error: times.map(error).into_iter().fold(0.0, f64::max) })
}

/// How long it takes to send `len` bytes to a rank that sends as many.
fn median_of_swaps(comm: &Comm, partner: usize, len: usize) -> Result<f64, CommError> {
    let (sent, mut received) = (vec![1; len], vec![0; len]);
    let partner = comm.members[partner];
    let mut times = Vec::with_capacity(NUM_SWAPS + 1);
    for _ in 0..=NUM_SWAPS {
        let begun = Instant::now();
        let receive = Incoming { from: partner, bytes: &mut received };
        comm.run(&[Outgoing { to: partner, bytes: &sent }], vec![receive], comm.call("measure"))?;
        times.push(begun.elapsed().as_secs_f64());
    }
    let timed = &mut times[1..];
    timed.sort_unstable_by(f64::total_cmp);
    Ok(timed[NUM_SWAPS / 2])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times_of(link: Link, noise: impl Fn(usize) -> f64) -> Vec<(usize, f64)> {
        let secs = |len: usize| link.secs(Traffic { messages: 1, bytes: len as u64 });
        LENS_BYTES.iter().enumerate().map(|(at, &len)| (len, secs(len) * noise(at))).collect()
    }

    proptest! {
        #[test]
        fn a_line_is_found_again(alpha_secs in 1e-7_f64..1e-3, beta_secs_per_byte in 1e-11_f64..1e-8) {
            let link = Link { alpha_secs, beta_secs_per_byte };
            let found = Link::fit(&times_of(link, |_| 1.0));
            prop_assert!((found.alpha_secs / alpha_secs - 1.0).abs() < 1e-6, "{found:?}");
            prop_assert!((found.beta_secs_per_byte / beta_secs_per_byte - 1.0).abs() < 1e-6, "{found:?}");
        }

        #[test]
        fn noise_of_a_tenth_moves_short_and_long_messages_by_a_tenth(
            alpha_secs in 1e-7_f64..1e-3,
            beta_secs_per_byte in 1e-11_f64..1e-8,
            noise in proptest::array::uniform12(0.9_f64..1.1),
        ) {
            let link = Link { alpha_secs, beta_secs_per_byte };
            let found = Link::fit(&times_of(link, |at| noise[at]));
            for (len, secs) in times_of(link, |_| 1.0) {
                let predicted = found.secs(Traffic { messages: 1, bytes: len as u64 });
                // What a weighted mean of factors in 0.9..1.1 may do, and a margin for two of them.
                prop_assert!((predicted / secs - 1.0).abs() < 0.15, "{len}: {predicted} for {secs}");
            }
        }
    }

    #[test]
    fn times_that_no_line_without_negative_numbers_meets_have_one_of_zero() {
        let falling: Vec<_> = LENS_BYTES.iter().map(|&len| (len, 1.0 / (1.0 + len as f64))).collect();
        assert_eq!(Link::fit(&falling).beta_secs_per_byte, 0.0);
        let steep: Vec<_> = LENS_BYTES.iter().map(|&len| (len, 1e-9 * (len as f64).powf(1.5))).collect();
        let link = Link::fit(&steep);
        assert!(link.alpha_secs >= 0.0 && link.beta_secs_per_byte > 0.0, "{link:?}");
    }
}

//! What holds on every rank of every transport.

use std::ops::Range;

use switchyard_comm::{Comm, CommError, Traffic, cost, even_slices};

/// All laws, one after another.
pub(crate) fn hold(comm: &Comm) {
    gathered_parts_come_by_rank_ragged_and_empty(comm);
    all_parts_reach_the_rank_that_they_are_for(comm);
    what_any_rank_broadcasts_reaches_all(comm);
    sums_are_those_of_the_tree_bit_for_bit(comm);
    sums_of_slices_are_those_of_the_tree_bit_for_bit(comm);
    slices_are_gathered_in_place(comm);
    groups_keep_apart(comm);
    a_rank_counts_what_it_sends(comm);
    each_collective_sends_what_was_predicted(comm);
    comm.barrier().unwrap();
}

fn bytes_of(rank: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (rank * 31 + at * 7 + at / 251) as u8).collect()
}

/// Nothing, a little, and more than a message that is cut has.
fn len_of(rank: usize) -> usize {
    [0, 1, 5000, 77, 4096][rank % 5]
}

fn slices<T>(parts: &[Vec<T>]) -> Vec<&[T]> {
    parts.iter().map(Vec::as_slice).collect()
}

fn gathered_parts_come_by_rank_ragged_and_empty(comm: &Comm) {
    let gathered = comm.all_gather(&bytes_of(comm.rank(), len_of(comm.rank()))).unwrap();
    let expected: Vec<_> = (0..comm.size()).map(|rank| bytes_of(rank, len_of(rank))).collect();
    assert_eq!(gathered, expected);
    assert!(comm.all_gather(&[]).unwrap().iter().all(Vec::is_empty));
}

fn all_parts_reach_the_rank_that_they_are_for(comm: &Comm) {
    let part = |from: usize, to: usize| bytes_of(from * 16 + to, len_of(from + 2 * to));
    let parts: Vec<_> = (0..comm.size()).map(|to| part(comm.rank(), to)).collect();
    let expected: Vec<_> = (0..comm.size()).map(|from| part(from, comm.rank())).collect();
    assert_eq!(comm.all_to_all(&slices(&parts)).unwrap(), expected);
    let numbers = |from: usize, to: usize| values_of(from * 5 + to, len_of(from + 2 * to));
    let parts: Vec<_> = (0..comm.size()).map(|to| numbers(comm.rank(), to)).collect();
    let expected: Vec<_> = (0..comm.size()).map(|from| numbers(from, comm.rank())).collect();
    assert_eq!(comm.all_to_all(&slices(&parts)).unwrap(), expected);
}

fn what_any_rank_broadcasts_reaches_all(comm: &Comm) {
    for root in 0..comm.size() {
        let mut bytes = if comm.rank() == root { bytes_of(root, len_of(root)) } else { vec![9; 3] };
        comm.broadcast(&mut bytes, root).unwrap();
        assert_eq!(bytes, bytes_of(root, len_of(root)), "from rank {root}");
    }
}

/// Numbers whose sum depends on the order of the additions.
fn values_of(rank: usize, len: usize) -> Vec<f32> {
    let exact = |at: usize| ((rank * 17 + at * 13) % 101) as f32 * 1.1f32.powi((rank * 7 + at % 40) as i32);
    // One that swallows the others until its opposite has come.
    let great = |at: usize| [1e9, 1.0, -1e9, 0.3, 7.0][(rank + at) % 5];
    (0..len).map(|at| if at % 2 == 0 { exact(at) } else { great(at) }).collect()
}

/// The sum of the `len` ranks from `first` on, a power of two, as far as there are such: that of
/// the left half plus that of the right.
fn sum_of_block(values: &[Vec<f32>], first: usize, len: usize) -> Option<Vec<f32>> {
    if len == 1 {
        return values.get(first).cloned();
    }
    let left = sum_of_block(values, first, len / 2)?;
    Some(match sum_of_block(values, first + len / 2, len / 2) {
        Some(right) => (0..left.len()).map(|at| left[at] + right[at]).collect(),
        None => left,
    })
}

fn sum_over_ranks(comm: &Comm, len: usize) -> Vec<f32> {
    let values: Vec<_> = (0..comm.size()).map(|rank| values_of(rank, len)).collect();
    sum_of_block(&values, 0, comm.size().next_power_of_two()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn sums_are_those_of_the_tree_bit_for_bit(comm: &Comm) {
    for len in [0, 1, 3, 4, 2501] {
        let mut values = values_of(comm.rank(), len);
        comm.ordered_sum(&mut values).unwrap();
        assert_eq!(bits(&values), bits(&sum_over_ranks(comm, len)), "{len} values");
    }
    let one_after_another = (0..comm.size())
        .map(|rank| values_of(rank, 99))
        .reduce(|sum, values| sum.iter().zip(values).map(|(sum, value)| sum + value).collect());
    // With three, the tree adds them one after another.
    let differ = bits(&one_after_another.unwrap()) != bits(&sum_over_ranks(comm, 99));
    assert_eq!(differ, comm.size() > 3, "the values do not tell one order from another");
}

/// Slices one after another: ragged, some empty, one far longer.
fn ragged_slices(num: usize) -> Vec<Range<usize>> {
    let len = |rank: usize| [3, 0, 1200, 1, 0, 41, 8, 0, 2][rank % 9];
    let start = |rank: usize| (0..rank).map(len).sum::<usize>();
    (0..num).map(|rank| start(rank)..start(rank) + len(rank)).collect()
}

fn sums_of_slices_are_those_of_the_tree_bit_for_bit(comm: &Comm) {
    let ragged = ragged_slices(comm.size());
    let backwards: Vec<_> = ragged.iter().cloned().rev().collect();
    let all_of_it = vec![0..1300; comm.size()];
    for slices in [ragged, backwards, all_of_it, vec![7..7; comm.size()]] {
        let sum = comm.ordered_sum_slices(&values_of(comm.rank(), 1300), &slices).unwrap();
        let expected = &sum_over_ranks(comm, 1300)[slices[comm.rank()].clone()];
        assert_eq!(bits(&sum), bits(expected), "{slices:?}");
    }
}

fn slices_are_gathered_in_place(comm: &Comm) {
    for slices in [even_slices(11, comm.size()), ragged_slices(comm.size()), vec![0..0; comm.size()]] {
        let all: Vec<f32> = (0..slices[comm.size() - 1].end).map(|at| at as f32 + 0.5).collect();
        let mut values = vec![-1.0; all.len()];
        let own = slices[comm.rank()].clone();
        values[own.clone()].copy_from_slice(&all[own]);
        comm.all_gather_slices(&mut values, &slices).unwrap();
        assert_eq!(values, all, "{slices:?}");
    }
}

fn groups_keep_apart(comm: &Comm) {
    let group = comm.split((comm.rank() % 2) as u64).unwrap();
    let members: Vec<usize> = (comm.rank() % 2..comm.size()).step_by(2).collect();
    assert_eq!(group.size(), members.len());
    assert_eq!(members[group.rank()], comm.rank());
    let gathered = group.all_gather(&[comm.rank() as u8]).unwrap();
    assert_eq!(gathered, members.iter().map(|&rank| vec![rank as u8]).collect::<Vec<_>>());
    // The ranks of the world still understand each other.
    assert_eq!(comm.all_gather(&[1]).unwrap().len(), comm.size());
}

fn a_rank_counts_what_it_sends(comm: &Comm) {
    // As long for each of up to ten ranks.
    let len = 2520;
    let Traffic { messages, bytes } = sent_in(comm, || comm.ordered_sum(&mut vec![1.0; len]));
    let (size, others) = (comm.size() as u64, comm.size() as u64 - 1);
    // Every slice but the own goes out once, and the own comes back to each other rank.
    assert_eq!(bytes, 4 * 2 * others * len as u64 / size);
    assert_eq!(messages, 2 * if size.is_power_of_two() { u64::from(size.ilog2()) } else { others });
}

/// What this rank sends in `collective`.
fn sent_in<T>(comm: &Comm, collective: impl FnOnce() -> Result<T, CommError>) -> Traffic {
    let before = comm.traffic();
    collective().unwrap();
    let after = comm.traffic();
    Traffic { messages: after.messages - before.messages, bytes: after.bytes - before.bytes }
}

fn each_collective_sends_what_was_predicted(comm: &Comm) {
    let (size, rank) = (comm.size(), comm.rank());
    assert_eq!(sent_in(comm, || comm.barrier()), cost::barrier(size));
    assert_eq!(sent_in(comm, || comm.split(rank as u64 % 2)), cost::split(size));
    for root in 0..size {
        let mut bytes = bytes_of(root, len_of(root));
        let sent = sent_in(comm, || comm.broadcast(&mut bytes, root));
        assert_eq!(sent, cost::broadcast(size, rank, root, len_of(root)), "from rank {root}");
    }
    let sent = sent_in(comm, || comm.all_gather(&bytes_of(rank, len_of(rank))));
    assert_eq!(sent, cost::all_gather(size, len_of(rank)));
    let part_lens: Vec<_> = (0..size).map(|to| len_of(rank + 2 * to)).collect();
    let parts: Vec<_> = part_lens.iter().map(|&len| bytes_of(rank, len)).collect();
    assert_eq!(sent_in(comm, || comm.all_to_all(&slices(&parts))), cost::all_to_all(rank, &part_lens));
    let slices = ragged_slices(size);
    let slice_lens: Vec<_> = slices.iter().map(Range::len).collect();
    let mut values = values_of(rank, slice_lens.iter().sum());
    let sent = sent_in(comm, || comm.ordered_sum_slices(&values, &slices));
    assert_eq!(sent, cost::ordered_sum_slices(rank, &slice_lens));
    let sent = sent_in(comm, || comm.all_gather_slices(&mut values, &slices));
    assert_eq!(sent, cost::all_gather_slices(rank, &slice_lens));
    for len in [0, 1, 3, 1001] {
        let sent = sent_in(comm, || comm.ordered_sum(&mut vec![1.0; len]));
        assert_eq!(sent, cost::ordered_sum(size, rank, len), "{len} values");
    }
}

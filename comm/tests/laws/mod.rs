//! What holds on every rank of every transport.

use switchyard_comm::tree::tree_sum;
use switchyard_comm::{Comm, even_slices};

/// All laws, one after another.
pub(crate) fn hold(comm: &Comm) {
    gathered_parts_come_by_rank_ragged_and_empty(comm);
    all_parts_reach_the_rank_that_they_are_for(comm);
    what_any_rank_broadcasts_reaches_all(comm);
    sums_are_those_of_the_tree_bit_for_bit(comm);
    slices_are_gathered_in_place(comm);
    groups_keep_apart(comm);
    a_rank_counts_what_it_sends(comm);
    comm.barrier().unwrap();
}

fn bytes_of(rank: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (rank * 31 + at * 7 + at / 251) as u8).collect()
}

/// Nothing, a little, and more than a message that is cut has.
fn len_of(rank: usize) -> usize {
    [0, 1, 5000, 77, 4096][rank % 5]
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
    assert_eq!(comm.all_to_all(&parts).unwrap(), expected);
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
    (0..len)
        .map(|at| ((rank * 17 + at * 13) % 101) as f32 * 1.1f32.powi((rank * 7 + at % 40) as i32))
        .collect()
}

fn sums_are_those_of_the_tree_bit_for_bit(comm: &Comm) {
    for len in [0, 1, 3, 4, 2501] {
        let mut values = values_of(comm.rank(), len);
        comm.ordered_sum(&mut values).unwrap();
        let leaves = (0..comm.size()).map(|rank| values_of(rank, len));
        let expected = tree_sum(leaves, |left, right| left.iter().zip(right).map(|(l, r)| l + r).collect());
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&values), bits(&expected.unwrap()), "{len} values");
    }
}

fn slices_are_gathered_in_place(comm: &Comm) {
    let slices = even_slices(11, comm.size());
    let all: Vec<f32> = (0..11).map(|at| at as f32 + 0.5).collect();
    let mut values = vec![-1.0; 11];
    let own = slices[comm.rank()].clone();
    values[own.clone()].copy_from_slice(&all[own]);
    comm.all_gather_slices(&mut values, &slices).unwrap();
    assert_eq!(values, all);
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
    let before = comm.traffic();
    comm.ordered_sum(&mut [1.0; 10]).unwrap();
    let (messages, bytes) = (comm.traffic().messages - before.messages, comm.traffic().bytes - before.bytes);
    let others = comm.size() as u64 - 1;
    // Every slice but the own goes out once, and the own comes back to each other rank.
    let own = even_slices(10, comm.size())[comm.rank()].len() as u64;
    assert_eq!(
        (messages, bytes),
        (2 * others, if others == 0 { 0 } else { 4 * ((10 - own) + own * others) })
    );
}

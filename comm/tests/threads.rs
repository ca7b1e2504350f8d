//! Ranks that are threads of one process.
#![expect(clippy::unwrap_used, reason = "functions of a test fail as the test does")]

mod laws;

use std::process::Command;
use std::thread;
use std::time::Duration;

use switchyard_comm::link::{self, Measured};
use switchyard_comm::{Comm, CommError};

/// What each rank returns, by rank.
fn on_ranks<T: Send>(size: usize, work: impl Fn(Comm) -> T + Sync) -> Vec<T> {
    let work = &work;
    thread::scope(|scope| {
        let ranks = Comm::threads(size).into_iter().map(|comm| scope.spawn(move || work(comm)));
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn every_law_holds_on_one_to_nine_ranks() {
    for size in 1..=9 {
        on_ranks(size, |comm| laws::hold(&comm));
    }
    laws::hold(&Comm::single());
}

#[test]
fn a_rank_that_does_not_come_is_named() {
    let errors = on_ranks(3, |comm| {
        let comm = comm.with_timeout(Duration::from_millis(100));
        if comm.rank() == 1 {
            // Alive, but somewhere else.
            thread::sleep(Duration::from_millis(600));
            return None;
        }
        comm.all_gather(&[1]).err()
    });
    for (rank, error) in errors.into_iter().enumerate().filter(|(rank, _)| *rank != 1) {
        let Some(CommError::Timeout { rank: named, collective, missing, .. }) = error else {
            panic!("{error:?}")
        };
        assert_eq!((named, collective, missing), (rank, "all_gather", vec![1]));
    }
}

#[test]
fn a_rank_that_has_ended_is_named_at_once() {
    let errors = on_ranks(2, |comm| if comm.rank() == 0 { comm.barrier().err() } else { None });
    assert_eq!(errors[0], Some(CommError::Gone { rank: 0, collective: "barrier", gone: 1 }));
}

#[test]
fn ranks_that_give_values_of_different_lengths_are_told() {
    let errors = on_ranks(2, |comm| comm.ordered_sum(&mut vec![1.0; 4 + 2 * comm.rank()]).err());
    assert!(
        matches!(errors[0], Some(CommError::OutOfStep { rank: 0, from: 1, got: 12, expected: 8, .. })),
        "{errors:?}"
    );
}

#[test]
fn every_rank_has_the_same_links_by_distance() {
    for (size, distances) in [(1, vec![]), (2, vec![1]), (3, vec![1, 2])] {
        let of_ranks = on_ranks(size, |comm| link::measure(&comm).unwrap());
        assert!(of_ranks.iter().all(|links| *links == of_ranks[0]), "{of_ranks:?}");
        assert_eq!(of_ranks[0].iter().map(|link| link.distance).collect::<Vec<_>>(), distances);
        for Measured { link, .. } in &of_ranks[0] {
            assert!(link.alpha_secs >= 0.0 && link.beta_secs_per_byte > 0.0, "{link:?}");
        }
    }
}

#[test]
fn a_rank_that_aborts_says_so_and_ends_the_process_while_others_wait() {
    const CHILD: &str = "SWITCHYARD_TEST_ABORTS";
    if std::env::var_os(CHILD).is_some() {
        on_ranks(2, |comm| {
            let group = comm.split(comm.rank() as u64).unwrap();
            if comm.rank() == 1 { group.abort("no such luck") } else { comm.barrier().unwrap() }
        });
        unreachable!("rank 1 has ended the process");
    }
    let name = "a_rank_that_aborts_says_so_and_ends_the_process_while_others_wait";
    let mut child = Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", name, "--nocapture"]).env(CHILD, "1").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.lines().any(|line| line == "rank 1: no such luck"), "{said}");
}

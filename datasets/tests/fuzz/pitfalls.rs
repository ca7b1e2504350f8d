//! The harness itself, on a target that fails in every way but one: to hang takes too long.

use std::panic::catch_unwind;
use std::path::Path;

use crate::engine::parent::{Campaign, failures};
use crate::engine::{Input, Kind, Random, SHARES, Target, Verdict};

struct Pitfalls;

impl Target for Pitfalls {
    fn input(&self, index: u64, _: &mut Random) -> Input {
        Input { files: vec![("index".to_owned(), vec![index as u8])] }
    }

    fn run(&self, input: &Input) -> Verdict {
        match input.files[0].1[0] {
            1 => panic!("an uncaught panic"),
            2 => drop(catch_unwind(|| panic!("a caught panic"))),
            3 => drop(catch_unwind(|| std::hint::black_box(vec![1_u8; usize::MAX]))),
            4 => drop(std::thread::spawn(|| panic!("a panic of another thread")).join()),
            5 => std::process::abort(),
            6 => drop(std::hint::black_box(vec![1_u8; 8 << 30])),
            7 => drop(std::hint::black_box(depth(u64::MAX))),
            8 => return Verdict::Broken("a law: broken".to_owned()),
            9 => return Verdict::Refused("refused".to_owned()),
            _ => {}
        }
        Verdict::Accepted
    }
}

/// As many calls as the stack holds, and more.
fn depth(left: u64) -> u64 {
    if std::hint::black_box(left) == 0 { 0 } else { depth(left - 1) + 1 }
}

#[test]
fn every_way_to_fail_is_seen() {
    const PITFALLS: Kind = Kind { name: "pitfalls", share: SHARES, open: |_: &Path| Box::new(Pitfalls) };
    let Some(failures) =
        failures(&[PITFALLS], &Campaign::sample(12), "pitfalls::every_way_to_fail_is_seen", &|_| {})
    else {
        return;
    };
    let all = failures.join("\n");
    assert_eq!(failures.len(), 8, "{all}");
    for sign in [
        "an uncaught panic",
        "a caught panic",
        "capacity overflow",
        "a panic of another thread",
        "SIGABRT",
        "memory allocation of 8589934592 bytes failed",
        "overflowed its stack",
        "a law: broken",
    ] {
        assert!(all.contains(sign), "{sign} is not in\n{all}");
    }
}

//! Many faults, on all cores.

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use switchyard_ground::say;
use tempfile::TempDir;

use crate::fault::{Fault, Named};
use crate::prepared::Prepared;
use crate::program::Program;
use crate::scenario;
use crate::tally::Tally;
use crate::trial::{Verdict, clear, try_fault};

/// Everything that faults need.
struct Workshop {
    program: Program,
    prepared: Vec<Prepared>,
    place: TempDir,
}

impl Workshop {
    fn open() -> Self {
        // In memory where there is such a folder: nothing here depends on a disk, and forcing bytes
        // to one takes time.
        let shared_memory = Path::new("/dev/shm");
        let place = if shared_memory.is_dir() { TempDir::new_in(shared_memory) } else { TempDir::new() };
        let place = place.unwrap();
        let program = Program::new(place.path());
        let scenarios = scenario::all();
        let folder = place.path().join("unbroken");
        std::fs::create_dir(&folder).unwrap();
        let prepared = in_parallel(scenarios.len(), |index| {
            Prepared::new(&program, scenario::all().swap_remove(index), &folder)
        });
        Self { program, prepared, place }
    }

    /// Tries `faults`, prints the failed ones at once and the numbers at the end; returns how many
    /// failed.
    fn try_all(&self, faults: &[Fault]) -> usize {
        let tally = Mutex::new(Tally::new(&self.prepared));
        in_parallel(faults.len(), |index| {
            let fault = &faults[index];
            let prepared = &self.prepared[fault.scenario];
            let desk = self.place.path().join(format!("desk-{index}"));
            let verdict = try_fault(&self.program, prepared, fault, &desk);
            clear(&desk);
            if let Verdict::Failed(reason) = &verdict {
                let named = Named(fault, prepared);
                say!(
                    "FAILED {named}: {reason}\n  again: SWITCHYARD_FAULT='{named}' cargo test --workspace --test faults -- \
                     --ignored --nocapture"
                );
            }
            tally.lock().unwrap().add(fault, &verdict);
        });
        let tally = tally.into_inner().unwrap();
        say!("{tally}");
        tally.num_failed()
    }
}

/// `work` for 0, 1, 2, ... on all cores; the results in this order.
fn in_parallel<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::SeqCst);
                    if index >= count {
                        return;
                    }
                    let result = work(index);
                    results.lock().unwrap().push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// Each scenario meets a few kinds, each kind a few scenarios.
const SAMPLE: usize = 60;

#[test]
fn a_sample_of_faults_loses_nothing() {
    let workshop = Workshop::open();
    let in_turn = (0..).filter_map(|index| Fault::in_turn(&workshop.prepared, index));
    let faults: Vec<Fault> = in_turn.take(SAMPLE).collect();
    assert_eq!(workshop.try_all(&faults), 0, "see above");
}

#[test]
#[ignore = "ten thousand faults take the better part of an hour; see the top of main.rs"]
fn no_fault_loses_anything() {
    let workshop = Workshop::open();
    let variable = |name: &str| std::env::var(name).ok();
    let number = |name: &str, default: u64| {
        variable(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is {text}")))
    };
    if let Some(words) = variable("SWITCHYARD_FAULT") {
        return again(workshop, &words);
    }
    let (count, series) = (number("SWITCHYARD_FAULTS", 10_000), number("SWITCHYARD_FAULTS_SEED", 1));
    let faults: Vec<Fault> =
        (0..count).map(|index| Fault::drawn(&workshop.prepared, series, index)).collect();
    assert_eq!(workshop.try_all(&faults), 0, "see above");
}

/// One fault again; its folder stays, to be looked at.
fn again(workshop: Workshop, words: &str) {
    let fault = Fault::named(&workshop.prepared, words);
    let Workshop { program, prepared, place } = workshop;
    let place = place.keep();
    let desk = place.join("desk");
    let verdict = try_fault(&program, &prepared[fault.scenario], &fault, &desk);
    say!("{words}: {verdict:?}; its folder is {}", desk.display());
    assert!(!matches!(verdict, Verdict::Failed(_)));
}

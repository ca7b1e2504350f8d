//! Fixed topologies of block-sparse matrices: bipartite graphs between rows and columns of blocks,
//! a block an edge.
//!
//! Every topology of a shape and a density has the same number of blocks, and no row or column of
//! blocks is empty.

use std::collections::BTreeSet;

use rand::{RngExt, SeedableRng, rngs::ChaCha8Rng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which blocks are there; `[model.ffn.block_sparse.topology]` holds at most one of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TopologyKind {
    /// Blocks at random, all places equally likely.
    Random {},
    /// A ring lattice with some blocks moved (Watts and Strogatz, Nature 393, 1998).
    SmallWorld {
        /// Probability that a block of the lattice moves to another row; default 0.1.
        #[serde(default = "default_rewiring")]
        rewiring: f64,
    },
    /// Lines with many blocks get more of them (Barabasi and Albert, Science 286, 1999): columns
    /// join one after the other and take rows in proportion to the blocks that these have.
    BarabasiAlbert {},
}

fn default_rewiring() -> f64 {
    0.1
}

/// A place of a block: `[block row, block column]`.
type Place = [usize; 2];

/// Blocks of a matrix of `[rows, columns]` blocks at `density`: at least one in each row and
/// column.
pub(crate) fn num_blocks([rows, columns]: [usize; 2], density: f64) -> usize {
    let asked = (density * (rows * columns) as f64).round() as usize;
    asked.clamp(rows.max(columns), rows * columns)
}

/// Places of the blocks of a matrix of `shape` blocks, sorted; a pure function of its arguments.
///
/// # Panics
/// If `shape` has no rows or no columns.
pub(crate) fn generate(kind: TopologyKind, shape: [usize; 2], density: f64, seed: u64) -> Vec<Place> {
    let [rows, columns] = shape;
    assert!(rows > 0 && columns > 0, "a matrix of {rows} x {columns} blocks");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let num_blocks = num_blocks(shape, density);
    let places = match kind {
        TopologyKind::Random {} => random(shape, num_blocks, &mut rng),
        TopologyKind::SmallWorld { rewiring } => small_world(shape, num_blocks, rewiring, &mut rng),
        TopologyKind::BarabasiAlbert {} => barabasi_albert(shape, num_blocks, &mut rng),
    };
    places.into_iter().collect()
}

/// A block in every row and column, and the rest drawn without replacement.
fn random(shape: [usize; 2], num_blocks: usize, rng: &mut ChaCha8Rng) -> BTreeSet<Place> {
    let [rows, columns] = shape;
    let (row_order, column_order) = (shuffled(rows, rng), shuffled(columns, rng));
    let cover = |index: usize| [row_order[index % rows], column_order[index % columns]];
    let mut places: BTreeSet<Place> = (0..rows.max(columns)).map(cover).collect();
    let mut others: Vec<Place> = all(shape).filter(|place| !places.contains(place)).collect();
    while places.len() < num_blocks {
        places.insert(others.swap_remove(rng.random_range(0..others.len())));
    }
    places
}

/// The blocks nearest to the diagonal of a torus, then each moved within its column with
/// probability `rewiring`, but not the last one of its row.
fn small_world(shape: [usize; 2], num_blocks: usize, rewiring: f64, rng: &mut ChaCha8Rng) -> BTreeSet<Place> {
    let [rows, columns] = shape;
    let longer = rows.max(columns);
    let mut places: BTreeSet<Place> =
        (0..longer).map(|index| [index * rows / longer, index * columns / longer]).collect();
    let mut others: Vec<Place> = all(shape).filter(|place| !places.contains(place)).collect();
    others.sort_by(|a, b| ring_distance(*a, shape).total_cmp(&ring_distance(*b, shape)));
    places.extend(others.into_iter().take(num_blocks - longer));

    let mut row_degrees = degrees(&places, rows);
    for [row, column] in places.clone() {
        let target = rng.random_range(0..rows);
        if rng.random::<f64>() < rewiring && row_degrees[row] > 1 && places.insert([target, column]) {
            places.remove(&[row, column]);
            row_degrees[row] -= 1;
            row_degrees[target] += 1;
        }
    }
    places
}

/// Distance between a row and a column that lie evenly on one ring, each line in the middle of its
/// arc.
fn ring_distance([row, column]: Place, [rows, columns]: [usize; 2]) -> f64 {
    let at = |line: usize, lines: usize| (line as f64 + 0.5) / lines as f64;
    let apart = (at(row, rows) - at(column, columns)).abs();
    apart.min(1.0 - apart)
}

/// A block in every row and column to begin with; then each column takes its equal share of the
/// rest.
fn barabasi_albert(shape: [usize; 2], num_blocks: usize, rng: &mut ChaCha8Rng) -> BTreeSet<Place> {
    let [rows, columns] = shape;
    let longer = rows.max(columns);
    let row_order = shuffled(rows, rng);
    let mut places: BTreeSet<Place> =
        (0..longer).map(|index| [row_order[index % rows], index % columns]).collect();
    let mut row_degrees = degrees(&places, rows);
    // Full columns pass their turn on.
    for column in shuffled(columns, rng).into_iter().cycle() {
        let places_left = num_blocks - places.len();
        if places_left == 0 {
            break;
        }
        for _ in 0..places_left.min((num_blocks - longer).div_ceil(columns)) {
            let free: Vec<usize> = (0..rows).filter(|&row| !places.contains(&[row, column])).collect();
            let Some(row) = draw_in_proportion(&free, &row_degrees, rng) else { break };
            places.insert([row, column]);
            row_degrees[row] += 1;
        }
    }
    places
}

/// One of `rows`, each as likely as it has blocks.
fn draw_in_proportion(rows: &[usize], degrees: &[usize], rng: &mut ChaCha8Rng) -> Option<usize> {
    let total: usize = rows.iter().map(|&row| degrees[row]).sum();
    if total == 0 {
        return None;
    }
    let mut left = rng.random_range(0..total);
    rows.iter().copied().find(|&row| {
        let found = left < degrees[row];
        left = left.saturating_sub(degrees[row]);
        found
    })
}

fn degrees(places: &BTreeSet<Place>, rows: usize) -> Vec<usize> {
    let mut degrees = vec![0; rows];
    places.iter().for_each(|[row, _]| degrees[*row] += 1);
    degrees
}

fn all([rows, columns]: [usize; 2]) -> impl Iterator<Item = Place> {
    (0..rows).flat_map(move |row| (0..columns).map(move |column| [row, column]))
}

/// The numbers below `count` in a random order (Fisher and Yates).
fn shuffled(count: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for index in (1..count).rev() {
        order.swap(index, rng.random_range(0..=index));
    }
    order
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kinds() -> impl Strategy<Value = TopologyKind> {
        prop_oneof![
            Just(TopologyKind::Random {}),
            (0.0..=1.0).prop_map(|rewiring| TopologyKind::SmallWorld { rewiring }),
            Just(TopologyKind::BarabasiAlbert {}),
        ]
    }

    proptest! {
        #[test]
        fn every_topology_has_its_number_of_blocks_and_no_empty_line(
            kind in kinds(), rows in 1_usize..12, columns in 1_usize..12, density in 0.01..=1.0, seed: u64,
        ) {
            let places = generate(kind, [rows, columns], density, seed);
            prop_assert_eq!(places.len(), num_blocks([rows, columns], density));
            prop_assert!(places.is_sorted() && places.windows(2).all(|pair| pair[0] != pair[1]));
            for (axis, lines) in [(0, rows), (1, columns)] {
                let seen: BTreeSet<usize> = places.iter().map(|place| place[axis]).collect();
                prop_assert_eq!(seen, (0..lines).collect::<BTreeSet<_>>());
            }
            prop_assert_eq!(&places, &generate(kind, [rows, columns], density, seed));
        }
    }

    #[test]
    fn a_small_world_without_rewiring_is_the_ring_lattice() {
        let places = generate(TopologyKind::SmallWorld { rewiring: 0.0 }, [8, 8], 3.0 / 8.0, 1);
        let near = |[row, column]: &Place| (8 + row - column) % 8 <= 1 || (8 + column - row) % 8 <= 1;
        assert!(places.len() == 24 && places.iter().all(near), "{places:?}");
    }

    #[test]
    fn preferential_attachment_makes_hubs_that_chance_does_not() {
        let largest = |kind| {
            let places = generate(kind, [64, 64], 0.125, 3).into_iter().collect();
            degrees(&places, 64).into_iter().max()
        };
        // The even share is 8 blocks a row.
        assert!(
            largest(TopologyKind::BarabasiAlbert {})
                > largest(TopologyKind::Random {}).map(|degree| degree + 4)
        );
    }
}

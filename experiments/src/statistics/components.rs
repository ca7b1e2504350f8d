//! What part of a difference's variance the initial values decide, and what part the data order.

use serde::{Deserialize, Serialize};

/// Standard deviations of the parts that a difference between two runs of a seed is made
/// of: a random-effects analysis of variance of a square of initial values by data orders (Searle,
/// Casella and McCulloch, Variance Components, 1992, section 4.3). A component that the square makes
/// negative is 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct SeedComponents {
    /// Initial values and data orders that were crossed.
    pub(crate) crossed_seeds: usize,
    /// Of the initial values, dropout and jitter.
    pub(crate) initial_values: f64,
    /// Of the data order, and of the corpus where each seed has its own.
    pub(crate) data_order: f64,
    /// Of what neither decides alone.
    pub(crate) both_together: f64,
}

impl SeedComponents {
    /// From the difference with each seed's initial values (rows) and each seed's data order
    /// (columns). `None` unless it is a square of at least two by two finite numbers.
    pub(crate) fn new(differences: &[Vec<f64>]) -> Option<Self> {
        let side = differences.len();
        let is_square = differences.iter().all(|row| row.len() == side);
        let is_finite = differences.iter().flatten().all(|difference| difference.is_finite());
        if side < 2 || !is_square || !is_finite {
            return None;
        }
        let count = side as f64;
        let row_means: Vec<f64> = differences.iter().map(|row| row.iter().sum::<f64>() / count).collect();
        let column_means: Vec<f64> =
            (0..side).map(|column| differences.iter().map(|row| row[column]).sum::<f64>() / count).collect();
        let mean = row_means.iter().sum::<f64>() / count;
        let mean_square =
            |means: &[f64]| count * means.iter().map(|of| (of - mean).powi(2)).sum::<f64>() / (count - 1.0);
        let residual = |(row, column): (usize, usize)| {
            (differences[row][column] - row_means[row] - column_means[column] + mean).powi(2)
        };
        let cells = (0..side).flat_map(|row| (0..side).map(move |column| (row, column)));
        let rest = cells.map(residual).sum::<f64>() / (count - 1.0).powi(2);
        let component = |means: &[f64]| ((mean_square(means) - rest) / count).max(0.0).sqrt();
        Some(Self {
            crossed_seeds: side,
            initial_values: component(&row_means),
            data_order: component(&column_means),
            both_together: rest.sqrt(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::NormalNoise;
    use super::*;

    #[test]
    fn a_difference_that_one_seed_decides_is_put_down_to_it() {
        let by_row = SeedComponents::new(&[vec![1.0, 1.0, 1.0], vec![2.0, 2.0, 2.0], vec![3.0, 3.0, 3.0]]);
        let by_row = by_row.unwrap();
        assert!((by_row.initial_values - 1.0).abs() < 1e-12, "{by_row:?}");
        assert_eq!((by_row.data_order, by_row.both_together), (0.0, 0.0));
        let by_column = SeedComponents::new(&[vec![1.0, 3.0], vec![1.0, 3.0]]).unwrap();
        assert!((by_column.data_order - 2.0_f64.sqrt()).abs() < 1e-12, "{by_column:?}");
    }

    #[test]
    fn planted_components_come_back_on_average() {
        let (rows, columns, rest) = (0.03, 0.02, 0.01);
        let mut sums = [0.0; 3];
        let num_studies = 2000;
        for study in 0..num_studies {
            let mut noise = NormalNoise::new(study);
            let of_columns: Vec<f64> = (0..4).map(|_| columns * noise.next()).collect();
            let square: Vec<Vec<f64>> = (0..4)
                .map(|_| {
                    let of_row = rows * noise.next();
                    of_columns.iter().map(|of_column| of_row + of_column + rest * noise.next()).collect()
                })
                .collect();
            let found = SeedComponents::new(&square).unwrap();
            for (sum, found) in
                sums.iter_mut().zip([found.initial_values, found.data_order, found.both_together])
            {
                *sum += found * found / num_studies as f64;
            }
        }
        for (found, planted) in sums.into_iter().zip([rows, columns, rest]) {
            assert!((found.sqrt() / planted - 1.0).abs() < 0.06, "{} {planted}", found.sqrt());
        }
    }

    #[test]
    fn what_is_no_square_has_no_components() {
        assert_eq!(SeedComponents::new(&[vec![1.0]]), None);
        assert_eq!(SeedComponents::new(&[vec![1.0, 2.0], vec![1.0]]), None);
        assert_eq!(SeedComponents::new(&[vec![1.0, f64::NAN], vec![1.0, 2.0]]), None);
    }
}

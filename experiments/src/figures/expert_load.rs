//! The load of each expert over the steps, one map per MoE layer.

use anyhow::{Result, bail};
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;
use switchyard_trainer::metrics::{LayerRecord, Record};

use super::{Canvas, GRID, INK, WIDTH, draw, draw_text};

/// Columns of a map; steps beyond are added up.
const MAX_COLUMNS: usize = 48;
/// Left and right edge of the maps, and the upper edge of the first.
const LEFT: i32 = 118;
const RIGHT: i32 = WIDTH - 118;
const TOP: i32 = 84;
/// Between two maps, and below the last one.
const GAP: i32 = 14;
const FOOT: i32 = 52;
/// Load at the bright end of the colour scale, in even shares.
const MAX_LOAD: f64 = 2.0;

/// Viridis: its lightness rises with the value, so that it reads in grey and to the colour-blind.
const SCALE: [(u8, u8, u8); 5] = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)];

/// The load of each expert of a run over the steps, in even shares: 1 is balance.
///
/// # Errors
/// Rows without router statistics, as of a dense run.
pub(crate) fn expert_load_svg(records: &[Record]) -> Result<String> {
    let maps = load_maps(records);
    let mut steps = records.iter().filter_map(Record::as_step).map(|row| row.step);
    let Some(first_step) = steps.next() else {
        bail!("no expert load to draw: the run has not finished a step yet");
    };
    if maps.is_empty() {
        bail!("no expert load to draw: the steps hold no router statistics, because the run is dense");
    }
    let last_step = steps.next_back().unwrap_or(first_step);
    let bottom = maps.iter().fold(TOP - GAP, |y, map| y + GAP + map.height());
    draw(bottom + FOOT, |canvas| {
        draw_text(canvas, "Expert load over training", 19, HPos::Left, (LEFT, 26))?;
        draw_text(canvas, "tokens of an expert, in even shares (1 = balanced)", 14, HPos::Left, (LEFT, 56))?;
        draw_scale(canvas)?;
        let mut top = TOP;
        for map in &maps {
            draw_map(canvas, map, top)?;
            top += map.height() + GAP;
        }
        draw_step_axis(canvas, first_step, last_step, bottom)
    })
}

/// What is drawn of one layer.
#[derive(Debug, PartialEq)]
struct LoadMap {
    layer: usize,
    num_experts: usize,
    /// Load of each expert, column by column.
    columns: Vec<Vec<f64>>,
    /// MaxVio of the last column.
    last_max_violation: f64,
}

impl LoadMap {
    fn row_height(&self) -> i32 {
        (128 / self.num_experts.max(1) as i32).clamp(3, 16)
    }

    fn height(&self) -> i32 {
        self.row_height() * self.num_experts as i32
    }
}

fn load_maps(records: &[Record]) -> Vec<LoadMap> {
    let steps: Vec<&[LayerRecord]> =
        records.iter().filter_map(Record::as_step).map(|row| row.layers.as_slice()).collect();
    let bin_len = steps.len().div_ceil(MAX_COLUMNS).max(1);
    let Some(layers) = steps.first() else { return Vec::new() };
    let map = |(position, layer): (usize, &LayerRecord)| {
        let num_experts = layer.tokens_per_expert.len();
        let load = |bin: &[&[LayerRecord]]| {
            let of_layer = bin.iter().filter_map(|layers| layers.get(position));
            let counts = of_layer.map(|layer| layer.tokens_per_expert.as_slice());
            even_shares(counts, num_experts)
        };
        let columns: Vec<Vec<f64>> = steps.chunks(bin_len).map(load).collect();
        let busiest = columns.last().and_then(|loads| loads.iter().copied().reduce(f64::max));
        let last_max_violation = busiest.unwrap_or(1.0) - 1.0;
        LoadMap { layer: layer.layer, num_experts, columns, last_max_violation }
    };
    layers.iter().enumerate().map(map).collect()
}

/// Load of each expert over several steps: its tokens over the mean number of tokens per expert.
fn even_shares<'a>(counts: impl Iterator<Item = &'a [u64]>, num_experts: usize) -> Vec<f64> {
    let mut sums = vec![0.0; num_experts];
    for step in counts {
        sums.iter_mut().zip(step).for_each(|(sum, &count)| *sum += count as f64);
    }
    let mean = sums.iter().sum::<f64>() / num_experts.max(1) as f64;
    sums.into_iter().map(|sum| if mean > 0.0 { sum / mean } else { 0.0 }).collect()
}

fn color_of(load: f64) -> RGBColor {
    let position = (load / MAX_LOAD).clamp(0.0, 1.0) * (SCALE.len() - 1) as f64;
    let below = (position as usize).min(SCALE.len() - 2);
    let share = position - below as f64;
    let (from, to) = (SCALE[below], SCALE[below + 1]);
    let mix = |from: u8, to: u8| (f64::from(from) + share * (f64::from(to) - f64::from(from))).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

/// The left edge of column `index` of `count`; that of `count` is the right edge of the map.
fn column_x(index: usize, count: usize) -> i32 {
    LEFT + (RIGHT - LEFT) * index as i32 / count.max(1) as i32
}

fn draw_map(canvas: &Canvas, map: &LoadMap, top: i32) -> Result<()> {
    let (count, row_height, bottom) = (map.columns.len(), map.row_height(), top + map.height());
    for (column, loads) in map.columns.iter().enumerate() {
        let (left, right) = (column_x(column, count), column_x(column + 1, count));
        for (row, &load) in (0..).zip(loads) {
            let y = top + row_height * row;
            // One pixel into the neighbours drawn later: scaled pictures show seams between cells
            // that only touch.
            let corner = ((right + 1).min(RIGHT), (y + row_height + 1).min(bottom));
            canvas.draw(&Rectangle::new([(left, y), corner], color_of(load).filled()))?;
        }
    }
    let middle = (top + bottom) / 2;
    canvas.draw(&Rectangle::new([(LEFT, top), (RIGHT, bottom)], GRID.stroke_width(1)))?;
    draw_text(canvas, &format!("layer {}", map.layer), 15, HPos::Left, (12, middle))?;
    let half_row = (row_height / 2).max(5);
    draw_text(canvas, "expert 0", 11, HPos::Right, (LEFT - 6, top + half_row))?;
    draw_text(canvas, &(map.num_experts - 1).to_string(), 11, HPos::Right, (LEFT - 6, bottom - half_row))?;
    draw_text(canvas, "at the end", 12, HPos::Left, (RIGHT + 10, middle - 9))?;
    draw_text(
        canvas,
        &format!("MaxVio {:.2}", map.last_max_violation),
        12,
        HPos::Left,
        (RIGHT + 10, middle + 9),
    )
}

/// The colour scale, above the maps on the right.
fn draw_scale(canvas: &Canvas) -> Result<()> {
    const CELLS: i32 = 40;
    let (width, top, bottom) = (200, 48, 62);
    let left = RIGHT - width;
    for cell in 0..CELLS {
        let load = MAX_LOAD * f64::from(cell) / f64::from(CELLS - 1);
        let corners = [(left + width * cell / CELLS, top), (left + width * (cell + 1) / CELLS, bottom)];
        canvas.draw(&Rectangle::new(corners, color_of(load).filled()))?;
    }
    for (text, share) in [("0", 0), ("1", 1), ("2 and more", 2)] {
        let x = left + width * share / 2;
        canvas.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], INK))?;
        draw_text(canvas, text, 11, HPos::Center, (x, bottom + 12))?;
    }
    Ok(())
}

/// The first and last step and three between, below the maps.
fn draw_step_axis(canvas: &Canvas, first_step: u64, last_step: u64, top: i32) -> Result<()> {
    for quarter in 0..=4 {
        let x = column_x(quarter, 4);
        let step = first_step + last_step.saturating_sub(first_step) * quarter as u64 / 4;
        canvas.draw(&PathElement::new([(x, top), (x, top + 5)], INK))?;
        draw_text(canvas, &step.to_string(), 13, HPos::Center, (x, top + 16))?;
    }
    draw_text(canvas, "optimizer steps", 15, HPos::Center, ((LEFT + RIGHT) / 2, top + 38))
}

#[cfg(test)]
mod tests {
    use super::super::sample_rows::{eval, layer, step};
    use super::*;

    #[test]
    fn balance_is_one_even_share_whatever_the_number_of_tokens() {
        assert_eq!(even_shares([[5u64, 5].as_slice(), &[100, 100]].into_iter(), 2), [1.0, 1.0]);
        assert_eq!(even_shares([[3u64, 0, 0].as_slice(), &[0, 0, 3]].into_iter(), 3), [1.5, 0.0, 1.5]);
        assert_eq!(even_shares(std::iter::empty(), 2), [0.0, 0.0]);
    }

    #[test]
    fn every_step_is_in_exactly_one_column_and_evaluations_in_none() {
        let mut records: Vec<Record> =
            (1..=100).map(|n| step(n, 3.0, vec![layer(1, &[n, 0]), layer(3, &[1, 1])])).collect();
        records.insert(50, eval(50, 3.0));
        let maps = load_maps(&records);
        assert_eq!(maps.iter().map(|map| map.layer).collect::<Vec<_>>(), [1, 3]);
        // Three steps to a column, the last of which has one.
        assert_eq!(maps[0].columns.len(), 34);
        assert!(maps[0].columns.iter().all(|loads| loads == &[2.0, 0.0]), "{:?}", maps[0]);
        assert_eq!((maps[0].last_max_violation, maps[1].last_max_violation), (1.0, 0.0));
    }

    #[test]
    fn a_higher_load_is_lighter() {
        // Relative luminance by the weights of ITU-R BT.709.
        let lightness = |load: f64| {
            let RGBColor(r, g, b) = color_of(load);
            0.2126 * f64::from(r) + 0.7152 * f64::from(g) + 0.0722 * f64::from(b)
        };
        let samples: Vec<f64> = (0..=20).map(|tenth| lightness(f64::from(tenth) / 10.0)).collect();
        assert!(samples.is_sorted(), "{samples:?}");
        assert_eq!(color_of(7.0), color_of(2.0));
    }

    #[test]
    fn a_map_names_its_layer_its_experts_and_its_imbalance() {
        let records: Vec<Record> = (1..=8).map(|n| step(n, 3.0, vec![layer(2, &[3, 1, 1, 3])])).collect();
        let svg = expert_load_svg(&records).unwrap();
        for text in ["layer 2", "expert 0", "MaxVio 0.50", "optimizer steps"] {
            assert!(svg.contains(text), "{text} in {svg}");
        }
        assert_eq!(svg, expert_load_svg(&records).unwrap(), "not deterministic");
    }

    #[test]
    fn a_run_without_experts_or_steps_is_an_error_that_says_so() {
        let message = expert_load_svg(&[step(1, 3.0, Vec::new())]).unwrap_err().to_string();
        assert!(message.contains("the run is dense"), "{message}");
        let message = expert_load_svg(&[eval(1, 3.0)]).unwrap_err().to_string();
        assert!(message.contains("has not finished a step yet"), "{message}");
    }
}

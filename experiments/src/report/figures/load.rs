//! The load of each expert over the steps, one map per layer, one figure per sparse arm.

use std::collections::BTreeSet;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use switchyard_ground::units::grouped;

use super::{Canvas, Figure, GRID, INK, WIDTH, draw_text, shortened};
use crate::report::content::{ArmRuns, Content};
use crate::report::files::file_name_of;
use crate::report::numbers::percent;
use crate::report::series::{LayerSeries, RunSeries};
use crate::report::table::Table;

/// Cells of a figure; time bins are averaged until they suffice, lest the page grow to megabytes.
const MAX_CELLS: usize = 12_000;
/// Columns of a map, at most and at least.
const MAX_COLUMNS: usize = 48;
const MIN_COLUMNS: usize = 8;
/// Shades of the colour scale: neighbours of one shade are one rectangle.
const NUM_SHADES: usize = 33;
/// Load at the bright end of the colour scale, in even shares.
const MAX_LOAD: f64 = 2.0;
const LEFT: i32 = 112;
const RIGHT: i32 = WIDTH - 112;
const TOP: i32 = 82;
const GAP: i32 = 12;

/// Viridis: its lightness rises with the value, so that it reads in grey and to the colour-blind.
const SCALE: [(u8, u8, u8); 5] = [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)];

/// The maps of one run of each sparse arm, the lowest seed at the largest budget.
///
/// # Errors
/// Those of the drawing library.
pub(super) fn figures(content: &Content) -> Result<Vec<Figure>> {
    let mut taken = BTreeSet::new();
    let arms = content.longest_runs();
    let of_arm = |arm: &ArmRuns| -> Result<Option<Figure>> {
        let Some(run) = arm.sparse_run() else { return Ok(None) };
        let mut name = format!("load-{}", file_name_of(arm.label));
        while !taken.insert(name.clone()) {
            name.push_str("-b");
        }
        figure(&name, arm.label, run)
    };
    Ok(arms.iter().map(of_arm).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
}

fn figure(name: &str, arm: &str, run: &RunSeries) -> Result<Option<Figure>> {
    let num_rows: usize = run.layers.iter().map(|layer| layer.num_experts).sum();
    let max_columns = (MAX_CELLS / num_rows.max(1)).clamp(MIN_COLUMNS, MAX_COLUMNS);
    let maps: Vec<LoadMap> = run.layers.iter().filter_map(|layer| LoadMap::new(layer, max_columns)).collect();
    if maps.is_empty() {
        return Ok(None);
    }
    let bottom = maps.iter().fold(TOP - GAP, |y, map| y + GAP + map.height());
    let title = format!("Expert load of {}, seed {}", shortened(arm, 40), run.seed);
    let description = "One map per layer, one row per expert, steps from left to right. The colour is the expert's \
                       tokens in even shares: 1 is balance, dark is idle, bright is twice its share or more. At the \
                       right, the busiest expert at the end.";
    Figure::draw((name, &title), description.into(), table(arm, &maps), bottom + 52, |canvas| {
        draw_text(canvas, "tokens of an expert, in even shares", 13, HPos::Left, (12, 52))?;
        draw_scale(canvas)?;
        let mut top = TOP;
        for map in &maps {
            draw_map(canvas, map, top)?;
            top += map.height() + GAP;
        }
        draw_step_axis(canvas, &maps[0], bottom)
    })
    .map(Some)
}

/// What is drawn of one layer.
struct LoadMap {
    layer: usize,
    num_experts: usize,
    first_step: u64,
    last_step: u64,
    /// Load of each expert in even shares, column by column.
    columns: Vec<Vec<f64>>,
}

impl LoadMap {
    /// The map of a layer; `None` without a time bin or an expert.
    fn new(layer: &LayerSeries, max_columns: usize) -> Option<Self> {
        let num_experts = layer.num_experts;
        let bin_len = layer.load_shares.len().div_ceil(max_columns).max(1);
        let even_shares = |bins: &[Vec<f32>]| {
            let of_expert = |expert: usize| {
                let shares = bins.iter().map(|bin| f64::from(bin.get(expert).copied().unwrap_or(0.0)));
                shares.sum::<f64>() / bins.len() as f64 * num_experts as f64
            };
            (0..num_experts).map(of_expert).collect::<Vec<_>>()
        };
        let columns: Vec<Vec<f64>> = layer.load_shares.chunks(bin_len).map(even_shares).collect();
        let (first_step, last_step) = (*layer.steps.first()?, *layer.steps.last()?);
        let map = Self { layer: layer.layer, num_experts, first_step, last_step, columns };
        (num_experts > 0 && !map.columns.is_empty()).then_some(map)
    }

    fn row_height(&self) -> i32 {
        (112 / self.num_experts as i32).clamp(3, 14)
    }

    fn height(&self) -> i32 {
        self.row_height() * self.num_experts as i32
    }

    fn at_the_end(&self) -> &[f64] {
        self.columns.last().map_or(&[], Vec::as_slice)
    }

    fn busiest(&self) -> f64 {
        self.at_the_end().iter().copied().fold(0.0, f64::max)
    }
}

fn shade_of(load: f64) -> usize {
    ((load / MAX_LOAD).clamp(0.0, 1.0) * (NUM_SHADES - 1) as f64).round() as usize
}

fn color_of(shade: usize) -> RGBColor {
    let position = shade as f64 / (NUM_SHADES - 1) as f64 * (SCALE.len() - 1) as f64;
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
    let (row_height, bottom) = (map.row_height(), top + map.height());
    for (row, expert) in (0..).zip(0..map.num_experts) {
        draw_expert(canvas, map, expert, (top + row_height * row, bottom))?;
    }
    let middle = (top + bottom) / 2;
    canvas.draw(&Rectangle::new([(LEFT, top), (RIGHT, bottom)], GRID.stroke_width(1)))?;
    draw_text(canvas, &format!("layer {}", map.layer), 14, HPos::Left, (12, middle))?;
    let half_row = (row_height / 2).max(6);
    draw_text(canvas, "0", 11, HPos::Right, (LEFT - 6, top + half_row))?;
    draw_text(canvas, &(map.num_experts - 1).to_string(), 11, HPos::Right, (LEFT - 6, bottom - half_row))?;
    draw_text(canvas, "busiest", 12, HPos::Left, (RIGHT + 10, middle - 9))?;
    draw_text(canvas, &format!("{:.2} shares", map.busiest()), 12, HPos::Left, (RIGHT + 10, middle + 8))
}

/// The row of an expert, whose upper edge is `top`, in a map that ends at `bottom`.
fn draw_expert(canvas: &Canvas, map: &LoadMap, expert: usize, (top, bottom): (i32, i32)) -> Result<()> {
    let count = map.columns.len();
    let shades: Vec<usize> = map.columns.iter().map(|loads| shade_of(loads[expert])).collect();
    let mut column = 0;
    for stretch in shades.chunk_by(|left, right| left == right) {
        let (left, right) = (column_x(column, count), column_x(column + stretch.len(), count));
        // One pixel into the neighbours drawn later: scaled pictures show seams between cells that
        // only touch.
        let corner = ((right + 1).min(RIGHT), (top + map.row_height() + 1).min(bottom));
        canvas.draw(&Rectangle::new([(left, top), corner], color_of(stretch[0]).filled()))?;
        column += stretch.len();
    }
    Ok(())
}

/// The colour scale, above the maps on the right.
fn draw_scale(canvas: &Canvas) -> Result<()> {
    let (width, top, bottom) = (198, 44, 58);
    let left = RIGHT - width;
    for shade in 0..NUM_SHADES {
        let x = |shade: usize| left + width * shade as i32 / NUM_SHADES as i32;
        let corners = [(x(shade), top), (x(shade + 1), bottom)];
        canvas.draw(&Rectangle::new(corners, color_of(shade).filled()))?;
    }
    for (text, share) in [("0", 0), ("1", 1), ("2 and more", 2)] {
        let x = left + width * share / 2;
        canvas.draw(&PathElement::new([(x, bottom), (x, bottom + 4)], INK))?;
        draw_text(canvas, text, 11, HPos::Center, (x, bottom + 12))?;
    }
    Ok(())
}

/// The first and last step and three between, below the maps.
fn draw_step_axis(canvas: &Canvas, map: &LoadMap, top: i32) -> Result<()> {
    for quarter in 0..=4 {
        let x = column_x(quarter, 4);
        let step = map.first_step + map.last_step.saturating_sub(map.first_step) * quarter as u64 / 4;
        canvas.draw(&PathElement::new([(x, top), (x, top + 5)], INK))?;
        draw_text(canvas, &grouped(step), 13, HPos::Center, (x, top + 16))?;
    }
    draw_text(canvas, "optimizer steps", 14, HPos::Center, ((LEFT + RIGHT) / 2, top + 38))
}

fn table(arm: &str, maps: &[LoadMap]) -> Table {
    let head =
        ["layer", "experts", "busiest (even shares)", "idlest (even shares)", "busiest: share of the tokens"];
    let rows = maps.iter().map(|map| {
        let idlest = map.at_the_end().iter().copied().fold(f64::INFINITY, f64::min);
        vec![
            map.layer.to_string(),
            map.num_experts.to_string(),
            format!("{:.2}", map.busiest()),
            format!("{idlest:.2}"),
            percent(map.busiest() / map.num_experts as f64),
        ]
    });
    let caption = format!("Expert load of {arm} at the end of the run; every bin is in load.csv");
    Table::new(caption, 1, &head).with_rows(rows)
}

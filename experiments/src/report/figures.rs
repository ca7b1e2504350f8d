//! The figures of a report: SVG for files on white, SVG for the page in its theme, and the table of
//! the numbers.

mod arm_style;
mod gap;
mod gauge;
mod legend;
mod load;
mod loss;
mod parameters;
mod plot;
mod routing;

use anyhow::{Context, Result};
use maud::{Render, html};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::content::Content;
use super::table::Table;
use crate::figures::drawable;
use arm_style::ARM_COLORS;
pub(super) use loss::LossFigure;

/// A picture in the making; its coordinates are pixels.
type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Width of every figure.
const WIDTH: i32 = 760;
/// Text and axes.
const INK: RGBColor = RGBColor(40, 44, 52);
/// Grid lines and frames.
const GRID: RGBColor = RGBColor(216, 220, 226);
/// Bands without an arm, such as the margin of the question.
const SHADE: RGBColor = RGBColor(236, 238, 242);

/// A figure and what a reader who cannot see it needs.
#[derive(Debug)]
pub(super) struct Figure {
    /// Stem of its files, and of its ids in the page.
    pub(super) name: String,
    pub(super) title: String,
    /// What is drawn and how to read it.
    pub(super) description: String,
    /// Its numbers.
    pub(super) numbers: Table,
    /// What plotters wrote.
    drawing: String,
}

/// The figures of a report, by section. What there is no data for is absent.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) gap: Option<Figure>,
    pub(super) gauge: Option<Figure>,
    /// Loss against each axis.
    pub(super) loss: Vec<LossFigure>,
    pub(super) parameters: Option<Figure>,
    /// One per sparse arm.
    pub(super) load: Vec<Figure>,
    pub(super) routing: Option<Figure>,
}

impl Figures {
    /// All that `content` has data for.
    ///
    /// # Errors
    /// Those of the drawing library.
    pub(super) fn draw(content: &Content) -> Result<Self> {
        Ok(Self {
            gap: gap::figure(content)?,
            gauge: gauge::figure(content)?,
            loss: loss::figures(content)?,
            parameters: parameters::figure(content)?,
            load: load::figures(content)?,
            routing: routing::figure(content)?,
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Figure> {
        let losses = self.loss.iter().map(|loss| &loss.figure);
        let first = self.gap.iter().chain(&self.gauge).chain(losses);
        first.chain(&self.parameters).chain(&self.load).chain(&self.routing)
    }
}

impl Figure {
    /// A figure of what `content` draws on a canvas of this height.
    fn draw(
        (name, title): (&str, &str),
        description: String,
        numbers: Table,
        height: i32,
        content: impl FnOnce(&Canvas) -> Result<()>,
    ) -> Result<Self> {
        let mut drawing = String::new();
        {
            let canvas =
                SVGBackend::with_string(&mut drawing, (WIDTH as u32, height as u32)).into_drawing_area();
            draw_text(&canvas, title, 17, HPos::Left, (12, 20))?;
            content(&canvas)?;
            canvas.present().with_context(|| format!("cannot draw the figure `{name}`"))?;
        }
        // Defaults of SVG, which plotters spells out: a map of the load has thousands of each.
        let drawing = drawing.replace(" opacity=\"1\"", "").replace(" stroke=\"none\"", "");
        let drawing = drawable(&drawing);
        Ok(Self {
            name: name.into(),
            title: drawable(title),
            description: drawable(&description),
            numbers,
            drawing,
        })
    }

    /// The figure as a file of its own: on white, because half of its readers would see it dark on
    /// dark.
    pub(super) fn to_file(&self) -> String {
        let (open, body) = self.split();
        let described = self.title_and_description("");
        format!(
            "{open} role=\"img\" aria-labelledby=\"title desc\">\n{described}\n<rect width=\"100%\" height=\"100%\" \
             fill=\"#FFFFFF\"/>\n{body}"
        )
    }

    /// The figure for the page: colours by name, so that they follow its theme.
    pub(super) fn to_inline(&self) -> String {
        let (open, body) = self.split();
        let view_box = open.split(' ').skip_while(|part| !part.starts_with("viewBox=")).take(4);
        let view_box = view_box.collect::<Vec<_>>().join(" ");
        let (name, described) = (&self.name, self.title_and_description(&format!("{}-", self.name)));
        let svg = format!(
            "<svg {view_box} role=\"img\" aria-labelledby=\"{name}-title {name}-desc\">\n{described}\n{body}"
        );
        let colors =
            [(INK, "currentColor".into()), (GRID, "var(--grid)".into()), (SHADE, "var(--shade)".into())];
        let of_arms =
            ARM_COLORS.into_iter().enumerate().map(|(arm, color)| (color, format!("var(--arm-{arm})")));
        colors.into_iter().chain(of_arms).fold(svg, |svg, (color, name)| {
            svg.replace(&format!("\"{}\"", hexadecimal(color)), &format!("\"{name}\""))
        })
    }

    /// The opening tag without its end, and all that follows.
    fn split(&self) -> (&str, &str) {
        self.drawing.split_once(">\n").unwrap_or((&self.drawing, ""))
    }

    fn title_and_description(&self, prefix: &str) -> String {
        let markup = html! {
            title id={ (prefix) "title" } { (self.title) }
            desc id={ (prefix) "desc" } { (self.description) }
        };
        markup.render().into_string()
    }
}

fn hexadecimal(RGBColor(red, green, blue): RGBColor) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

/// Text of a size in pixels, anchored at its left, centre or right.
fn draw_text(canvas: &Canvas, text: &str, size: u32, h_pos: HPos, at: (i32, i32)) -> Result<()> {
    // plotters shrinks every font by this factor when it writes SVG.
    let font_size = f64::from(size) * 1.24;
    let style = ("sans-serif", font_size).into_font().color(&INK).pos(Pos::new(h_pos, VPos::Center));
    Ok(canvas.draw(&Text::new(text.to_string(), at, style))?)
}

/// `text` cut to at most `max_chars` characters.
fn shortened(text: &str, max_chars: usize) -> String {
    if text.chars().count() <= max_chars {
        return text.to_string();
    }
    let kept: String = text.chars().take(max_chars.saturating_sub(3)).collect();
    kept + "..."
}

/// `rows` thinned to about `max_rows`, evenly, the last one included.
fn thinned<T: Copy>(rows: &[T], max_rows: usize) -> Vec<T> {
    let stride = rows.len().div_ceil(max_rows).max(1);
    let mut kept: Vec<T> = rows.iter().rev().step_by(stride).copied().collect();
    kept.reverse();
    kept
}

/// Lowest and highest of the finite `values`; `None` without any.
fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.filter(|value| value.is_finite()).fold(None, |range, value| {
        let (low, high) = range.unwrap_or((value, value));
        Some((f64::min(low, value), f64::max(high, value)))
    })
}

//! Pictures from SVG, with a font that the program brings along: the same on every machine.

use std::sync::Arc;

use anyhow::{Context, Result};
use epaint_default_fonts::{HACK_REGULAR, UBUNTU_LIGHT};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::Database;
use resvg::usvg::{Options, Tree};

/// Pixels of the picture per pixel of the SVG.
const SCALE: f32 = 2.0;

/// What turns SVG into PNG.
pub(super) struct Rasterizer {
    options: Options<'static>,
}

impl Rasterizer {
    pub(super) fn new() -> Self {
        let mut fonts = Database::new();
        fonts.load_font_data(UBUNTU_LIGHT.to_vec());
        let sans_serif =
            fonts.faces().next().and_then(|face| face.families.first().map(|(name, _)| name.clone()));
        fonts.set_sans_serif_family(sans_serif.unwrap_or_default());
        // For the letters of labels that the first has not.
        fonts.load_font_data(HACK_REGULAR.to_vec());
        Self { options: Options { fontdb: Arc::new(fonts), ..Options::default() } }
    }

    /// The PNG of an SVG.
    ///
    /// # Errors
    /// An SVG that cannot be read, or too large a picture.
    pub(super) fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let tree = Tree::from_str(svg, &self.options).context("cannot read the figure")?;
        let pixels = |size: f32| (size * SCALE).ceil() as u32;
        let mut picture = Pixmap::new(pixels(tree.size().width()), pixels(tree.size().height()))
            .context("the figure has no size that a picture can have")?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
        picture.encode_png().context("cannot encode the picture")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pixels that are not white.
    fn num_inked(svg: &str) -> usize {
        let png = Rasterizer::new().png(svg).unwrap();
        let picture = Pixmap::decode_png(&png).unwrap();
        picture.pixels().iter().filter(|pixel| pixel.red() < 255).count()
    }

    #[test]
    fn text_is_drawn() {
        let svg = |text: &str| {
            format!(
                "<svg width=\"100\" height=\"40\" viewBox=\"0 0 100 40\" xmlns=\"http://www.w3.org/2000/svg\">\
                 <rect width=\"100%\" height=\"100%\" fill=\"#FFFFFF\"/>\
                 <text x=\"5\" y=\"25\" font-family=\"sans-serif\" font-size=\"16\">{text}</text></svg>"
            )
        };
        assert_eq!(num_inked(&svg("")), 0);
        assert!(num_inked(&svg("loss")) > 200);
        // Not in the first font.
        assert!(num_inked(&svg("\u{2713}")) > 50);
    }
}

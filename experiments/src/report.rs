//! `switchyard report`: a folder with one page for people, its figures as SVG and PNG, and all
//! numbers as CSV.
//!
//! Pure: from a study's result and the rows of its runs to files. The same input gives the same
//! bytes.

mod axes;
#[cfg(test)]
mod browser_tests;
mod content;
mod csv_files;
mod figures;
pub(crate) mod files;
mod numbers;
mod page;
mod png;
#[cfg(test)]
mod sample;
pub(crate) mod series;
mod table;
#[cfg(test)]
mod tests;
mod verdict_words;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::study::result::StudyResult;
use crate::whole_file;
use content::Content;
use figures::Figures;
use png::Rasterizer;
use series::RunSeries;

/// Write the report of a study, or of plain runs, into `folder`, which is made if need be; `notes`
/// say why the losses of plain runs cannot be compared. Returns the files' paths; the last is the
/// page, `report.html`, which therefore exists only beside all that belongs to it.
///
/// # Errors
/// Those of the file system, with the path, and those of the drawing libraries, with the figure.
pub(crate) fn write(
    folder: &Path,
    result: Option<&StudyResult>,
    runs: &[RunSeries],
    title: &str,
    notes: &[String],
) -> Result<Vec<PathBuf>> {
    let content = Content::new(title, result, runs).with_notes(notes);
    let figures = Figures::draw(&content)?;
    let mut written = csv_files::all(&content)?;
    let rasterizer = Rasterizer::new();
    for figure in figures.iter() {
        let svg = figure.to_file();
        let png =
            rasterizer.png(&svg).with_context(|| format!("cannot make the picture {}.png", figure.name))?;
        written.push((format!("{}.svg", figure.name), svg.into_bytes()));
        written.push((format!("{}.png", figure.name), png));
    }
    written.push(("report.html".into(), page::render(&content, &figures).into_bytes()));
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let replace = |(name, bytes): &(String, Vec<u8>)| {
        let path = folder.join(name);
        whole_file::replace(&path, bytes).map(|()| path)
    };
    written.iter().map(replace).collect()
}

/// The page alone, as text.
///
/// # Errors
/// Those of the drawing libraries, with the figure.
pub(crate) fn page(result: Option<&StudyResult>, runs: &[RunSeries], title: &str) -> Result<String> {
    let content = Content::new(title, result, runs);
    let figures = Figures::draw(&content)?;
    Ok(page::render(&content, &figures))
}

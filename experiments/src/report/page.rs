//! The report as one HTML file that needs nothing else: no script, no font, no network.

mod evidence;
mod findings;
mod overview;
mod trust;

use maud::{DOCTYPE, Markup, PreEscaped, html};
use switchyard_ground::printable::printable;

use super::content::Content;
use super::figures::{Figure, Figures};
use super::table::Table;

const STYLE: &str = include_str!("page/style.css");
/// The browser itself refuses whatever is not in the file.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

/// A part of the page under a heading.
struct Section {
    id: &'static str,
    heading: &'static str,
    body: Markup,
}

/// The page.
pub(super) fn render(content: &Content, figures: &Figures) -> String {
    let sections = sections(content, figures);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (content.title) " - Switchyard report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="skip" href="#main" { "Skip to the content" }
                header {
                    p class="kind" { "Switchyard report" }
                    h1 { (content.title) }
                }
                (contents(&sections))
                main id="main" {
                    @for Section { id, heading, body } in &sections {
                        section aria-labelledby=(id) {
                            h2 id=(id) { (heading) }
                            (body)
                        }
                    }
                }
                footer { p { "All numbers are in the CSV files beside this page, the figures there as SVG and PNG." } }
            }
        }
    };
    // Names and messages are whatever the files of the runs say.
    printable(&page.into_string()).into_owned()
}

fn sections(content: &Content, figures: &Figures) -> Vec<Section> {
    let always = [
        overview::verdict(content),
        findings::losses(figures),
        findings::parameters(content, figures),
        findings::routing(content, figures),
        evidence::cost(content),
        evidence::alarms(content),
        evidence::runs(content),
    ];
    let of_study = content.result.into_iter().flat_map(|result| {
        [
            overview::comparisons(content, result, figures),
            overview::caveats(result),
            evidence::provenance(result),
        ]
    });
    let mut sections: Vec<Section> = always.into_iter().chain(of_study).collect();
    sections.sort_by_key(|section| ORDER.iter().position(|id| *id == section.id));
    sections
}

/// The ids of the sections from top to bottom.
const ORDER: [&str; 10] = [
    "verdict",
    "comparisons",
    "caveats",
    "losses",
    "parameters",
    "routing",
    "cost",
    "alarms",
    "runs",
    "provenance",
];

fn contents(sections: &[Section]) -> Markup {
    html! {
        nav aria-label="Contents" {
            ul {
                @for section in sections {
                    li { a href={ "#" (section.id) } { (section.heading) } }
                }
            }
        }
    }
}

/// A figure with its description and its numbers.
fn figure(figure: &Figure) -> Markup {
    html! {
        figure {
            div class="scroll drawing" role="region" tabindex="0" aria-label={ "Figure: " (figure.title) } {
                (PreEscaped(figure.to_inline()))
            }
            figcaption { (figure.description) }
            @if !figure.numbers.is_empty() {
                details {
                    summary { "Numbers of: " (figure.title) }
                    (figure.numbers.to_html())
                }
            }
        }
    }
}

/// A table, or a sentence if it is empty.
fn table_or(table: &Table, otherwise: &str) -> Markup {
    html! {
        @if table.is_empty() { p { (otherwise) } } @else { (table.to_html()) }
    }
}

//! A table of texts, as the page shows it.

use maud::{Markup, html};

/// A table; the first cell of each row is its heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    caption: String,
    /// Columns from the left that hold words; the others hold numbers.
    num_text_columns: usize,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(caption: impl Into<String>, num_text_columns: usize, head: &[&str]) -> Self {
        let head = head.iter().map(ToString::to_string).collect();
        Self { caption: caption.into(), num_text_columns, head, rows: Vec::new() }
    }

    /// The table with `rows`.
    pub(super) fn with_rows(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.rows.extend(rows);
        self
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table in a box of its own that scrolls, with the keyboard too.
    pub(super) fn to_html(&self) -> Markup {
        html! {
            div class="scroll" role="region" tabindex="0" aria-label=(self.caption) {
                table {
                    caption { (self.caption) }
                    thead {
                        tr {
                            @for (column, head) in self.head.iter().enumerate() {
                                th scope="col" class=[self.class_of(column)] { (head) }
                            }
                        }
                    }
                    tbody {
                        @for row in &self.rows { tr { (self.cells(row)) } }
                    }
                }
            }
        }
    }

    fn cells(&self, row: &[String]) -> Markup {
        html! {
            @for (column, cell) in row.iter().enumerate() {
                @if column == 0 {
                    th scope="row" { (cell) }
                } @else {
                    td class=[self.class_of(column)] { (cell) }
                }
            }
        }
    }

    fn class_of(&self, column: usize) -> Option<&'static str> {
        (column >= self.num_text_columns).then_some("number")
    }
}

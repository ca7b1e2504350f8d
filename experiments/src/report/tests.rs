//! Laws of the whole report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::series::RunSeries;
use super::{sample, write};
use crate::study::result::StudyResult;

/// The files of a report by name.
fn files_of(result: Option<&StudyResult>, runs: &[RunSeries]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let paths = write(folder.path(), result, runs, "Does sparsity pay?", &[]).unwrap();
    assert_eq!(paths.last().unwrap().file_name().unwrap(), "report.html");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
    let files: BTreeMap<_, _> = paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect();
    assert_eq!(
        files.len(),
        fs::read_dir(folder.path()).unwrap().count(),
        "a file is left over or written twice"
    );
    files
}

fn text(files: &BTreeMap<String, Vec<u8>>, name: &str) -> String {
    String::from_utf8(files[name].clone()).unwrap()
}

fn study_files() -> BTreeMap<String, Vec<u8>> {
    let (result, runs) = sample::study("top-2 of 32");
    files_of(Some(&result), &runs)
}

#[test]
fn a_study_has_every_figure_twice_and_every_table() {
    let files = study_files();
    let figures = [
        "loss-vs-steps",
        "loss-vs-tokens",
        "loss-vs-active-flops",
        "loss-vs-seconds",
        "gap",
        "gauge",
        "parameters",
        "load-top-2-of-8",
        "load-top-2-of-32",
        "entropy",
    ];
    let tables = ["curves", "runs", "sources", "load", "routing", "alarms", "comparisons", "pairs", "gauge"];
    let pictures = figures.iter().flat_map(|name| [format!("{name}.svg"), format!("{name}.png")]);
    let mut expected: Vec<String> = pictures.chain(tables.iter().map(|name| format!("{name}.csv"))).collect();
    expected.push("report.html".into());
    expected.sort();
    assert_eq!(files.keys().cloned().collect::<Vec<_>>(), expected);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    assert!(study_files() == study_files());
}

#[test]
fn the_verdict_comes_first() {
    let page = text(&study_files(), "report.html");
    let place = |text: &str| page.find(text).unwrap_or_else(|| panic!("no {text}"));
    let order =
        ["<h1>", "beats dense by", "id=\"comparisons\"", "id=\"losses\"", "id=\"cost\"", "id=\"provenance\""];
    assert!(order.map(place).is_sorted());
    for text in
        ["not reached by 1 of 5", "\u{2265} ", "5 seeds", "16 of 20 runs", "studies/does-sparsity-pay"]
    {
        assert!(page.contains(text), "{text}");
    }
}

#[test]
fn plain_runs_have_no_verdict_and_say_so() {
    let (_, runs) = sample::study("top-2 of 32");
    let files = files_of(None, &runs);
    let page = text(&files, "report.html");
    assert!(page.contains("No verdict: these are plain runs"));
    assert!(!page.contains("id=\"comparisons\"") && !page.contains("id=\"provenance\""));
    assert!(files.contains_key("loss-vs-steps.svg") && files.contains_key("parameters.png"));
    assert!(!files.contains_key("comparisons.csv") && !files.contains_key("gap.svg"));
}

#[test]
fn a_report_of_nothing_is_still_a_page() {
    let page = text(&files_of(None, &[]), "report.html");
    assert!(page.contains("There is no run.") && page.contains("No run has an evaluation yet."));
}

#[test]
fn a_label_cannot_bring_markup() {
    let (result, runs) = sample::study("<script>alert('1')</script>\" onload=\"&");
    let files = files_of(Some(&result), &runs);
    for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with(".png") && !name.ends_with(".csv")) {
        let text = std::str::from_utf8(bytes).unwrap();
        assert!(!text.contains("<script") && !text.contains("\" onload"), "{name}");
        assert!(!name.contains(['<', '/', '"']), "{name}");
    }
    assert!(text(&files, "report.html").contains("&lt;script&gt;"));
}

#[test]
fn control_characters_reach_no_file_of_a_report() {
    let (result, mut runs) = sample::study("a\u{1b}]52;c;eA==\u{7}\u{ffff}\u{b}");
    runs[0].label = "\u{9b}31m\r".into();
    for run in &mut runs {
        run.alarms.iter_mut().for_each(|alarm| alarm.message.push_str("\u{1b}[2J\0"));
    }
    let files = files_of(Some(&result), &runs);
    for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with(".png")) {
        let text = std::str::from_utf8(bytes).unwrap();
        let bad = text.chars().find(|letter| letter.is_control() && !"\n\t".contains(*letter));
        assert_eq!(bad, None, "{name}");
        assert!(!name.contains(char::is_control), "{name:?}");
    }
    assert!(text(&files, "report.html").contains("\u{fffd}]52;c;eA=="));
}

/// The page shows one figure of the loss at a time, of which the first is shown until another is
/// chosen.
#[test]
fn the_axis_of_the_loss_is_chosen_and_the_first_one_is_shown() {
    let files = study_files();
    let page = text(&files, "report.html");
    let axes = ["steps", "tokens", "active-flops", "seconds"];
    let buttons: Vec<&str> =
        page.split("<input ").skip(1).map(|rest| &rest[..rest.find('>').unwrap()]).collect();
    assert_eq!(buttons.len(), axes.len());
    for (index, (button, axis)) in buttons.iter().zip(axes).enumerate() {
        assert!(button.contains("type=\"radio\" name=\"loss-axis\""), "{button}");
        assert!(button.contains(&format!("id=\"loss-vs-{axis}-choice\"")), "{button}");
        assert_eq!(button.contains("checked"), index == 0, "{button}");
        assert!(page.contains(&format!("<label for=\"loss-vs-{axis}-choice\">")), "{axis}");
        let rule = format!("input:nth-of-type({0}):checked ~ .choices > figure:nth-of-type({0})", index + 1);
        assert!(page.contains(&rule), "{rule}");
    }
    let (_, choices) = page.split_once("<div class=\"choices\">").unwrap();
    let shown: Vec<usize> =
        axes.map(|axis| choices.find(&format!("id=\"loss-vs-{axis}-title\"")).unwrap()).into();
    assert!(shown.is_sorted(), "figures and buttons have one order");
}

#[test]
fn nothing_is_fetched() {
    let files = study_files();
    let page = text(&files, "report.html");
    for reference in ["http:", "https:", "src=", "@import", "url(", "<link", "<script", "<iframe", "<img"] {
        assert!(!page.contains(reference), "{reference}");
    }
    assert!(page.split("href=\"").skip(1).all(|link| link.starts_with('#')));
    for (name, bytes) in files.iter().filter(|(name, _)| name.ends_with(".svg")) {
        let svg = std::str::from_utf8(bytes).unwrap().replace("http://www.w3.org/2000/svg", "");
        assert!(!svg.contains("http") && !svg.contains("href"), "{name}");
    }
}

#[test]
fn every_figure_is_named_and_described() {
    let files = study_files();
    let page = text(&files, "report.html");
    let names: Vec<&str> = files.keys().filter_map(|name| name.strip_suffix(".svg")).collect();
    assert_eq!(page.matches("<svg ").count(), names.len());
    for name in names {
        assert_eq!(page.matches(&format!("id=\"{name}-title\"")).count(), 1, "{name}");
        assert_eq!(page.matches(&format!("id=\"{name}-desc\"")).count(), 1, "{name}");
        assert!(
            page.contains(&format!("role=\"img\" aria-labelledby=\"{name}-title {name}-desc\"")),
            "{name}"
        );
        let svg = text(&files, &format!("{name}.svg"));
        assert!(svg.contains("<title id=\"title\">") && svg.contains("<desc id=\"desc\">"), "{name}");
        assert!(svg.contains("fill=\"#FFFFFF\""), "{name} has no ground");
    }
    let in_figures = page.split("<figure>").skip(1).map(|rest| rest.split("</figure>").next().unwrap());
    assert!(in_figures.into_iter().all(|figure| figure.contains("<details>") && figure.contains("<table>")));
}

#[test]
fn the_page_has_no_fixed_ink() {
    let page = text(&study_files(), "report.html");
    let drawn = page.split("<svg ").skip(1).map(|rest| rest.split("</svg>").next().unwrap());
    for svg in drawn {
        for color in ["#282C34", "#D8DCE2", "#ECEEF2", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#FFFFFF"]
        {
            assert!(!svg.contains(color), "{color} in {}", &svg[..200]);
        }
    }
}

#[test]
fn headings_do_not_skip_a_level() {
    let page = text(&study_files(), "report.html");
    let levels: Vec<u32> =
        page.split("<h").skip(1).filter_map(|rest| rest.chars().next()?.to_digit(10)).collect();
    assert_eq!(levels.iter().filter(|level| **level == 1).count(), 1);
    assert!(levels.windows(2).all(|pair| pair[1] <= pair[0] + 1), "{levels:?}");
}

#[test]
fn numbers_survive_the_csv_files() {
    let (result, runs) = sample::study("top-2, \"of\" 32");
    let files = files_of(Some(&result), &runs);
    let mut curves = csv::Reader::from_reader(files["curves.csv"].as_slice());
    let read: Vec<(String, f64, f64)> = curves
        .records()
        .map(|row| row.unwrap())
        .map(|row| (row[0].to_string(), row[6].parse().unwrap(), row[8].parse().unwrap()))
        .collect();
    let written: Vec<(String, f64, f64)> = runs
        .iter()
        .flat_map(|run| run.evals.iter().map(|eval| (run.arm.clone(), eval.active_flops, eval.loss_nats)))
        .collect();
    assert_eq!(read, written);
    let mut comparisons = csv::Reader::from_reader(files["comparisons.csv"].as_slice());
    let means: Vec<f64> = comparisons.records().map(|row| row.unwrap()[5].parse().unwrap()).collect();
    let expected = result.comparisons.iter().flat_map(|arm| arm.axes.iter().map(|axis| axis.difference.mean));
    assert_eq!(means, expected.collect::<Vec<_>>());
}

#[test]
fn the_load_of_a_bin_adds_up_in_its_csv() {
    let files = study_files();
    let mut load = csv::Reader::from_reader(files["load.csv"].as_slice());
    let mut sums: BTreeMap<(String, String, String), f64> = BTreeMap::new();
    for row in load.records().map(Result::unwrap) {
        *sums.entry((row[1].into(), row[3].into(), row[4].into())).or_default() +=
            row[6].parse::<f64>().unwrap();
    }
    assert_eq!(sums.len(), 2 * 4 * 60, "arms, layers, bins");
    assert!(sums.values().all(|sum| (sum - 1.0).abs() < 1e-5));
}

#[test]
fn a_run_that_diverged_does_not_break_the_report() {
    let (mut result, mut runs) = sample::study("top-2 of 32");
    for run in runs.iter_mut().filter(|run| run.arm == "dense") {
        run.evals.iter_mut().for_each(|eval| eval.loss_nats = f64::NAN);
    }
    result.arms[0].runs.iter_mut().for_each(|run| run.final_loss_nats = None);
    let svg = text(&files_of(Some(&result), &runs), "loss-vs-steps.svg");
    assert!(!svg.contains("NaN") && !svg.contains("dense") && svg.contains("top-2 of 32, 5 seeds"));
}

/// A run that is evaluated at its end alone has no curve; the runs of all budgets have one
/// together.
#[test]
fn runs_without_a_curve_of_their_own_are_joined_over_the_budgets() {
    let (result, mut runs) = sample::study("top-2 of 32");
    for run in &mut runs {
        run.evals.drain(..run.evals.len() - 1);
    }
    let page = text(&files_of(Some(&result), &runs), "report.html");
    assert!(page.contains("The ends of the runs of each budget."));
    let (_, table) = page.split_once("Validation loss against optimizer steps</caption>").unwrap();
    let (table, _) = table.split_once("</table>").unwrap();
    let rows_of = |arm: &str| table.matches(&format!(">{arm}<")).count();
    assert_eq!(["dense", "top-2 of 8", "top-2 of 32"].map(rows_of), [4; 3], "{table}");
}

#[test]
fn what_all_arms_change_alike_is_said_once() {
    let (mut result, runs) = sample::study("top-2 of 32");
    for arm in &mut result.arms {
        arm.overrides.insert(0, "train.seq_len=64".into());
    }
    let page = text(&files_of(Some(&result), &runs), "report.html");
    assert_eq!(page.matches("train.seq_len=64").count(), 1);
    assert!(page.contains("<code>train.seq_len=64</code>"));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = write(&folder.path().join("file/report"), None, &[], "title", &[]).unwrap_err();
    assert!(format!("{error:#}").contains("file/report"), "{error:#}");
}

/// The colours of a theme: its custom properties.
fn theme(css: &str) -> BTreeMap<&str, [f64; 3]> {
    let channel = |hex: &str| f64::from(u8::from_str_radix(hex, 16).unwrap()) / 255.0;
    css.lines()
        .filter_map(|line| line.trim().strip_prefix("--")?.trim_end_matches(';').split_once(": #"))
        .map(|(name, hex)| (name, [channel(&hex[..2]), channel(&hex[2..4]), channel(&hex[4..6])]))
        .collect()
}

/// WCAG 2.2, contrast ratio.
fn contrast(first: [f64; 3], second: [f64; 3]) -> f64 {
    let linear = |c: f64| if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) };
    let luminance =
        |[red, green, blue]: [f64; 3]| 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    let (first, second) = (luminance(first), luminance(second));
    (first.max(second) + 0.05) / (first.min(second) + 0.05)
}

#[test]
fn text_and_curves_stand_out_in_both_themes() {
    let style = include_str!("page/style.css");
    let blocks: Vec<&str> = style.split(":root {").skip(1).take(2).collect();
    for block in blocks {
        let colors = theme(block.split('}').next().unwrap());
        for ground in ["page", "shade"] {
            for text in ["ink", "soft", "link", "wins", "loses", "fragile"] {
                let ratio = contrast(colors[text], colors[ground]);
                assert!(ratio >= 4.5, "{text} on {ground}: {ratio:.2}");
            }
        }
        for arm in ["arm-0", "arm-1", "arm-2", "arm-3"] {
            let ratio = contrast(colors[arm], colors["page"]);
            assert!(ratio >= 3.0, "{arm}: {ratio:.2}");
        }
    }
}

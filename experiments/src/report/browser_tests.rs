//! The page in a real browser: `cargo test -- --ignored browser`, where `chromium` is in the
//! `PATH`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};
use switchyard_ground::say;

use super::{sample, write};

/// What the copy of the page tells the frame around it, once loaded and with everything unfolded.
const PROBE: &str = r#"<script>
const errors = [];
addEventListener("error", event => errors.push(event.message));
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(details => details.open = true);
  const width = document.documentElement.clientWidth;
  const sticksOut = element => !element.closest(".scroll, pre, svg") && element.getBoundingClientRect().right > width + 1;
  const wide = [...document.body.querySelectorAll(":not(.skip)")].filter(sticksOut).map(element => element.outerHTML.slice(0, 60));
  if (document.documentElement.scrollWidth > width) errors.push("scrolls to " + document.documentElement.scrollWidth);
  if (wide.length) errors.push("wider than the page: " + wide.join(" "));
  const fetched = performance.getEntriesByType("resource").map(entry => entry.name);
  if (fetched.length) errors.push("fetched " + fetched.join(" "));
  const ink = getComputedStyle(document.body).color;
  const strays = [...document.querySelectorAll("svg text")].filter(text => getComputedStyle(text).fill !== ink);
  if (strays.length) errors.push(strays.length + " texts of figures do not follow the theme");
  document.querySelectorAll("details").forEach(details => details.open = false);
  parent.postMessage(errors.join("; ") || "width " + width + " is fine", "*");
});
</script>"#;

/// A browser window has a least width, a frame has none.
fn frame(width: u32) -> String {
    format!(
        "<!DOCTYPE html><html lang=\"en\"><title>waiting</title><body style=\"margin:0\">\
         <script>addEventListener(\"message\", event => document.title = event.data);</script>\
         <iframe src=\"page.html\" width=\"{width}\" height=\"9000\" style=\"border:0\"></iframe></body></html>"
    )
}

/// `chromium` in the `PATH`. Whoever asks for these tests wants them run: without a browser they
/// fail.
fn browser() -> PathBuf {
    let folders = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&folders).map(|folder| folder.join("chromium")).find(|path| path.is_file());
    found.expect("there is no `chromium` in the PATH: install it to test the page")
}

fn browse(browser: &Path, profile: &Path, arguments: &[&str], page: &Path) -> Output {
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-sync",
        ])
        .args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !log.contains("CONSOLE"), "{log}");
    output
}

/// The page as tested: with the probe instead of its policy, which forbids scripts, and in a theme.
fn tested_copy(page: &str, is_dark: bool) -> String {
    let policy = page.find("<meta http-equiv").unwrap();
    let end = policy + page[policy..].find('>').unwrap() + 1;
    let copy = format!("{}{PROBE}{}", &page[..policy], &page[end..]);
    let media = if is_dark { "@media all" } else { "@media not all" };
    copy.replace("@media (prefers-color-scheme: dark)", media)
}

#[test]
#[ignore = "needs the browser `chromium`"]
fn the_page_fits_a_desk_and_a_phone_in_both_themes() {
    let browser = browser();
    let folder = tempfile::tempdir().unwrap();
    let (result, runs) = sample::study("top-2 of 32");
    write(folder.path(), Some(&result), &runs, "Does sparsity pay?", &[]).unwrap();
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    let pictures = env::temp_dir().join("switchyard-report");
    fs::create_dir_all(&pictures).unwrap();
    for (width, is_dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
        let outer = folder.path().join("frame.html");
        fs::write(folder.path().join("page.html"), tested_copy(&page, is_dark)).unwrap();
        fs::write(&outer, frame(width)).unwrap();
        let dom = browse(&browser, folder.path(), &["--dump-dom"], &outer).stdout;
        let dom = String::from_utf8(dom).unwrap();
        assert!(
            dom.contains(&format!("<title>width {width} is fine</title>")),
            "{}",
            &dom[..dom.len().min(600)]
        );
        let theme = if is_dark { "dark" } else { "light" };
        let picture = format!("--screenshot={}", pictures.join(format!("{theme}-{width}.png")).display());
        browse(&browser, folder.path(), &[&picture, &format!("--window-size={width},9000")], &outer);
    }
    say!("pictures to look at: {}", pictures.display());
}

#[test]
#[ignore = "needs the browser `chromium`"]
fn the_page_prints() {
    let browser = browser();
    let folder = tempfile::tempdir().unwrap();
    let (result, runs) = sample::study("top-2 of 32");
    write(folder.path(), Some(&result), &runs, "Does sparsity pay?", &[]).unwrap();
    let file = folder.path().join("report.pdf");
    let print = format!("--print-to-pdf={}", file.display());
    browse(&browser, folder.path(), &[&print, "--no-pdf-header-footer"], &folder.path().join("report.html"));
    assert!(fs::read(&file).unwrap().starts_with(b"%PDF"));
}

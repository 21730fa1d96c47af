// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of `xsplice report` in a real browser: accessibility by axe-core, the
//! widths of phones, tablets and desktops, dark mode, the keyboard, and print.

mod devtools;

use anyhow::{Context as _, ensure};
use devtools::Tab;
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_e2e::{Base, base, build, forged, local, repository};

/// Widths in pixels of a phone, a tablet and a desktop.
const WIDTHS: [u32; 3] = [360, 768, 1280];

/// The browser's findings.
#[derive(Debug, Deserialize)]
struct Outcome {
    /// By how many pixels the page is wider than its window.
    overflow: i64,
    background: String,
    violations: Vec<serde_json::Value>,
    /// Lines distinguished only by colour.
    unmarked: Vec<String>,
}

/// The script that runs in the page after axe-core.
const PROBE: &str = "
axe.run().then(result => {
  const root = document.documentElement;
  const mark = (line, side) => {
    const mark = line.querySelector(side + ' .mark');
    return mark && mark.getClientRects().length ? mark.textContent : '';
  };
  const marked = line => {
    const [old, now] = [mark(line, '.old'), mark(line, '.new')];
    const wanted = { changed: '\u{2212}+', added: '+', removed: '\u{2212}' };
    return old + now === wanted[line.className.split(' ')[1]];
  };
  const sign = { added: '+', removed: '-' };
  const unmarked = [
    ...[...document.querySelectorAll('.line:not(.same)')].filter(line => !marked(line)),
    ...[...document.querySelectorAll('pre > .added, pre > .removed')]
      .filter(line => line.textContent[0] !== sign[line.className]),
  ];
  const outcome = parent.document.createElement('pre');
  outcome.id = 'outcome';
  outcome.textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
    unmarked: unmarked.map(line => line.outerHTML),
    violations: result.violations.map(v => [v.id, v.impact, v.nodes.map(n => n.html)]),
  });
  parent.document.body.append(outcome);
});";

struct Browser {
    directory: tempfile::TempDir,
}

impl Browser {
    fn run(&self, options: &[&str], page: &Path) -> anyhow::Result<String> {
        let profile = tempfile::tempdir_in(self.directory.path())?;
        let output = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args(["--disable-sync", "--disable-quic"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(options)
            .arg(format!("file://{}", page.display()))
            .output()
            .context("chromium is needed: run `cargo xtask test`")?;
        ensure!(output.status.success(), "chromium: {output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Shows `page` in a frame that is `width` pixels wide and probes it.
    fn probe(&self, page: &str, width: u32, dark: bool) -> anyhow::Result<Outcome> {
        let axe = std::env::var("XSPLICE_AXE")
            .context("XSPLICE_AXE is not set: run these tests with `cargo xtask test`")?;
        let axe = std::fs::read_to_string(axe)?.replace("</script", "<\\/script");
        let scripts = format!("<script>{axe}</script><script>{PROBE}</script></html>");
        let page = page.replace("</html>", &scripts);
        let page = page.replace('&', "&amp;").replace('"', "&quot;");
        let frame = self.directory.path().join("frame.html");
        let frame_page = format!(
            "<!DOCTYPE html><title>frame</title><iframe title=\"page\" width=\"{width}\" \
             height=\"800\" style=\"border: 0\" srcdoc=\"{page}\"></iframe>"
        );
        std::fs::write(&frame, frame_page)?;
        let scheme = format!("--blink-settings=preferredColorScheme={}", u8::from(!dark));
        let options = [
            &scheme,
            "--virtual-time-budget=60000",
            "--window-size=1400,900",
        ];
        let text = self.run(&[&options[..], &["--dump-dom"]].concat(), &frame)?;
        let outcome = text
            .rsplit_once("<pre id=\"outcome\">")
            .and_then(|(_, rest)| rest.split_once("</pre>"))
            .context("the page was not tried")?;
        let outcome = outcome.0.replace("&lt;", "<").replace("&gt;", ">");
        Ok(serde_json::from_str(&outcome.replace("&amp;", "&"))?)
    }
}

/// The page about `payload`, with additional arguments `more`.
fn page(base: &Base, payload: &Path, more: &[&str]) -> anyhow::Result<PathBuf> {
    let text = |path: &Path| path.display().to_string();
    let page = payload.with_extension("html");
    let (payload, syms, to) = (text(payload), text(&base.xen_syms), text(&page));
    let report = ["report", &payload, "--xen-syms", &syms, "-o", &to];
    let output = local(&[&report[..], more].concat())?;
    ensure!(page.exists(), "{output:?}");
    Ok(page)
}

/// A page with all sections and no problems.
fn good(base: &Base, directory: &Path) -> anyhow::Result<PathBuf> {
    let payload = directory.join("two-files.livepatch");
    let patch = repository().join("examples/xen-4.17/two-files.patch");
    build(base, &patch, &payload)?;
    page(base, &payload, &["-p", &patch.display().to_string()])
}

#[test]
fn the_page_is_accessible_on_every_screen_and_on_paper() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let page = good(&base()?, directory.path())?;
    let text = std::fs::read_to_string(&page)?;
    let browser = Browser { directory };
    let mut backgrounds = Vec::new();
    for dark in [false, true] {
        for width in WIDTHS {
            let outcome = browser.probe(&text, width, dark)?;
            let what = format!("{width} pixels, dark: {dark}: {outcome:?}");
            ensure!(outcome.violations.is_empty(), "{what}");
            ensure!(outcome.overflow <= 0, "{what}");
            ensure!(outcome.unmarked.is_empty(), "{what}");
            backgrounds.push(outcome.background);
        }
    }
    ensure!(backgrounds[0] != backgrounds[3], "{backgrounds:?}");

    let broken = text.replace("<html lang=\"en\">", "<html>");
    let outcome = browser.probe(&broken, WIDTHS[2], false)?;
    ensure!(!outcome.violations.is_empty(), "axe-core finds nothing");
    let broken = text.replace(
        "<span class=\"mark\">+</span>",
        "<span class=\"mark\"></span>",
    );
    let outcome = browser.probe(&broken, WIDTHS[0], false)?;
    ensure!(!outcome.unmarked.is_empty(), "a line without its mark");

    // Content that is folded on screen is printed.
    let (_, folded) = text.split_once("</summary>").context("nothing is folded")?;
    let first = folded
        .split_once("<span>")
        .and_then(|(_, rest)| rest.split_once("</span>"));
    let (first, _) = first.context("nothing is in the fold")?;
    let pdf = browser.directory.path().join("page.pdf");
    let to = format!("--print-to-pdf={}", pdf.display());
    browser.run(&["--no-pdf-header-footer", &to], &page)?;
    let output = Command::new("pdftotext").arg(&pdf).arg("-").output();
    let output = output.context("pdftotext is needed: run `cargo xtask test`")?;
    let paper = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, after_summary) = paper
        .split_once("instructions without a difference")
        .context("the fold is not on paper")?;
    let near = after_summary.lines().take(8).collect::<Vec<_>>().join(" ");
    ensure!(near.contains(first), "{first} is not on paper: {near}");
    ensure!(paper.contains("Reviewed by"), "no room for the decision");
    Ok(())
}

/// Pages with a refusal; with overridden refusals, left-out changes, warnings and
/// notes, and unbreakable names.
#[test]
fn pages_with_problems_work_as_well() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let refused = directory.path().join("refused.livepatch");
    let unmet = base.test_payloads.join("xen_bye_world.livepatch");
    std::fs::copy(unmet, &refused)?;
    let forged = directory.path().join("forged.livepatch");
    std::fs::write(&forged, forged::payload(&base, true)?)?;
    let pages = [
        (page(&base, &refused, &[])?, "It would not apply"),
        (page(&base, &forged, &[])?, "Refusals overridden"),
    ];
    let browser = Browser { directory };
    for (page, words) in pages {
        let text = std::fs::read_to_string(&page)?;
        ensure!(text.contains(words), "no {words} in {}", page.display());
        for (width, dark) in [(WIDTHS[0], false), (WIDTHS[1], true), (WIDTHS[2], false)] {
            let outcome = browser.probe(&text, width, dark)?;
            let what = format!("{}, {width} pixels: {outcome:?}", page.display());
            ensure!(outcome.violations.is_empty(), "{what}");
            ensure!(outcome.overflow <= 0, "{what}");
            ensure!(outcome.unmarked.is_empty(), "{what}");
        }
    }
    Ok(())
}

/// Tab reaches each fold; Enter opens it and the space bar closes it.
#[test]
fn folds_open_with_the_keyboard() -> anyhow::Result<()> {
    const AT: &str = "[...document.querySelectorAll('summary')].indexOf(document.activeElement)";
    const OPEN: &str = "document.activeElement.parentElement.open";
    let directory = tempfile::tempdir()?;
    let page = good(&base()?, directory.path())?;
    let profile = directory.path().join("profile");
    let mut tab = Tab::open(&profile, &page)?;
    let folds = tab.evaluate("document.querySelectorAll('summary').length")?;
    let folds = folds.as_u64().context("no number")?;
    ensure!(folds > 1, "{folds} folds");
    let mut reached = Vec::new();
    // There are other focusable elements, none of them hidden in a fold.
    for _ in 0..folds + 100 {
        tab.press("Tab")?;
        let Some(fold) = tab.evaluate(AT)?.as_u64() else {
            continue;
        };
        ensure!(tab.evaluate(OPEN)? == false, "fold {fold} is open");
        tab.press("Enter")?;
        ensure!(
            tab.evaluate(OPEN)? == true,
            "Enter does not open fold {fold}"
        );
        tab.press("Space")?;
        ensure!(
            tab.evaluate(OPEN)? == false,
            "space does not close fold {fold}"
        );
        reached.push(fold);
        if reached.len() as u64 == folds {
            break;
        }
    }
    ensure!(
        reached.iter().copied().eq(0..folds),
        "of {folds}: {reached:?}"
    );
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The page of `xsplice report` in a real browser: accessibility by axe-core, the
//! widths of phones, tablets and desktops, dark mode, and print.

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_e2e::{base, build, local, repository};

/// Widths in pixels of a phone, a tablet and a desktop.
const WIDTHS: [u32; 3] = [360, 768, 1280];

/// What the browser found.
#[derive(Debug, Deserialize)]
struct Outcome {
    /// How many pixels the page is wider than its window.
    overflow: i64,
    background: String,
    violations: Vec<serde_json::Value>,
}

/// What runs in the page, after axe-core.
const PROBE: &str = "
axe.run().then(result => {
  const root = document.documentElement;
  const outcome = parent.document.createElement('pre');
  outcome.id = 'outcome';
  outcome.textContent = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth,
    background: getComputedStyle(document.body).backgroundColor,
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

    /// Shows `page` in a frame that is `width` pixels wide and tries it there.
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

fn page(directory: &Path) -> anyhow::Result<PathBuf> {
    let base = base()?;
    let text = |path: &Path| path.display().to_string();
    let payload = directory.join("two-files.livepatch");
    let page = directory.join("page.html");
    let patch = repository().join("examples/xen-4.17/two-files.patch");
    build(&base, &patch, &payload)?;
    let (payload, patch) = (text(&payload), text(&patch));
    let (syms, to) = (text(&base.xen_syms), text(&page));
    let report = [
        "report",
        &payload,
        "--xen-syms",
        &syms,
        "-p",
        &patch,
        "-o",
        &to,
    ];
    let output = local(&report)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(page)
}

#[test]
fn the_page_works_for_everybody_on_every_screen_and_on_paper() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let page = page(directory.path())?;
    let text = std::fs::read_to_string(&page)?;
    let browser = Browser { directory };
    let mut backgrounds = Vec::new();
    for dark in [false, true] {
        for width in WIDTHS {
            let outcome = browser.probe(&text, width, dark)?;
            let what = format!("{width} pixels, dark: {dark}: {outcome:?}");
            ensure!(outcome.violations.is_empty(), "{what}");
            ensure!(outcome.overflow <= 0, "{what}");
            backgrounds.push(outcome.background);
        }
    }
    ensure!(backgrounds[0] != backgrounds[3], "{backgrounds:?}");

    let broken = text.replace("<html lang=\"en\">", "<html>");
    let outcome = browser.probe(&broken, WIDTHS[2], false)?;
    ensure!(!outcome.violations.is_empty(), "axe-core finds nothing");

    // What is folded on the screen is there on paper.
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

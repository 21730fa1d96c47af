// SPDX-License-Identifier: MIT OR Apache-2.0

//! A Chromium tab with simulated keyboard input, through the DevTools protocol:
//! zero-terminated JSON objects on the browser's descriptors 3 and 4.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Closed on drop.
pub(super) struct Tab {
    browser: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    session: Option<String>,
    last: u64,
}

impl Tab {
    /// Shows `page`, with a browser that keeps its state in `profile`.
    pub(super) fn open(profile: &Path, page: &Path) -> anyhow::Result<Self> {
        let mut browser = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 4>&1 0</dev/null 1>&2", "sh"])
            .args(["chromium", "--headless", "--no-sandbox", "--disable-gpu"])
            .args(["--no-first-run", "--disable-background-networking"])
            .args([
                "--disable-component-update",
                "--disable-sync",
                "--disable-quic",
            ])
            .args(["--remote-debugging-pipe", "about:blank"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let to = browser.stdin.take().context("no input")?;
        let from = browser.stdout.take().context("no output")?;
        let mut tab = Self {
            browser,
            to,
            from: BufReader::new(from),
            session: None,
            last: 0,
        };
        let targets = tab.call("Target.getTargets", json!({}))?;
        let all = targets["targetInfos"].as_array().context("no targets")?;
        let target = all.iter().find(|target| target["type"] == "page");
        let target = &target.context("no tab")?["targetId"];
        let attached = json!({ "targetId": target, "flatten": true });
        let attached = tab.call("Target.attachToTarget", attached)?;
        tab.session = attached["sessionId"].as_str().map(str::to_owned);
        tab.call("Page.enable", json!({}))?;
        let url = format!("file://{}", page.display());
        tab.call("Page.navigate", json!({ "url": url }))?;
        while tab.next()?["method"] != "Page.loadEventFired" {}
        Ok(tab)
    }

    /// The value of a JavaScript expression.
    pub(super) fn evaluate(&mut self, expression: &str) -> anyhow::Result<Value> {
        let result = self.call("Runtime.evaluate", json!({ "expression": expression }))?;
        Ok(result["result"]["value"].clone())
    }

    /// Presses and releases a key.
    pub(super) fn press(&mut self, key: &str) -> anyhow::Result<()> {
        let (key, number, text) = match key {
            "Tab" => ("Tab", 9, None),
            "Enter" => ("Enter", 13, Some("\r")),
            "Space" => (" ", 32, Some(" ")),
            _ => bail!("no such key: {key}"),
        };
        let mut event = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": number });
        if let Some(text) = text {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event.clone())?;
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event)?;
        Ok(())
    }

    fn call(&mut self, method: &str, params: Value) -> anyhow::Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        write!(self.to, "{message}\0")?;
        self.to.flush()?;
        loop {
            let answer = self.next()?;
            if answer["id"] == self.last {
                return match answer.get("error") {
                    Some(error) => bail!("{method}: {error}"),
                    None => Ok(answer["result"].clone()),
                };
            }
        }
    }

    fn next(&mut self) -> anyhow::Result<Value> {
        let mut message = Vec::new();
        self.from.read_until(0, &mut message)?;
        let end = message.pop();
        end.context("chromium is needed: run `cargo xtask test`; it has ended")?;
        Ok(serde_json::from_slice(&message)?)
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        // It may already have exited.
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Progress of long work: a bar on a terminal, or log lines with `-v`.

use crate::output::complain;
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use xsplice_system::lines::{self, Detail};

const COUNTED: &str = "{msg:>12} [{bar:30}] {pos}/{len}";
/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(100);
const UNCOUNTED: &str = "{spinner} {prefix} {wide_msg}";

/// Shows stages of work and their steps, on standard error.
pub(crate) struct Shown {
    kind: Kind,
    bar: Mutex<ProgressBar>,
}

#[derive(PartialEq)]
enum Kind {
    Nothing,
    /// A line for each stage and each named step, with the time since this.
    Lines(Instant),
    Bar,
}

impl Shown {
    /// As the command line requests it; with `json`, there is no bar.
    pub(crate) fn new(json: bool) -> Self {
        let kind = match lines::detail() {
            Detail::Verbose => Kind::Lines(Instant::now()),
            Detail::Normal if !json && std::io::stderr().is_terminal() => Kind::Bar,
            Detail::Normal | Detail::Quiet => Kind::Nothing,
        };
        Self {
            kind,
            bar: Mutex::new(ProgressBar::hidden()),
        }
    }

    /// Starts a step of unknown length.
    pub(crate) fn wait(&self, what: &str) {
        self.line(what);
        let bar = ProgressBar::new_spinner().with_prefix(format!("{what}:"));
        self.begin(bar, UNCOUNTED);
        self.with(|bar| bar.enable_steady_tick(TICK));
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        self.with(|bar| bar.finish_and_clear());
    }

    fn with(&self, act: impl FnOnce(&mut ProgressBar)) {
        act(&mut self.bar.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn line(&self, text: &str) {
        if let Kind::Lines(start) = self.kind {
            complain!("{:8.2} s  {text}", start.elapsed().as_secs_f64());
        }
    }

    fn begin(&self, bar: ProgressBar, template: &str) {
        self.finish();
        if self.kind == Kind::Bar {
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("=> "));
            }
            self.with(|current| *current = bar);
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.finish();
    }
}

impl xsplice_generator::Progress for Shown {
    fn stage(&self, name: &str, steps: usize) {
        self.line(&format!("{name}: {steps} steps"));
        let bar = ProgressBar::new(steps as u64).with_message(name.to_owned());
        self.begin(bar, COUNTED);
    }

    fn step(&self) {
        self.with(|bar| bar.inc(1));
    }
}

impl xsplice_verify::Progress for Shown {
    fn stage(&self, name: &str) {
        self.wait(name);
    }

    fn step(&self, what: &str) {
        self.line(&format!("  {what}"));
        self.with(|bar| bar.set_message(what.to_owned()));
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor and dom0 print.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::Mutex;

/// What a crashing hypervisor prints.
const FATAL: [&str; 6] = [
    "FATAL TRAP",
    "Panic on CPU",
    "FATAL PAGE FAULT",
    "*** DOUBLE FAULT",
    "Xen BUG at",
    "(XEN) Assertion '",
];
/// Number of lines kept of a crash.
const CRASH_LINES: usize = 24;

/// The console so far.
#[derive(Debug, Default)]
pub(crate) struct Console {
    pub(crate) text: String,
    pub(crate) limit: usize,
    pub(crate) flooded: bool,
    pub(crate) closed: bool,
}

impl Console {
    /// The lines around the first sign of a crash.
    pub(crate) fn crash(&self) -> Option<Vec<String>> {
        let lines: Vec<&str> = self.text.lines().collect();
        let first = lines
            .iter()
            .position(|l| FATAL.iter().any(|f| l.contains(f)))?;
        // The lines before it show the location.
        let start = first.saturating_sub(CRASH_LINES / 2);
        Some(
            lines
                .iter()
                .skip(start)
                .take(CRASH_LINES)
                .map(|&l| l.to_owned())
                .collect(),
        )
    }

    /// The last lines.
    pub(crate) fn tail(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }
}

/// Reads the console from `stream` until it ends, or there is too much of it.
pub(crate) fn watch(stream: impl Read, console: &Mutex<Console>, on_line: Option<fn(&str)>) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while matches!(stream.read_until(b'\n', &mut line), Ok(size) if size > 0) {
        let Ok(mut console) = console.lock() else {
            return;
        };
        if console.text.len() + line.len() > console.limit {
            console.flooded = true;
            return;
        }
        let text = String::from_utf8_lossy(&line).replace('\r', "");
        console.text.push_str(&text);
        drop(console);
        if let Some(on_line) = on_line {
            on_line(text.trim_end_matches('\n'));
        }
        line.clear();
    }
    if let Ok(mut console) = console.lock() {
        console.closed = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn console(text: &str, limit: usize) -> Console {
        let console = Mutex::new(Console {
            limit,
            ..Console::default()
        });
        watch(text.as_bytes(), &console, None);
        console.into_inner().expect("no thread holds it")
    }

    #[test]
    fn a_crash_is_reported_with_the_lines_around_it() {
        let text = "(XEN) one\r\n(XEN) Panic on CPU 2:\r\n(XEN) FATAL TRAP: vector = 6\r\n";
        let lines = console(text, 1000).crash().expect("a crash");
        assert_eq!(
            lines,
            [
                "(XEN) one",
                "(XEN) Panic on CPU 2:",
                "(XEN) FATAL TRAP: vector = 6"
            ]
        );
    }

    #[test]
    fn ordinary_output_is_not_a_crash() {
        let text = "(XEN) livepatch: a finished APPLY with rc=0\n(XEN) Xen WARN at traps.c:1\n";
        let console = console(text, 1000);
        assert_eq!(console.crash(), None);
        assert!(!console.flooded);
    }

    #[test]
    fn output_beyond_the_limit_is_a_flood() {
        let console = console(&"line\n".repeat(10), 12);
        assert!(console.flooded);
        assert!(console.text.len() <= 12);
    }
}

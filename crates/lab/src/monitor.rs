// SPDX-License-Identifier: MIT OR Apache-2.0
//! Control of the machine from outside: hardware events and the console.

use crate::console::Console;
use serde_json::{Value, json};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// QEMU's machine protocol, and the console; used while a command runs in dom0.
#[derive(Debug)]
pub struct Monitor {
    line: BufReader<UnixStream>,
    console: Arc<Mutex<Console>>,
    timeout: Duration,
}

impl Monitor {
    pub(crate) fn new(
        line: UnixStream,
        console: Arc<Mutex<Console>>,
        timeout: Duration,
    ) -> io::Result<Self> {
        line.set_read_timeout(Some(timeout))?;
        let mut monitor = Self {
            line: BufReader::new(line),
            console,
            timeout,
        };
        let greeting = monitor.message()?;
        if greeting.get("QMP").is_none() {
            return Err(unexpected(&greeting));
        }
        monitor.execute(&json!({ "execute": "qmp_capabilities" }))?;
        Ok(monitor)
    }

    /// Runs a command of QEMU's human monitor, for example `nmi`: QMP has no command
    /// for machine checks.
    ///
    /// # Errors
    /// If QEMU does not answer in time, or prints anything: these commands only print
    /// errors.
    pub fn command(&mut self, command: &str) -> io::Result<()> {
        let printed = self.execute(&json!({
            "execute": "human-monitor-command",
            "arguments": { "command-line": command },
        }))?;
        match printed.as_str() {
            Some("") => Ok(()),
            _ => Err(unexpected(&printed)),
        }
    }

    /// Waits until the console has shown `text`.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for(&self, text: &str) -> io::Result<()> {
        self.wait_for_more(0, text)
    }

    /// Waits until the console has shown `text` behind its first `start` bytes.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for_more(&self, start: usize, text: &str) -> io::Result<()> {
        let end = Instant::now() + self.timeout;
        let shown = || self.console.lock().is_ok_and(|c| has_more(&c, start, text));
        while !shown() {
            if Instant::now() > end {
                let what = format!("the console does not say {text:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// How many bytes the console has shown so far.
    pub fn printed(&self) -> usize {
        self.console
            .lock()
            .map(|c| c.text.len())
            .unwrap_or_default()
    }

    /// Sends a command; returns its result.
    fn execute(&mut self, command: &Value) -> io::Result<Value> {
        let line = self.line.get_mut();
        line.write_all(format!("{command}\n").as_bytes())?;
        loop {
            let mut message = self.message()?;
            if let Some(returned) = message.get_mut("return") {
                return Ok(returned.take());
            }
            // Events can arrive at any time.
            if message.get("event").is_none() {
                return Err(unexpected(&message));
            }
        }
    }

    fn message(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.line.read_line(&mut line)? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "QEMU has closed its monitor",
            ));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

fn has_more(console: &Console, start: usize, text: &str) -> bool {
    let more = console.text.get(start..);
    more.is_some_and(|more| more.contains(text))
}

fn unexpected(message: &Value) -> io::Error {
    io::Error::other(format!("QEMU says {message}"))
}

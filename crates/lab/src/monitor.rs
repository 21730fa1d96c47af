// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machine from outside: what hardware does, and what the console shows.

use crate::host::Console;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What QEMU prints when it takes a command.
const PROMPT: &[u8] = b"(qemu) ";

/// QEMU's monitor, and the console; used while a command runs in dom0.
#[derive(Debug)]
pub struct Monitor {
    line: UnixStream,
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
            line,
            console,
            timeout,
        };
        monitor.answer()?;
        Ok(monitor)
    }

    /// Does a command of QEMU's monitor, for example `nmi`.
    ///
    /// # Errors
    /// If QEMU does not answer in time.
    pub fn command(&mut self, command: &str) -> io::Result<()> {
        self.line.write_all(format!("{command}\n").as_bytes())?;
        self.answer()
    }

    /// Waits until the console has shown `text`.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait_for(&self, text: &str) -> io::Result<()> {
        let end = Instant::now() + self.timeout;
        let shown = || self.console.lock().is_ok_and(|c| c.text.contains(text));
        while !shown() {
            if Instant::now() > end {
                let what = format!("the console does not say {text:?}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Reads up to the next prompt.
    fn answer(&mut self) -> io::Result<()> {
        let (mut text, mut byte) = (Vec::new(), [0]);
        while !text.ends_with(PROMPT) {
            self.line.read_exact(&mut byte)?;
            text.extend(byte);
        }
        Ok(())
    }
}

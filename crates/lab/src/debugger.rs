// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's debugger interface: stops single CPUs while the others run, as if they were
//! stuck.
//!
//! The protocol is GDB's remote serial protocol ("Remote Protocol" in GDB's manual), of
//! which this uses a few packets. QEMU numbers CPUs as threads, from 1.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Chooses any CPU for commands that are for one; QEMU confirms it.
const ANY_CPU: &str = "Hg0";

/// Stops all CPUs.
const INTERRUPT: &[u8] = b"\x03";

/// A debugger for the whole machine. Dropping it lets all CPUs run.
#[derive(Debug)]
pub struct Debugger {
    line: BufReader<UnixStream>,
    cpus: u32,
    running: bool,
}

impl Debugger {
    /// QEMU stops the machine when a debugger connects. It reports that by itself, unless
    /// the machine was stopped already; so the answer to a first command tells what comes
    /// after it.
    pub(crate) fn new(line: UnixStream, cpus: u32, timeout: Duration) -> io::Result<Self> {
        line.set_read_timeout(Some(timeout))?;
        let line = BufReader::new(line);
        let running = false;
        let mut debugger = Self {
            line,
            cpus,
            running,
        };
        let mut answer = debugger.ask(ANY_CPU)?;
        while stopped(&answer).is_ok() {
            answer = debugger.receive()?;
        }
        confirmed(&answer)?;
        Ok(debugger)
    }

    /// Lets all CPUs run until one is about to execute the instruction at `address`.
    /// That one is held there, and the others run on. Returns its number.
    ///
    /// # Errors
    /// If none does in time, or QEMU answers something else.
    pub fn hold_at(&mut self, address: u64) -> io::Result<u32> {
        self.stop()?;
        self.order(&format!("Z1,{address:x},1"))?;
        self.send("vCont;c")?;
        let held = stopped(&self.receive()?)?;
        self.order(&format!("z1,{address:x},1"))?;
        let others = (1..=self.cpus).filter(|cpu| *cpu != held);
        let others: String = others.map(|cpu| format!(";c:{cpu:x}")).collect();
        self.send(&format!("vCont{others}"))?;
        self.running = true;
        Ok(held - 1)
    }

    /// Lets all CPUs run.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn release(&mut self) -> io::Result<()> {
        self.stop()?;
        self.send("vCont;c")?;
        self.running = true;
        Ok(())
    }

    fn stop(&mut self) -> io::Result<()> {
        if self.running {
            self.line.get_mut().write_all(INTERRUPT)?;
            stopped(&self.receive()?)?;
            self.running = false;
        }
        Ok(())
    }

    /// Sends a command that QEMU only confirms.
    fn order(&mut self, packet: &str) -> io::Result<()> {
        confirmed(&self.ask(packet)?)
    }

    fn ask(&mut self, packet: &str) -> io::Result<String> {
        self.send(packet)?;
        self.receive()
    }

    fn send(&mut self, packet: &str) -> io::Result<()> {
        let sum = checksum(packet.as_bytes());
        let line = self.line.get_mut();
        line.write_all(format!("${packet}#{sum:02x}").as_bytes())
    }

    /// The next packet, which is acknowledged. Acknowledgements of ours precede it.
    fn receive(&mut self) -> io::Result<String> {
        let mut packet = Vec::new();
        self.line.read_until(b'$', &mut packet)?;
        packet.clear();
        self.line.read_until(b'#', &mut packet)?;
        packet.pop();
        let mut sum = [0; 2];
        self.line.read_exact(&mut sum)?;
        self.line.get_mut().write_all(b"+")?;
        let packet = String::from_utf8_lossy(&packet).into_owned();
        let right = format!("{:02x}", checksum(packet.as_bytes()));
        if right.as_bytes() == sum {
            Ok(packet)
        } else {
            Err(unexpected(&packet))
        }
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        // The machine may be gone.
        let _ = self.release();
    }
}

fn checksum(packet: &[u8]) -> u8 {
    packet.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// The thread in a stop reply: `T05thread:02;`.
fn stopped(packet: &str) -> io::Result<u32> {
    let thread = packet.strip_prefix('T').and_then(|rest| {
        let (_, thread) = rest.split_once("thread:")?;
        let thread = thread.split(';').next()?;
        // In the form that names the process, it is behind a point.
        let thread = thread.rsplit('.').next()?;
        u32::from_str_radix(thread, 16).ok()
    });
    thread
        .filter(|thread| *thread > 0)
        .ok_or_else(|| unexpected(packet))
}

fn confirmed(packet: &str) -> io::Result<()> {
    match packet {
        "OK" => Ok(()),
        other => Err(unexpected(other)),
    }
}

fn unexpected(packet: &str) -> io::Error {
    io::Error::other(format!("QEMU's debugger interface says {packet:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_of_a_stop_reply() {
        assert_eq!(stopped("T05thread:02;").unwrap(), 2);
        assert_eq!(stopped("T02thread:p01.0a;").unwrap(), 10);
        for other in ["", "OK", "E22", "T05", "T05thread:00;", "T05thread:x;"] {
            assert!(stopped(other).is_err(), "{other}");
        }
    }

    #[test]
    fn what_qemu_says_when_a_debugger_connects() {
        let second = Duration::from_secs(1);
        // With a report that the machine has stopped, and without.
        for said in ["$T02thread:01;#04+$OK#9a+$OK#9a", "+$OK#9a+$OK#9a"] {
            let (ours, mut qemu) = UnixStream::pair().unwrap();
            qemu.write_all(said.as_bytes()).unwrap();
            let mut debugger = Debugger::new(ours, 2, second).unwrap();
            debugger.order("z1,0,1").unwrap();
        }
    }

    #[test]
    fn packets_have_a_checksum() {
        let (ours, qemu) = UnixStream::pair().unwrap();
        let mut qemu = BufReader::new(qemu);
        qemu.get_mut().write_all(b"+$OK#9a").unwrap();
        let second = Duration::from_secs(1);
        let debugger = Debugger::new(ours, 2, second).unwrap();
        let mut sent = [0; 8];
        qemu.read_exact(&mut sent).unwrap();
        assert_eq!(&sent, b"$Hg0#df+");
        drop(debugger);

        let (ours, mut qemu) = UnixStream::pair().unwrap();
        qemu.write_all(b"+$OK#9b").unwrap();
        assert!(Debugger::new(ours, 2, second).is_err());
    }
}

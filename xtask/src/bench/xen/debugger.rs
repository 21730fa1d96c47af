// SPDX-License-Identifier: MIT OR Apache-2.0

//! The time between two places in a running hypervisor, seen from outside:
//! QEMU's debugger stops the machine, with its clocks, at each of them and the
//! stopped CPU reads its time-stamp counter. The hypervisor is as it is shipped.
//!
//! The protocol is GDB's ("Debugging with GDB", appendix E).

use super::places::Places;
use anyhow::{Context as _, bail, ensure};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Numbers of registers in the protocol.
const RAX: u32 = 0;
const RDX: u32 = 3;
const RSP: u32 = 7;
const RIP: u32 = 16;

/// Watches a machine from now until it is asked what it saw.
pub(super) struct Watch {
    thread: JoinHandle<anyhow::Result<Vec<u64>>>,
    enough: Arc<AtomicBool>,
}

impl Watch {
    pub(super) fn start(socket: &Path, places: Places) -> anyhow::Result<Self> {
        let mut machine = Machine::connect(socket)?;
        machine.breakpoint('Z', places.begin)?;
        machine.breakpoint('Z', places.end)?;
        machine.go()?;
        let enough = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&enough);
        let thread = std::thread::spawn(move || machine.watch(places, &told));
        Ok(Self { thread, enough })
    }

    /// The lengths of all windows since the start, in ticks.
    pub(super) fn windows(self) -> anyhow::Result<Vec<u64>> {
        self.enough.store(true, Ordering::Relaxed);
        let seen = self.thread.join();
        seen.unwrap_or_else(|_| bail!("the thread that watches the machine panicked"))
    }
}

/// How many instructions a function takes from its first to its return: the
/// most in some calls of it.
pub(super) fn instructions(socket: &Path, function: u64) -> anyhow::Result<u64> {
    const CALLS: usize = 32;
    let mut machine = Machine::connect(socket)?;
    let mut most = 0;
    for _ in 0..CALLS {
        machine.breakpoint('Z', function)?;
        machine.go()?;
        let cpu = machine.stop()?;
        machine.breakpoint('z', function)?;
        machine.ask(&format!("Hg{cpu}"))?;
        let stack = machine.register(RSP)?;
        let return_address = machine.memory(stack)?;
        let mut count = 0;
        while machine.register(RIP)? != return_address {
            machine.step(&cpu)?;
            count += 1;
        }
        most = most.max(count);
    }
    machine.ask("D")?;
    Ok(most)
}

/// The machine, at the other end of a connection.
struct Machine {
    stream: UnixStream,
    received: Vec<u8>,
}

/// A CPU in the protocol's words.
type Cpu = String;

impl Machine {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        let stream = UnixStream::connect(socket).context("QEMU's debugger")?;
        stream.set_read_timeout(Some(Duration::from_millis(50)))?;
        let received = Vec::new();
        let mut machine = Self { stream, received };
        // The connection stopped the machine; it says so once or twice.
        machine.ask("?")?;
        while machine.receive()?.is_some() {}
        // Before it is asked which registers there are, it shows none of them.
        machine.ask("qXfer:features:read:target.xml:0,1000")?;
        Ok(machine)
    }

    /// Collects windows until it was told that it is `enough`, and goes.
    fn watch(mut self, places: Places, enough: &AtomicBool) -> anyhow::Result<Vec<u64>> {
        let (mut windows, mut begun) = (Vec::new(), None);
        loop {
            let Some(stop) = self.receive()? else {
                if !enough.load(Ordering::Relaxed) {
                    continue;
                }
                self.stream.write_all(b"\x03")?;
                self.stop()?;
                for place in [places.begin, places.end] {
                    self.breakpoint('z', place)?;
                }
                self.ask("D")?;
                return Ok(windows);
            };
            let cpu = stopped_cpu(&stop)?;
            self.ask(&format!("Hg{cpu}"))?;
            let place = self.register(RIP)?;
            if place == places.begin {
                begun = Some((cpu.clone(), self.ticks(&cpu, places.rdtsc)?));
            } else if let Some((_, since)) = begun.take_if(|(by, _)| *by == cpu) {
                let now = self.ticks(&cpu, places.rdtsc)?;
                windows.push(now.saturating_sub(since));
            }
            // The instruction there is done without its breakpoint.
            self.breakpoint('z', place)?;
            self.step(&cpu)?;
            self.breakpoint('Z', place)?;
            self.go()?;
        }
    }

    /// What the stopped `cpu` reads from its time-stamp counter.
    fn ticks(&mut self, cpu: &Cpu, rdtsc: u64) -> anyhow::Result<u64> {
        let registers = [RAX, RDX, RIP];
        let mut before = [0; 3];
        for (value, register) in before.iter_mut().zip(registers) {
            *value = self.register(register)?;
        }
        self.set_register(RIP, rdtsc)?;
        self.step(cpu)?;
        let (low, high) = (self.register(RAX)?, self.register(RDX)?);
        for (value, register) in before.into_iter().zip(registers) {
            self.set_register(register, value)?;
        }
        Ok(high << 32 | low)
    }

    fn step(&mut self, cpu: &Cpu) -> anyhow::Result<()> {
        self.send(&format!("vCont;s:{cpu}"))?;
        self.stop()?;
        Ok(())
    }

    /// Waits until it stops; says which CPU did it.
    fn stop(&mut self) -> anyhow::Result<Cpu> {
        loop {
            if let Some(stop) = self.receive()? {
                return stopped_cpu(&stop);
            }
        }
    }

    fn go(&mut self) -> anyhow::Result<()> {
        self.send("vCont;c")
    }

    fn breakpoint(&mut self, change: char, at: u64) -> anyhow::Result<()> {
        let reply = self.ask(&format!("{change}0,{at:x},1"))?;
        ensure!(reply == "OK", "a breakpoint at {at:#x}: {reply:?}");
        Ok(())
    }

    fn register(&mut self, number: u32) -> anyhow::Result<u64> {
        let text = self.ask(&format!("p{number:x}"))?;
        let value = u64::from_str_radix(&text, 16);
        Ok(value
            .with_context(|| format!("a register: {text}"))?
            .swap_bytes())
    }

    /// The word at an address.
    fn memory(&mut self, at: u64) -> anyhow::Result<u64> {
        let text = self.ask(&format!("m{at:x},8"))?;
        let value = u64::from_str_radix(&text, 16);
        Ok(value
            .with_context(|| format!("memory at {at:#x}: {text}"))?
            .swap_bytes())
    }

    fn set_register(&mut self, number: u32, value: u64) -> anyhow::Result<()> {
        let reply = self.ask(&format!("P{number:x}={:016x}", value.swap_bytes()))?;
        ensure!(reply == "OK", "setting register {number}: {reply:?}");
        Ok(())
    }

    fn ask(&mut self, what: &str) -> anyhow::Result<String> {
        self.send(what)?;
        loop {
            if let Some(reply) = self.receive()? {
                return Ok(reply);
            }
        }
    }

    fn send(&mut self, what: &str) -> anyhow::Result<()> {
        let sum = what.bytes().fold(0_u8, u8::wrapping_add);
        self.stream
            .write_all(format!("${what}#{sum:02x}").as_bytes())?;
        Ok(())
    }

    /// What the machine says next; `None` if it says nothing for now.
    fn receive(&mut self) -> anyhow::Result<Option<String>> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(text) = packet(&mut self.received) {
                self.stream.write_all(b"+")?;
                return Ok(Some(text));
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("QEMU's debugger closed the connection"),
                Ok(size) => self.received.extend_from_slice(&chunk[..size]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Takes the first whole packet out of `received`; acknowledgements go with it.
fn packet(received: &mut Vec<u8>) -> Option<String> {
    let start = received.iter().position(|byte| *byte == b'$')?;
    let length = received[start..].iter().position(|byte| *byte == b'#')?;
    let end = start + length;
    if received.len() < end + 3 {
        return None;
    }
    let text = String::from_utf8_lossy(&received[start + 1..end]).into_owned();
    received.drain(..end + 3);
    Some(text)
}

/// The CPU that a stop reply names.
fn stopped_cpu(reply: &str) -> anyhow::Result<Cpu> {
    let rest = reply.split_once("thread:").map(|(_, rest)| rest);
    let cpu = rest.and_then(|rest| rest.split_once(';'));
    let (cpu, _) = cpu.with_context(|| format!("QEMU's debugger says {reply:?}"))?;
    Ok(cpu.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_taken_one_by_one_when_they_are_whole() {
        let mut received = b"+$T05thread:p01.02;#07+$O".to_vec();
        let stop = packet(&mut received).expect("it is whole");
        assert_eq!(stopped_cpu(&stop).ok().as_deref(), Some("p01.02"));
        assert_eq!(packet(&mut received), None);
        received.extend(b"K#9a");
        assert_eq!(packet(&mut received).as_deref(), Some("OK"));
        assert!(received.is_empty());
    }
}

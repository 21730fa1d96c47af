// SPDX-License-Identifier: MIT OR Apache-2.0

//! The machine as the engine's host.

use crate::memory::{self, Mapping, Record};
use rustix::mm::MprotectFlags;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Instant;
use thiserror::Error;
use xsplice_engine::{
    Absent, Area, Description, Errno, Hook, Host, Limits, NATIVE, Native, Protection, Region,
    Resident, Status, WriteAccess,
};
use xsplice_fallible::NoMemory;
use xsplice_host_image::Image;
use xsplice_rendezvous::{Events, Platform, Rendezvous};

/// Address range for payloads, relative to the image.
const PAYLOADS: Range<u64> = 16 << 20..512 << 20;
const PAGE: u64 = 4096;
/// The leader: the thread that calls the engine.
const LEADER: u32 = 0;

/// Why a machine cannot be created.
#[derive(Debug, Error)]
pub enum Error {
    /// The file is not an image.
    #[error(transparent)]
    Image(#[from] xsplice_host_image::Error),
    /// The image has no such function.
    #[error("the image has no function {0}")]
    NoEntry(&'static str),
    /// Out of memory for that many CPUs.
    #[error(transparent)]
    NoMemory(#[from] NoMemory),
    /// The image cannot be mapped at its link address.
    #[error("cannot map the image at {at:#x} ({errno}); is another machine running?")]
    Map {
        /// Its address.
        at: u64,
        /// The system's error.
        errno: rustix::io::Errno,
    },
}

/// A hypervisor in this process.
#[derive(Clone, Debug)]
pub struct Machine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    image: Image,
    mapping: Mapping,
    text: Vec<Range<usize>>,
    entry: usize,
    pub(crate) rendezvous: Rendezvous,
    /// Threads by CPU number, to wake them from their guests.
    pub(crate) threads: Mutex<Vec<Option<Thread>>>,
    payloads: Mutex<Payloads>,
    log: Mutex<Vec<String>>,
    start: Instant,
}

#[derive(Debug)]
struct Payloads {
    area: Area,
    mapped: BTreeMap<u64, Mapped>,
}

#[derive(Debug)]
struct Mapped {
    mapping: Arc<Mapping>,
    text: Option<Range<usize>>,
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn here(addr: u64) -> usize {
    usize::try_from(addr).unwrap_or(usize::MAX)
}

fn pages(range: &Range<u64>) -> Range<usize> {
    here(range.start / PAGE * PAGE)..here(range.end.next_multiple_of(PAGE))
}

fn errno(error: rustix::io::Errno) -> Errno {
    Errno(error.raw_os_error())
}

const EXECUTE: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::EXEC);

impl Machine {
    /// Maps `image` at its link address, for CPUs 0 to `cpus`, all idle.
    ///
    /// # Errors
    /// [`enum@Error`] if that is not possible, for example because this process
    /// already has a machine.
    pub fn new(image: &[u8], cpus: u32) -> Result<Self, Error> {
        let image = Image::parse(image)?;
        let all = image.sections().map(|section| section.range);
        let all = all.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end));
        let all = all.unwrap_or_default();
        let entry = image
            .lookup_symbol(b"hypercall")
            .ok_or(Error::NoEntry("hypercall"))?;
        let map = |errno| Error::Map {
            at: all.start,
            errno,
        };
        let mapping = Mapping::new(pages(&all)).map_err(map)?;
        let mut text = Vec::new();
        for section in image.sections() {
            mapping.write(here(section.range.start), section.data);
        }
        for section in image.sections() {
            let flags = match (section.region, section.writable) {
                (Region::Text, _) => EXECUTE,
                (_, true) => continue,
                _ => MprotectFlags::READ,
            };
            let pages = pages(&section.range);
            mapping.protect(pages.clone(), flags).map_err(map)?;
            if section.region == Region::Text {
                text.push(pages);
            }
        }
        let area = all.start + PAYLOADS.start..all.start + PAYLOADS.end;
        let rendezvous = Rendezvous::new(cpus)?;
        let shared = Shared {
            image,
            mapping,
            text,
            entry: here(entry),
            rendezvous,
            threads: Mutex::new(vec![None; here(cpus.into())]),
            payloads: Mutex::new(Payloads {
                area: Area::new(area),
                mapped: BTreeMap::new(),
            }),
            log: Mutex::default(),
            start: Instant::now(),
        };
        let machine = Self {
            shared: Arc::new(shared),
        };
        machine.shared.rendezvous.online(LEADER, &*machine.shared);
        Ok(machine)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Enters the hypervisor on this thread, as a guest does.
    #[must_use]
    pub fn hypercall(&self, number: u64, a: u64, b: u64) -> i64 {
        self.shared.hypercall(number, a, b)
    }

    /// The lines of the hypervisor's log since the last call.
    #[must_use]
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.shared.log))
    }

    /// The bytes of the hypervisor's text.
    #[must_use]
    pub fn text(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for range in &self.shared.text {
            let start = bytes.len();
            bytes.resize(start + range.len(), 0);
            if let Some(buf) = bytes.get_mut(start..) {
                self.shared.mapping.read(range.start, buf);
            }
        }
        bytes
    }

    /// Whether no payload occupies memory.
    #[must_use]
    pub fn is_free_of_payloads(&self) -> bool {
        let payloads = lock(&self.shared.payloads);
        payloads.mapped.is_empty() && payloads.area.is_unused()
    }
}

impl Shared {
    pub(crate) fn hypercall(&self, number: u64, a: u64, b: u64) -> i64 {
        self.mapping.enter(self.entry, number, a, b)
    }

    /// Calls `then` with the mapping that contains `addr`.
    fn with_mapping<T>(&self, addr: u64, then: impl FnOnce(&Mapping) -> T) -> T {
        let payloads = lock(&self.payloads);
        match payloads.mapped.range(..=addr).next_back() {
            Some((_, mapped)) => then(&mapped.mapping),
            None => then(&self.mapping),
        }
    }

    fn protect_text(&self, flags: MprotectFlags) -> Result<(), rustix::io::Errno> {
        for pages in &self.text {
            self.mapping.protect(pages.clone(), flags)?;
        }
        for payload in lock(&self.payloads).mapped.values() {
            if let Some(pages) = &payload.text {
                payload.mapping.protect(pages.clone(), flags)?;
            }
        }
        Ok(())
    }
}

impl Platform for Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn relax(&self) {
        // There may be more CPUs here than in the host.
        std::thread::yield_now();
    }

    fn kick(&self, cpu: u32) {
        if let Some(Some(thread)) = lock(&self.threads).get(here(cpu.into())) {
            thread.unpark();
        }
    }

    fn mask(&self) {}

    fn unmask(&self) {}

    fn synchronise(&self) {
        memory::synchronise();
    }

    fn replay(&self, events: Events) {
        unreachable!("no interrupts exist here that could be held: {events:?}");
    }
}

impl Host for Machine {
    type Architecture = Native;

    fn architecture(&self) -> Native {
        NATIVE
    }

    fn build_id(&self) -> &[u8] {
        self.shared.image.build_id()
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.shared.image.lookup_symbol(name)
    }

    fn limits(&self) -> Limits {
        self.shared.image.limits()
    }

    fn region(&self, addr: u64) -> Region {
        self.shared.image.region(addr)
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        self.shared.image.function_at(addr)
    }

    /// Threads receive no NMIs or machine checks.
    fn denied(&self, _patched: Range<u64>) -> Option<&'static str> {
        None
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let at = here(addr);
        self.shared
            .with_mapping(addr, |mapping| mapping.read(at, buf))
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let mut payloads = lock(&self.shared.payloads);
        let base = payloads.area.allocate(size)?;
        let Ok(mapping) = Mapping::new(pages(&(base..base + size))) else {
            payloads.area.free(base);
            return None;
        };
        let mapping = Arc::new(mapping);
        let mapped = Mapped {
            mapping: Arc::clone(&mapping),
            text: None,
        };
        payloads.mapped.insert(base, mapped);
        Some(Box::new(Payload {
            base,
            // Not zeros, as in a hypervisor.
            made: vec![0xcc; usize::try_from(size).ok()?],
            mapping,
            machine: Arc::clone(&self.shared),
        }))
    }

    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        let shared = &*self.shared;
        let met = shared.rendezvous.lead(LEADER, timeout, shared, window);
        met.map_err(|failure| Absent {
            step: failure.step(),
            cpus: failure.into_cpus(),
        })
    }

    fn open_text(&self, _range: Range<u64>, _access: WriteAccess) -> Result<(), Errno> {
        // These pages have no second mapping.
        Ok(())
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        // Text stays executable: hooks run in the window.
        let writable = self.shared.protect_text(EXECUTE | MprotectFlags::WRITE);
        writable.map_err(|error| {
            self.end_writing();
            errno(error)
        })
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        let at = here(addr);
        let written = self
            .shared
            .with_mapping(addr, |mapping| mapping.write(at, bytes));
        if !written {
            self.fatal(format_args!("{addr:#x} is not in any text"));
        }
    }

    fn end_writing(&self) {
        if let Err(error) = self.shared.protect_text(EXECUTE) {
            self.fatal(format_args!("text cannot be protected: {error}"));
        }
    }

    fn close_text(&self) {}

    fn now(&self) -> u64 {
        Platform::now(&*self.shared)
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        lock(&self.shared.log).push(line.to_string());
    }

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        eprintln!("{what}");
        std::process::abort()
    }
}

/// A payload's memory.
struct Payload {
    base: u64,
    /// The buffer that it is built in before it is copied to its address.
    made: Vec<u8>,
    mapping: Arc<Mapping>,
    machine: Arc<Shared>,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x?}", self.mapping.range())
    }
}

impl Resident for Payload {
    fn base(&self) -> u64 {
        self.base
    }

    fn bytes(&self) -> &[u8] {
        &self.made
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.made
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        let made = core::mem::take(&mut self.made);
        self.mapping.write(here(self.base), &made);
        match payload.has_tables() {
            true => Err(Errno::EOPNOTSUPP),
            false => Ok(()),
        }
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        let range = pages(&range);
        let flags = match protection {
            Protection::Text => {
                if let Some(mapped) = lock(&self.machine.payloads).mapped.get_mut(&self.base) {
                    mapped.text = Some(range.clone());
                }
                EXECUTE
            }
            Protection::ReadOnly => MprotectFlags::READ,
        };
        self.mapping.protect(range, flags).map_err(errno)
    }

    fn call(&mut self, hook: Hook, addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        let mut record = Record {
            state: status.state.number(),
            result: status.result,
        };
        let result = self.mapping.call_hook(here(addr), &mut record);
        let returns_nothing = matches!(
            hook,
            Hook::Load | Hook::Unload | Hook::PostApply | Hook::PostRevert
        );
        if !returns_nothing {
            Errno::check(result)?;
        }
        status.settle(hook);
        Ok(())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let mut payloads = lock(&self.machine.payloads);
        payloads.mapped.remove(&self.base);
        payloads.area.free(self.base);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor image as the engine's host: writes go into a layer over the image.

use crate::Image;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use xsplice_engine::{
    Absent, Area, Description, Errno, Hook, Host, Limits, Protection, Region, Resident, Signatures,
    Status, WriteAccess,
};

/// The hypervisor of an image, as if it ran on one CPU. Hooks are not run.
#[derive(Debug)]
pub struct Machine<'i> {
    image: &'i Image,
    signatures: Signatures<'i>,
    memory: Rc<RefCell<Memory>>,
}

#[derive(Debug)]
struct Memory {
    area: Area,
    /// The memory of payloads, by start address.
    payloads: BTreeMap<u64, Vec<u8>>,
    /// The start addresses of payloads' functions, by the start of their payload's
    /// memory.
    functions: BTreeMap<u64, BTreeSet<u64>>,
    /// Bytes of the hypervisor that differ from the image.
    written: BTreeMap<u64, u8>,
}

impl Memory {
    /// `len` bytes of a payload at `addr`, if one payload has all of them.
    fn payload(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let (base, bytes) = self.payloads.range_mut(..=addr).next_back()?;
        let start = usize::try_from(addr - base).ok()?;
        bytes.get_mut(start..start.checked_add(len)?)
    }

    /// The last function of the same payload that starts at or before `addr`.
    fn function_at(&self, addr: u64) -> Option<u64> {
        let (base, bytes) = self.payloads.range(..=addr).next_back()?;
        let inside = addr - base < bytes.len() as u64;
        let begun = self.functions.get(base).filter(|_| inside)?;
        begun.range(..=addr).next_back().copied()
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        match self.payload(addr, bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.written.extend((addr..).zip(bytes.iter().copied())),
        }
    }
}

impl<'i> Machine<'i> {
    /// The unmodified hypervisor of the image, with room for payloads.
    #[must_use]
    pub fn new(image: &'i Image) -> Self {
        let memory = Memory {
            area: Area::new(image.payload_area()),
            payloads: BTreeMap::new(),
            functions: BTreeMap::new(),
            written: BTreeMap::new(),
        };
        Self {
            image,
            signatures: Signatures::default(),
            memory: Rc::new(RefCell::new(memory)),
        }
    }

    /// Demands signatures.
    #[must_use]
    pub fn with_signatures(self, signatures: Signatures<'i>) -> Self {
        Self { signatures, ..self }
    }

    /// The hypervisor's image, without the writes.
    #[must_use]
    pub const fn image(&self) -> &'i Image {
        self.image
    }
}

impl Host for Machine<'_> {
    fn build_id(&self) -> &[u8] {
        self.image.build_id()
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.image.lookup_symbol(name)
    }

    fn limits(&self) -> Limits {
        self.image.limits()
    }

    fn signatures(&self) -> Signatures<'_> {
        self.signatures
    }

    fn region(&self, addr: u64) -> Region {
        self.image.region(addr)
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        let own = self.image.function_at(addr);
        own.or_else(|| self.memory.borrow().function_at(addr))
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        self.image.denied(patched)
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let mut memory = self.memory.borrow_mut();
        if let Some(bytes) = memory.payload(addr, buf.len()) {
            buf.copy_from_slice(bytes);
            return true;
        }
        let found = self.image.read(addr, buf);
        for (at, byte) in memory.written.range(addr..) {
            let offset = usize::try_from(at - addr).ok();
            match offset.and_then(|offset| buf.get_mut(offset)) {
                Some(place) => *place = *byte,
                None => break,
            }
        }
        found
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let mut memory = self.memory.borrow_mut();
        let base = memory.area.allocate(size)?;
        Some(Box::new(Payload {
            base,
            made: vec![0; usize::try_from(size).ok()?],
            memory: Rc::clone(&self.memory),
        }))
    }

    fn rendezvous(&self, _timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        window();
        Ok(())
    }

    fn open_text(&self, _range: Range<u64>, _access: WriteAccess) -> Result<(), Errno> {
        Ok(())
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        Ok(())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        self.memory.borrow_mut().write(addr, bytes);
    }

    fn end_writing(&self) {}

    fn close_text(&self) {}

    fn now(&self) -> u64 {
        0
    }

    fn log(&self, _line: fmt::Arguments<'_>) {}

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        unreachable!("no hooks run here that could fail: {what}")
    }
}

#[derive(Debug)]
struct Payload {
    base: u64,
    /// The buffer that it is built in before it is in memory.
    made: Vec<u8>,
    memory: Rc<RefCell<Memory>>,
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
        let mut memory = self.memory.borrow_mut();
        memory.payloads.insert(self.base, made);
        let begun = payload.symbols.iter().map(|symbol| symbol.addr);
        memory.functions.insert(self.base, begun.collect());
        Ok(())
    }

    fn protect(&mut self, _range: Range<u64>, _protection: Protection) -> Result<(), Errno> {
        Ok(())
    }

    fn call(&mut self, hook: Hook, _addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        // Act as if it had run.
        let mut memory = self.memory.borrow_mut();
        for (patch, applied) in status.patches.iter().zip(&*status.applied) {
            match (hook, applied) {
                (Hook::Apply, false) => memory.write(patch.addr, patch.new_bytes()),
                (Hook::Revert, true) => memory.write(patch.addr, patch.old()),
                _ => {}
            }
        }
        status.settle(hook);
        Ok(())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let mut memory = self.memory.borrow_mut();
        memory.area.free(self.base);
        memory.payloads.remove(&self.base);
        memory.functions.remove(&self.base);
    }
}

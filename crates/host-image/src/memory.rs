// SPDX-License-Identifier: MIT OR Apache-2.0

//! Memory of a host that runs no code.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use xsplice_engine::{Area, Description, Errno, Hook, Patch, Protection, Resident, Status};

/// Simulated memory, for a host that runs no code: payloads, and a layer of the bytes
/// that were written over the hypervisor's own. Hooks are not called; the engine gets
/// the result of a hook that succeeds.
#[derive(Clone, Debug)]
pub struct Memory(Rc<RefCell<Contents>>);

#[derive(Debug)]
struct Contents {
    area: Area,
    /// The memory of payloads, by start address.
    payloads: BTreeMap<u64, Vec<u8>>,
    /// The start addresses of payloads' functions, by the start of their payload's
    /// memory.
    functions: BTreeMap<u64, BTreeSet<u64>>,
    /// Bytes of the hypervisor that differ from its own.
    written: BTreeMap<u64, u8>,
}

impl Contents {
    /// `len` bytes of a payload at `addr`, if one payload has all of them.
    fn payload(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let (base, bytes) = self.payloads.range_mut(..=addr).next_back()?;
        let start = usize::try_from(addr - base).ok()?;
        bytes.get_mut(start..start.checked_add(len)?)
    }

    fn write(&mut self, addr: u64, bytes: &[u8]) {
        match self.payload(addr, bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.written.extend((addr..).zip(bytes.iter().copied())),
        }
    }
}

impl Memory {
    /// No payloads and no writes; payloads are allocated in `area`.
    #[must_use]
    pub fn new(area: Range<u64>) -> Self {
        Self(Rc::new(RefCell::new(Contents {
            area: Area::new(area),
            payloads: BTreeMap::new(),
            functions: BTreeMap::new(),
            written: BTreeMap::new(),
        })))
    }

    /// Fills `buf` with the bytes of a payload at `addr`, or with what `original` gives
    /// and the writes over it; false if it gives none.
    pub fn read(
        &self,
        addr: u64,
        buf: &mut [u8],
        original: impl FnOnce(&mut [u8]) -> bool,
    ) -> bool {
        let mut contents = self.0.borrow_mut();
        if let Some(bytes) = contents.payload(addr, buf.len()) {
            buf.copy_from_slice(bytes);
            return true;
        }
        let found = original(buf);
        for (at, byte) in contents.written.range(addr..) {
            let offset = usize::try_from(at - addr).ok();
            match offset.and_then(|offset| buf.get_mut(offset)) {
                Some(place) => *place = *byte,
                None => break,
            }
        }
        found
    }

    /// Writes to a payload or over the hypervisor's own bytes.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.0.borrow_mut().write(addr, bytes);
    }

    /// The last function of a payload that starts at or before `addr`, in that payload.
    #[must_use]
    pub fn function_at(&self, addr: u64) -> Option<u64> {
        let contents = self.0.borrow();
        let (base, bytes) = contents.payloads.range(..=addr).next_back()?;
        let inside = addr - base < bytes.len() as u64;
        let starts = contents.functions.get(base).filter(|_| inside)?;
        starts.range(..=addr).next_back().copied()
    }

    /// Memory for a payload, which is built in a buffer until it is registered; `None`
    /// if there is none.
    #[must_use]
    pub fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let buffer = vec![0; usize::try_from(size).ok()?];
        let base = self.0.borrow_mut().area.allocate(size)?;
        Some(Box::new(Payload {
            base,
            buffer,
            memory: self.clone(),
        }))
    }

    /// Whether no payload occupies memory.
    #[must_use]
    pub fn is_unused(&self) -> bool {
        self.0.borrow().area.is_unused()
    }
}

struct Payload {
    base: u64,
    /// The buffer that it is built in until it is registered.
    buffer: Vec<u8>,
    memory: Memory,
}

impl fmt::Debug for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.base)
    }
}

impl Resident for Payload {
    fn base(&self) -> u64 {
        self.base
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        let bytes = std::mem::take(&mut self.buffer);
        let mut contents = self.memory.0.borrow_mut();
        contents.payloads.insert(self.base, bytes);
        let starts = payload.symbols.iter().map(|symbol| symbol.addr);
        contents.functions.insert(self.base, starts.collect());
        Ok(())
    }

    fn protect(&mut self, _range: Range<u64>, _protection: Protection) -> Result<(), Errno> {
        Ok(())
    }

    fn call(&mut self, hook: Hook, _addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        let bytes: fn(&Patch) -> &[u8] = match hook {
            Hook::Apply => Patch::new_bytes,
            Hook::Revert => Patch::old,
            _ => return Ok(()),
        };
        let changed = |applied: &bool| *applied != (hook == Hook::Apply);
        let patches = status.patches.iter().zip(&*status.applied);
        for (patch, _) in patches.filter(|(_, applied)| changed(applied)) {
            self.memory.write(patch.addr, bytes(patch));
        }
        status.settle(hook);
        Ok(())
    }
}

impl Drop for Payload {
    fn drop(&mut self) {
        let mut contents = self.memory.0.borrow_mut();
        contents.area.free(self.base);
        contents.payloads.remove(&self.base);
        contents.functions.remove(&self.base);
    }
}

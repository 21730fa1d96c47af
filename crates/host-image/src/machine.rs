// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor image as the engine's host.

use crate::{Image, Memory};
use std::fmt;
use std::ops::Range;
use xsplice_engine::{Absent, Any, Host, Limits, Region, Resident, Signatures};

/// The hypervisor of an image, as if it ran on one CPU. Hooks are not run.
#[derive(Debug)]
pub struct Machine<'i> {
    image: &'i Image,
    signatures: Signatures<'i>,
    memory: Memory,
}

impl<'i> Machine<'i> {
    /// The unmodified hypervisor of the image, with room for payloads.
    #[must_use]
    pub fn new(image: &'i Image) -> Self {
        Self {
            image,
            signatures: Signatures::default(),
            memory: Memory::new(image.payload_area()),
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
    type Architecture = Any;

    fn architecture(&self) -> Any {
        self.image.architecture()
    }

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
        own.or_else(|| self.memory.function_at(addr))
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        self.image.denied(patched)
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.memory
            .read(addr, buf, |buf| self.image.read(addr, buf))
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        self.memory.allocate(size)
    }

    fn rendezvous(&self, _timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        window();
        Ok(())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(addr, bytes);
    }

    fn log(&self, _line: fmt::Arguments<'_>) {}

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        unreachable!("no hooks run here that could fail: {what}")
    }
}

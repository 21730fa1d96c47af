// SPDX-License-Identifier: MIT OR Apache-2.0

//! Xen as the host of the engine and the rendezvous.

use crate::arch;
use crate::ffi::{self, Event};
use crate::keys::Keys;
use crate::memory::Memory;
use crate::symbols::Symbols;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ffi::CStr;
use core::fmt::{self, Write as _};
use core::ops::Range;
use xsplice_engine::{
    Absent, Errno, Host, LandingPads, Limits, NATIVE, Native, Region, Resident, Signatures,
    WriteAccess,
};
use xsplice_fallible as fallible;
use xsplice_rendezvous::{Events, Platform, Rendezvous};

/// The CPUs.
pub(crate) struct Cpus;

impl Platform for Cpus {
    fn now(&self) -> u64 {
        ffi::now()
    }

    fn relax(&self) {
        ffi::relax();
    }

    fn kick(&self, cpu: u32) {
        ffi::kick(cpu);
    }

    fn mask(&self) {
        ffi::mask();
    }

    fn unmask(&self) {
        ffi::unmask();
    }

    fn synchronise(&self) {
        ffi::synchronise();
    }

    fn replay(&self, events: Events) {
        for event in [Event::Nmi, Event::MachineCheck] {
            if events.contains(event.into()) {
                ffi::replay(event);
            }
        }
    }

    #[cfg(feature = "microcode")]
    fn stays_in_nmi(&self) -> bool {
        ffi::microcode_in_nmi()
    }

    #[cfg(feature = "microcode")]
    fn work(&self, phase: u8) {
        crate::microcode::work(phase);
    }
}

/// The running hypervisor.
#[derive(Debug)]
pub(crate) struct Xen {
    pub(crate) rendezvous: &'static Rendezvous,
    pub(crate) image: ffi::Image,
    pub(crate) symbols: Symbols,
    pub(crate) keys: Keys,
    /// The distance of the writable mapping from the text's own address.
    pub(crate) text_distance: Cell<u64>,
}

/// Buffers log lines for the console. Long ones are broken, because stack is scarce.
struct Lines {
    bytes: [u8; Self::LONGEST],
    len: usize,
}

impl Lines {
    const LONGEST: usize = 400;

    fn end(&mut self) {
        let line = self.bytes.get(..self.len).unwrap_or_default();
        ffi::print(line);
        self.len = 0;
    }
}

impl fmt::Write for Lines {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' || self.len == Self::LONGEST {
                self.end();
            }
            if let Some(place) = self.bytes.get_mut(self.len).filter(|_| byte != b'\n') {
                *place = byte;
                self.len += 1;
            }
        }
        Ok(())
    }
}

/// Prints to the console.
pub(crate) fn log(line: fmt::Arguments<'_>) {
    let mut lines = Lines {
        bytes: [0; Lines::LONGEST],
        len: 0,
    };
    // `write_str` never fails.
    let _ = lines.write_fmt(line);
    lines.end();
}

impl Host for Xen {
    type Architecture = Native;

    fn architecture(&self) -> Native {
        NATIVE
    }

    fn build_id(&self) -> &[u8] {
        ffi::build_id().into()
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        if !self.symbols.may_have(name) {
            return None;
        }
        let mut buf = [0; ffi::NAME_SIZE];
        buf.get_mut(..name.len())?.copy_from_slice(name);
        ffi::lookup(CStr::from_bytes_with_nul(buf.get(..=name.len())?).ok()?)
    }

    fn limits(&self) -> Limits {
        let image = &self.image;
        Limits {
            features: image.features,
            all_features: true,
            always: Some(image.always).filter(|always| *always != 0),
            call_sites: image.call_sites,
            landing_pads: if image.landing_pads {
                LandingPads::Checked
            } else {
                LandingPads::Unused
            },
            // On ARM, our patches to Xen see to it.
            file_names: true,
        }
    }

    fn signatures(&self) -> Signatures<'_> {
        self.keys.signatures()
    }

    #[inline(always)]
    fn region(&self, addr: u64) -> Region {
        let image = &self.image;
        if image.text.contains(addr) {
            Region::Text
        } else if image.init.contains(addr) {
            Region::Init
        } else if image.read_only.contains(addr) || image.data.contains(addr) {
            Region::Data
        } else {
            Region::Outside
        }
    }

    #[inline(always)]
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        self.image.read(addr, buf)
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let place = fallible::place().ok()?;
        let memory = Box::write(place, Memory(ffi::Memory::new(size)?));
        Some(memory)
    }

    fn rendezvous(&self, timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        if !ffi::rendezvous_begin() {
            return Err(Absent {
                step: "CPU hotplug is in progress",
                cpus: Vec::new(),
            });
        }
        let result = self
            .rendezvous
            .lead(ffi::cpu(), timeout, &Cpus, || ffi::in_window(window));
        ffi::rendezvous_end();
        result.map_err(|failure| Absent {
            step: failure.step(),
            cpus: failure.into_cpus(),
        })
    }

    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno> {
        let mut distance = 0;
        Errno::check(ffi::text_open(&range, access, &mut distance))?;
        self.text_distance.set(distance);
        Ok(())
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        Errno::check(ffi::text_begin())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        arch::text_write(addr.wrapping_add(self.text_distance.get()), bytes);
    }

    fn end_writing(&self) {
        ffi::text_end();
    }

    fn close_text(&self) {
        ffi::text_close();
    }

    fn now(&self) -> u64 {
        ffi::now()
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        log(line);
    }

    #[expect(clippy::panic, reason = "the panic handler stops Xen")]
    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        panic!("{what}")
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        let own = self.symbols.function_at(addr);
        own.or_else(|| ffi::function_at(addr))
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        self.symbols.denied(&patched)
    }
}

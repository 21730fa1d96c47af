// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor on disk, with everything about it that matters to payloads.

use crate::arch::{self, Reader};
use crate::surroundings::Surroundings;
use crate::window;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};
use xsplice_abi::deny;
use xsplice_abi::machine::{Machine, Width};
use xsplice_engine::{Any, Limits, Region};
use xsplice_xen_image::{Error, Kind, Section, Symbol};

/// Contiguous memory of a hypervisor.
#[derive(Clone, Debug)]
pub struct Part<'i> {
    /// Its addresses.
    pub range: Range<u64>,
    /// Its kind.
    pub region: Region,
    /// Whether the hypervisor writes to it.
    pub writable: bool,
    /// Contents, as far as the image has them; the rest is zero.
    pub data: &'i [u8],
}

/// A hypervisor on disk.
#[derive(Debug)]
pub struct Image {
    file: Arc<xsplice_xen_image::Image>,
    /// Areas of code that must not be patched, with the reason.
    areas: Vec<(Range<u64>, &'static str)>,
    payload_area: Range<u64>,
    architecture: Any,
    reader: &'static dyn Reader,
    surroundings: OnceLock<Surroundings>,
    /// Start addresses of functions that must not be patched, with the reason.
    denied: OnceLock<BTreeMap<u64, &'static str>>,
    limits: OnceLock<Limits>,
}

impl Image {
    /// Reads a `xen-syms` file.
    ///
    /// # Errors
    /// [`enum@Error`] if the file is not a hypervisor image with symbols and
    /// build-id.
    pub fn parse(file: &[u8]) -> Result<Self, Error> {
        Self::new(Arc::new(xsplice_xen_image::Image::parse(file)?))
    }

    /// The hypervisor of a parsed `xen-syms` file.
    ///
    /// # Errors
    /// If the file has no code.
    pub fn new(file: Arc<xsplice_xen_image::Image>) -> Result<Self, Error> {
        let sections = file.sections().iter();
        let text = sections.clone().filter(|s| region(s) == Region::Text);
        let start = text.map(|section| section.range.start).min();
        let end = sections.map(|section| section.range.end).max();
        let (Some(start), Some(end)) = (start, end) else {
            return Err(Error::NotAnImage);
        };
        let architecture = Any::of(file.machine());
        let reader = arch::reader(architecture).ok_or(Error::NotAnImage)?;
        let end = file.address_of("__2M_rwdata_end").unwrap_or(end).max(end);
        let areas = deny::AREAS.iter().filter_map(|area| {
            let [start, end] = area.edges.map(|name| file.address_of(name));
            Some((start?..end?, area.why))
        });
        Ok(Self {
            areas: areas.collect(),
            file,
            payload_area: reader.payload_area(start, end),
            architecture,
            reader,
            surroundings: OnceLock::new(),
            denied: OnceLock::new(),
            limits: OnceLock::new(),
        })
    }

    /// The architecture that its code is for.
    #[must_use]
    pub const fn architecture(&self) -> Any {
        self.architecture
    }

    /// The machine that it runs on.
    pub(crate) fn machine(&self) -> Machine {
        self.file.machine()
    }

    /// The width of its pointers.
    pub(crate) fn width(&self) -> Width {
        self.machine().width()
    }

    pub(crate) fn reader(&self) -> &'static dyn Reader {
        self.reader
    }

    /// The hypervisor's build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        self.file.build_id()
    }

    /// Whether it has our live-patch core, and not Xen's own.
    pub(crate) fn has_our_core(&self) -> bool {
        self.file.has_our_core()
    }

    /// Everything that is in memory while the hypervisor runs.
    pub fn sections(&self) -> impl Iterator<Item = Part<'_>> {
        self.file.sections().iter().map(|section| Part {
            range: section.range.clone(),
            region: region(section),
            writable: section.writable,
            data: &section.data,
        })
    }

    /// The address of the symbol that the running hypervisor knows as `name`.
    #[must_use]
    pub fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        let name = std::str::from_utf8(name).ok()?;
        let mut known = self.file.known_as(name).into_iter();
        known
            .find(|symbol| symbol.kind != Kind::Absolute)
            .map(|symbol| symbol.address)
    }

    /// The start of the function that contains `addr`, including the padding after
    /// it, as the running hypervisor sees it: its symbols have no sizes.
    #[must_use]
    pub fn function_at(&self, addr: u64) -> Option<u64> {
        let in_text = |addr| self.region(addr) == Region::Text;
        let start = self.file.symbol_before(addr)?.address;
        (in_text(addr) && in_text(start)).then_some(start)
    }

    /// The functions of known size that begin at `addr`.
    fn functions(&self, addr: u64) -> impl Iterator<Item = &Symbol> {
        let here = self.file.starting_at(addr);
        here.filter(|symbol| symbol.is_function() && symbol.size != 0)
    }

    /// Whether a function of known size begins at `addr`.
    pub(crate) fn is_function(&self, addr: u64) -> bool {
        self.functions(addr).next().is_some()
    }

    /// The code of the function that begins at `addr`.
    pub(crate) fn code(&self, addr: u64) -> Option<&[u8]> {
        self.file.bytes(addr, self.functions(addr).last()?.size)
    }

    /// Address and name of every symbol in code.
    pub fn text_symbols(&self) -> impl Iterator<Item = (u64, &str)> {
        let parts = self.sections().filter(|part| part.region == Region::Text);
        let all = parts.flat_map(|part| self.file.starting_in(part.range));
        let all = all.filter(|symbol| !self.file.is_init(symbol.address));
        all.map(|symbol| (symbol.address, symbol.name.as_str()))
    }

    /// Why code in `range`, of the hypervisor or of a payload, must not be patched, if so:
    /// the reason of the first such function in it.
    #[must_use]
    pub fn denied(&self, range: Range<u64>) -> Option<&'static str> {
        let touches = |area: &Range<u64>| range.start < area.end && area.start < range.end;
        if let Some((_, why)) = self.areas.iter().find(|(area, _)| touches(area)) {
            return Some(why);
        }
        if touches(&self.payload_area)
            && !self.has_our_core()
            && let Some(why) = self.reader.keeps_payloads()
        {
            return Some(why);
        }
        let start = self.function_at(range.start).unwrap_or(range.start);
        let denied = self.denied.get_or_init(|| window::of(self));
        let mut inside = denied.range(start..range.end.max(start));
        inside.next().map(|(_, why)| *why)
    }

    /// The code that enters and leaves the hypervisor.
    pub(crate) fn entry(&self) -> Range<u64> {
        let mut areas = self.areas.iter();
        let entry = areas.find(|(_, why)| *why == deny::ENTRY);
        entry.map_or(0..0, |(range, _)| range.clone())
    }

    /// The region that contains `addr`.
    #[must_use]
    pub fn region(&self, addr: u64) -> Region {
        if self.file.is_init(addr) {
            return Region::Init;
        }
        self.file.section(addr).map_or(Region::Outside, region)
    }

    /// Fills `buf` with the bytes at `addr`; false if some are missing.
    pub fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let bytes = self.file.bytes(addr, buf.len() as u64);
        if let Some(bytes) = bytes {
            buf.copy_from_slice(bytes);
        }
        bytes.is_some()
    }

    /// How the hypervisor itself uses its functions. Scans the whole image on first
    /// use.
    pub(crate) fn surroundings(&self) -> &Surroundings {
        self.surroundings.get_or_init(|| Surroundings::of(self))
    }

    /// The hypervisor's limits for payloads.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.limits.get_or_init(|| self.reader.limits(self))
    }

    /// The size of the variable `name`.
    pub(crate) fn size_of(&self, name: &str) -> Option<u64> {
        let variables = self.file.all_named(name);
        let mut sizes = variables.filter(|symbol| symbol.kind == Kind::Data && symbol.size != 0);
        sizes.next().map(|symbol| symbol.size)
    }

    /// The address range for payloads; the start is page-aligned.
    pub(crate) fn payload_area(&self) -> Range<u64> {
        self.payload_area.clone()
    }
}

/// The region of `section`.
fn region(section: &Section) -> Region {
    if section.name.starts_with(".init") {
        Region::Init
    } else if section.executable {
        Region::Text
    } else {
        Region::Data
    }
}

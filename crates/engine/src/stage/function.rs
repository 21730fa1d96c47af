// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that a payload patches.

use super::begins::not_instruction;
use super::verified::Contents;
use super::{Findings, Loader, Placed, Policy};
use crate::arch::Instructions as _;
use crate::format::{Bytes, Known, MAX_NAME, NOP_LIMIT, functions};
use crate::image::{Image, PAGE};
use crate::problem::{FunctionFault, Problem, Problems, SectionFault, text};
use crate::sort::sort;
use crate::{Host, Region};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::machine::Width;
use xsplice_abi::payload::{LivepatchFunc, LivepatchFunc32, PAYLOAD_VERSION};
use xsplice_fallible::{self as fallible, NoMemory};
use zerocopy::FromBytes as _;

/// A function that the payload patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// The index of its record in the payload.
    pub(crate) index: u32,
    /// Address of its name; 0 if it has none.
    pub(crate) name: u64,
    /// Its address in the hypervisor.
    pub old_addr: u64,
    /// Its size there.
    pub old_size: u32,
    /// Address of its replacement; 0 for no-ops.
    pub new_addr: u64,
    /// Size of the replacement, or number of no-op bytes.
    pub new_size: u32,
    /// Offset of the patch in the old function.
    pub patch_offset: u32,
    /// Size of a jump on the hypervisor's machine.
    pub(crate) jump_size: u8,
    /// Whether a function of the hypervisor is known to start there.
    pub(crate) begins: bool,
}

impl Function {
    /// The overwritten addresses: a jump, or no-ops.
    #[must_use]
    pub fn patched(&self) -> Range<u64> {
        let start = self.old_addr.saturating_add(self.patch_offset.into());
        let length = match self.new_addr {
            0 => self.new_size.saturating_sub(self.patch_offset),
            _ => self.jump_size.into(),
        };
        start..start.saturating_add(length.into())
    }

    /// Its name in the payload, made printable; empty if it has none, or if there is
    /// no memory for it. The payload must be loaded on `host`.
    #[must_use]
    #[inline(never)]
    pub fn name(&self, host: &impl Host) -> String {
        let mut room = Room([0; MAX_NAME]);
        text(string(host, self.name, &mut room).unwrap_or_default())
    }

    fn index(&self) -> usize {
        self.index as usize
    }

    /// The address after the old function.
    pub(crate) fn end(&self) -> u64 {
        self.old_addr.saturating_add(self.old_size.into())
    }
}

/// A buffer for a name that the host copies.
struct Room([u8; MAX_NAME]);

/// The string at `addr`, copied to the buffer.
fn string<'b>(host: &impl Host, addr: u64, Room(room): &'b mut Room) -> Option<&'b [u8]> {
    if addr == 0 {
        return None;
    }
    for offset in 0..=MAX_NAME {
        let mut byte = [0];
        if !host.read(addr.wrapping_add(offset as u64), &mut byte) {
            return None;
        }
        match byte {
            [0] => return room.get(..offset),
            [byte] => *room.get_mut(offset)? = byte,
        }
    }
    None
}

impl Image {
    /// The name of a function that is being loaded; it may be in the hypervisor.
    fn name<'b>(&'b self, host: &impl Host, addr: u64, room: &'b mut Room) -> Option<&'b [u8]> {
        match self.tail(addr) {
            Some(tail) => Bytes(tail).c_str(0, MAX_NAME),
            None => string(host, addr, room),
        }
    }

    /// Like [`Function::name`], for a function that is being loaded.
    #[inline(never)]
    pub(super) fn function_name(&self, host: &impl Host, function: &Function) -> String {
        let mut room = Room([0; MAX_NAME]);
        text(
            self.name(host, function.name, &mut room)
                .unwrap_or_default(),
        )
    }
}

/// A function that is being checked.
struct Candidate<'c, H> {
    loader: &'c Loader<'c, H>,
    placed: &'c Placed<'c>,
    function: Function,
}

impl<H: Host> Candidate<'_, H> {
    fn name(&self) -> String {
        self.placed
            .image
            .function_name(self.loader.host, &self.function)
    }

    #[inline(never)]
    fn push(&self, fault: FunctionFault, problems: &mut Problems) {
        problems.push(Problem::Function {
            index: self.function.index(),
            name: self.name(),
            fault,
        });
    }

    /// Finds the old function, and what of it is patched.
    #[inline(never)]
    fn locate(&mut self) -> Result<(), FunctionFault> {
        if self.function.old_addr == 0 {
            self.function.old_addr = self.find()?;
        }
        self.check_old()?;
        let host = self.loader.host;
        let old_addr = self.function.old_addr;
        let mut first = [0; 4];
        if !host.read(old_addr, &mut first) {
            return Err(self.not_text());
        }
        self.function.begins = host.function_at(old_addr) == Some(old_addr);
        self.function.patch_offset = host.architecture().patch_offset(first);
        Ok(())
    }

    /// The address of its symbol.
    #[inline(never)]
    fn find(&self) -> Result<u64, FunctionFault> {
        let addr = self.function.name;
        let mut room = Room([0; MAX_NAME]);
        let name = self.placed.image.name(self.loader.host, addr, &mut room);
        let name = name.ok_or(FunctionFault::Name { addr })?;
        let (_, found) = self.loader.lookup(name).ok_or(FunctionFault::Unknown)?;
        Ok(found)
    }

    fn not_text(&self) -> FunctionFault {
        FunctionFault::OldAddress {
            addr: self.function.old_addr,
            size: self.function.old_size,
        }
    }

    /// The old function is code that may be patched.
    #[inline(always)]
    fn check_old(&self) -> Result<(), FunctionFault> {
        let Loader { host, stack, .. } = self.loader;
        let Function {
            old_addr: addr,
            old_size,
            ..
        } = self.function;
        let last = old_size.checked_sub(1).ok_or(FunctionFault::NoOldSize)?;
        let unit = u64::from(host.architecture().unit());
        if !addr.is_multiple_of(unit) {
            return Err(FunctionFault::Boundary {
                addr,
                size: old_size,
                what: "begin",
                begin: addr - addr % unit,
                length: unit,
            });
        }
        let last = addr.wrapping_add(last.into());
        match (stack.region(*host, addr), stack.region(*host, last)) {
            (Region::Text, Region::Text) => Ok(()),
            (Region::Init, _) => Err(FunctionFault::OldInit { addr }),
            _ => Err(self.not_text()),
        }
    }

    /// What it is replaced by, or that it can be made no-ops.
    #[inline(never)]
    fn check(&self) -> Result<(), FunctionFault> {
        match self.function.new_addr {
            0 => self.check_no_ops()?,
            _ => self.check_jump()?,
        }
        self.check_patched()
    }

    /// What is written over may be, and is of one function. How much that is must be
    /// known.
    #[inline(never)]
    fn check_patched(&self) -> Result<(), FunctionFault> {
        let host = self.loader.host;
        let patched = self.function.patched();
        if patched.is_empty() {
            return Ok(());
        }
        let (addr, end) = (patched.start, patched.end);
        if let Some(reason) = host.denied(patched) {
            return Err(FunctionFault::Denied { addr, reason });
        }
        match host.function_at(end.saturating_sub(1)) {
            Some(next) if next > addr => Err(FunctionFault::NextFunction { addr, end, next }),
            _ => Ok(()),
        }
    }

    /// There is room for the trampoline, and it reaches code.
    #[inline(always)]
    fn check_jump(&self) -> Result<(), FunctionFault> {
        let Function {
            old_addr: old,
            old_size,
            new_addr: new,
            patch_offset,
            jump_size,
            ..
        } = self.function;
        let needed = u32::from(jump_size) + patch_offset;
        if old_size < needed {
            return Err(FunctionFault::TooSmall { old_size, needed });
        }
        if let Some(what) = not_instruction(self.loader, new) {
            return Err(FunctionFault::NewAddress { addr: new, what });
        }
        let architecture = self.loader.host.architecture();
        if !architecture.reaches(old.wrapping_add(patch_offset.into()), new) {
            return Err(FunctionFault::Distance { old, new });
        }
        let wrong = if new == old {
            Some("it is the old one, and the jump would lead to itself")
        } else {
            self.placed.not_function(self.loader, new)
        };
        match wrong {
            Some(what) => Err(FunctionFault::NewAddress { addr: new, what }),
            None if architecture.cleans_new_code() => self.check_new_pages(),
            None => Ok(()),
        }
    }

    /// There is code in all pages of the new function.
    fn check_new_pages(&self) -> Result<(), FunctionFault> {
        let (addr, size) = (self.function.new_addr, self.function.new_size);
        let end = addr.saturating_add(size.into());
        let mut page = (addr | (PAGE - 1)).saturating_add(1);
        while page < end {
            if !self.placed.is_code(self.loader, page) {
                return Err(FunctionFault::NewSize { addr, size });
            }
            page = page.saturating_add(PAGE);
        }
        Ok(())
    }

    /// Whether the hypervisor leaves a part of the new function in the data cache. This
    /// engine cleans all text of a payload, whatever its records say.
    fn uncleaned(&self) -> Option<FunctionFault> {
        let (addr, size) = (self.function.new_addr, self.function.new_size);
        let cleans = self.loader.host.architecture().cleans_new_code();
        if addr == 0 || !cleans || self.loader.policy != Policy::Stock {
            return None;
        }
        let symbol = self.placed.begins.end_of(addr).saturating_sub(addr);
        (u64::from(size) < symbol).then_some(FunctionFault::NewSizeShort { addr, size, symbol })
    }

    /// So many bytes can be made no-ops.
    #[inline(always)]
    fn check_no_ops(&self) -> Result<(), FunctionFault> {
        let Function {
            old_size,
            new_size,
            patch_offset: endbr,
            ..
        } = self.function;
        if new_size > NOP_LIMIT {
            let limit = NOP_LIMIT;
            return Err(FunctionFault::NopTooLong { new_size, limit });
        }
        let unit = self.loader.host.architecture().unit();
        if !new_size.is_multiple_of(unit) {
            return Err(FunctionFault::NopPart { new_size, unit });
        }
        if new_size > old_size {
            return Err(FunctionFault::NopPastEnd { new_size, old_size });
        }
        if new_size < endbr {
            return Err(FunctionFault::NopInEndbr { new_size, endbr });
        }
        Ok(())
    }
}

impl Placed<'_> {
    /// Adds the functions. Returns whether the payload has their section.
    #[inline(never)]
    pub(super) fn functions(
        &self,
        loader: &Loader<'_, impl Host>,
        contents: &mut Contents<'_>,
    ) -> Result<bool, NoMemory> {
        if self.elf.section(Known::Funcs).is_none() {
            return Ok(false);
        }
        let problems = &mut contents.findings.problems;
        let Some(table) = self.table(Known::Funcs, problems) else {
            return Ok(true);
        };
        if table.bytes.is_empty() {
            problems.section(table.section, SectionFault::Empty);
        }
        let width = loader.host.architecture().machine().width();
        let count = table.bytes.len() / width.func_size();
        contents.functions = fallible::with_room(count)?;
        contents.expectations = fallible::with_room(count)?;
        let problems = &mut contents.findings.problems;
        for (index, _, record) in table.entries(functions(width), problems) {
            let wide;
            let record = match width {
                Width::Bits64 => LivepatchFunc::ref_from_bytes(record).ok(),
                Width::Bits32 => {
                    let narrow = LivepatchFunc32::ref_from_bytes(record).ok();
                    wide = narrow.map(|narrow| LivepatchFunc::from(*narrow));
                    wide.as_ref()
                }
            };
            if let (Some(record), Ok(index)) = (record, u32::try_from(index)) {
                self.function(loader, index, record, contents)?;
            }
        }
        Ok(true)
    }

    /// Adds the function of a record, if valid.
    #[inline(never)]
    fn function(
        &self,
        loader: &Loader<'_, impl Host>,
        index: u32,
        record: &LivepatchFunc,
        contents: &mut Contents<'_>,
    ) -> Result<(), NoMemory> {
        let Contents {
            findings: Findings { problems, uses, .. },
            functions,
            expectations,
            ..
        } = contents;
        let mut candidate = Candidate {
            loader,
            placed: self,
            function: Function {
                index,
                name: record.name.get(),
                old_addr: record.old_addr.get(),
                old_size: record.old_size.get(),
                new_addr: record.new_addr.get(),
                new_size: record.new_size.get(),
                patch_offset: 0,
                jump_size: loader.host.architecture().jump_size(),
                begins: false,
            },
        };
        let version = record.version;
        let found = if version == PAYLOAD_VERSION {
            candidate.locate().and_then(|()| candidate.check())
        } else {
            let expected = PAYLOAD_VERSION;
            Err(FunctionFault::Version { version, expected })
        };
        if let Err(fault) = found {
            candidate.push(fault, problems);
            return Ok(());
        }
        if let Some(warning) = candidate.uncleaned() {
            candidate.push(warning, problems);
        }
        let function = candidate.function;
        loader.note_owner(function.old_addr, uses)?;
        loader.note_owner(function.new_addr, uses)?;
        fallible::push(functions, function)?;
        fallible::push(expectations, record.expect)
    }
}

/// Checks all functions together, by address. Returns whether no two overlap: then
/// their total size is bounded by the hypervisor's text, and their code can be
/// scanned.
#[inline(never)]
pub(super) fn check_all(
    loader: &Loader<'_, impl Host>,
    image: &Image,
    functions: &[Function],
    problems: &mut Problems,
) -> Result<bool, NoMemory> {
    let sorted = sorted(functions)?;
    if overlaps(loader.host, image, &sorted, problems) {
        return Ok(false);
    }
    let mut cursor = Cursor::default();
    for function in sorted {
        // Only its first bytes are overwritten.
        if function.begins && function.new_addr != 0 {
            continue;
        }
        cursor.boundaries(loader.host, image, function, problems)?;
        // The rest of a hostile file is not worth the time.
        if problems.more != 0 {
            break;
        }
    }
    Ok(true)
}

/// In the order of their addresses.
#[inline(never)]
fn sorted(functions: &[Function]) -> Result<Vec<&Function>, NoMemory> {
    let mut sorted = fallible::collect(functions)?;
    sort(&mut sorted, |a, b| {
        a.old_addr < b.old_addr || a.old_addr == b.old_addr && a.index < b.index
    });
    Ok(sorted)
}

/// The progress of decoding a function of the hypervisor. Records are sorted by
/// address, so no instruction is decoded repeatedly.
#[derive(Default)]
struct Cursor {
    /// Start of the function.
    function: u64,
    /// Start of an instruction in it.
    at: u64,
}

impl Cursor {
    /// Checks that the patched range consists of complete instructions, and of both or
    /// neither of two that compute an address together. A jump may end inside one, because
    /// nothing after it runs; no-ops must not.
    #[inline(never)]
    fn boundaries(
        &mut self,
        host: &impl Host,
        image: &Image,
        function: &Function,
        problems: &mut Problems,
    ) -> Result<(), NoMemory> {
        let (addr, patched) = (function.old_addr, function.patched().end);
        let end = match function.new_addr {
            0 => patched,
            _ => addr,
        };
        let whole = host.function_at(addr).unwrap_or(addr).min(addr);
        if whole == end {
            return Ok(());
        }
        if self.function != whole || self.at > addr {
            (self.function, self.at) = (whole, whole);
        }
        let mut wrong = |fault| {
            problems.push(Problem::Function {
                index: function.index(),
                name: image.function_name(host, function),
                fault,
            });
            Ok(())
        };
        let architecture = host.architecture();
        let last = end.saturating_add(architecture.longest());
        let last = last.min(function.end()).max(end);
        let size = usize::try_from(last - self.at).unwrap_or(usize::MAX);
        let mut code = fallible::filled(0, size.min(FUNCTION_LIMIT))?;
        if !host.read(self.at, &mut code) {
            return wrong(FunctionFault::Undecodable { addr: self.at });
        }
        let mut code = code.as_slice();
        // Of the code up to what is patched, and of that.
        let patched_code = last.min(end.max(addr.saturating_add(architecture.unit().into())));
        let patched_code = usize::try_from(patched_code - self.at).unwrap_or(usize::MAX);
        let patched_code = code.get(..patched_code).unwrap_or(code);
        if let Some(data) = architecture.may_be_data(patched_code) {
            let addr = self.at + data as u64;
            return wrong(FunctionFault::Undecodable { addr });
        }
        for (what, at) in [("begin", addr), ("end", end)] {
            let offset = usize::try_from(at - self.at).unwrap_or(usize::MAX);
            match architecture.across(code, offset) {
                Err(read) => {
                    let addr = self.at + read as u64;
                    return wrong(FunctionFault::Undecodable { addr });
                }
                Ok(Some((begin, end))) => {
                    return wrong(FunctionFault::Boundary {
                        addr,
                        size: u32::try_from(patched - addr).unwrap_or(u32::MAX),
                        what,
                        begin: self.at + begin as u64,
                        length: (end - begin) as u64,
                    });
                }
                Ok(None) => {
                    if let Some((first, second)) = architecture.pair_across(host, whole, at) {
                        return wrong(FunctionFault::Pair {
                            addr,
                            what,
                            first,
                            second,
                        });
                    }
                }
            }
            if what == "begin" {
                code = code.get(offset..).unwrap_or_default();
                self.at = addr;
            }
        }
        Ok(())
    }
}

/// Most bytes of a function to decode at once.
const FUNCTION_LIMIT: usize = 1 << 20;

/// Two records for the same bytes: the second trampoline would overwrite the first.
#[inline(never)]
fn overlaps(
    host: &impl Host,
    image: &Image,
    sorted: &[&Function],
    problems: &mut Problems,
) -> bool {
    let before = problems.count();
    for pair in sorted.windows(2) {
        let [a, b] = pair else {
            continue;
        };
        if b.old_addr - a.old_addr < u64::from(a.old_size) {
            problems.push(Problem::Function {
                index: b.index(),
                name: image.function_name(host, b),
                fault: FunctionFault::Overlap {
                    addr: b.old_addr,
                    other: a.index(),
                    other_name: image.function_name(host, a),
                },
            });
        }
        if problems.more != 0 {
            break;
        }
    }
    problems.count() != before
}

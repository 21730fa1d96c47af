// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that a payload patches.

use super::verified::Contents;
use super::{Findings, Loader, Placed};
use crate::format::{Bytes, FUNC_SIZE, MAX_NAME, NOP_LIMIT};
use crate::names::{Name, Names};
use crate::problem::{Problem, Problems, text};
use crate::sort::sort;
use crate::{Host, Region, x86_64};
use alloc::string::String;
use core::ops::Range;
use xsplice_abi::payload::{LivepatchFunc, PAYLOAD_VERSION, section};
use xsplice_memory::{self as memory, NoMemory};
use zerocopy::FromBytes as _;

/// A function that the payload patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function {
    /// The number of its record in the payload.
    pub(crate) index: u32,
    /// Where its name is among those of the payload.
    pub(crate) name: Name,
    /// Where it is in the hypervisor.
    pub old_addr: u64,
    /// Size there.
    pub old_size: u32,
    /// Where its replacement is; 0 when it is made no-ops.
    pub new_addr: u64,
    /// Size of the replacement, or of what is made no-ops.
    pub new_size: u32,
    /// How far into the old function the patch begins.
    pub patch_offset: u32,
    /// Whether it is known that a function of the hypervisor begins there.
    pub(crate) begins: bool,
}

impl Function {
    /// What is written over: the addresses of a jump, or of no-ops.
    #[must_use]
    pub fn patched(&self) -> Range<u64> {
        let start = self.old_addr.saturating_add(self.patch_offset.into());
        let length = match self.new_addr {
            0 => self.new_size.saturating_sub(self.patch_offset),
            _ => x86_64::JUMP_SIZE,
        };
        start..start.saturating_add(length.into())
    }

    fn index(&self) -> usize {
        self.index as usize
    }

    /// The address after the old function.
    pub(crate) fn end(&self) -> u64 {
        self.old_addr.saturating_add(self.old_size.into())
    }
}

/// The name of a function, made printable; empty when it has none.
pub(crate) fn name(names: &Names, function: &Function) -> String {
    text(names.get(function.name))
}

/// Room for a name that the hypervisor has.
#[derive(Debug)]
pub(super) struct Room([u8; MAX_NAME]);

impl Default for Room {
    fn default() -> Self {
        Self([0; MAX_NAME])
    }
}

/// A function that is being checked.
struct Candidate<'n> {
    name: &'n [u8],
    function: Function,
}

impl Candidate<'_> {
    fn name(&self) -> String {
        text(self.name)
    }

    #[inline(never)]
    fn push_not_text(&self, problems: &mut Problems) {
        problems.push(Problem::OldAddress {
            index: self.function.index(),
            function: self.name(),
            addr: self.function.old_addr,
            size: self.function.old_size,
        });
    }
}

impl Placed<'_> {
    /// Adds the functions. Whether the payload has their section.
    #[inline(never)]
    pub(super) fn functions(
        &self,
        loader: &Loader<'_, impl Host>,
        contents: &mut Contents<'_>,
    ) -> Result<bool, NoMemory> {
        if self.elf.section(section::FUNCS).is_none() {
            return Ok(false);
        }
        let problems = &mut contents.findings.problems;
        let Some(table) = self.table(section::FUNCS, problems) else {
            return Ok(true);
        };
        if table.bytes.is_empty() {
            problems.push_empty(table.section);
        }
        let count = table.bytes.len() / size_of::<LivepatchFunc>();
        contents.functions = memory::with_room(count)?;
        contents.expectations = memory::with_room(count)?;
        let problems = &mut contents.findings.problems;
        let expected = "a multiple of 104 (function records)";
        for (index, _, record) in table.entries(FUNC_SIZE, expected, problems) {
            if let (Ok(record), Ok(index)) =
                (LivepatchFunc::ref_from_bytes(record), u32::try_from(index))
            {
                self.function(loader, index, record, contents)?;
            }
        }
        Ok(true)
    }

    /// Adds what a record says, when it is good.
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
            names,
            room,
            ..
        } = contents;
        let name = self.string(loader, record.name.get(), room);
        let mut candidate = Candidate {
            name: name.unwrap_or_default(),
            function: Function {
                index,
                name: Name::default(),
                old_addr: record.old_addr.get(),
                old_size: record.old_size.get(),
                new_addr: record.new_addr.get(),
                new_size: record.new_size.get(),
                patch_offset: 0,
                begins: false,
            },
        };
        if record.version != PAYLOAD_VERSION {
            push_version(&candidate, record.version, problems);
            return Ok(());
        }
        if candidate.function.old_addr == 0 {
            match name.and_then(|name| loader.lookup(name)) {
                Some((_, addr)) => candidate.function.old_addr = addr,
                None => {
                    push_not_found(&candidate.function, name, record, problems);
                    return Ok(());
                }
            }
        }
        if !check_old(loader, &candidate, problems) {
            return Ok(());
        }
        let mut first = [0; 4];
        if !loader.host.read(candidate.function.old_addr, &mut first) {
            candidate.push_not_text(problems);
            return Ok(());
        }
        let old_addr = candidate.function.old_addr;
        candidate.function.begins = loader.host.function_at(old_addr) == Some(old_addr);
        candidate.function.patch_offset = x86_64::patch_offset(&first);
        let good = match candidate.function.new_addr {
            0 => check_no_ops(&candidate, problems),
            _ => self.check_jump(loader, &candidate, problems),
        };
        if good {
            let Candidate {
                name, mut function, ..
            } = candidate;
            function.name = names.add(name)?;
            loader.note_owner(function.old_addr, uses)?;
            loader.note_owner(function.new_addr, uses)?;
            memory::push(functions, function)?;
            memory::push(expectations, record.expect)?;
        }
        Ok(())
    }

    /// Whether there is room for the trampoline, and whether it reaches code.
    #[inline(never)]
    fn check_jump(
        &self,
        loader: &Loader<'_, impl Host>,
        candidate: &Candidate<'_>,
        problems: &mut Problems,
    ) -> bool {
        let index = candidate.function.index();
        let Function {
            old_addr,
            old_size,
            new_addr,
            patch_offset,
            ..
        } = candidate.function;
        let needed = x86_64::JUMP_SIZE + patch_offset;
        if old_size < needed {
            problems.push(Problem::TooSmall {
                index,
                function: candidate.name(),
                old_size,
                needed,
            });
            return false;
        }
        let from = old_addr.wrapping_add(u64::from(patch_offset));
        if x86_64::displacement(from, new_addr).is_none() {
            problems.push(Problem::Distance {
                index,
                function: candidate.name(),
                old: old_addr,
                new: new_addr,
            });
            return false;
        }
        let in_text = self.image.text().contains(new_addr, 1)
            || loader.stack.region(loader.host, new_addr) == Region::Text;
        if !in_text {
            problems.push(Problem::NewAddress {
                index,
                function: candidate.name(),
                addr: new_addr,
            });
            return false;
        }
        true
    }

    /// The string at `addr`, in the payload or in the hypervisor, from where it
    /// is copied to `buffer`.
    #[inline(never)]
    fn string<'b>(
        &'b self,
        loader: &Loader<'_, impl Host>,
        addr: u64,
        Room(buffer): &'b mut Room,
    ) -> Option<&'b [u8]> {
        if addr == 0 {
            return None;
        }
        if let Some(tail) = self.image.tail(addr) {
            return Bytes(tail).c_str(0, MAX_NAME);
        }
        for offset in 0..=MAX_NAME {
            let mut byte = [0];
            if !loader
                .host
                .read(addr.wrapping_add(offset as u64), &mut byte)
            {
                return None;
            }
            match byte {
                [0] => return buffer.get(..offset),
                [byte] => *buffer.get_mut(offset)? = byte,
            }
        }
        None
    }
}

#[inline(never)]
fn push_version(candidate: &Candidate<'_>, version: u8, problems: &mut Problems) {
    problems.push(Problem::FuncVersion {
        index: candidate.function.index(),
        function: candidate.name(),
        version,
        expected: PAYLOAD_VERSION,
    });
}

/// There is nothing of this name, or no name.
#[inline(never)]
fn push_not_found(
    function: &Function,
    name: Option<&[u8]>,
    record: &LivepatchFunc,
    problems: &mut Problems,
) {
    let (index, addr) = (function.index(), record.name.get());
    problems.push(match name.map(text) {
        Some(function) => Problem::UnknownFunction { index, function },
        None => Problem::FuncName { index, addr },
    });
}

/// Whether the old function is code that may be patched.
#[inline(never)]
fn check_old(
    loader: &Loader<'_, impl Host>,
    candidate: &Candidate<'_>,
    problems: &mut Problems,
) -> bool {
    let function = &candidate.function;
    let index = function.index();
    let addr = function.old_addr;
    let Some(last) = function.old_size.checked_sub(1) else {
        problems.push(Problem::NoOldSize {
            index,
            function: candidate.name(),
        });
        return false;
    };
    let last = addr.wrapping_add(last.into());
    match (
        loader.stack.region(loader.host, addr),
        loader.stack.region(loader.host, last),
    ) {
        (Region::Text, Region::Text) => {}
        (Region::Init, _) => {
            problems.push(Problem::OldInit {
                index,
                function: candidate.name(),
                addr,
            });
            return false;
        }
        _ => {
            candidate.push_not_text(problems);
            return false;
        }
    }
    let denied = loader.host.denied(addr..function.end());
    if let Some(reason) = denied {
        problems.push(Problem::Denied {
            index,
            function: candidate.name(),
            addr,
            reason,
        });
    }
    denied.is_none()
}

/// Whether so many bytes can be made no-ops.
#[inline(never)]
fn check_no_ops(candidate: &Candidate<'_>, problems: &mut Problems) -> bool {
    let index = candidate.function.index();
    let Function {
        old_size,
        new_size,
        patch_offset,
        ..
    } = candidate.function;
    if new_size > NOP_LIMIT {
        problems.push(Problem::NopTooLong {
            index,
            function: candidate.name(),
            new_size,
            limit: NOP_LIMIT,
        });
        return false;
    }
    if new_size > old_size {
        problems.push(Problem::NopPastEnd {
            index,
            function: candidate.name(),
            new_size,
            old_size,
        });
        return false;
    }
    if new_size < patch_offset {
        problems.push(Problem::NopInEndbr {
            index,
            function: candidate.name(),
            new_size,
            endbr: patch_offset,
        });
        return false;
    }
    true
}

/// Checks what concerns all functions together, in the order of their addresses.
#[inline(never)]
pub(super) fn check_all(
    loader: &Loader<'_, impl Host>,
    functions: &[Function],
    names: &Names,
    problems: &mut Problems,
) -> Result<(), NoMemory> {
    let mut sorted = memory::collect(functions)?;
    let order = |function: &Function| (function.old_addr, function.index);
    sort(&mut sorted, |a, b| order(a) < order(b));
    overlaps(&sorted, names, problems);
    let mut cursor = Cursor::default();
    for function in sorted {
        cursor.boundaries(loader, function, names, problems)?;
        // The rest of a hostile file is not worth the time.
        if problems.more != 0 {
            break;
        }
    }
    Ok(())
}

/// How far a function of the hypervisor was decoded. Records come in the order
/// of their addresses, so that no instruction is decoded again and again.
#[derive(Default)]
struct Cursor {
    /// Where the function begins.
    function: u64,
    /// Where an instruction of it begins.
    at: u64,
}

impl Cursor {
    /// Whether what is patched is whole instructions. A jump may end inside of
    /// one, because nothing behind it is run; no-ops must not.
    #[inline(never)]
    fn boundaries(
        &mut self,
        loader: &Loader<'_, impl Host>,
        function: &Function,
        names: &Names,
        problems: &mut Problems,
    ) -> Result<(), NoMemory> {
        if function.begins && function.new_addr != 0 {
            return Ok(());
        }
        let index = function.index();
        let (addr, patched) = (function.old_addr, function.patched().end);
        let end = match function.new_addr {
            0 => patched,
            _ => addr,
        };
        let whole = loader.host.function_at(addr).unwrap_or(addr).min(addr);
        if whole == end {
            return Ok(());
        }
        if self.function != whole || self.at > addr {
            (self.function, self.at) = (whole, whole);
        }
        let mut undecodable = |addr| {
            problems.push(Problem::Undecodable {
                index,
                function: name(names, function),
                addr,
            });
            Ok(())
        };
        let last = end.saturating_add(x86_64::LONGEST as u64);
        let last = last.min(function.end()).max(end);
        let size = usize::try_from(last - self.at).unwrap_or(usize::MAX);
        let mut code = memory::filled(0, size.min(FUNCTION_LIMIT))?;
        if !loader.host.read(self.at, &mut code) {
            return undecodable(self.at);
        }
        let mut code = code.as_slice();
        for (what, at) in [("begin", addr), ("end", end)] {
            let offset = usize::try_from(at - self.at).unwrap_or(usize::MAX);
            match x86_64::across(code, offset) {
                Err(read) => return undecodable(self.at + read as u64),
                Ok(Some((begin, end))) => {
                    problems.push(Problem::Boundary {
                        index,
                        function: name(names, function),
                        addr,
                        size: u32::try_from(patched - addr).unwrap_or(u32::MAX),
                        what,
                        begin: self.at + begin as u64,
                        length: (end - begin) as u64,
                    });
                    return Ok(());
                }
                Ok(None) => {}
            }
            if what == "begin" {
                code = code.get(offset..).unwrap_or_default();
                self.at = addr;
            }
        }
        Ok(())
    }
}

/// Most bytes of a function that are decoded at once.
const FUNCTION_LIMIT: usize = 1 << 20;

/// Two records for the same bytes: the second trampoline would go over the first.
#[inline(never)]
fn overlaps(sorted: &[&Function], names: &Names, problems: &mut Problems) {
    for pair in sorted.windows(2) {
        let [a, b] = pair else {
            continue;
        };
        if b.old_addr - a.old_addr < u64::from(a.old_size) {
            problems.push(Problem::FuncOverlap {
                first: a.index(),
                first_name: name(names, a),
                second: b.index(),
                second_name: name(names, b),
                addr: b.old_addr,
            });
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that a payload patches.

use super::{Loader, Placed};
use crate::format::{Bytes, FUNC_SIZE, MAX_NAME, NOP_LIMIT};
use crate::problem::{Problem, Problems, text};
use crate::stack::Id;
use crate::{Host, Region, x86_64};
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use xsplice_abi::payload::{Expectation, LivepatchFunc, PAYLOAD_VERSION, section};
use zerocopy::FromBytes as _;

/// What a check gives. Its problem is boxed: hypervisors have little stack.
type Checked<T> = Result<T, Box<Problem>>;

/// A function that the payload patches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name in the payload; empty when it has none.
    pub name: String,
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

    /// The address after the old function.
    pub(crate) fn end(&self) -> u64 {
        self.old_addr.saturating_add(self.old_size.into())
    }

    fn not_text(&self, index: usize) -> Box<Problem> {
        Box::new(Problem::OldAddress {
            index,
            function: self.name.clone(),
            addr: self.old_addr,
            size: self.old_size,
        })
    }
}

/// One entry of `.livepatch.funcs`.
pub(super) struct Record {
    /// Its number, of those in the section.
    pub(super) index: usize,
    /// Its own address.
    pub(super) addr: u64,
    pub(super) function: Function,
    pub(super) expectation: Expectation,
}

impl Placed<'_> {
    /// The functions; `None` without their section.
    #[inline(never)]
    pub(super) fn functions(
        &self,
        loader: &Loader<'_, impl Host>,
        uses: &mut BTreeSet<Id>,
        problems: &mut Problems,
    ) -> Option<Vec<Record>> {
        self.elf.section(section::FUNCS)?;
        let Some(table) = self.table(section::FUNCS, problems) else {
            return Some(Vec::new());
        };
        if table.bytes.is_empty() {
            problems.push_empty(table.section);
        }
        let mut functions = Vec::new();
        let expected = "a multiple of 104 (function records)";
        for (index, addr, record) in table.entries(FUNC_SIZE, expected, problems) {
            let Ok(record) = LivepatchFunc::ref_from_bytes(record) else {
                continue;
            };
            match self.function(loader, index, record) {
                Ok(function) => {
                    loader.note_owner(function.old_addr, uses);
                    loader.note_owner(function.new_addr, uses);
                    functions.push(Record {
                        index,
                        addr,
                        function,
                        expectation: record.expect,
                    });
                }
                Err(problem) => problems.push(*problem),
            }
        }
        Some(functions)
    }

    /// What a record says, when it is good.
    #[inline(never)]
    fn function(
        &self,
        loader: &Loader<'_, impl Host>,
        index: usize,
        record: &LivepatchFunc,
    ) -> Checked<Function> {
        let name = self.string(loader, record.name.get());
        let mut function = Function {
            name: name.as_deref().map(text).unwrap_or_default(),
            old_addr: record.old_addr.get(),
            old_size: record.old_size.get(),
            new_addr: record.new_addr.get(),
            new_size: record.new_size.get(),
            patch_offset: 0,
        };
        if record.version != PAYLOAD_VERSION {
            let (version, expected) = (record.version, PAYLOAD_VERSION);
            return Err(Problem::FuncVersion {
                index,
                function: function.name,
                version,
                expected,
            }
            .into());
        }
        if function.old_addr == 0 {
            function.old_addr = match &name {
                Some(name) => old_address(loader, index, name)?,
                None => {
                    let addr = record.name.get();
                    return Err(Problem::FuncName { index, addr }.into());
                }
            };
        }
        check_old(loader, index, &function)?;
        let mut first = [0; 4];
        if !loader.host.read(function.old_addr, &mut first) {
            return Err(function.not_text(index));
        }
        function.patch_offset = x86_64::patch_offset(&first);
        match function.new_addr {
            0 => check_no_ops(index, &function)?,
            _ => self.check_jump(loader, index, &function)?,
        }
        Ok(function)
    }

    /// Whether there is room for the trampoline, and whether it reaches code.
    #[inline(never)]
    fn check_jump(
        &self,
        loader: &Loader<'_, impl Host>,
        index: usize,
        function: &Function,
    ) -> Checked<()> {
        let &Function {
            old_addr,
            old_size,
            new_addr,
            patch_offset,
            ..
        } = function;
        let name = || function.name.clone();
        let needed = x86_64::JUMP_SIZE + patch_offset;
        if old_size < needed {
            return Err(Problem::TooSmall {
                index,
                function: name(),
                old_size,
                needed,
            }
            .into());
        }
        let from = old_addr.wrapping_add(u64::from(patch_offset));
        if x86_64::displacement(from, new_addr).is_none() {
            return Err(Problem::Distance {
                index,
                function: name(),
                old: old_addr,
                new: new_addr,
            }
            .into());
        }
        let in_text = self.image.text().contains(new_addr, 1)
            || loader.stack.region(loader.host, new_addr) == Region::Text;
        if !in_text {
            return Err(Problem::NewAddress {
                index,
                function: name(),
                addr: new_addr,
            }
            .into());
        }
        Ok(())
    }

    /// The string at `addr`, in the payload or in the hypervisor.
    #[inline(never)]
    fn string(&self, loader: &Loader<'_, impl Host>, addr: u64) -> Option<Vec<u8>> {
        if addr == 0 {
            return None;
        }
        if let Some(span) = self.image.spans.iter().find(|span| span.contains(addr, 1)) {
            let offset = usize::try_from(addr - span.base).ok()?;
            return Bytes(&span.bytes)
                .c_str(offset, MAX_NAME)
                .map(<[u8]>::to_vec);
        }
        let mut string = Vec::new();
        for offset in 0..=MAX_NAME as u64 {
            let mut byte = [0];
            if !loader.host.read(addr.wrapping_add(offset), &mut byte) {
                return None;
            }
            match byte {
                [0] => return Some(string),
                [byte] => string.push(byte),
            }
        }
        None
    }
}

#[inline(never)]
fn old_address(loader: &Loader<'_, impl Host>, index: usize, name: &[u8]) -> Checked<u64> {
    let found = loader.lookup(name).map(|(_, addr)| addr);
    found.ok_or_else(|| {
        let function = text(name);
        Box::new(Problem::UnknownFunction { index, function })
    })
}

/// Whether the old function is code that may be patched.
#[inline(never)]
fn check_old(loader: &Loader<'_, impl Host>, index: usize, function: &Function) -> Checked<()> {
    let (addr, name) = (function.old_addr, || function.name.clone());
    let Some(last) = function.old_size.checked_sub(1) else {
        return Err(Problem::NoOldSize {
            index,
            function: name(),
        }
        .into());
    };
    let last = addr.wrapping_add(last.into());
    match (
        loader.stack.region(loader.host, addr),
        loader.stack.region(loader.host, last),
    ) {
        (Region::Text, Region::Text) => {}
        (Region::Init, _) => {
            return Err(Problem::OldInit {
                index,
                function: name(),
                addr,
            }
            .into());
        }
        _ => return Err(function.not_text(index)),
    }
    match loader.host.denied(addr..function.end()) {
        None => Ok(()),
        Some(reason) => Err(Box::new(Problem::Denied {
            index,
            function: name(),
            addr,
            reason,
        })),
    }
}

/// Whether so many bytes can be made no-ops.
#[inline(never)]
fn check_no_ops(index: usize, function: &Function) -> Checked<()> {
    let &Function {
        old_size,
        new_size,
        patch_offset,
        ..
    } = function;
    let function = || function.name.clone();
    if new_size > NOP_LIMIT {
        return Err(Problem::NopTooLong {
            index,
            function: function(),
            new_size,
            limit: NOP_LIMIT,
        }
        .into());
    }
    if new_size > old_size {
        return Err(Problem::NopPastEnd {
            index,
            function: function(),
            new_size,
            old_size,
        }
        .into());
    }
    if new_size < patch_offset {
        return Err(Problem::NopInEndbr {
            index,
            function: function(),
            new_size,
            endbr: patch_offset,
        }
        .into());
    }
    Ok(())
}

/// Checks what concerns all functions together, in the order of their addresses.
#[inline(never)]
pub(super) fn check_all(
    loader: &Loader<'_, impl Host>,
    records: &[Record],
    problems: &mut Problems,
) {
    let mut sorted: Vec<_> = records.iter().collect();
    sorted.sort_unstable_by_key(|record| (record.function.old_addr, record.index));
    overlaps(&sorted, problems);
    let mut cursor = Cursor::default();
    for record in sorted {
        if let Err(problem) = cursor.boundaries(loader, record.index, &record.function) {
            problems.push(*problem);
            // The rest of a hostile file is not worth the time.
            if problems.more != 0 {
                return;
            }
        }
    }
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
        index: usize,
        function: &Function,
    ) -> Checked<()> {
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
        let undecodable = |addr| {
            Box::new(Problem::Undecodable {
                index,
                function: function.name.clone(),
                addr,
            })
        };
        let last = end.saturating_add(x86_64::LONGEST as u64);
        let last = last.min(function.end()).max(end);
        let size = usize::try_from(last - self.at).unwrap_or(usize::MAX);
        let mut code = vec![0; size.min(FUNCTION_LIMIT)];
        if !loader.host.read(self.at, &mut code) {
            return Err(undecodable(self.at));
        }
        let mut code = code.as_slice();
        for (what, at) in [("begin", addr), ("end", end)] {
            let offset = usize::try_from(at - self.at).unwrap_or(usize::MAX);
            let across = x86_64::across(code, offset);
            let across = across.map_err(|read| undecodable(self.at + read as u64))?;
            if let Some((begin, end)) = across {
                return Err(Box::new(Problem::Boundary {
                    index,
                    function: function.name.clone(),
                    addr,
                    size: u32::try_from(patched - addr).unwrap_or(u32::MAX),
                    what,
                    begin: self.at + begin as u64,
                    length: (end - begin) as u64,
                }));
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
fn overlaps(sorted: &[&Record], problems: &mut Problems) {
    for pair in sorted.windows(2) {
        let [a, b] = pair else {
            continue;
        };
        let addr = b.function.old_addr;
        if addr - a.function.old_addr < u64::from(a.function.old_size) {
            problems.push(Problem::FuncOverlap {
                first: a.index,
                first_name: a.function.name.clone(),
                second: b.index,
                second_name: b.function.name.clone(),
                addr,
            });
        }
    }
}

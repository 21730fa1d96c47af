// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the payload patches, and whether it can.

use super::resolve::Target;
use super::tables::Tables;
use super::{Findings, Loader, Relocated};
use crate::elf::{SHF_MERGE, SHF_WRITE};
use crate::format::{Bytes, FUNC_SIZE, MAX_IMAGE, MAX_NAME, NOP_LIMIT};
use crate::host::{Description, State, Symbol};
use crate::image::{Image, Span};
use crate::problem::{Problem, Problems, Refusal, text};
use crate::stack::{Hooks, Id, Loaded, Times};
use crate::{Host, Region, Stack, x86_64};
use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::mem::offset_of;
use core::ops::Range;
use xsplice_abi::payload::{Expectation, LivepatchFunc, PAYLOAD_VERSION, section};
use xsplice_abi::preimage::{self, Preimage};
use zerocopy::FromBytes as _;

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
}

/// A payload that passed every check and can be put on the stack. Dropping it
/// gives its memory back.
#[derive(Debug)]
pub struct Verified {
    findings: Findings,
    build_id: Vec<u8>,
    depends: Vec<u8>,
    image: Image,
    functions: Vec<Function>,
    expectations: Vec<Expectation>,
    preimages: Vec<Preimage>,
    hooks: Hooks,
    tables: Tables,
    symbols: Vec<Symbol>,
    /// The new ones by their names as they are.
    new_symbols: BTreeMap<Vec<u8>, u64>,
    metadata: Vec<String>,
    writable_data: bool,
}

impl Verified {
    /// Problems that do not keep it from being loaded.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.findings.problems.list
    }

    /// The functions it patches.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        &self.functions
    }

    /// Its build-id.
    #[must_use]
    pub fn build_id(&self) -> &[u8] {
        &self.build_id
    }

    /// The strings that describe it.
    #[must_use]
    pub fn metadata(&self) -> &[String] {
        &self.metadata
    }

    /// Whether it can be applied again after a revert: not when it has writable
    /// data, which would keep the values of the first time.
    #[must_use]
    pub fn can_reapply(&self) -> bool {
        !self.writable_data
    }

    /// Copies it into the hypervisor's memory, hands its tables over, protects
    /// its pages and puts it on the stack.
    pub(crate) fn install(mut self, stack: &mut Stack) -> Result<(), Refusal> {
        let [text, data, read_only] = self.image.spans.each_ref().map(Span::range);
        let tables = self.tables;
        let description = Description {
            name: &self.findings.payload,
            text: text.clone(),
            data,
            read_only,
            funcs: tables.funcs,
            functions: &self.functions,
            alternatives: tables.alternatives,
            exceptions: tables.exceptions,
            bug_frames: tables.bug_frames,
            build_id: &self.build_id,
            depends: &self.depends,
            metadata: tables.metadata,
            symbols: &self.symbols,
        };
        self.image.copy();
        let registered = self.image.memory.register(&description);
        for (what, result) in [
            ("take over its tables", registered),
            (
                "protect its pages",
                registered.and_then(|()| self.image.protect()),
            ),
        ] {
            if let Err(errno) = result {
                self.findings
                    .problems
                    .push(Problem::Hypervisor { what, errno });
                return Err(self.findings.refuse());
            }
        }
        let loaded = Loaded {
            id: stack.next_id(),
            name: self.findings.payload,
            build_id: self.build_id,
            depends: self.depends,
            memory: self.image.memory,
            text,
            patched: vec![false; self.functions.len()],
            patches: Vec::new(),
            functions: self.functions,
            expectations: self.expectations,
            preimages: self.preimages,
            hooks: self.hooks,
            metadata: self.metadata,
            problems: self.findings.problems.list,
            symbols: self.new_symbols.keys().cloned().collect(),
            uses: self.findings.uses,
            writable_data: self.writable_data,
            reverted: false,
            state: State::Checked,
            result: 0,
            times: Times::default(),
        };
        stack.push(loaded, self.new_symbols);
        Ok(())
    }
}

/// One entry of `.livepatch.funcs`.
struct Record {
    /// Its number, of those in the section.
    index: usize,
    /// Its own address.
    addr: u64,
    function: Function,
    expectation: Expectation,
}

impl Relocated<'_> {
    /// Checks what the payload patches, its hooks, its tables and its symbols.
    ///
    /// # Errors
    /// [`Refusal`] with every problem of this and of all stages before it.
    pub fn verify(mut self, loader: &Loader<'_, impl Host>) -> Result<Verified, Refusal> {
        let mut problems = core::mem::take(&mut self.findings.problems);
        let mut uses = core::mem::take(&mut self.findings.uses);
        let records = self.functions(loader, &mut uses, &mut problems);
        let hooks = self.hooks(loader, &mut uses, &mut problems);
        if records.is_none() && hooks.is_none() {
            problems.push(Problem::NothingToDo);
        }
        let records = records.unwrap_or_default();
        overlaps(&records, &mut problems);
        let preimages = self.preimages(&mut problems);
        self.check_tables(&mut problems);
        let (symbols, new_symbols) = self.symbols(loader, &records, &mut problems);
        self.fill_in_addresses(&records);
        let tables = self.tables();
        let (functions, expectations) = records
            .into_iter()
            .map(|record| (record.function, record.expectation))
            .unzip();
        let refused = problems.refused();
        let metadata = self.metadata();
        let writable_data = self.elf.sections.iter().any(|section| {
            section.allocated()
                && section.flags & SHF_WRITE != 0
                && section.size != 0
                && section.name != section::FUNCS.as_bytes()
        });
        let findings = Findings {
            payload: self.findings.payload,
            problems,
            uses,
        };
        if refused {
            return Err(findings.refuse());
        }
        Ok(Verified {
            findings,
            build_id: self.build_id.to_owned(),
            depends: self.depends.to_owned(),
            image: self.image,
            functions,
            expectations,
            preimages,
            hooks: hooks.unwrap_or_default(),
            tables,
            symbols,
            new_symbols,
            metadata,
            writable_data,
        })
    }

    /// What the old functions must be, as the preimage notes say.
    fn preimages(&self, problems: &mut Problems) -> Vec<Preimage> {
        let Some(section) = self.elf.section(preimage::SECTION) else {
            return Vec::new();
        };
        let section_id = || section.id();
        let Some(notes) = Preimage::read_all(section.data) else {
            let section = section_id();
            problems.push(Problem::PreimageDamaged { section });
            return Vec::new();
        };
        let size = notes.iter().map(|note| u64::from(note.size)).sum();
        if size > MAX_IMAGE {
            let (section, limit) = (section_id(), MAX_IMAGE);
            problems.push(Problem::PreimageSize {
                section,
                size,
                limit,
            });
        }
        notes
    }

    /// Writes into each record the address that its name was found at.
    fn fill_in_addresses(&mut self, records: &[Record]) {
        const OLD_ADDR: u64 = offset_of!(LivepatchFunc, old_addr) as u64;
        for record in records {
            let place = record.addr.wrapping_add(OLD_ADDR);
            if let Some(field) = self.image.get_mut(place, 8) {
                field.copy_from_slice(&record.function.old_addr.to_le_bytes());
            }
        }
    }

    fn metadata(&self) -> Vec<String> {
        let strings = self
            .elf
            .section(section::MODINFO)
            .map_or(&b""[..], |section| section.data);
        strings
            .split(|byte| *byte == 0)
            .filter(|string| !string.is_empty())
            .map(text)
            .collect()
    }

    /// The functions; `None` without their section.
    fn functions(
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
            problems.push(Problem::Empty {
                section: table.section.id(),
            });
        }
        let mut functions = Vec::new();
        let expected = "a multiple of 104 (function records)";
        for (index, addr, record) in table.entries(FUNC_SIZE, expected, problems) {
            let Ok(record) = LivepatchFunc::read_from_bytes(record) else {
                continue;
            };
            match self.function(loader, index, &record) {
                Ok(function) => {
                    uses.extend(loader.stack.owner(function.old_addr));
                    uses.extend(loader.stack.owner(function.new_addr));
                    functions.push(Record {
                        index,
                        addr,
                        function,
                        expectation: record.expect,
                    });
                }
                Err(problem) => problems.push(problem),
            }
        }
        Some(functions)
    }

    fn function(
        &self,
        loader: &Loader<'_, impl Host>,
        index: usize,
        record: &LivepatchFunc,
    ) -> Result<Function, Problem> {
        let name = self.string(loader, record.name.get());
        let function = || name.as_deref().map(text).unwrap_or_default();
        if record.version != PAYLOAD_VERSION {
            let (version, expected) = (record.version, PAYLOAD_VERSION);
            return Err(Problem::FuncVersion {
                index,
                function: function(),
                version,
                expected,
            });
        }
        let (old_size, new_size) = (record.old_size.get(), record.new_size.get());
        if old_size == 0 {
            return Err(Problem::NoOldSize {
                index,
                function: function(),
            });
        }
        let old_addr = match (record.old_addr.get(), &name) {
            (0, None) => {
                return Err(Problem::FuncName {
                    index,
                    addr: record.name.get(),
                });
            }
            (0, Some(name)) => {
                let found = loader.lookup(name).map(|(_, addr)| addr);
                found.ok_or_else(|| Problem::UnknownFunction {
                    index,
                    function: function(),
                })?
            }
            (addr, _) => addr,
        };
        let last = old_addr.wrapping_add(u64::from(old_size) - 1);
        match (
            loader.stack.region(loader.host, old_addr),
            loader.stack.region(loader.host, last),
        ) {
            (Region::Text, Region::Text) => {}
            (Region::Init, _) => {
                return Err(Problem::OldInit {
                    index,
                    function: function(),
                    addr: old_addr,
                });
            }
            _ => {
                let (function, addr) = (function(), old_addr);
                return Err(Problem::OldAddress {
                    index,
                    function,
                    addr,
                    size: old_size,
                });
            }
        }
        let mut first = [0; 4];
        if !loader.host.read(old_addr, &mut first) {
            let (function, addr) = (function(), old_addr);
            return Err(Problem::OldAddress {
                index,
                function,
                addr,
                size: old_size,
            });
        }
        let patch_offset = x86_64::patch_offset(&first);
        let new_addr = record.new_addr.get();
        if new_addr == 0 {
            if new_size > NOP_LIMIT {
                let (function, limit) = (function(), NOP_LIMIT);
                return Err(Problem::NopTooLong {
                    index,
                    function,
                    new_size,
                    limit,
                });
            }
            if new_size > old_size {
                return Err(Problem::NopPastEnd {
                    index,
                    function: function(),
                    new_size,
                    old_size,
                });
            }
            if new_size < patch_offset {
                let (function, endbr) = (function(), patch_offset);
                return Err(Problem::NopInEndbr {
                    index,
                    function,
                    new_size,
                    endbr,
                });
            }
        } else {
            let needed = x86_64::JUMP_SIZE + patch_offset;
            if old_size < needed {
                return Err(Problem::TooSmall {
                    index,
                    function: function(),
                    old_size,
                    needed,
                });
            }
            let from = old_addr.wrapping_add(u64::from(patch_offset));
            if x86_64::displacement(from, new_addr).is_none() {
                let (function, old, new) = (function(), old_addr, new_addr);
                return Err(Problem::Distance {
                    index,
                    function,
                    old,
                    new,
                });
            }
            let in_text = self.image.text().contains(new_addr, 1)
                || loader.stack.region(loader.host, new_addr) == Region::Text;
            if !in_text {
                let addr = new_addr;
                return Err(Problem::NewAddress {
                    index,
                    function: function(),
                    addr,
                });
            }
        }
        let end = old_addr.saturating_add(u64::from(old_size));
        if let Some(reason) = loader.host.denied(old_addr..end) {
            return Err(Problem::Denied {
                index,
                function: function(),
                addr: old_addr,
                reason,
            });
        }
        let found = Function {
            name: function(),
            old_addr,
            old_size,
            new_addr,
            new_size,
            patch_offset,
        };
        boundaries(loader, index, &found)?;
        Ok(found)
    }

    /// The string at `addr`, in the payload or in the hypervisor.
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

    /// The symbols in sections that are loaded, and those of them that later
    /// payloads can refer to. Their names must be new.
    fn symbols(
        &self,
        loader: &Loader<'_, impl Host>,
        records: &[Record],
        problems: &mut Problems,
    ) -> (Vec<Symbol>, BTreeMap<Vec<u8>, u64>) {
        let replaced: BTreeSet<u64> = records
            .iter()
            .map(|record| record.function.new_addr)
            .collect();
        // On top of nothing, while there is something: only replace applies it,
        // and then what has the same name is gone.
        let only_replaces = self.depends == loader.host.build_id() && loader.stack.top().is_some();
        let (mut symbols, mut new_symbols) = (Vec::new(), BTreeMap::new());
        for (index, (symbol, target)) in self.elf.symbols.iter().zip(&self.targets).enumerate() {
            let (Some(section), &Target::Address(addr)) =
                (self.elf.sections.get(usize::from(symbol.section)), target)
            else {
                continue;
            };
            // Labels of merged strings are what a linker would have dropped.
            let label = section.flags & SHF_MERGE != 0 && symbol.name.starts_with(b".L");
            if index == 0 || !section.allocated() || symbol.name.is_empty() || label {
                continue;
            }
            let length = symbol.name.len();
            if length > MAX_NAME {
                let (symbol, limit) = (symbol.text(), MAX_NAME);
                problems.push(Problem::LongSymbol {
                    index,
                    symbol,
                    length,
                    limit,
                });
            }
            let new = !replaced.contains(&addr);
            symbols.push(Symbol {
                name: symbol.text(),
                addr,
                size: symbol.size,
                new,
            });
            if !new {
                continue;
            }
            let owner = match loader.host.lookup_symbol(symbol.name) {
                Some(found) if found != 0 => Some("the hypervisor".to_owned()),
                _ if only_replaces => None,
                _ => loader
                    .stack
                    .symbol(symbol.name)
                    .and_then(|(owner, _)| Some(loader.stack.get(owner)?.name.clone())),
            };
            match owner {
                Some(owner) => {
                    let symbol = symbol.text();
                    problems.push(Problem::DuplicateSymbol {
                        index,
                        symbol,
                        owner,
                    });
                }
                None => {
                    new_symbols.entry(symbol.name.to_vec()).or_insert(addr);
                }
            }
        }
        (symbols, new_symbols)
    }
}

/// Whether what is patched is whole instructions. A jump may end inside of one,
/// because nothing behind it is run; no-ops must not.
fn boundaries(
    loader: &Loader<'_, impl Host>,
    index: usize,
    function: &Function,
) -> Result<(), Problem> {
    let addr = function.old_addr;
    let (patched, end) = match function.new_addr {
        0 => (
            function.new_size,
            addr.saturating_add(function.new_size.into()),
        ),
        _ => (x86_64::JUMP_SIZE + function.patch_offset, addr),
    };
    let whole = loader.host.function_at(addr).unwrap_or(addr).min(addr);
    if whole == end {
        return Ok(());
    }
    let size = usize::try_from(function.end().max(end) - whole).unwrap_or(usize::MAX);
    let mut code = vec![0; size.min(FUNCTION_LIMIT)];
    if !loader.host.read(whole, &mut code) {
        return Err(undecodable(index, function, whole));
    }
    for (what, at) in [("begin", addr), ("end", end)] {
        let at = usize::try_from(at - whole).unwrap_or(usize::MAX);
        let across = x86_64::across(&code, at);
        let across = across.map_err(|read| undecodable(index, function, whole + read as u64))?;
        if let Some((begin, end)) = across {
            return Err(Problem::Boundary {
                index,
                function: function.name.clone(),
                addr,
                size: patched,
                what,
                begin: whole + begin as u64,
                length: (end - begin) as u64,
            });
        }
    }
    Ok(())
}

/// Most bytes of a function that are decoded.
const FUNCTION_LIMIT: usize = 1 << 20;

fn undecodable(index: usize, function: &Function, addr: u64) -> Problem {
    Problem::Undecodable {
        index,
        function: function.name.clone(),
        addr,
    }
}

/// Two records for the same bytes: the second trampoline would go over the first.
fn overlaps(records: &[Record], problems: &mut Problems) {
    let mut sorted: Vec<_> = records.iter().collect();
    sorted.sort_unstable_by_key(|record| (record.function.old_addr, record.index));
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

//! What the payload patches, and whether it can.

use super::resolve::Target;
use super::{Findings, Loader, Relocated};
use crate::elf::{SHF_MERGE, SHF_WRITE};
use crate::format::{Bytes, FUNC_SIZE, MAX_NAME, NOP_LIMIT};
use crate::image::{Image, Span};
use crate::problem::{Problem, Problems, Refusal, Severity, text};
use crate::stack::Loaded;
use crate::{Errno, Host, Region, x86_64};
use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use sha2::{Digest as _, Sha256};
use xsplice_abi::payload::{LivepatchFunc, PAYLOAD_VERSION, section};
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

/// A payload that passed every check and can be put on the stack.
#[derive(Debug)]
pub struct Verified {
    findings: Findings,
    build_id: Vec<u8>,
    image: Image,
    functions: Vec<Function>,
    symbols: BTreeMap<Vec<u8>, u64>,
    metadata: Vec<String>,
    writable_data: bool,
}

impl Verified {
    /// Problems that do not keep it from being loaded.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.findings.problems.list
    }

    /// Whether applying it now would succeed, its hooks aside.
    #[must_use]
    pub fn applies(&self) -> bool {
        self.problems()
            .iter()
            .all(|problem| problem.severity() < Severity::NotApplied)
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

    pub(crate) fn into_loaded(self) -> Loaded {
        Loaded {
            applied: self.applies(),
            writes: self.functions.iter().map(Function::patch).collect(),
            name: self.findings.payload,
            build_id: self.build_id,
            image: self.image,
            symbols: self.symbols,
        }
    }
}

impl Function {
    /// The bytes that applying the patch writes.
    fn patch(&self) -> Span {
        let base = self.old_addr.wrapping_add(u64::from(self.patch_offset));
        let bytes = if self.new_addr == 0 {
            let len = usize::try_from(self.new_size.saturating_sub(self.patch_offset));
            vec![0x90; len.unwrap_or(0)]
        } else {
            x86_64::displacement(base, self.new_addr)
                .map(x86_64::jump)
                .unwrap_or_default()
        };
        Span { base, bytes }
    }
}

impl Relocated<'_> {
    /// Checks what the payload patches, its hooks, its tables and its symbols.
    ///
    /// # Errors
    /// [`Refusal`] with every problem of this and of all stages before it.
    pub fn verify(mut self, loader: &Loader<'_, impl Host>) -> Result<Verified, Refusal> {
        let mut problems = core::mem::take(&mut self.findings.problems);
        let functions = self.functions(loader, &mut problems);
        let hooks = self.check_hooks(loader, &mut problems);
        if functions.is_none() && !hooks {
            problems.push(Problem::NothingToDo);
        }
        let functions = functions.unwrap_or_default();
        overlaps(&functions, &mut problems);
        self.check_preimages(loader, &mut problems);
        self.check_tables(&mut problems);
        let symbols = self.new_symbols(loader, &functions, &mut problems);
        let functions = functions
            .into_iter()
            .map(|(_, function)| function)
            .collect();
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
        };
        if refused {
            return Err(findings.refuse());
        }
        Ok(Verified {
            findings,
            build_id: self.build_id.to_owned(),
            image: self.image,
            functions,
            symbols,
            metadata,
            writable_data,
        })
    }

    /// What the preimage notes say of the old functions must be so.
    fn check_preimages(&self, loader: &Loader<'_, impl Host>, problems: &mut Problems) {
        let Some(section) = self.elf.section(preimage::SECTION) else {
            return;
        };
        let Some(notes) = Preimage::read_all(section.data) else {
            problems.push(Problem::PreimageDamaged {
                section: section.id(),
            });
            return;
        };
        for note in notes {
            let size = usize::try_from(note.size).unwrap_or(0);
            let mut code = vec![0; size];
            let there = loader.stack.read(loader.host, note.address, &mut code);
            note.mask(&mut code);
            if !there || Sha256::digest(&code)[..] != note.hash {
                problems.push(Problem::Preimage {
                    addr: note.address,
                    size: note.size,
                });
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

    /// The functions, each with its index in the section; `None` without one.
    fn functions(
        &self,
        loader: &Loader<'_, impl Host>,
        problems: &mut Problems,
    ) -> Option<Vec<(usize, Function)>> {
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
        for (index, _, record) in table.entries(FUNC_SIZE, expected, problems) {
            let Ok(record) = LivepatchFunc::read_from_bytes(record) else {
                continue;
            };
            match self.function(loader, index, &record, problems) {
                Ok(function) => functions.push((index, function)),
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
        problems: &mut Problems,
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
                let found = loader.host.lookup_symbol(name).filter(|addr| *addr != 0);
                found
                    .or_else(|| loader.stack.symbol(name).map(|(_, addr)| addr))
                    .ok_or_else(|| Problem::UnknownFunction {
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
        if !loader.stack.read(loader.host, old_addr, &mut first) {
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
        if let Err(problem) = expectation(loader, index, &function(), old_addr, record) {
            problems.push(problem);
        }
        let name = function();
        Ok(Function {
            name,
            old_addr,
            old_size,
            new_addr,
            new_size,
            patch_offset,
        })
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
            if !loader
                .stack
                .read(loader.host, addr.wrapping_add(offset), &mut byte)
            {
                return None;
            }
            match byte {
                [0] => return Some(string),
                [byte] => string.push(byte),
            }
        }
        None
    }

    /// Symbols that later payloads can refer to. Their names must be new.
    fn new_symbols(
        &self,
        loader: &Loader<'_, impl Host>,
        functions: &[(usize, Function)],
        problems: &mut Problems,
    ) -> BTreeMap<Vec<u8>, u64> {
        let replaced: BTreeSet<u64> = functions
            .iter()
            .map(|(_, function)| function.new_addr)
            .collect();
        let mut symbols = BTreeMap::new();
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
            if replaced.contains(&addr) {
                continue;
            }
            let owner = match loader.host.lookup_symbol(symbol.name) {
                Some(found) if found != 0 => Some("the hypervisor".to_owned()),
                _ => loader
                    .stack
                    .symbol(symbol.name)
                    .map(|(owner, _)| owner.name.clone()),
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
                    symbols.entry(symbol.name.to_vec()).or_insert(addr);
                }
            }
        }
        symbols
    }
}

/// Whether the old function has the bytes that the payload was made for.
fn expectation(
    loader: &Loader<'_, impl Host>,
    index: usize,
    function: &str,
    addr: u64,
    record: &LivepatchFunc,
) -> Result<(), Problem> {
    let expect = &record.expect;
    if !expect.enabled() {
        return Ok(());
    }
    let invalid = |what, errno| {
        Err(Problem::ExpectationInvalid {
            index,
            function: function.to_owned(),
            what,
            errno,
        })
    };
    if expect.reserved() != 0 {
        return invalid("reserved bits set", Errno::EINVAL);
    }
    if expect.len() as u64 > u64::from(record.old_size.get()) {
        return invalid("more bytes than the function has", Errno::ERANGE);
    }
    let expected = expect.data.get(..expect.len()).unwrap_or(&expect.data);
    let mut actual = vec![0; expected.len()];
    if loader.stack.read(loader.host, addr, &mut actual) && actual == expected {
        return Ok(());
    }
    Err(Problem::Expectation {
        index,
        function: function.to_owned(),
        addr,
        expected: expected.to_vec(),
        actual,
    })
}

/// Two records for the same bytes: the second trampoline would go over the first.
fn overlaps(functions: &[(usize, Function)], problems: &mut Problems) {
    let mut sorted: Vec<_> = functions.iter().collect();
    sorted.sort_unstable_by_key(|(index, function)| (function.old_addr, *index));
    for pair in sorted.windows(2) {
        let [(first, a), (second, b)] = pair else {
            continue;
        };
        if b.old_addr - a.old_addr < u64::from(a.old_size) {
            problems.push(Problem::FuncOverlap {
                first: *first,
                first_name: a.name.clone(),
                second: *second,
                second_name: b.name.clone(),
                addr: b.old_addr,
            });
        }
    }
}

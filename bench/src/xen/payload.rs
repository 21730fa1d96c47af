// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads of any size for a real hypervisor. Each new function has the first
//! instructions of the old one and a jump to the rest, so the hypervisor behaves as
//! before; if these are not position-independent, it is a jump to the old one, and
//! the payload can be applied only if nothing calls it.

use super::code;
use crate::Arch;
use anyhow::{Context as _, ensure};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use xsplice_abi::note;
use xsplice_abi::payload::section;
use xsplice_generator::payload::{Align, Draft, Field, Func, Identity, Kind, Reaches};
use xsplice_stopwatch::page;

/// A function of the hypervisor that a payload can replace.
#[derive(Debug, Clone)]
struct Target {
    name: String,
    address: u64,
    size: u64,
    /// Complete, position-independent instructions at its start; may be empty.
    start: Vec<u8>,
}

/// A payload.
pub(super) struct Payload {
    pub(super) name: String,
    pub(super) data: Vec<u8>,
    build_id: Vec<u8>,
}

/// The hypervisor.
pub(super) struct Image {
    arch: Arch,
    /// Sorted so that functions that behave the same when replaced come first.
    targets: Vec<Target>,
    build_id: Vec<u8>,
}

impl Image {
    pub(super) fn read(arch: Arch, xen_syms: &Path) -> anyhow::Result<Self> {
        let data = std::fs::read(xen_syms).with_context(|| xen_syms.display().to_string())?;
        let running = xsplice_host_image::Image::parse(&data)?;
        let file = ElfFile64::<Endianness>::parse(data.as_slice())?;
        let text = file.section_by_name(".text").context("no .text")?;
        let all = text.data()?;
        let most = code::patched(arch);
        let mut functions: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
        for symbol in file.symbols() {
            if symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(text.index()) {
                let place = (symbol.address(), symbol.size());
                functions.entry(symbol.name()?).or_default().push(place);
            }
        }
        let targets = functions.iter().filter_map(|(name, places)| {
            let &[(address, size)] = places.as_slice() else {
                return None;
            };
            let offset = usize::try_from(address - text.address()).ok()?;
            let code = all.get(offset..)?.get(..usize::try_from(size).ok()?)?;
            let patched = address..address + most as u64;
            running.denied(patched).is_none().then_some(())?;
            (code.len() >= most).then(|| Target {
                name: (*name).to_owned(),
                address,
                size,
                start: code::start(arch, code).unwrap_or_default().to_vec(),
            })
        });
        let mut targets: Vec<Target> = targets.collect();
        targets.sort_by_key(|target| target.start.is_empty());
        Ok(Self {
            arch,
            targets,
            build_id: file.build_id()?.context("no build-id")?.to_vec(),
        })
    }

    /// The hypervisor without the functions that would be patched on a page of `run`.
    pub(super) fn cold(&self, run: &BTreeSet<u64>) -> Self {
        let most = code::patched(self.arch) as u64;
        let cold = |target: &&Target| {
            let patched = [target.address, target.address + most];
            patched.iter().all(|addr| !run.contains(&page(*addr)))
        };
        Self {
            arch: self.arch,
            targets: self.targets.iter().filter(cold).cloned().collect(),
            build_id: self.build_id.clone(),
        }
    }

    /// Number of functions that a payload can replace.
    pub(super) fn functions(&self) -> usize {
        self.targets.len()
    }

    /// Number of those that behave the same when replaced.
    pub(super) fn unchanged(&self) -> usize {
        self.targets
            .partition_point(|target| !target.start.is_empty())
    }

    /// A payload that replaces these `functions` of the targets and defines `symbols`
    /// symbols; it depends on the payload `below`, or on the hypervisor.
    pub(super) fn payload(
        &self,
        name: &str,
        functions: Range<usize>,
        symbols: usize,
        below: Option<&Payload>,
    ) -> anyhow::Result<Payload> {
        let all = self.targets.len();
        let targets = self.targets.get(functions);
        let targets = targets.with_context(|| format!("Xen has only {all} functions"))?;
        let mut draft = Draft::of(self.arch.machine());
        let jump = code::jump(self.arch);
        for target in targets {
            let mut code = target.start.clone();
            code.extend(jump.code);
            let at = draft.append(&Kind::Text, &code, Align::to(16));
            let (resumed, size) = (target.start.len(), code.len() as u64);
            draft.name(&(Kind::Text, at), target.name.clone(), size, true);
            draft.fields.push(Field {
                part: Kind::Text,
                offset: at + resumed as u64 + jump.field,
                r_type: jump.r_type,
                addend: jump.addend,
                reaches: Reaches::Address(
                    format!("{}.rest", target.name),
                    target.address,
                    i64::try_from(resumed)?,
                ),
            });
            draft.funcs.push(Func {
                name: target.name.clone(),
                old_address: target.address,
                old_size: target.size,
                new: (Kind::Text, at),
                new_size: size,
                expected: target.start.clone(),
                preimage: None,
            });
        }
        for index in 0..symbols {
            let at = draft.append(&Kind::RoData, &[0; 4], Align::to(4));
            draft.name(&(Kind::RoData, at), format!("{name}_{index}"), 4, false);
        }
        let data = draft.write(&Identity {
            hypervisor: &self.build_id,
            depends: below.map_or(&self.build_id, |below| &below.build_id),
            metadata: &[],
            record: &serde_json::Value::Null,
        })?;
        ensure!(data.len() <= MOST, "{name} would have {} bytes", data.len());
        let file = ElfFile64::<Endianness>::parse(data.as_slice())?;
        // Its dependencies are in notes of the same type.
        let note = file.section_by_name(section::BUILD_ID);
        let note = note.context("no build-id")?.data()?;
        let build_id = note::parse_build_id(note).context("no build-id")?.to_vec();
        Ok(Payload {
            name: name.to_owned(),
            build_id,
            data,
        })
    }
}

/// `LIVEPATCH_MAX_SIZE`.
const MOST: usize = 2 << 20;

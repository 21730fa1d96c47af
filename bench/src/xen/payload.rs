// SPDX-License-Identifier: MIT OR Apache-2.0

//! Payloads of any size for a real hypervisor. Each new function has the first
//! instructions of the old one and a jump to the rest, so the hypervisor behaves as
//! before; if these are not position-independent, it is a jump to the old one, and
//! the payload can be applied only if nothing calls it.

use anyhow::{Context as _, ensure};
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind, elf};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use xsplice_abi::machine::Machine;
use xsplice_abi::payload::section;
use xsplice_abi::{note, trampoline};
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

/// Size of a jump.
const JUMP: usize = trampoline::SIZE as usize;
/// Size of a landing pad, which is kept.
const ENDBR: usize = trampoline::LANDING_PAD_SIZE as usize;

/// The hypervisor.
pub(super) struct Image {
    /// Sorted so that functions that behave the same when replaced come first.
    targets: Vec<Target>,
    build_id: Vec<u8>,
}

impl Image {
    pub(super) fn read(xen_syms: &Path) -> anyhow::Result<Self> {
        let data = std::fs::read(xen_syms).with_context(|| xen_syms.display().to_string())?;
        let running = xsplice_host_image::Image::parse(&data)?;
        let file = ElfFile64::<Endianness>::parse(data.as_slice())?;
        let text = file.section_by_name(".text").context("no .text")?;
        let code = text.data()?;
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
            let code = code.get(offset..)?.get(..usize::try_from(size).ok()?)?;
            let patched = address..address + (ENDBR + JUMP) as u64;
            running.denied(patched).is_none().then_some(())?;
            (code.len() >= JUMP + ENDBR).then(|| Target {
                name: (*name).to_owned(),
                address,
                size,
                start: start(code).unwrap_or_default().to_vec(),
            })
        });
        let mut targets: Vec<Target> = targets.collect();
        targets.sort_by_key(|target| target.start.is_empty());
        Ok(Self {
            targets,
            build_id: file.build_id()?.context("no build-id")?.to_vec(),
        })
    }

    /// The hypervisor without the functions that would be patched on a page of `run`.
    pub(super) fn cold(&self, run: &BTreeSet<u64>) -> Self {
        let cold = |target: &&Target| {
            let patched = [target.address, target.address + (ENDBR + JUMP) as u64];
            patched.iter().all(|addr| !run.contains(&page(*addr)))
        };
        Self {
            targets: self.targets.iter().filter(cold).cloned().collect(),
            build_id: self.build_id.clone(),
        }
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
        let mut draft = Draft::of(Machine::X86_64);
        for target in targets {
            let mut code = target.start.clone();
            code.extend([0xe9, 0, 0, 0, 0]);
            let at = draft.append(&Kind::Text, &code, Align::to(16));
            let (resumed, size) = (target.start.len(), code.len() as u64);
            draft.name(&(Kind::Text, at), target.name.clone(), size, true);
            draft.fields.push(Field {
                part: Kind::Text,
                offset: at + resumed as u64 + 1,
                r_type: elf::R_X86_64_PC32.0,
                addend: -4,
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

/// The complete instructions that a jump after an optional landing pad overwrites, if
/// they are position-independent and nothing in `code` jumps into their middle.
fn start(code: &[u8]) -> Option<&[u8]> {
    let mut least = JUMP;
    let mut end = 0;
    for instruction in &mut Decoder::new(64, code, DecoderOptions::NONE) {
        if instruction.mnemonic() == Mnemonic::Endbr64 {
            least += ENDBR;
        }
        // Apparent padding may be patched at boot.
        let fixed = instruction.is_ip_rel_memory_operand()
            || instruction.flow_control() != FlowControl::Next
            || matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::INVALID);
        if fixed {
            return None;
        }
        end = usize::try_from(instruction.next_ip()).ok()?;
        if end >= least {
            break;
        }
    }
    let inside = |instruction: &Instruction| (1..end as u64).contains(&instruction.near_branch64());
    let mut all = Decoder::new(64, code, DecoderOptions::NONE);
    (end >= least && !all.iter().any(|instruction| inside(&instruction))).then(|| &code[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_position_independent_instructions_are_taken() {
        const RETURN: &[u8] = &[0xc3];
        let code = |start: &[u8]| [start, RETURN].concat();
        // push %rbp; mov %rsp,%rbp; push %rbx
        let plain = [0x55, 0x48, 0x89, 0xe5, 0x53];
        assert_eq!(start(&code(&plain)), Some(&plain[..]));
        // With a landing pad, more of them are needed.
        let padded = [&trampoline::LANDING_PAD, &plain[..]].concat();
        assert_eq!(start(&code(&padded)), Some(&padded[..]));
        assert_eq!(start(&code(&padded[..8])), None);
        // lea 0x0(%rip),%rax
        assert_eq!(start(&code(&[0x48, 0x8d, 0x05, 0, 0, 0, 0])), None);
        // jmp to the second instruction
        assert_eq!(start(&[&plain[..], &[0xeb, 0xfa]].concat()), None);
        // jmp to the first, which is the new function's then
        assert!(start(&[&plain[..], &[0xeb, 0xf9]].concat()).is_some());
    }
}

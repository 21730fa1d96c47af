// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM64.

use super::{Arch, Layout, Reference};
use crate::compare::{Code, Names};
use crate::uses::How;
use std::collections::BTreeMap;
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_reloc::reloc::{Relocation, aarch64};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::{InstDecoder, Instruction, Opcode, Operand, SizeCode};

/// Size of an instruction in bytes.
const SIZE: usize = 4;
/// Size of a page in bytes, in the sense of `adrp`.
const PAGE: u64 = 0x1000;
/// Number of registers that a called function may change: x0 to x18, and the return
/// address.
const CLOBBERED: std::ops::Range<u16> = 0..19;
/// The register with the return address.
const RETURN: u16 = 30;

#[derive(Debug)]
pub(super) struct Aarch64;

impl Arch for Aarch64 {
    fn layout(&self, hypervisor: Option<u64>) -> Layout {
        /// Where Xen 4.17 is.
        const XEN: u64 = 0x20_0000;
        const MIB: u64 = 1 << 20;
        let xen = hypervisor.unwrap_or(XEN);
        let away = |distance: u64| xen.saturating_add(distance);
        // A branch reaches 128 MiB.
        Layout {
            start: away(16 * MIB),
            unknown: away(112 * MIB)..away(126 * MIB),
        }
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        aarch64::lookup(r_type)
    }

    fn entry_size(&self, table: Table) -> u64 {
        arm::entry_size(table)
    }

    fn read_entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        arm::read(table, entry, at)
    }

    fn condition(&self, condition: u16) -> String {
        condition.to_string()
    }

    fn disassemble(&self, code: &[u8], address: u64, names: &Names) -> Vec<Code> {
        let function = Function::decode(code, address);
        let targets = function.targets();
        let all = function.instructions.iter().enumerate();
        all.map(|(index, instruction)| {
            let offset = (index * SIZE) as u64;
            let place = address.wrapping_add(offset);
            let Some(instruction) = instruction else {
                let bytes = code.get(index * SIZE..).unwrap_or_default();
                let word = bytes.iter().take(SIZE).rev();
                let word = word.fold("0x".to_owned(), |all, byte| all + &format!("{byte:02x}"));
                return Code::plain(offset, format!(".inst {word}"));
            };
            let (mut text, mut inner, mut leads_to) = (instruction.to_string(), None, None);
            if let Some(target) = branch_target(instruction, place) {
                // The distance is the last operand.
                let start = text.rfind(' ').map_or(0, |at| at + 1);
                text.truncate(start);
                match function.contains(target) {
                    true => inner = Some(target.wrapping_sub(address)),
                    false => leads_to = Some(names.name(target)),
                }
                text += leads_to.as_ref().map_or("", |name| &name.short);
            } else if let Some(target) = targets.get(&index) {
                let name = names.name(*target);
                match instruction.opcode {
                    Opcode::ADR | Opcode::ADRP => {
                        text.truncate(text.find(',').map_or(0, |at| at + 1));
                        text += &format!(" {}", name.short);
                    }
                    // The low bits of an address depend on where it is.
                    _ => text = format!("{} <{}>", without_last_number(&text), name.short),
                }
                leads_to = Some(name);
            }
            let full = leads_to.map_or(String::new(), |name| name.full);
            let shape = format!("{text} {full}");
            if let Some(target) = inner {
                text += &format!("+{target:#x}");
            }
            Code {
                offset,
                text,
                inner,
                shape,
            }
        })
        .collect()
    }

    fn references(&self, code: &[u8], address: u64) -> Vec<Reference> {
        let function = Function::decode(code, address);
        let mut found = Vec::new();
        for (index, instruction) in function.instructions.iter().enumerate() {
            let place = address.wrapping_add((index * SIZE) as u64);
            let Some(instruction) = instruction else {
                continue;
            };
            if let Some(target) = branch_target(instruction, place) {
                let how = match instruction.opcode {
                    Opcode::BL => How::Call,
                    _ => How::Jump,
                };
                found.push(Reference { place, target, how });
            }
        }
        let targets = function.targets().into_iter();
        // The first half of an address alone is none.
        let whole = targets.filter(|(index, _)| {
            let instruction = function.instructions[*index].as_ref();
            instruction.is_some_and(|instruction| instruction.opcode != Opcode::ADRP)
        });
        found.extend(whole.map(|(index, target)| Reference {
            place: address.wrapping_add((index * SIZE) as u64),
            target,
            how: How::Address,
        }));
        found
    }
}

/// The text of an instruction without its last number, which is added to a register.
fn without_last_number(text: &str) -> String {
    let Some((before, number)) = text.rsplit_once(", #") else {
        return text.to_owned();
    };
    let behind = number.trim_start_matches(|c: char| c.is_ascii_alphanumeric());
    format!("{before}{behind}")
}

/// The operand that counts from the address of the instruction.
fn distance(instruction: &Instruction) -> Option<i64> {
    instruction
        .operands
        .iter()
        .find_map(|operand| match operand {
            Operand::PCOffset(distance) => Some(*distance),
            _ => None,
        })
}

fn branch_target(instruction: &Instruction, place: u64) -> Option<u64> {
    let distance = distance(instruction)?;
    let computes = matches!(
        instruction.opcode,
        Opcode::ADR | Opcode::ADRP | Opcode::LDR | Opcode::LDRSW | Opcode::PRFM
    );
    (!computes).then(|| place.wrapping_add_signed(distance))
}

/// The pages whose addresses registers hold, by number.
type Pages = BTreeMap<u16, Page>;

/// The address of a page, and the instruction that computed it.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Page {
    address: u64,
    by: usize,
}

/// The instructions of a function.
struct Function {
    address: u64,
    instructions: Vec<Option<Instruction>>,
}

impl Function {
    fn decode(code: &[u8], address: u64) -> Self {
        let words = code.chunks(SIZE);
        let decoder = InstDecoder::default();
        let decoded = words.map(|word| decoder.decode(&mut U8Reader::new(word)).ok());
        Self {
            address,
            instructions: decoded.collect(),
        }
    }

    fn place(&self, index: usize) -> u64 {
        self.address.wrapping_add((index * SIZE) as u64)
    }

    fn contains(&self, target: u64) -> bool {
        self.index(target).is_some()
    }

    fn index(&self, target: u64) -> Option<usize> {
        let offset = usize::try_from(target.wrapping_sub(self.address)).ok()?;
        let index = offset / SIZE;
        (offset % SIZE == 0 && index < self.instructions.len()).then_some(index)
    }

    /// The addresses that instructions compute or access, by the index of the
    /// instruction: all at once, or from a page that holds on every path to it.
    fn targets(&self) -> BTreeMap<usize, u64> {
        let before = self.pages();
        let mut found = BTreeMap::new();
        for (index, instruction) in self.instructions.iter().enumerate() {
            let Some(instruction) = instruction else {
                continue;
            };
            if let Some(distance) = distance(instruction)
                && matches!(
                    instruction.opcode,
                    Opcode::ADR | Opcode::LDR | Opcode::LDRSW
                )
            {
                found.insert(index, self.place(index).wrapping_add_signed(distance));
            }
            let Some((base, rest)) = within_page(instruction) else {
                continue;
            };
            if let Some(page) = before[index].as_ref().and_then(|pages| pages.get(&base)) {
                let target = page.address.wrapping_add(rest);
                found.insert(index, target);
                found.entry(page.by).or_insert(target);
            }
        }
        found
    }

    /// The pages that are known before each instruction; `None` if no path to it is
    /// known.
    fn pages(&self) -> Vec<Option<Pages>> {
        let mut before: Vec<Option<Pages>> = vec![None; self.instructions.len()];
        let mut next_root = 0;
        let mut left = Vec::new();
        loop {
            let Some((index, pages)) = left.pop() else {
                // Code that only a table leads to, after what is reached otherwise.
                match (next_root..before.len()).find(|&index| before[index].is_none()) {
                    None => return before,
                    Some(root) => {
                        next_root = root;
                        left.push((root, Pages::new()));
                    }
                }
                continue;
            };
            let merged = match before.get(index) {
                None => continue,
                Some(None) => pages,
                Some(Some(known)) => {
                    let mut both = known.clone();
                    both.retain(|register, page| pages.get(register) == Some(page));
                    if both == *known {
                        continue;
                    }
                    both
                }
            };
            let after = self.after(index, &merged);
            before[index] = Some(merged);
            let (target, falls_through) = self.successors(index);
            left.extend(target.map(|target| (target, after.clone())));
            if falls_through {
                left.push((index + 1, after));
            }
        }
    }

    /// Where a branch of the instruction leads within the function, and whether the next
    /// instruction follows.
    fn successors(&self, index: usize) -> (Option<usize>, bool) {
        let Some(instruction) = &self.instructions[index] else {
            return (None, true);
        };
        let target = branch_target(instruction, self.place(index));
        let ends = matches!(instruction.opcode, Opcode::B | Opcode::BR | Opcode::RET);
        let calls = instruction.opcode == Opcode::BL;
        (
            target
                .filter(|_| !calls)
                .and_then(|target| self.index(target)),
            !ends,
        )
    }

    fn after(&self, index: usize, pages: &Pages) -> Pages {
        let mut pages = pages.clone();
        let Some(instruction) = &self.instructions[index] else {
            return Pages::new();
        };
        if matches!(instruction.opcode, Opcode::BL | Opcode::BLR) {
            pages.retain(|register, _| !CLOBBERED.contains(register) && *register != RETURN);
            return pages;
        }
        // Of stores, these are read, which only forgets more than needed.
        for operand in instruction.operands {
            match operand {
                Operand::Register(_, register) | Operand::RegisterOrSP(_, register) => {
                    let is_base =
                        within_page(instruction).is_some_and(|(base, _)| base == register);
                    let written = operand == instruction.operands[0];
                    if written || !is_base && may_write(instruction) {
                        pages.remove(&register);
                    }
                }
                _ => {}
            }
        }
        if instruction.opcode == Opcode::ADRP
            && let (Operand::Register(_, register), Some(distance)) =
                (instruction.operands[0], distance(instruction))
        {
            let page = self.place(index) & !(PAGE - 1);
            let address = page.wrapping_add_signed(distance);
            pages.insert(register, Page { address, by: index });
        }
        pages
    }
}

/// Whether an instruction may write to more registers than its first operand.
fn may_write(instruction: &Instruction) -> bool {
    let plain = matches!(
        instruction.opcode,
        Opcode::ADD | Opcode::ADDS | Opcode::SUB | Opcode::SUBS | Opcode::ORR | Opcode::AND
    );
    !plain
}

/// The register and the number that an instruction adds to it, if the sum may be an
/// address whose page the register holds.
fn within_page(instruction: &Instruction) -> Option<(u16, u64)> {
    match (instruction.opcode, instruction.operands) {
        (
            Opcode::ADD,
            [
                _,
                Operand::RegisterOrSP(SizeCode::X, base) | Operand::Register(SizeCode::X, base),
                Operand::Immediate(rest),
                _,
            ],
        ) => Some((base, rest.into())),
        (_, operands) => operands.iter().find_map(|operand| match operand {
            Operand::RegPreIndex(base, rest, false) => Some((*base, u64::try_from(*rest).ok()?)),
            _ => None,
        }),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM32.

use super::{Arch, Layout, Reference};
use crate::compare::{Code, Names};
use crate::uses::How;
use std::collections::{BTreeMap, BTreeSet};
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_abi::trampoline::arm32::AHEAD;
use xsplice_reloc::reloc::{Relocation, arm32};
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv7::{InstDecoder, Instruction, Opcode, Operand};

/// Size of an instruction in bytes.
const SIZE: usize = 4;
/// The relocation of a branch, which describes its field.
const R_ARM_CALL: u32 = 28;
/// `nop`, which the decoder does not know.
const NOP: u32 = 0xe320_f000;
/// The condition of `blx` with a distance.
const UNCONDITIONAL: u32 = 0xf;

#[derive(Debug)]
pub(super) struct Arm32;

impl Arch for Arm32 {
    fn layout(&self, hypervisor: Option<u64>) -> Layout {
        /// Where Xen 4.17 is.
        const XEN: u64 = 0x20_0000;
        const MIB: u64 = 1 << 20;
        let xen = hypervisor.unwrap_or(XEN);
        let away = |distance: u64| xen.saturating_add(distance);
        // A branch reaches 32 MiB.
        Layout {
            start: away(12 * MIB),
            unknown: away(20 * MIB)..away(30 * MIB),
        }
    }

    fn relocation(&self, r_type: u32) -> Option<&'static Relocation> {
        arm32::lookup(r_type)
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
        let function = Function::new(code, address);
        let targets = function.targets();
        let words = function.words.iter().enumerate();
        words
            .map(|(index, &word)| {
                let offset = (index * SIZE) as u64;
                if function.contains(word.into()) {
                    let inner = u64::from(word).wrapping_sub(address);
                    return inside(offset, ".word ".to_owned(), inner);
                }
                if function.literals.contains(&index) {
                    return outside(offset, ".word ".to_owned(), names, word.into());
                }
                let Some(text) = text(word) else {
                    return Code::plain(offset, format!(".inst {word:#010x}"));
                };
                if let Some(target) = function.branch_target(index) {
                    // The distance is the last operand.
                    let start = text.rfind(' ').map_or(0, |at| at + 1);
                    let text = text[..start].to_owned();
                    return match function.contains(target) {
                        true => inside(offset, text, target.wrapping_sub(address)),
                        false => outside(offset, text, names, target),
                    };
                }
                match targets.get(&index) {
                    // A half of an address depends on where it is.
                    Some(target) => {
                        let end = text.rfind(',').map_or(0, |at| at + 1);
                        outside(offset, format!("{} ", &text[..end]), names, *target)
                    }
                    None => Code::plain(offset, text),
                }
            })
            .collect()
    }

    fn references(&self, code: &[u8], address: u64) -> Vec<Reference> {
        let function = Function::new(code, address);
        let mut found = Vec::new();
        for index in 0..function.words.len() {
            if let Some(target) = function.branch_target(index) {
                let how = match is_call(function.words[index]) {
                    true => How::Call,
                    false => How::Jump,
                };
                let place = function.place(index);
                found.push(Reference { place, target, how });
            }
        }
        // The first half of an address alone is none.
        let whole = function.targets().into_iter().filter(|(index, _)| {
            let half = Half::of(function.words[*index]);
            half.is_some_and(|half| half.shift != 0)
        });
        found.extend(whole.map(|(index, target)| Reference {
            place: function.place(index),
            target,
            how: How::Address,
        }));
        found.extend(function.literals.iter().map(|&index| Reference {
            place: function.place(index),
            target: function.words[index].into(),
            how: How::Address,
        }));
        found
    }
}

/// What leads to a place in the function: the same if it leads to the same line.
fn inside(offset: u64, text: String, inner: u64) -> Code {
    Code {
        offset,
        shape: text.clone(),
        text: text + &format!("+{inner:#x}"),
        inner: Some(inner),
    }
}

/// What leads out of the function.
fn outside(offset: u64, mut text: String, names: &Names, target: u64) -> Code {
    let name = names.name(target);
    text += &name.short;
    Code {
        offset,
        shape: format!("{text} {}", name.full),
        text,
        inner: None,
    }
}

fn decode(word: u32) -> Option<Instruction> {
    let decoder = InstDecoder::armv7();
    let decoded = decoder.decode(&mut U8Reader::new(&word.to_le_bytes())).ok();
    decoded.filter(|instruction| instruction.opcode != Opcode::Invalid)
}

/// The instruction as text, if it is known.
fn text(word: u32) -> Option<String> {
    if word == NOP {
        return Some("nop".to_owned());
    }
    let text = decode(word)?.to_string();
    // The decoder has one name for all of them.
    Some(match Half::of(word) {
        Some(half) if half.shift == 0 => text.replacen("mov", "movw", 1),
        _ => text,
    })
}

/// Whether it is a branch with a distance: `b`, `bl` or `blx`.
const fn is_branch(word: u32) -> bool {
    word & 0x0e00_0000 == 0x0a00_0000
}

/// Whether a branch returns.
const fn is_call(word: u32) -> bool {
    word & 0x0100_0000 != 0 || word >> 28 == UNCONDITIONAL
}

/// `movw` or `movt`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Half {
    condition: u32,
    register: u32,
    /// Lowest bit of what it writes.
    shift: u32,
    bits: u32,
}

impl Half {
    fn of(word: u32) -> Option<Self> {
        let shift = match word & 0x0ff0_0000 {
            0x0300_0000 => 0,
            0x0340_0000 => 16,
            _ => return None,
        };
        Some(Self {
            condition: word >> 28,
            register: word >> 12 & 0xf,
            shift,
            bits: (word >> 16 & 0xf) << 12 | word & 0xfff,
        })
    }
}

/// What a load reads at a distance from itself: how many words, and from where.
fn literal(word: u32, at: u64) -> Option<(u64, usize)> {
    let (distance, count) = if word & 0x0f7f_0000 == 0x051f_0000 {
        (word & 0xfff, 1)
    } else if word & 0x0f7f_00f0 == 0x014f_00d0 {
        (word >> 4 & 0xf0 | word & 0xf, 2)
    } else {
        return None;
    };
    let from = at.wrapping_add(AHEAD.into());
    let place = match word & 0x0080_0000 {
        0 => from.wrapping_sub(distance.into()),
        _ => from.wrapping_add(distance.into()),
    };
    (word >> 28 != UNCONDITIONAL).then_some((place, count))
}

/// The words of a function: instructions, and tables and constants between them.
struct Function {
    address: u64,
    words: Vec<u32>,
    /// The indices of constants.
    literals: BTreeSet<usize>,
}

impl Function {
    fn new(code: &[u8], address: u64) -> Self {
        let words = code.as_chunks::<SIZE>().0.iter();
        let mut function = Self {
            address,
            words: words.map(|word| u32::from_le_bytes(*word)).collect(),
            literals: BTreeSet::new(),
        };
        for (index, &word) in function.words.iter().enumerate() {
            if function.literals.contains(&index) {
                continue;
            }
            if let Some((place, count)) = literal(word, function.place(index))
                && let Some(first) = function.index(place)
            {
                let end = function.words.len().min(first + count);
                function.literals.extend(first..end);
            }
        }
        function
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
        (offset % SIZE == 0 && index < self.words.len()).then_some(index)
    }

    /// Where the branch leads, if it is one.
    fn branch_target(&self, index: usize) -> Option<u64> {
        if self.literals.contains(&index) {
            return None;
        }
        let word = self.words.get(index).filter(|word| is_branch(**word))?;
        let distance = arm32::lookup(R_ARM_CALL)?.read(&word.to_le_bytes())?;
        let from = self.place(index).wrapping_add(AHEAD.into());
        Some(from.wrapping_add_signed(distance))
    }

    /// The addresses that `movw` and `movt` compute together, by the index of each. The
    /// two belong together if nothing between them writes the register, and no branch
    /// leads between them.
    fn targets(&self) -> BTreeMap<usize, u64> {
        let branches = (0..self.words.len()).filter_map(|index| self.branch_target(index));
        let tables = self.words.iter().map(|&word| u64::from(word));
        let joins = branches.chain(tables).filter_map(|to| self.index(to));
        let joins: BTreeSet<usize> = joins.collect();
        let mut found = BTreeMap::new();
        let mut firsts: BTreeMap<u32, (usize, Half)> = BTreeMap::new();
        for (index, &word) in self.words.iter().enumerate() {
            if joins.contains(&index) || is_branch(word) {
                firsts.clear();
            }
            if self.literals.contains(&index) {
                continue;
            }
            let Some(half) = Half::of(word) else {
                for register in written(word) {
                    firsts.remove(&register);
                }
                continue;
            };
            let first = firsts.remove(&half.register);
            if half.shift == 0 {
                firsts.insert(half.register, (index, half));
            } else if let Some((before, low)) = first
                && low.condition == half.condition
            {
                let target = u64::from(half.bits << 16 | low.bits);
                found.extend([(before, target), (index, target)]);
            }
        }
        found
    }
}

/// The registers that an instruction may write: in case of doubt, all that it names.
fn written(word: u32) -> Vec<u32> {
    let operands = decode(word).map(|instruction| instruction.operands);
    let operands = operands.into_iter().flatten();
    let registers = operands.flat_map(|operand| match operand {
        Operand::Reg(register)
        | Operand::RegWBack(register, _)
        | Operand::RegDeref(register)
        | Operand::RegDerefPostindexRegShift(register, ..)
        | Operand::RegDerefPreindexRegShift(register, ..)
        | Operand::RegDerefPostindexOffset(register, ..)
        | Operand::RegDerefPreindexOffset(register, ..)
        | Operand::RegDerefPostindexReg(register, ..)
        | Operand::RegDerefPreindexReg(register, ..) => vec![u32::from(register.number())],
        Operand::RegList(list) => (0..16).filter(|at| list >> at & 1 == 1).collect(),
        _ => Vec::new(),
    });
    registers.collect()
}

#[cfg(test)]
mod tests {
    use super::{Arch as _, Arm32, Function, decode, text};

    #[test]
    fn addresses_have_two_halves_in_one_path() {
        let movw_r3 = 0xe309_3a04; // movw r3, #0x9a04
        let movt_r3 = 0xe340_3024; // movt r3, #0x24
        let nop = 0xe1a0_0000;
        for (between, paired) in [
            (nop, true),
            (0xe3a0_2001, true),  // mov r2, #1
            (0xe3a0_3001, false), // mov r3, #1
            (0xe591_3000, false), // ldr r3, [r1]
            (0xe8bd_0008, false), // pop {r3}
            (0xebff_fffe, false), // bl
        ] {
            let words = [movw_r3, between, movt_r3, nop].map(u32::to_le_bytes);
            let found = Function::new(words.as_flattened(), 0x1000).targets();
            let expected: Vec<(usize, u64)> = match paired {
                true => vec![(0, 0x24_9a04), (2, 0x24_9a04)],
                false => Vec::new(),
            };
            assert_eq!(
                found.into_iter().collect::<Vec<_>>(),
                expected,
                "{between:#x}"
            );
        }
        // beq .+16, to the second half.
        let words = [0x0a00_0001, movw_r3, nop, movt_r3].map(u32::to_le_bytes);
        let found = Function::new(words.as_flattened(), 0x1000).targets();
        assert!(found.is_empty(), "{found:?}");
    }

    #[test]
    fn branches_count_from_the_second_instruction_behind() {
        let words = [0xea00_0002_u32, 0xebff_fffd, 0xe12f_ff1e].map(u32::to_le_bytes);
        let function = Function::new(words.as_flattened(), 0x1000);
        assert_eq!(function.branch_target(0), Some(0x1010));
        assert_eq!(function.branch_target(1), Some(0x1000));
        assert_eq!(function.branch_target(2), None);
    }

    /// As inline assembly has them (`ldr r0, =printk`), and compilers those of 64 bits.
    #[test]
    fn what_loads_read_near_them_are_no_instructions() {
        let words = [
            0xe59f_0008, // ldr r0, [pc, #8]
            0xe1cf_20d8, // ldrd r2, [pc, #8]
            0xe12f_ff1e, // bx lr
            0xe320_f000, // nop
            0xeaff_fffe, // an address
            0xe51f_0008, // two words
            0xeb00_0000,
            0xf57f_f04e, // dsb st
        ];
        let code = words.map(u32::to_le_bytes);
        let function = Function::new(code.as_flattened(), 0x1000);
        assert_eq!(Vec::from_iter(function.literals.clone()), [4, 5, 6]);
        assert_eq!(function.branch_target(4), None);
        // A veneer: ldr pc, [pc, #-4].
        let code = [0xe51f_f004_u32, 0x0024_9a04].map(u32::to_le_bytes);
        let references = Arm32.references(code.as_flattened(), 0x1000);
        let [only] = references[..] else {
            panic!("{references:?}");
        };
        assert_eq!((only.place, only.target), (0x1004, 0x0024_9a04));
    }

    #[test]
    fn instructions_have_their_names() {
        for (word, expected) in [
            (0xe320_f000, Some("nop")),
            (0xe309_3a04, Some("movw r3, 0x9a04")),
            (0xe340_3024, Some("movt r3, 0x24")),
            (0xe12f_ff1e, Some("bx lr")),
            (0xe7ff_ffff, None),
        ] {
            assert_eq!(text(word).as_deref(), expected, "{word:#x}");
        }
    }

    /// Tables are decoded too: no word makes the decoder panic.
    #[test]
    fn every_kind_of_word_can_be_shown() {
        for high in 0..=0xffff_u32 {
            for low in [0, 0x90, 0xf0, 0x1234, 0x8080, 0xf00f, 0xffff] {
                if let Some(instruction) = decode(high << 16 | low) {
                    assert!(!instruction.to_string().is_empty());
                }
            }
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM64: an instruction is a word, of which a part may be an address or half of one.
//!
//! Encodings: Arm Architecture Reference Manual for A-profile, "A64 instruction set
//! encoding"; relocations: ELF for the Arm 64-bit Architecture.

use super::{Arch, Bits, Part, Shape, WORD, Words, word};
use crate::image::{Entity, Image};
use object::elf::{self, RelocationType};
use std::collections::BTreeSet;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Entry, Table, arm};
use xsplice_abi::trampoline::arm64;
use yaxpeax_arch::{Decoder as _, U8Reader};
use yaxpeax_arm::armv8::a64::InstDecoder;

/// Size of a page in bytes, in the sense of `adrp`.
const PAGE: u64 = 0x1000;
/// `b` and `bl`; conditional branches and loads of literals; `tbz` and `tbnz`; `adr` and
/// `adrp`; the immediate that completes an address.
const BRANCH: u32 = 0x03ff_ffff;
const NEAR: u32 = 0x00ff_ffe0;
const TEST: u32 = 0x0007_ffe0;
const ADDRESS: u32 = 0x60ff_ffe0;
const IMMEDIATE: u32 = 0x003f_fc00;
/// `adrp` is `adr` with this bit.
const PAGES: u32 = 1 << 31;

/// ARM64.
#[derive(Debug)]
pub(crate) struct Aarch64;

/// `bits` bits from bit `at` on, as a signed number.
fn signed(word: u32, at: u32, bits: u32) -> i64 {
    let top = word << (32 - at - bits);
    i64::from(top.cast_signed() >> (32 - bits))
}

/// What `adr` adds to its address, and `adrp` in pages to that of its page.
fn distance(word: u32) -> i64 {
    signed(word, 5, 19) * 4 + i64::from(word >> 29 & 3)
}

fn is_adr(word: u32) -> bool {
    word & 0x9f00_0000 == 0x1000_0000
}

fn is_adrp(word: u32) -> bool {
    word & 0x9f00_0000 == 0x9000_0000
}

/// The operand of an instruction at `at` that has a whole address: branches, `adr`, and
/// loads of literals.
fn whole(word: u32, at: u64) -> Option<Bits> {
    let near = word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000;
    let (mask, distance, accessed, branch) = if word & 0x7c00_0000 == 0x1400_0000 {
        (BRANCH, signed(word, 0, 26) * 4, 0, true)
    } else if near {
        (NEAR, signed(word, 5, 19) * 4, 0, true)
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        (TEST, signed(word, 5, 14) * 4, 0, true)
    } else if is_adr(word) {
        (ADDRESS, distance(word), 0, false)
    } else if word & 0x3b00_0000 == 0x1800_0000 {
        let vector = word & 0x0400_0000 != 0;
        let accessed = match (word >> 30, vector) {
            (size, true) => 4 << size,
            (1, false) => 8,
            _ => 4,
        };
        (NEAR, signed(word, 5, 19) * 4, accessed, false)
    } else {
        return None;
    };
    Some(Bits {
        mask,
        value: at.wrapping_add_signed(distance),
        accessed,
        branch,
    })
}

/// The page that `adrp` at `at` has. Against the processor erratum 843419, the linker makes
/// it `adr`, which has the same page if it reaches that.
fn page(word: u32, at: u64) -> Option<Bits> {
    let value = if is_adrp(word) {
        (at & !(PAGE - 1)).wrapping_add_signed(distance(word).wrapping_mul(4096))
    } else {
        let page = at.wrapping_add_signed(distance(word));
        (is_adr(word) && page.is_multiple_of(PAGE)).then_some(page)?
    };
    Some(Bits {
        mask: ADDRESS | PAGES,
        value,
        accessed: 0,
        branch: false,
    })
}

/// What comes to the page: `add` of an immediate that is not shifted, or a load or store
/// with a scaled one.
fn rest(word: u32) -> Option<Bits> {
    let immediate = u64::from(word >> 10 & 0xfff);
    let operand = |value, accessed| Bits {
        mask: IMMEDIATE,
        value,
        accessed,
        branch: false,
    };
    if word & 0x7fc0_0000 == 0x1100_0000 {
        return Some(operand(immediate, 0));
    }
    // The size is in the upper bits; for 16 bytes, also in bit 23 of a vector's.
    let wide = word & 0x0400_0000 != 0 && word & 0x0080_0000 != 0 && word >> 30 == 0;
    let scale = if wide { 4 } else { word >> 30 };
    let access = word & 0x3b00_0000 == 0x3900_0000;
    access.then(|| operand(immediate << scale, 1 << scale))
}

/// Whether execution does not continue after it: `b`, `br`, `ret` or `eret`.
fn ends(word: u32) -> bool {
    let register = word & 0xffff_fc1f;
    word & 0xfc00_0000 == 0x1400_0000
        || [0xd61f_0000, 0xd65f_0000].contains(&register)
        || word == 0xd69f_03e0
}

/// Whether it is `brk`.
fn traps(word: u32) -> bool {
    word & 0xffe0_001f == 0xd420_0000
}

/// Puts `bits` of `value` into the bits of `mask`, which are in one piece.
fn put(word: u32, mask: u32, value: u64) -> u32 {
    let field = u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
    word & !mask | field << mask.trailing_zeros() & mask
}

/// `word` with a distance of `count` units in the bits of `mask`.
fn with_distance(word: u32, mask: u32, distance: i64, unit: i64) -> Option<u32> {
    let limit = 1_i64 << (mask.count_ones() - 1);
    let count = distance / unit;
    let fits = distance % unit == 0 && (-limit..limit).contains(&count);
    let count = count.cast_unsigned();
    if !fits {
        None
    } else if mask == ADDRESS {
        // The two lowest bits are apart.
        let low = u32::try_from(count & 3).ok()?;
        Some(put(word, NEAR, count >> 2) & !(3 << 29) | low << 29)
    } else {
        Some(put(word, mask, count))
    }
}

/// The word that leads to `value`; `None` if it cannot.
fn linked(r_type: RelocationType, word: u32, value: u64, place: u64) -> Option<u32> {
    let distance = value.wrapping_sub(place).cast_signed();
    let scaled = |scale: u32| {
        let rest = value & (PAGE - 1);
        let aligned = rest.is_multiple_of(1 << scale);
        aligned.then(|| put(word, IMMEDIATE, rest >> scale))
    };
    match r_type {
        elf::R_AARCH64_CALL26 | elf::R_AARCH64_JUMP26 => with_distance(word, BRANCH, distance, 4),
        elf::R_AARCH64_CONDBR19 | elf::R_AARCH64_LD_PREL_LO19 => {
            with_distance(word, NEAR, distance, 4)
        }
        elf::R_AARCH64_TSTBR14 => with_distance(word, TEST, distance, 4),
        elf::R_AARCH64_ADR_PREL_LO21 => with_distance(word, ADDRESS, distance, 1),
        elf::R_AARCH64_ADR_PREL_PG_HI21 => {
            let pages = (value & !(PAGE - 1)).wrapping_sub(place & !(PAGE - 1));
            with_distance(word, ADDRESS, pages.cast_signed(), 4096)
        }
        elf::R_AARCH64_ADD_ABS_LO12_NC | elf::R_AARCH64_LDST8_ABS_LO12_NC => scaled(0),
        elf::R_AARCH64_LDST16_ABS_LO12_NC => scaled(1),
        elf::R_AARCH64_LDST32_ABS_LO12_NC => scaled(2),
        elf::R_AARCH64_LDST64_ABS_LO12_NC => scaled(3),
        elf::R_AARCH64_LDST128_ABS_LO12_NC => scaled(4),
        _ => None,
    }
}

impl Words for Aarch64 {
    fn operand(&self, word: u32, at: u64, part: Part) -> Option<Bits> {
        match part {
            Part::Upper => page(word, at),
            Part::Rest => rest(word),
            Part::Word | Part::Bytes => whole(word, at),
            Part::Distance(_) | Part::Computed(_) => None,
        }
    }

    fn is_incomplete(&self, word: u32) -> bool {
        is_adrp(word)
    }

    fn ends(&self, word: u32) -> bool {
        ends(word)
    }

    fn traps(&self, word: u32) -> bool {
        traps(word)
    }

    fn rest(&self) -> u64 {
        PAGE - 1
    }
}

impl Arch for Aarch64 {
    fn machine(&self) -> Machine {
        Machine::Arm64
    }

    fn words(&self) -> Option<&'static dyn Words> {
        Some(&Self)
    }

    fn entry_text(&self) -> Option<[&'static str; 2]> {
        None
    }

    fn decodes_boot_code(&self) -> bool {
        true
    }

    fn has_writers(&self) -> bool {
        true
    }

    fn text(&self, image: &Image, address: u64) -> String {
        let bytes = image.from(address);
        let decoded = InstDecoder::default().decode(&mut U8Reader::new(bytes));
        decoded.map_or_else(|_| String::new(), |instruction| instruction.to_string())
    }

    /// Any page counts with any rest: this finds too many rather than too few.
    fn takes_address(&self, image: &Image, entity: &Entity, address: u64) -> bool {
        let places = (entity.address..entity.end()).step_by(WORD);
        let words = || places.clone().filter_map(|at| Some((at, word(image, at)?)));
        let has_whole = |(at, word): (u64, u32)| {
            whole(word, at).is_some_and(|o| !o.branch && o.value == address)
        };
        if words().any(has_whole) {
            return true;
        }
        let pages: BTreeSet<u64> = words()
            .filter_map(|(at, word)| Some(page(word, at)?.value))
            .collect();
        let completes = |(_, word): (u64, u32)| {
            rest(word).is_some_and(|rest| pages.contains(&address.wrapping_sub(rest.value)))
        };
        words().any(completes)
    }

    fn padding(&self, data: &[u8], _address: u64) -> Option<u64> {
        // What GNU ld puts between sections of code.
        const LINKERS: u8 = 0x90;
        if data.starts_with(&arm64::NOP) {
            return Some(WORD as u64);
        }
        matches!(data.first(), Some(&(0 | LINKERS))).then_some(1)
    }

    fn is_trap(&self, code: &[u8]) -> bool {
        super::only_traps(self, code)
    }

    fn longest_jump(&self) -> u64 {
        arm64::SIZE.into()
    }

    fn shape(&self, r_type: RelocationType) -> Option<Shape> {
        Some(match r_type {
            elf::R_AARCH64_ABS64 => Shape::bytes(8, false, 0),
            elf::R_AARCH64_ABS32 => Shape::bytes(4, false, 0),
            elf::R_AARCH64_PREL64 => Shape::bytes(8, true, 0),
            elf::R_AARCH64_PREL32 => Shape::bytes(4, true, 0),
            elf::R_AARCH64_CALL26
            | elf::R_AARCH64_JUMP26
            | elf::R_AARCH64_CONDBR19
            | elf::R_AARCH64_TSTBR14
            | elf::R_AARCH64_ADR_PREL_LO21
            | elf::R_AARCH64_LD_PREL_LO19 => Shape::word(Part::Word),
            elf::R_AARCH64_ADR_PREL_PG_HI21 => Shape::word(Part::Upper),
            elf::R_AARCH64_ADD_ABS_LO12_NC
            | elf::R_AARCH64_LDST8_ABS_LO12_NC
            | elf::R_AARCH64_LDST16_ABS_LO12_NC
            | elf::R_AARCH64_LDST32_ABS_LO12_NC
            | elf::R_AARCH64_LDST64_ABS_LO12_NC
            | elf::R_AARCH64_LDST128_ABS_LO12_NC => Shape::word(Part::Rest),
            _ => return None,
        })
    }

    fn relocate(
        &self,
        r_type: RelocationType,
        rest: &mut [u8],
        value: u64,
        place: u64,
    ) -> Result<(), String> {
        let relative = value.wrapping_sub(place);
        let outside = || "a relocation lies outside of its section".to_owned();
        let mut write = |bytes: &[u8]| {
            let field = rest.get_mut(..bytes.len()).ok_or_else(outside)?;
            field.copy_from_slice(bytes);
            Ok(())
        };
        match r_type {
            elf::R_AARCH64_NONE => return Ok(()),
            elf::R_AARCH64_ABS64 => return write(&value.to_le_bytes()),
            elf::R_AARCH64_PREL64 => return write(&relative.to_le_bytes()),
            elf::R_AARCH64_ABS32 => return write(&value.to_le_bytes()[..4]),
            elf::R_AARCH64_PREL32 => return write(&relative.to_le_bytes()[..4]),
            _ => {}
        }
        let word = rest.first_chunk().map(|word| u32::from_le_bytes(*word));
        let word = linked(r_type, word.ok_or_else(outside)?, value, place);
        let word = word.ok_or_else(|| super::out_of_reach(r_type))?;
        let field = rest.get_mut(..WORD).ok_or_else(outside)?;
        field.copy_from_slice(&word.to_le_bytes());
        Ok(())
    }

    fn entry_size(&self, table: Table) -> u64 {
        arm::entry_size(table)
    }

    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        super::arm_entry(table, entry, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GNU as encodes them.
    #[test]
    fn relocated_words_lead_where_they_should() {
        let at = 0x20_1234;
        let nothing = 0xffff_ffff;
        for (r_type, word, value) in [
            (elf::R_AARCH64_CALL26, 0x9400_0000, at - 0x1000),
            (elf::R_AARCH64_JUMP26, 0x1400_0000, at + 0x7ff_fffc),
            (elf::R_AARCH64_CONDBR19, 0x5400_0001, at - 0x10_0000),
            (elf::R_AARCH64_TSTBR14, 0x3600_0003, at + 0x7ffc),
            (elf::R_AARCH64_ADR_PREL_LO21, 0x1000_0004, at - 3),
            (elf::R_AARCH64_LD_PREL_LO19, 0x5800_0004, at + 8),
        ] {
            let linked = linked(r_type, word, value, at).expect("it reaches");
            let operand = whole(linked, at).expect("an operand");
            assert_eq!(operand.value, value, "{r_type:?}");
            assert_eq!(linked & !operand.mask, word & !operand.mask);
        }
        for value in [0x20_0fff, 0x20_2000, 0x7fff_f000, 0] {
            let r_type = elf::R_AARCH64_ADR_PREL_PG_HI21;
            let adrp = linked(r_type, 0x9000_0005, value, at).expect("it reaches");
            assert_eq!(page(adrp, at).expect("a page").value, value & !0xfff);
            let near = linked(
                elf::R_AARCH64_ADR_PREL_LO21,
                0x1000_0005,
                value & !0xfff,
                at,
            );
            let near = near.map(|adr| page(adr, at).expect("a page"));
            assert!(near.is_none_or(|page| page.value == value & !0xfff && page.mask == ADDRESS | PAGES));
            assert_eq!(
                page(
                    linked(elf::R_AARCH64_ADR_PREL_LO21, 0x1000_0005, at, at).expect("near"),
                    at
                ),
                None
            );
            let add = linked(elf::R_AARCH64_ADD_ABS_LO12_NC, 0x9100_0000, value, at);
            assert_eq!(
                rest(add.expect("an immediate")).expect("a rest").value,
                value & 0xfff
            );
        }
        assert_eq!(
            linked(elf::R_AARCH64_CALL26, 0x9400_0000, at + (128 << 20), at),
            None
        );
        assert_eq!(linked(elf::R_AARCH64_CALL26, 0x9400_0000, at + 2, at), None);
        assert_eq!(
            linked(elf::R_AARCH64_LDST64_ABS_LO12_NC, 0xf940_0000, 4, at),
            None
        );
        assert_eq!(linked(elf::R_AARCH64_ADR_GOT_PAGE, nothing, 0, at), None);
    }

    #[test]
    fn accesses_have_a_size() {
        for (word, value, accessed) in [
            (0x9100_4020, 16, 0),  // add x0, x1, #16
            (0xb940_0441, 4, 4),   // ldr w1, [x2, #4]
            (0xf900_0883, 16, 8),  // str x3, [x4, #16]
            (0x3dc0_0420, 16, 16), // ldr q0, [x1, #16]
        ] {
            let rest = rest(word).expect("an immediate");
            assert_eq!((rest.value, rest.accessed), (value, accessed), "{word:#x}");
        }
        assert_eq!(rest(0xd503_201f), None);
        assert!(ends(0xd65f_03c0) && ends(0x1400_0001) && !ends(0x9400_0001));
        assert!(traps(0xd420_7d00) && !traps(0xd503_201f));
    }
}

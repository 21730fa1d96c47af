// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM32.
//!
//! Xen's own core performs some relocations wrongly. Payloads are such that it need not:
//! a branch whose distance it would get wrong leads to a veneer at a distance that it gets
//! right, and an address with an addend has a symbol of its own.

use super::{Arch, Unsupported};
use crate::name::veneer_name;
use crate::payload::{Align, Draft, Field as Relocated, Kind, Reaches};
use object::{Architecture, elf};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use xsplice_abi::machine::Width;
use xsplice_abi::special::Entry;
use xsplice_abi::trampoline::arm32::{self, veneer};
use xsplice_objdiff::arch::{self, Arch as Objects};
use xsplice_reloc::reloc::{Field, Relocation};
use xsplice_xen_image::Image;

/// Size of an instruction in bytes.
const SIZE: u64 = arm32::SIZE as u64;
/// The distances of branches that Xen's own core gets right are multiples of this.
const RIGHT: u64 = 2 * SIZE;

#[derive(Debug)]
pub(super) struct Arm32;

impl Arch for Arm32 {
    fn objects(&self) -> &'static dyn Objects {
        &arch::Arm32
    }

    fn elf(&self) -> Architecture {
        Architecture::Arm
    }

    fn padding(&self) -> &'static [u8] {
        &arm32::NOP
    }

    fn trap(&self) -> &'static [u8] {
        // `udf #1`. The hypervisor's own is `udf #0`.
        const TRAP: [u8; arm32::SIZE as usize] = 0xe7f0_00f1_u32.to_le_bytes();
        &TRAP
    }

    fn least_alignment(&self) -> u64 {
        // Xen's own core reads tables by words, which must be aligned.
        SIZE
    }

    fn landing_pad(&self, _code: &[u8]) -> u32 {
        0
    }

    fn trampoline(&self, _code: &[u8]) -> u64 {
        SIZE
    }

    fn uses(&self, at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)> {
        let mut found = super::arm::uses(arch::Arm32.decode(code, at), target);
        found.extend(in_two_halves(at, code, target));
        found.extend(super::arm::constants(at, code, target, Width::Bits32));
        found
    }

    fn refuses_entry(&self, entry: &Entry, hypervisor: &Image) -> Option<Unsupported> {
        super::arm::refuses_entry(entry, hypervisor)
    }

    fn locks_constants(&self) -> Option<Unsupported> {
        Some(super::arm::CONSTANTS)
    }

    fn elf_flags(&self) -> u32 {
        elf::EF_ARM_EABI_VER5.0
    }

    fn section_alignment(&self) -> u64 {
        // So that the offset of a branch says whether its distance is right.
        RIGHT
    }

    fn loses_addend(&self, relocation: &Relocation) -> bool {
        matches!(relocation.field, Field::Half { .. })
    }

    fn veneer(&self) -> Option<&'static [u8]> {
        veneer::CODE.get(..veneer::POINTER)
    }

    fn route(&self, draft: &mut Draft, hypervisor: &Image) {
        self.name_addends(draft, hypervisor);
        self.add_veneers(draft, hypervisor);
    }
}

impl Arm32 {
    fn relocation(&self, field: &Relocated) -> Option<&'static Relocation> {
        self.objects().relocation(field.r_type)
    }

    /// Gives the addresses of symbols and an addend, in fields that lose it, symbols of
    /// their own.
    fn name_addends(&self, draft: &mut Draft, hypervisor: &Image) {
        for at in 0..draft.fields.len() {
            let field = &mut draft.fields[at];
            let loses = self.relocation(field).is_some_and(|r| self.loses_addend(r));
            if !loses {
                continue;
            }
            let (name, address, offset) = match &field.reaches {
                Reaches::Name(name, offset) if *offset != 0 => {
                    match hypervisor.address_of(name) {
                        Some(address) => (name, address, *offset),
                        // The pre-flight check refuses it.
                        None => continue,
                    }
                }
                Reaches::Address(name, address, offset) if *offset != 0 => {
                    (name, *address, *offset)
                }
                _ => continue,
            };
            let address = address.wrapping_add_signed(offset);
            field.reaches = Reaches::Address(format!("{name}{offset:+}"), address, 0);
        }
    }

    /// Lets each branch with a distance that is wrong, or unknown, lead to a veneer.
    fn add_veneers(&self, draft: &mut Draft, hypervisor: &Image) {
        let mut veneers: BTreeMap<(Reaches, u64), u64> = BTreeMap::new();
        for at in 0..draft.fields.len() {
            let field = draft.fields[at].clone();
            let is_branch = self
                .relocation(&field)
                .is_some_and(|r| r.field == Field::Branch);
            let target = target(&field.reaches, hypervisor);
            let right = target.is_some_and(|target| {
                let value = target.wrapping_add_signed(field.addend);
                value.wrapping_sub(field.offset).is_multiple_of(RIGHT)
            });
            if !is_branch || right {
                continue;
            }
            let parity = field.offset % RIGHT;
            let key = (field.reaches.clone(), parity);
            let veneer = *veneers
                .entry(key)
                .or_insert_with(|| self.add_veneer(draft, field.reaches, parity));
            draft.fields[at].reaches = Reaches::Part(Kind::Text, veneer.cast_signed());
        }
    }

    /// Adds code that jumps to `reaches`, so many bytes behind a multiple of [`RIGHT`].
    fn add_veneer(&self, draft: &mut Draft, reaches: Reaches, parity: u64) -> u64 {
        let align = Align {
            multiple: RIGHT,
            behind: parity,
        };
        let at = draft.append(&Kind::Text, &veneer::CODE, align);
        let name = match &reaches {
            Reaches::Name(name, _) | Reaches::Address(name, ..) => name.clone(),
            Reaches::Part(part, offset) => draft.name_of(part, *offset),
        };
        let size = veneer::CODE.len() as u64;
        draft.name(&(Kind::Text, at), veneer_name(&name, parity), size, true);
        draft.fields.push(Relocated {
            part: Kind::Text,
            offset: at + veneer::POINTER as u64,
            r_type: self.objects().pointer(),
            addend: 0,
            reaches,
        });
        at
    }
}

/// The target of a field, or its distance from a multiple of [`RIGHT`], if it is known.
fn target(reaches: &Reaches, hypervisor: &Image) -> Option<u64> {
    match reaches {
        Reaches::Part(Kind::Text | Kind::Code(_), offset) => Some(offset.cast_unsigned()),
        Reaches::Part(..) => None,
        Reaches::Name(name, offset) => {
            Some(hypervisor.address_of(name)?.wrapping_add_signed(*offset))
        }
        Reaches::Address(_, address, offset) => Some(address.wrapping_add_signed(*offset)),
    }
}

/// What `movw` or `movt` writes to a register: its number, and the value, of which the
/// other half is zero.
fn half(word: u32) -> Option<(u32, u32)> {
    let shift = match word & 0x0ff0_0000 {
        0x0300_0000 => 0,
        0x0340_0000 => 16,
        _ => return None,
    };
    let bits = (word >> 16 & 0xf) << 12 | word & 0xfff;
    Some((word >> 12 & 0xf, bits << shift))
}

/// The references into `target` by an address in two halves.
///
/// Any of the one counts with any of the other that writes the same register: this finds
/// too many rather than too few.
fn in_two_halves(at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)> {
    let words = code.as_chunks::<{ arm32::SIZE as usize }>().0.iter();
    let halves: Vec<(u64, u32, u32)> = words
        .zip((at..).step_by(arm32::SIZE.into()))
        .filter_map(|(word, place)| {
            let (register, bits) = half(u32::from_le_bytes(*word))?;
            Some((place, register, bits))
        })
        .collect();
    let low: BTreeSet<(u32, u32)> = halves
        .iter()
        .filter(|(.., bits)| bits >> 16 == 0)
        .map(|&(_, register, bits)| (register, bits))
        .collect();
    let mut found = Vec::new();
    for &(place, register, high) in &halves {
        let of_register = low.range((register, 0)..=(register, u32::MAX));
        let mut whole = of_register.map(|(_, low)| u64::from(high | low));
        if whole.any(|address| target.contains(&address)) {
            found.push((place, false));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use xsplice_abi::machine::Machine;

    /// A hypervisor with functions at addresses of both kinds.
    const SOURCE: &str = r#"
        .text
        .globl f, g
        .type f, %function
        f: bx lr
        .size f, . - f
        .type g, %function
        g: bx lr
        .size g, . - g
    "#;

    fn image() -> Image {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("x.s"), SOURCE).expect("written");
        let status = Command::new("arm-linux-gnueabihf-gcc")
            .args(["-marm", "-mcpu=cortex-a15", "-nostdlib", "-static"])
            .arg("-Wl,--build-id=sha1,-e,f,-Ttext=0x200000")
            .arg("-Wl,--defsym=__init_begin=0x300000,--defsym=__init_end=0x301000")
            .arg(at("x.s"))
            .arg("-o")
            .arg(at("x"))
            .status();
        let status = status.expect("these tests need gcc-arm-linux-gnueabihf");
        assert!(status.success());
        Image::parse(&std::fs::read(at("x")).expect("made")).expect("an image")
    }

    fn field(offset: u64, r_type: elf::RelocationType, reaches: Reaches) -> Relocated {
        Relocated {
            part: Kind::Text,
            offset,
            r_type: r_type.0,
            addend: if r_type == elf::R_ARM_CALL { -8 } else { 0 },
            reaches,
        }
    }

    /// The draft of a payload with these fields, after its branches were routed.
    fn routed(fields: Vec<Relocated>) -> Draft {
        let mut draft = Draft::of(Machine::Arm32);
        draft.append(&Kind::Text, &[0; 0x20], Align::to(4));
        draft.fields = fields;
        Arm32.route(&mut draft, &image());
        draft
    }

    fn name(name: &str) -> Reaches {
        Reaches::Name(name.to_owned(), 0)
    }

    #[test]
    fn branches_at_distances_that_xen_gets_wrong_lead_to_veneers() {
        let call = |offset, reaches| field(offset, elf::R_ARM_CALL, reaches);
        let inner = |offset| Reaches::Part(Kind::Text, offset);
        // `f` is at a multiple of 8, and `g` is not.
        let direct = [
            call(0, name("f")),
            call(4, name("g")),
            call(8, inner(0x18)),
            call(0xc, Reaches::Address("h".to_owned(), 0x20_0014, 0)),
        ];
        let fields = routed(direct.to_vec()).fields;
        assert_eq!(fields, direct);
        let wrong = [
            call(0, name("g")),
            call(4, name("f")),
            call(8, name("g")),
            call(0xc, name("g")),
            call(0x10, inner(0x14)),
            call(0x14, name("unknown")),
        ];
        let fields = routed(wrong.to_vec()).fields;
        let veneer = |at: usize| match &fields[at].reaches {
            Reaches::Part(Kind::Text, offset) => offset.cast_unsigned(),
            other => panic!("{other:?}"),
        };
        for at in [0, 1, 2, 4, 5] {
            let (place, to) = (fields[at].offset, veneer(at));
            assert!(to >= 0x20 && (to - place).is_multiple_of(RIGHT), "{at}");
            let pointer = fields.iter().find(|field| field.offset == to + 4);
            let pointer = pointer.expect("the veneer's pointer");
            assert_eq!(pointer.reaches, wrong[at].reaches);
            assert_eq!(pointer.r_type, elf::R_ARM_ABS32.0);
        }
        // One for each target and kind of distance; what is right stays.
        assert_eq!(veneer(0), veneer(2));
        assert_eq!(fields[3], wrong[3]);
        assert_eq!(fields.len(), wrong.len() + 4);
    }

    #[test]
    fn addends_become_a_part_of_the_symbol() {
        let at = |name: &str, offset| Reaches::Name(name.to_owned(), offset);
        let movw = |reaches| field(0, elf::R_ARM_MOVW_ABS_NC, reaches);
        let address = |name: &str, address| Reaches::Address(name.to_owned(), address, 0);
        for (before, behind) in [
            (at("g", 0x10), address("g+16", 0x20_0014)),
            (at("g", -4), address("g-4", 0x20_0000)),
            (
                Reaches::Address("h".to_owned(), 0x20_0000, 8),
                address("h+8", 0x20_0008),
            ),
            (at("g", 0), at("g", 0)),
            (Reaches::Part(Kind::Bss, 8), Reaches::Part(Kind::Bss, 8)),
        ] {
            assert_eq!(routed(vec![movw(before)]).fields[0].reaches, behind);
        }
        let data = field(0, elf::R_ARM_ABS32, at("g", 0x10));
        assert_eq!(routed(vec![data.clone()]).fields, [data]);
    }

    #[test]
    fn references_in_two_halves_are_found() {
        // movw r3, #0x9a04; movw r2, #0x8; movt r3, #0x24; bl 0x201000
        let words: [u32; 4] = [0xe309_3a04, 0xe300_2008, 0xe340_3024, 0xeb00_03fb];
        let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let uses = |target: Range<u64>| Arm32.uses(0x20_0000, &code, &target);
        assert_eq!(uses(0x24_9a00..0x24_9a08), [(0x20_0008, false)]);
        assert_eq!(uses(0x24_9a08..0x24_9a10), []);
        assert_eq!(uses(0x20_1000..0x20_1004), [(0x20_000c, true)]);
    }

    #[test]
    fn references_in_constants_are_found() {
        // ldr r1, [pc, #-4]; the address
        let words = [0xe51f_1004_u32, 0x0024_9a04];
        let code: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        let uses = |target: Range<u64>| Arm32.uses(0x20_0000, &code, &target);
        assert_eq!(uses(0x24_9a00..0x24_9a08), [(0x20_0004, false)]);
        assert_eq!(uses(0x24_9a08..0x24_9a10), []);
    }
}

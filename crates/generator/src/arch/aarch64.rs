// SPDX-License-Identifier: MIT OR Apache-2.0
//! ARM64.

use super::{Arch, Linked, Unsupported};
use crate::payload::Draft;
use object::Architecture;
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::machine::Width;
use xsplice_abi::special::Entry;
use xsplice_abi::trampoline::arm64;
use xsplice_objdiff::Object;
use xsplice_objdiff::arch::{self, Arch as Objects};
use xsplice_objdiff::object::Symbol;
use xsplice_reloc::reloc::{Origin, Relocation, aarch64};
use xsplice_xen_image::Image;

/// Size of an instruction in bytes.
const SIZE: usize = 4;
/// Size of a page in bytes, in the sense of `adrp`.
const PAGE: u64 = 0x1000;

#[derive(Debug)]
pub(super) struct Aarch64;

impl Arch for Aarch64 {
    fn objects(&self) -> &'static dyn Objects {
        &arch::Aarch64
    }

    fn elf(&self) -> Architecture {
        Architecture::Aarch64
    }

    fn padding(&self) -> &'static [u8] {
        &arm64::NOP
    }

    fn trap(&self) -> &'static [u8] {
        // `brk #1000`, which compilers use. The hypervisor does not know that number.
        const TRAP: [u8; SIZE] = 0xd420_7d00_u32.to_le_bytes();
        &TRAP
    }

    fn least_alignment(&self) -> u64 {
        SIZE as u64
    }

    fn landing_pad(&self, _code: &[u8]) -> u32 {
        // Xen is built without branch target identification.
        0
    }

    fn trampoline(&self, _code: &[u8]) -> u64 {
        arm64::SIZE.into()
    }

    fn uses(&self, at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)> {
        let mut found = super::arm::uses(arch::Aarch64.decode(code, at), target);
        found.extend(in_two_steps(at, code, target));
        found.extend(super::arm::constants(at, code, target, Width::Bits64));
        found
    }

    fn before_linking<'a>(
        &self,
        object: &Object,
        symbol: &Symbol,
        linked: &Linked<'a>,
    ) -> Cow<'a, [u8]> {
        let rewrites = Rewrites(*linked);
        let mut restored = Cow::Borrowed(linked.bytes);
        for field in object.relocations(symbol.span()) {
            let Ok(offset) = usize::try_from(field.offset - symbol.offset) else {
                continue;
            };
            let page = aarch64::lookup(field.r_type).is_some_and(|r| r.origin == Origin::Page);
            if !page || !is_at_risk(rewrites.place(offset)) {
                continue;
            }
            for (at, word) in rewrites.undone(object.bytes(symbol.span()), offset) {
                restored.to_mut()[at..at + SIZE].copy_from_slice(&word.to_le_bytes());
            }
        }
        restored
    }

    fn meets_erratum(&self, code: &[u8], offset: u64) -> bool {
        let starts = (0..code.len()).step_by(SIZE);
        let mut at_risk = starts.filter(|at| is_at_risk(offset.wrapping_add(*at as u64)));
        at_risk.any(|at| code.get(at..).is_some_and(is_erratum_843419))
    }

    fn refuses_entry(&self, entry: &Entry, hypervisor: &Image) -> Option<Unsupported> {
        super::arm::refuses_entry(entry, hypervisor)
    }

    fn locks_constants(&self) -> Option<Unsupported> {
        Some(super::arm::CONSTANTS)
    }

    fn elf_flags(&self) -> u32 {
        0
    }

    fn section_alignment(&self) -> u64 {
        1
    }

    fn loses_addend(&self, _relocation: &Relocation) -> bool {
        false
    }

    fn route(&self, _draft: &mut Draft, _hypervisor: &Image) {
        // It gets all of them right.
    }
}

/// The instruction at `offset` of `code`.
fn word(code: &[u8], offset: usize) -> Option<u32> {
    let bytes = code.get(offset..)?.first_chunk()?;
    Some(u32::from_le_bytes(*bytes))
}

/// `adrp` is `adr` with this bit.
const PAGES: u32 = 1 << 31;

fn is_adr(word: u32) -> bool {
    word & 0x9f00_0000 == 0x1000_0000
}

fn is_adrp(word: u32) -> bool {
    word & 0x9f00_0000 == 0x9000_0000
}

/// What `adr` adds to its address, and `adrp` in pages to that of its page.
fn distance(word: u32) -> i64 {
    let (low, high) = (i64::from(word >> 29 & 3), i64::from(word >> 5 & 0x7_ffff));
    (high << 2 | low) << 43 >> 43
}

/// `word` with another distance.
fn with_distance(word: u32, distance: i64) -> Option<u32> {
    let fits = (-(1 << 20)..1 << 20).contains(&distance);
    let field = u32::try_from(distance & 0x1f_ffff).ok().filter(|_| fits)?;
    Some(word & 0x9f00_001f | (field & 3) << 29 | field >> 2 << 5)
}

/// The target of `b` at `at`.
fn branch_target(word: u32, at: u64) -> Option<u64> {
    let is_branch = word & 0xfc00_0000 == 0x1400_0000;
    let distance = i64::from(word) << 38 >> 36;
    is_branch.then(|| at.wrapping_add_signed(distance))
}

/// Whether an `adrp` at this address is one that processors with the erratum 843419 may
/// run wrongly: one of the last two words of a page.
fn is_at_risk(place: u64) -> bool {
    place % PAGE >= PAGE - 2 * SIZE as u64
}

/// Whether the processor erratum 843419 may be met by code that starts like this at such a
/// place: `adrp`, a load or store, and directly behind them or one instruction later a load
/// or store with an unsigned offset from the register of the `adrp`.
///
/// Some of these are harmless, as the linker knows: the second instruction may write the
/// register, or the third one jump away. Code is then moved without need.
fn is_erratum_843419(code: &[u8]) -> bool {
    let instruction = |index: usize| word(code, index * SIZE);
    let (Some(first), Some(second)) = (instruction(0), instruction(1)) else {
        return false;
    };
    let accesses_there = |word: u32| {
        // Also of vector registers.
        word & 0x3b00_0000 == 0x3900_0000 && word >> 5 & 0x1f == first & 0x1f
    };
    is_adrp(first)
        && second & 0x0a00_0000 == 0x0800_0000
        && [2, 3]
            .into_iter()
            .filter_map(instruction)
            .any(accesses_there)
}

/// What the linker may have rewritten against the processor erratum 843419, in a
/// function at an address: `adrp` in the last two words of a page became `adr`, or a
/// load or store after it went to a stub of its own, which jumps back.
struct Rewrites<'a>(Linked<'a>);

impl Rewrites<'_> {
    fn place(&self, offset: usize) -> u64 {
        self.0.address.wrapping_add(offset as u64)
    }

    /// The instructions that were there, if the linker changed any because of the `adrp`
    /// at `offset` of `ours`.
    fn undone(&self, ours: &[u8], offset: usize) -> Vec<(usize, u32)> {
        let Some(first) = word(self.0.bytes, offset) else {
            return Vec::new();
        };
        let place = self.place(offset);
        if is_adr(first) {
            let page = place.wrapping_add_signed(distance(first));
            let pages = page.wrapping_sub(place & !(PAGE - 1)).cast_signed() / PAGE.cast_signed();
            let adrp = with_distance(first | PAGES, pages).filter(|_| page.is_multiple_of(PAGE));
            return adrp.map(|adrp| (offset, adrp)).into_iter().collect();
        }
        let later = [2 * SIZE, 3 * SIZE].map(|behind| offset + behind);
        let moved = later.into_iter().filter_map(|at| {
            let (was, is) = (word(ours, at)?, word(self.0.bytes, at)?);
            let unchanged = branch_target(was, 0).is_some();
            let stub = branch_target(is, self.place(at)).filter(|_| !unchanged)?;
            let stub_code = self.0.image.bytes(stub, 2 * SIZE as u64)?;
            let back = branch_target(word(stub_code, SIZE)?, stub + SIZE as u64)?;
            (back == self.place(at + SIZE)).then_some((at, word(stub_code, 0)?))
        });
        moved.collect()
    }
}

/// The references into `target` by an address that is computed in two steps: `adrp`, and
/// an instruction that adds the rest or accesses memory there.
///
/// Any of the one counts with any of the other that uses the same register: this finds
/// too many rather than too few.
fn in_two_steps(at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)> {
    let words = || {
        (0..code.len())
            .step_by(SIZE)
            .filter_map(|at| Some((at as u64, word(code, at)?)))
    };
    let mut pages = BTreeSet::new();
    for (offset, word) in words().filter(|(_, word)| is_adrp(*word)) {
        let here = at.wrapping_add(offset) & !(PAGE - 1);
        let page = here.wrapping_add_signed(distance(word).wrapping_mul(PAGE.cast_signed()));
        let wanted = page < target.end && target.start < page.saturating_add(PAGE);
        if wanted {
            pages.insert((word & 0x1f, page));
        }
    }
    let mut found = Vec::new();
    for (offset, word) in words() {
        let Some((rest, only_reads)) = second_step(word) else {
            continue;
        };
        let base = word >> 5 & 0x1f;
        let mut known = pages.iter().filter(|(register, _)| *register == base);
        if known.any(|(_, page)| target.contains(&page.wrapping_add(rest))) {
            found.push((at.wrapping_add(offset), only_reads));
        }
    }
    found
}

/// What an instruction adds to a register, and whether it only reads there.
fn second_step(word: u32) -> Option<(u64, bool)> {
    let immediate = u64::from(word >> 10 & 0xfff);
    // `add`, 64 bits, of an immediate that is not shifted.
    if word & 0xffc0_0000 == 0x9100_0000 {
        return Some((immediate, false));
    }
    // Loads and stores of general registers with a scaled offset.
    let access = word & 0x3f00_0000 == 0x3900_0000;
    let (size, is_load) = (word >> 30, word >> 22 & 3 != 0);
    access.then_some((immediate << size, is_load))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Proof;
    use std::process::Command;

    /// A function with the instructions that the erratum is about: `adrp` in the last
    /// word of a page but one, a load, and a load from that page.
    const SOURCE: &str = r#"
        .section .text.f, "ax", %progbits
        .balign 4096
        .globl f
        .type f, %function
        f:
        .rept 0xff8 / 4
        nop
        .endr
        adrp x0, v
        ldr x1, [x2]
        ldr x3, [x0, #:lo12:v]
        bl g
        ret
        .size f, . - f
        .globl g
        .type g, %function
        g: ret
        .size g, . - g
        .section .data.v, "aw"
        .balign 8
        .globl v
        .type v, %object
        v: .quad 1
        .size v, 8
    "#;

    fn run(command: &mut Command) {
        let status = command.status();
        assert!(
            status
                .expect("these tests need gcc-aarch64-linux-gnu")
                .success()
        );
    }

    /// The object, and the hypervisor that it is linked to, with data at an address.
    fn linked(data: &str, workaround: &str) -> (Object, Image) {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("x.s"), SOURCE).expect("written");
        let gcc = || Command::new("aarch64-linux-gnu-gcc");
        run(gcc().arg("-c").args([at("x.s")]).arg("-o").arg(at("x.o")));
        run(gcc()
            .args([
                "-nostdlib",
                "-static",
                "-Wl,--build-id=sha1,-e,f,-Ttext=0x200000",
            ])
            .arg(format!(
                "-Wl,-Tdata={data},--fix-cortex-a53-843419{workaround}"
            ))
            .arg("-Wl,--defsym=__init_begin=0x300000,--defsym=__init_end=0x301000")
            .args([at("x.o")])
            .arg("-o")
            .arg(at("x")));
        let read = |name: &str| std::fs::read(at(name)).expect("made");
        let object = Object::read("x.o", &read("x.o")).expect("an object");
        (object, Image::parse(&read("x")).expect("an image"))
    }

    fn is_rewritten(object: &Object, image: &Image) -> bool {
        let f = object.symbols.iter().find(|s| s.name == "f").expect("f");
        let address = image.address_of("f").expect("f");
        let theirs = image.bytes(address, f.size).expect("its bytes");
        object.first_difference(f, theirs).is_some()
    }

    #[test]
    fn code_that_the_linker_rewrote_is_proved() {
        // The variable is near, or too far for `adr`.
        for (data, workaround) in [("0x240000", ""), ("0x8000000", ""), ("0x240000", "=adrp")] {
            let (object, image) = linked(data, workaround);
            assert!(is_rewritten(&object, &image), "{data} {workaround}");
            let proof = Proof::new(&Aarch64, &object, &image);
            let f = object.symbols.position(|s| s.name == "f").expect("f");
            let address = proof.address(f).expect("it is proved");
            assert_eq!(Some(address), image.address_of("f"));
        }
    }

    #[test]
    fn other_code_is_not_proved() {
        let (object, image) = linked("0x240000", "");
        let f = object.symbols.position(|s| s.name == "f").expect("f");
        for (at, bytes) in [
            (0xff8, [0x00, 0, 0, 0x10]),
            (0x1000, [0x43, 0x04, 0x40, 0xf9]),
        ] {
            let mut other = object.clone();
            let section = other.symbols[f].section;
            other.sections[section].data[at..at + 4].copy_from_slice(&bytes);
            let proof = Proof::new(&Aarch64, &other, &image);
            assert!(proof.address(f).is_err(), "{at:#x}");
        }
    }

    fn code(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    const NOP: u32 = u32::from_le_bytes(arm64::NOP);
    const ADRP_X0: u32 = 0x9000_0000;
    const LOAD_X0: u32 = 0xf940_0003; // ldr x3, [x0]

    /// The sequences of the erratum's description, as GNU as encodes them.
    #[test]
    fn the_erratum_is_recognized_at_the_end_of_a_page() {
        let meets = |words: &[u32], offset| Aarch64.meets_erratum(&code(words), offset);
        for second in [
            0xf940_0041, // ldr x1, [x2]
            0xf900_0041, // str x1, [x2]
            0xb860_6841, // ldr w1, [x2, x0]
            0xf840_8441, // ldr x1, [x2], #8
            0xfd40_0041, // ldr d1, [x2]
            0xa900_0c41, // stp x1, x3, [x2]
            0xa800_0c41, // stnp x1, x3, [x2]
            0xad00_0c41, // stp q1, q3, [x2]
            0x0c00_7041, // st1 {v1.8b}, [x2]
        ] {
            for last in [
                LOAD_X0,
                0xb900_0403, // str w3, [x0, #4]
                0x3940_0003, // ldrb w3, [x0]
                0xfd40_0003, // ldr d3, [x0]
                0x3dc0_0003, // ldr q3, [x0]
            ] {
                let three = [ADRP_X0, second, last];
                let four = [ADRP_X0, second, NOP, last];
                for offset in [0xff8, 0xffc, 0x1ff8, 0x1_0ffc] {
                    assert!(meets(&three, offset) && meets(&four, offset), "{three:x?}");
                }
                for offset in [0, 0xff4, 0x1000] {
                    assert!(!meets(&three, offset) && !meets(&four, offset));
                }
                // Where the sequence is counts, not where the code starts.
                assert!(meets(&[&[NOP, NOP][..], &three].concat(), 0xff0));
                assert!(!meets(&[&[NOP, NOP][..], &three].concat(), 0xff8));
            }
        }
        for other in [
            [0x1000_0000, 0xf940_0041, LOAD_X0, NOP], // adr
            [ADRP_X0, 0x8b01_0042, LOAD_X0, NOP],     // add x2, x2, x1
            [ADRP_X0, 0xf940_0041, NOP, NOP],
            [ADRP_X0, 0xf940_0041, 0xf940_0043, NOP], // ldr x3, [x2]
            [ADRP_X0, 0xf940_0041, 0xf840_8403, NOP], // ldr x3, [x0], #8
        ] {
            assert!(!meets(&other, 0xff8), "{other:x?}");
        }
        // Nothing follows.
        assert!(!meets(&[ADRP_X0], 0xffc) && !meets(&[ADRP_X0, 0xf940_0041], 0xff8));
    }

    #[test]
    fn references_in_constants_are_found() {
        // ret; the address
        let words: [u32; 3] = [0xd65f_03c0, 0x0024_9a04, 0];
        let uses = |target: Range<u64>| Aarch64.uses(0x20_0000, &code(&words), &target);
        assert_eq!(uses(0x24_9a00..0x24_9a08), [(0x20_0004, false)]);
        assert_eq!(uses(0x24_9a08..0x24_9a10), []);
    }

    #[test]
    fn references_in_two_steps_are_found() {
        // adrp x0, 0x201000; ldr x3, [x0, #8]; add x1, x0, #0x10; strb w2, [x0, #0x18]
        let words: [u32; 4] = [0xb000_0000, 0xf940_0403, 0x9100_4001, 0x3900_6002];
        let uses = |target: Range<u64>| Aarch64.uses(0x20_0000, &code(&words), &target);
        assert_eq!(uses(0x20_1008..0x20_1010), [(0x20_0004, true)]);
        assert_eq!(uses(0x20_1010..0x20_1018), [(0x20_0008, false)]);
        assert_eq!(uses(0x20_1018..0x20_1019), [(0x20_000c, false)]);
        assert_eq!(uses(0x20_1019..0x20_2000), []);
        assert_eq!(uses(0x20_2008..0x20_2010), []);
    }
}

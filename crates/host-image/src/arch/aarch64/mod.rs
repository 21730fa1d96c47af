// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM64. Encodings: Arm Architecture Reference Manual for A-profile, "A64 instruction
//! set encoding".

use super::arm::{self, words};
use super::{Flow, Reader, Step};
use crate::Image;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::special::{Entry, Table, arm as tables};
use xsplice_engine::Limits;

#[derive(Debug)]
pub(super) struct Aarch64;

/// `bits` bits from bit `at` on, as a signed number.
fn signed(word: u32, at: u32, bits: u32) -> i64 {
    let top = word << (32 - at - bits);
    i64::from(top.cast_signed() >> (32 - bits))
}

/// What the instruction `word` at `at` does to the flow of control.
fn flow(word: u32, at: u64) -> Flow {
    let target = |from, bits| at.wrapping_add_signed(signed(word, from, bits) * 4);
    if word & 0xfc00_0000 == 0x1400_0000 {
        Flow::Jump(target(0, 26))
    } else if word & 0xfc00_0000 == 0x9400_0000 {
        Flow::Call(target(0, 26))
    } else if word & 0xff00_0000 == 0x5400_0000 || word & 0x7e00_0000 == 0x3400_0000 {
        Flow::Branch(target(5, 19))
    } else if word & 0x7e00_0000 == 0x3600_0000 {
        Flow::Branch(target(5, 14))
    } else if word & 0xfe00_0000 == 0xd600_0000 && word & 0x0060_0000 != 0x0020_0000 {
        // br, ret and eret, but not blr.
        Flow::Leaves
    } else if word & 0xffe0_001f == 0xd420_0000 {
        // brk
        Flow::Stops
    } else {
        Flow::Next
    }
}

impl Reader for Aarch64 {
    fn steps(&self, at: u64, code: &[u8]) -> Vec<Step> {
        arm::steps(at, code, flow)
    }

    fn payload_area(&self, start: u64, _end: u64) -> Range<u64> {
        arm::payload_area(start)
    }

    fn entry_size(&self, table: Table) -> u64 {
        tables::entry_size(table)
    }

    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        tables::read(table, entry, at)
    }

    fn keeps_payloads(&self) -> Option<&'static str> {
        Some(arm::keeps_payloads!("ARM64"))
    }

    fn limits(&self, image: &Image) -> Limits {
        arm::limits(image)
    }

    /// `adr`, and `adrp` with the `add` after it, in the order of addresses.
    fn each_address(&self, start: u64, code: &[u8], found: &mut dyn FnMut(u64, u64)) {
        let mut pages = [None; 32];
        for (word, at) in words(code).zip((start..).step_by(4)) {
            let register = |at: u32| (word >> at & 31) as usize;
            if word & 0x1f00_0000 == 0x1000_0000 {
                let distance = signed(word, 5, 19) * 4 + i64::from(word >> 29 & 3);
                if word >> 31 == 0 {
                    found(at.wrapping_add_signed(distance), at);
                } else {
                    let page = (at & !0xfff).wrapping_add_signed(distance * 4096);
                    pages[register(0)] = Some(page);
                }
            } else if word & 0xffc0_0000 == 0x9100_0000
                && let Some(page) = pages[register(5)]
            {
                found(u64::from(word >> 10 & 0xfff) + page, at);
            }
        }
    }

    /// ARM64 has no page-table isolation.
    fn before_switch(&self, _image: &Image) -> BTreeSet<u64> {
        BTreeSet::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Flow, flow};

    /// As GNU as encodes them at 0x1000.
    #[test]
    fn flow_of_the_assembler() {
        for (word, expected) in [
            (0x1400_0004, Flow::Jump(0x1010)),   // b .+16
            (0x97ff_ffff, Flow::Call(0x0ffc)),   // bl .-4
            (0x5400_0040, Flow::Branch(0x1008)), // b.eq .+8
            (0xb4ff_ffe0, Flow::Branch(0x0ffc)), // cbz x0, .-4
            (0x3607_fffe, Flow::Branch(0x0ffc)), // tbz w30, #0, .-4
            (0xd65f_03c0, Flow::Leaves),         // ret
            (0xd61f_0200, Flow::Leaves),         // br x16
            (0xd69f_03e0, Flow::Leaves),         // eret
            (0xd63f_0000, Flow::Next),           // blr x0
            (0xd420_0020, Flow::Stops),          // brk #1
            (0xd503_201f, Flow::Next),           // nop
        ] {
            assert_eq!(flow(word, 0x1000), expected, "{word:#x}");
        }
    }
}

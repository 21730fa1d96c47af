// SPDX-License-Identifier: MIT OR Apache-2.0

//! ARM32. Encodings: Arm Architecture Reference Manual, ARMv7-A and ARMv7-R edition, "ARM
//! Instruction Set Encoding".
//!
//! There are tables between the instructions. Their words are numbers, or addresses of the
//! hypervisor, which is in the lowest 256 MiB: as instructions, neither leads anywhere.

use super::arm::{self, words};
use super::{Flow, Reader, Step};
use crate::Image;
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::special::{Entry, Table, arm as tables};
use xsplice_engine::Limits;

#[derive(Debug)]
pub(super) struct Arm32;

/// The condition of instructions that are always executed; one more has no condition.
const ALWAYS: u32 = 0xe;
/// From an instruction to the place that its distance counts from.
const AHEAD: u64 = 8;

/// What the instruction `word` at `at` does to the flow of control.
fn flow(word: u32, at: u64) -> Flow {
    let condition = word >> 28;
    let always = condition == ALWAYS;
    if word & 0x0e00_0000 == 0x0a00_0000 {
        let distance = i64::from((word << 8).cast_signed() >> 8) * 4;
        let target = at.wrapping_add(AHEAD).wrapping_add_signed(distance);
        return if condition > ALWAYS || word & 0x0100_0000 != 0 {
            Flow::Call(target)
        } else if always {
            Flow::Jump(target)
        } else {
            Flow::Branch(target)
        };
    }
    if word & 0x0ff0_00f0 == 0x07f0_00f0 {
        return Flow::Stops;
    }
    if always && leaves(word) {
        Flow::Leaves
    } else {
        Flow::Next
    }
}

/// Whether it writes to the program counter: `bx`, a return from an exception, a load, or
/// an operation.
fn leaves(word: u32) -> bool {
    let to_pc = word >> 12 & 0xf == 0xf;
    let compares = word & 0x0180_0000 == 0x0100_0000;
    let multiplies = word & 0x90 == 0x90;
    let loads = word & 0x0010_0000 != 0;
    match word >> 25 & 7 {
        0 if word & 0x0fff_fff0 == 0x012f_ff10 || word & 0x0fff_ffff == 0x0160_006e => true,
        0 => to_pc && !compares && !multiplies,
        1 => to_pc && !compares,
        2 => to_pc && loads,
        3 => to_pc && loads && word & 0x10 == 0,
        4 => word & 0x8000 != 0 && loads,
        _ => false,
    }
}

impl Reader for Arm32 {
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
        Some(arm::keeps_payloads!("ARM32"))
    }

    fn limits(&self, image: &Image) -> Limits {
        arm::limits(image)
    }

    /// `movw` with the `movt` after it, in the order of addresses, and the words of tables.
    fn each_address(&self, start: u64, code: &[u8], found: &mut dyn FnMut(u64, u64)) {
        let mut low = [None; 16];
        for (word, at) in words(code).zip((start..).step_by(4)) {
            let register = (word >> 12 & 0xf) as usize;
            let immediate = (word >> 16 & 0xf) << 12 | word & 0xfff;
            match word & 0x0ff0_0000 {
                0x0300_0000 => low[register] = Some(immediate),
                0x0340_0000 => {
                    if let Some(low) = low[register] {
                        found((immediate << 16 | low).into(), at);
                    }
                }
                _ => found(word.into(), at),
            }
        }
    }

    /// ARM32 has no page-table isolation.
    fn before_switch(&self, _image: &Image) -> BTreeSet<u64> {
        BTreeSet::new()
    }
}

#[cfg(test)]
mod tests {
    use super::{Arm32, Flow, Reader as _, flow};

    /// As GNU as encodes them at 0x1000.
    #[test]
    fn flow_of_the_assembler() {
        for (word, expected) in [
            (0xea00_0002, Flow::Jump(0x1010)),   // b .+16
            (0xebff_fffd, Flow::Call(0x0ffc)),   // bl .-4
            (0x0b00_0000, Flow::Call(0x1008)),   // bleq .+8
            (0xfa00_0000, Flow::Call(0x1008)),   // blx .+8
            (0x0a00_0000, Flow::Branch(0x1008)), // beq .+8
            (0xe12f_ff1e, Flow::Leaves),         // bx lr
            (0xe8bd_8010, Flow::Leaves),         // pop {r4, pc}
            (0xe49d_f004, Flow::Leaves),         // pop {pc}
            (0xe1a0_f00e, Flow::Leaves),         // mov pc, lr
            (0xe25e_f004, Flow::Leaves),         // subs pc, lr, #4
            (0xe160_006e, Flow::Leaves),         // eret
            (0x979f_f103, Flow::Next),           // ldrls pc, [pc, r3, lsl #2]
            (0x08bd_8010, Flow::Next),           // popeq {r4, pc}
            (0xe12f_ff33, Flow::Next),           // blx r3
            (0xe354_0000, Flow::Next),           // cmp r4, #0
            (0xe320_f000, Flow::Next),           // nop
            (0xe7f0_00f0, Flow::Stops),          // udf #0
            (0x0024_9a04, Flow::Next),           // an address in a table
        ] {
            assert_eq!(flow(word, 0x1000), expected, "{word:#x}");
        }
    }

    #[test]
    fn addresses_have_two_halves() {
        // movw r3, #0x9a04; nop; movt r3, #0x24
        let code = [0xe309_3a04_u32, 0xe1a0_0000, 0xe340_3024].map(u32::to_le_bytes);
        let mut found = Vec::new();
        Arm32.each_address(0x1000, code.as_flattened(), &mut |target, at| {
            found.push((target, at));
        });
        assert!(found.contains(&(0x24_9a04, 0x1008)), "{found:x?}");
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! x86-64.

mod code;
mod entry;
mod limits;

use super::{Flow, Reader, Step};
use crate::Image;
use iced_x86::{FlowControl, Instruction};
use std::collections::BTreeSet;
use std::ops::Range;
use xsplice_abi::special::{Entry, Table};
use xsplice_engine::Limits;

#[derive(Debug)]
pub(super) struct X86_64;

/// The hypervisor's code and data are within one gigabyte, with payloads after them.
const VIRTUAL_SIZE: u64 = 1 << 30;
const PAGE: u64 = 4096;

fn step(instruction: &Instruction) -> Step {
    let target = instruction.near_branch_target();
    let flow = match instruction.flow_control() {
        FlowControl::Call if target != 0 => Flow::Call(target),
        FlowControl::UnconditionalBranch => Flow::Jump(target),
        FlowControl::ConditionalBranch => Flow::Branch(target),
        FlowControl::Return | FlowControl::IndirectBranch => Flow::Leaves,
        // An unreachable point: `ud2`, since 4.22 `udb`.
        FlowControl::Exception => Flow::Stops,
        _ => Flow::Next,
    };
    Step {
        at: instruction.ip(),
        next: instruction.next_ip(),
        flow,
    }
}

impl Reader for X86_64 {
    fn steps(&self, at: u64, code: &[u8]) -> Vec<Step> {
        code::decode(at, code).map(|i| step(&i)).collect()
    }

    fn payload_area(&self, start: u64, end: u64) -> Range<u64> {
        let limit = (start / VIRTUAL_SIZE * VIRTUAL_SIZE).saturating_add(VIRTUAL_SIZE);
        end.checked_next_multiple_of(PAGE).unwrap_or(limit)..limit
    }

    fn entry_size(&self, table: Table) -> u64 {
        table.entry_size()
    }

    fn entry(&self, table: Table, entry: &[u8], at: u64) -> Option<Entry> {
        table.read(entry, at)
    }

    fn keeps_payloads(&self) -> Option<&'static str> {
        None
    }

    fn limits(&self, image: &Image) -> Limits {
        limits::of(image)
    }

    /// `lea` relative to the instruction, and `movabs`.
    fn each_address(&self, start: u64, code: &[u8], found: &mut dyn FnMut(u64, u64)) {
        for (window, at) in code.windows(10).zip(start..) {
            match *window {
                [0x48 | 0x4c, 0x8d, modrm, a, b, c, d, ..] if modrm & 0xc7 == 0x05 => {
                    let distance = i32::from_le_bytes([a, b, c, d]);
                    found(at.wrapping_add(7).wrapping_add_signed(distance.into()), at);
                }
                [0x48 | 0x49, 0xb8..=0xbf, ref value @ ..] => {
                    if let Ok(value) = value.try_into() {
                        found(u64::from_le_bytes(value), at);
                    }
                }
                _ => {}
            }
        }
    }

    fn before_switch(&self, image: &Image) -> BTreeSet<u64> {
        entry::before_switch(image)
    }
}

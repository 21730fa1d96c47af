// SPDX-License-Identifier: MIT OR Apache-2.0

//! Finds the code that the hypervisor runs on a guest's page tables, where payloads
//! are not mapped: its entry code up to the switch of page tables, and its callees.
//!
//! A write to `%cr3` after which entry code continues into other code enters the
//! hypervisor: everything on a path to it, back to the previous write, runs on the
//! guest's page tables. The other writes leave the hypervisor, and only entry code
//! follows. The analysis is conservative: each alternative counts as both present and
//! absent, and every branch as both taken and not taken.
//!
//! Xen maps no other code there, so nothing should be found outside the section. If
//! something is found, the hypervisor either never isolates page tables, or does not
//! take that path when it does.

use super::code::{decode, near_target};
use crate::{Image, special};
use iced_x86::{FlowControl, Instruction, Mnemonic, Register};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use xsplice_abi::special::Alternative;

/// The start addresses of functions outside the entry code that it runs before the
/// switch.
pub(super) fn before_switch(image: &Image) -> BTreeSet<u64> {
    let code = EntryCode::decode(image);
    let before = code.before_switch();
    let called = before.iter().filter_map(|at| code.leaves_to(*at));
    let mut left: Vec<u64> = called.filter_map(|to| image.function_at(to)).collect();
    let mut found = BTreeSet::new();
    while let Some(addr) = left.pop() {
        if found.insert(addr) {
            let function = image.code(addr).unwrap_or_default();
            let targets = decode(addr, function).filter_map(|i| near_target(&i));
            left.extend(targets.filter_map(|target| image.function_at(target)));
        }
    }
    found.retain(|addr| !code.range.contains(addr));
    found
}

/// The entry code, with its alternatives.
struct EntryCode {
    range: Range<u64>,
    instructions: BTreeMap<u64, Instruction>,
    /// The replacements for an instruction.
    replacements: BTreeMap<u64, Vec<u64>>,
    /// The last instruction of each replacement, and the address after the replaced
    /// code.
    back: BTreeMap<u64, u64>,
}

impl EntryCode {
    fn decode(image: &Image) -> Self {
        let mut all = Self {
            range: image.entry(),
            instructions: BTreeMap::new(),
            replacements: BTreeMap::new(),
            back: BTreeMap::new(),
        };
        let begins = image.text_symbols().map(|(addr, _)| addr);
        let begins: BTreeSet<u64> = begins.filter(|addr| all.range.contains(addr)).collect();
        let ends = begins.iter().copied().skip(1).chain([all.range.end]);
        for (start, end) in begins.iter().copied().zip(ends) {
            all.add(image, start..end);
        }
        // Code without a symbol.
        let targets = all.instructions.values().filter_map(near_target);
        let mut targets: BTreeSet<u64> = targets.collect();
        targets.retain(|at| all.range.contains(at) && !all.instructions.contains_key(at));
        for start in targets {
            all.add(image, start..all.range.end);
        }
        for own in special::alternatives(image) {
            all.add_alternative(image, &own);
        }
        all
    }

    /// Adds the instructions in `range`, up to one that is known.
    fn add(&mut self, image: &Image, range: Range<u64>) {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
        if !image.read(range.start, &mut bytes) {
            return;
        }
        for instruction in decode(range.start, &bytes) {
            if self.instructions.insert(instruction.ip(), instruction) == Some(instruction) {
                break;
            }
        }
    }

    fn add_alternative(&mut self, image: &Image, own: &Alternative) {
        if !self.range.contains(&own.place) {
            return;
        }
        let back = own.place + u64::from(own.original_len);
        let end = own.replacement + u64::from(own.replacement_len);
        self.add(image, own.replacement..end);
        let into = if own.replacement == end {
            back
        } else {
            own.replacement
        };
        self.replacements.entry(own.place).or_default().push(into);
        let last = self.instructions.range(own.replacement..end).next_back();
        if let Some((last, _)) = last {
            self.back.insert(*last, back);
        }
    }

    /// The target of a call or jump at `at` that leaves the entry code.
    fn leaves_to(&self, at: u64) -> Option<u64> {
        let target = near_target(self.instructions.get(&at)?)?;
        let known = self.range.contains(&target) || self.instructions.contains_key(&target);
        (!known).then_some(target)
    }

    /// The possible successors of `at`. Calls return.
    fn next(&self, at: u64) -> Vec<u64> {
        let mut next = self.replacements.get(&at).cloned().unwrap_or_default();
        if let Some(instruction) = self.instructions.get(&at) {
            next.extend(near_target(instruction));
            // An invalid instruction marks an unreachable point: `ud2`, since 4.22
            // `udb`.
            let ends = matches!(
                instruction.flow_control(),
                FlowControl::UnconditionalBranch
                    | FlowControl::IndirectBranch
                    | FlowControl::Return
                    | FlowControl::Exception
            );
            if !ends {
                let behind = self.back.get(&at).copied();
                next.push(behind.unwrap_or_else(|| instruction.next_ip()));
            }
        }
        next.retain(|at| self.instructions.contains_key(at));
        next
    }

    /// Whether code between a `%cr3` write and the next one leaves the entry code.
    fn leaves_after(&self, write: u64, writes: &BTreeSet<u64>) -> bool {
        let mut left = self.next(write);
        let mut seen = BTreeSet::new();
        while let Some(at) = left.pop() {
            if self.leaves_to(at).is_some() {
                return true;
            }
            if !writes.contains(&at) && seen.insert(at) {
                left.extend(self.next(at));
            }
        }
        false
    }

    /// The instructions on paths to a switch to the hypervisor's page tables.
    fn before_switch(&self) -> BTreeSet<u64> {
        let mut before: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for at in self.instructions.keys() {
            for next in self.next(*at) {
                before.entry(next).or_default().push(*at);
            }
        }
        let all = self.instructions.iter();
        let writes = all.filter(|(_, instruction)| is_switch(instruction));
        let writes: BTreeSet<u64> = writes.map(|(at, _)| *at).collect();
        let enters = writes.iter().copied();
        let mut left: Vec<u64> = enters
            .filter(|write| self.leaves_after(*write, &writes))
            .collect();
        let mut found = BTreeSet::new();
        while let Some(at) = left.pop() {
            for before in before.get(&at).into_iter().flatten() {
                if !writes.contains(before) && found.insert(*before) {
                    left.push(*before);
                }
            }
        }
        found
    }
}

fn is_switch(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov && instruction.op0_register() == Register::CR3
}

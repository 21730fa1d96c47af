// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that must not be patched. Those that run while code is being patched
//! are the roots of [`xsplice_abi::deny`] and their callees on every path, as read
//! from the hypervisor's code.

use crate::Image;
use crate::code::{decode, near_target};
use crate::entry;
use iced_x86::{FlowControl, Instruction};
use std::collections::{BTreeMap, BTreeSet};
use xsplice_abi::deny::{self, ROOTS, Root};

/// Start addresses of functions that must not be patched, with the reason.
pub(crate) fn of(image: &Image) -> BTreeMap<u64, &'static str> {
    let mut found = BTreeMap::new();
    for (addr, name) in image.text_symbols() {
        if let Some(why) = deny::reason(name) {
            found.entry(addr).or_insert(why);
        }
    }
    for root in ROOTS.iter().filter(|root| root.calls) {
        // A cold part does not run on every path.
        let of_root = |(_, name): &(u64, &str)| root.is(name) && !name.contains(".cold");
        for (addr, _) in image.text_symbols().filter(of_root) {
            follow(image, addr, root, &mut found);
        }
    }
    for addr in entry::before_switch(image) {
        found.entry(addr).or_insert(deny::ENTRY);
    }
    found
}

/// Adds the functions that the one at `addr` calls on every path, recursively.
fn follow(image: &Image, addr: u64, root: &Root, found: &mut BTreeMap<u64, &'static str>) {
    let mut seen = BTreeSet::from([addr]);
    let mut left = vec![addr];
    while let Some(addr) = left.pop() {
        found.entry(addr).or_insert(root.why.text());
        for callee in always_called(image, addr) {
            if seen.insert(callee) {
                left.push(callee);
            }
        }
    }
}

/// The functions that the one at `addr` calls or tail-calls on every path. Paths that
/// never return, such as those into a panic, do not count.
fn always_called(image: &Image, addr: u64) -> Vec<u64> {
    let Some(code) = image.code(addr) else {
        return Vec::new();
    };
    let function = Function::decode(addr, code);
    let steps = function.instructions.iter();
    let leads = steps.filter_map(|(at, instruction)| {
        let target = function.leaves_to(instruction)?;
        let callee = image.function_at(target)?;
        (callee == target).then_some((*at, callee))
    });
    if !function.returns(None) {
        return Vec::new();
    }
    let always = leads.filter(|(at, _)| !function.returns(Some(*at)));
    always.map(|(_, callee)| callee).collect()
}

/// The instructions of a function, by address.
struct Function {
    start: u64,
    end: u64,
    instructions: BTreeMap<u64, Instruction>,
}

impl Function {
    fn decode(start: u64, code: &[u8]) -> Self {
        Self {
            start,
            end: start + code.len() as u64,
            instructions: decode(start, code).map(|i| (i.ip(), i)).collect(),
        }
    }

    fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }

    /// The target of a call or jump that leaves the function.
    fn leaves_to(&self, instruction: &Instruction) -> Option<u64> {
        near_target(instruction).filter(|target| !self.contains(*target))
    }

    /// Whether a path from the entry leaves the function; with `without`, a path that
    /// avoids that address.
    fn returns(&self, without: Option<u64>) -> bool {
        let mut seen = BTreeSet::new();
        let mut left = vec![self.start];
        while let Some(at) = left.pop() {
            if Some(at) == without || !seen.insert(at) {
                continue;
            }
            let Some(instruction) = self.instructions.get(&at) else {
                continue;
            };
            let (target, next) = (instruction.near_branch_target(), instruction.next_ip());
            match instruction.flow_control() {
                FlowControl::Return | FlowControl::IndirectBranch => return true,
                FlowControl::UnconditionalBranch if !self.contains(target) => return true,
                FlowControl::UnconditionalBranch => left.push(target),
                FlowControl::ConditionalBranch if !self.contains(target) => return true,
                FlowControl::ConditionalBranch => left.extend([target, next]),
                // An unreachable point: `ud2`, since 4.22 `udb`.
                FlowControl::Exception => {}
                _ => left.push(next),
            }
        }
        false
    }
}

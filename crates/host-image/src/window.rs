// SPDX-License-Identifier: MIT OR Apache-2.0

//! The functions that must not be patched. Those that run while code is being patched
//! are the roots of [`xsplice_abi::deny`] and their callees on every path, as read
//! from the hypervisor's code.

use crate::Image;
use crate::arch::{Flow, Step};
use std::collections::{BTreeMap, BTreeSet};
use xsplice_abi::deny::{self, ROOTS, Root};
use xsplice_abi::suffix::parent_of_cold;

/// Start addresses of functions that must not be patched, with the reason.
pub(crate) fn of(image: &Image) -> BTreeMap<u64, &'static str> {
    let mut found = BTreeMap::new();
    for (addr, name) in image.text_symbols() {
        if let Some(why) = deny::reason(image.machine(), name) {
            found.entry(addr).or_insert(why);
        }
    }
    for root in ROOTS.iter().filter(|root| root.calls) {
        // A cold part does not run on every path.
        let of_root = |(_, name): &(u64, &str)| root.is(name) && parent_of_cold(name).is_none();
        for (addr, _) in image.text_symbols().filter(of_root) {
            follow(image, addr, root, &mut found);
        }
    }
    for addr in image.reader().before_switch(image) {
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
    let function = Function::decode(image, addr, code);
    let steps = function.instructions.values();
    let leads = steps.filter_map(|step| {
        let target = function.leaves_to(step)?;
        let callee = image.function_at(target)?;
        (callee == target).then_some((step.at, callee))
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
    instructions: BTreeMap<u64, Step>,
}

impl Function {
    fn decode(image: &Image, start: u64, code: &[u8]) -> Self {
        let steps = image.reader().steps(start, code).into_iter();
        Self {
            start,
            end: start + code.len() as u64,
            instructions: steps.map(|step| (step.at, step)).collect(),
        }
    }

    fn contains(&self, addr: u64) -> bool {
        (self.start..self.end).contains(&addr)
    }

    /// The target of a call or jump that leaves the function.
    fn leaves_to(&self, step: &Step) -> Option<u64> {
        step.target().filter(|target| !self.contains(*target))
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
            let Some(step) = self.instructions.get(&at) else {
                continue;
            };
            match step.flow {
                Flow::Leaves => return true,
                Flow::Jump(target) | Flow::Branch(target) if !self.contains(target) => return true,
                Flow::Jump(target) => left.push(target),
                Flow::Branch(target) => left.extend([target, step.next]),
                Flow::Stops => {}
                Flow::Next | Flow::Call(_) => left.push(step.next),
            }
        }
        false
    }
}

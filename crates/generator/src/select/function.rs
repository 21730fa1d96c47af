// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changed functions: their originals in the hypervisor, and their records in the
//! payload.

use super::{FirstChange, Origin, Replaced, Selector, clone, label};
use crate::code::Code;
use crate::image::padding;
use crate::payload::Func;
use crate::unit::{Unit, UnitId};
use sha2::{Digest, Sha256};
use xsplice_abi::payload::hook;
use xsplice_abi::preimage::Preimage;
use xsplice_abi::trampoline::LANDING_PAD;
use xsplice_abi::{deny, trampoline};
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::explain;
use xsplice_objdiff::object::{Object, SectionIx, SymbolIx};
use xsplice_objdiff::special;

/// The old function of a record.
struct OldFunction {
    name: String,
    /// 0 to look up the name.
    address: u64,
    size: u64,
    expected: Vec<u8>,
    preimage: Option<Preimage>,
}

impl Selector<'_> {
    pub(super) fn take_changed_functions(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter_enumerated() {
            for change in &u.comparison.changes {
                let Some(patched) = change.patched else {
                    continue;
                };
                if self.is_overridden(unit, patched) {
                    continue;
                }
                match change.kind {
                    // Reached through its parent, by jumps, not by a trampoline.
                    Kind::Function if change.name.is_cold() => {
                        self.take_symbol(unit, patched);
                    }
                    Kind::Function => {
                        if let Some(original) = change.original {
                            self.take_function(unit, change, (unit, original), patched);
                        }
                    }
                    Kind::Added => {
                        let origin = self.moves.moved.get(&(unit, patched)).copied();
                        let origin = origin.filter(|_| u.patched.symbols[patched].function);
                        if let Some(origin) = origin {
                            self.take_function(unit, change, origin, patched);
                        }
                    }
                    // Taken if something taken refers to it, or refused.
                    Kind::Removed
                    | Kind::Data
                    | Kind::Constant
                    | Kind::Resized
                    | Kind::Init
                    | Kind::Misplaced
                    | Kind::Alignment
                    | Kind::Elsewhere
                    | Kind::Renamed
                    | Kind::Unsized => {}
                }
            }
        }
    }

    fn take_function(
        &mut self,
        unit: UnitId,
        change: &Change,
        (origin, original): (UnitId, SymbolIx),
        patched: SymbolIx,
    ) {
        let u = &self.units[unit];
        let old_object = &self.units[origin].original;
        let old = &old_object.symbols[original];
        let new = &u.patched.symbols[patched];
        let section = old_object.sections.get(old.section);
        let why = section.and_then(|section| deny::section_reason(&section.name));
        if let Some(why) = why.or_else(|| deny::reason(&old.name)) {
            let message = format!(
                "{} must not be patched: {why}; a fix there needs a reboot",
                old.name
            );
            self.refuse(Code::DenyList, unit, message);
            return;
        }
        if origin == unit && is_hook_below(u, original) {
            let message = format!(
                "{} is a hook of a payload below, which is called only while this payload is not \
                 applied: its change would have no effect; leave it as it is, and give this payload \
                 a hook of another name",
                old.name
            );
            self.refuse(Code::Hooks, unit, message);
            return;
        }
        if let Some(place) = leaves_without_relocation(&u.patched, patched) {
            let message = format!(
                "{} jumps out of itself at +{place:#x} to other code of its section, which the \
                 compiler or assembler took to stay where it is; nothing tells how much of it \
                 belongs to the function",
                new.name
            );
            self.refuse(Code::SharedCode, unit, message);
            return;
        }
        if let Some(other) = self.merged_with(origin, original, (unit, patched)) {
            let message = format!(
                "{} and {other} share one piece of code in the hypervisor (identical code folding), \
                 and the patch makes them differ: its trampoline can lead to only one of them; \
                 patch the functions that call it",
                old.name
            );
            self.refuse(Code::SharedCode, unit, message);
            return;
        }
        if label::takes_own_labels(old_object, original) {
            let message = format!(
                "{} takes the addresses of its own labels, and may have stored them: they lead \
                 into the old code; put them into a constant table",
                old.name
            );
            self.refuse(Code::LabelAddress, unit, message);
            return;
        }
        // A moved function is global, and has the arguments in the source.
        if origin == unit
            && let Some(why) = clone::wrong_caller(u, original, patched)
        {
            let message = format!(
                "the compiler gives {} other arguments than {}, and {why}; declare it `__used`, so \
                 that the compiler keeps one with the arguments that the source says",
                new.name, old.name
            );
            self.refuse(Code::OtherArguments, unit, message);
            return;
        }
        let place = match self.origin(origin, original) {
            Ok(place) => place,
            Err(problem) => {
                self.problems.push(problem);
                return;
            }
        };
        let old_function = match place {
            Origin::Hypervisor(address) => {
                match self.old_function(unit, (origin, original), address) {
                    Some(old_function) => old_function,
                    None => return,
                }
            }
            Origin::Below { name, size } => OldFunction {
                name,
                address: 0,
                size,
                expected: Vec::new(),
                preimage: None,
            },
            // It is new, if anything refers to it.
            Origin::Nowhere => return,
        };
        let new_size = new.extent();
        let first_change = explain::first_change(old_object, original, &u.patched, patched);
        let why = if origin == unit {
            change.why.clone()
        } else {
            format!("it was in {}", self.units[origin].file.source)
        };
        let (name, file) = (new.name.to_string(), u.file.source.clone());
        let Some((part, offset)) = self.take_symbol(unit, patched) else {
            return;
        };
        let mut funcs = self.selection.draft.funcs.iter();
        let address = old_function.address;
        let same = |func: &Func| match address {
            0 => func.old_address == 0 && func.name == old_function.name,
            _ => func.old_address == address,
        };
        if funcs.any(same) {
            // An alias of a function that is already taken.
            return;
        }
        self.selection.replaced.push(Replaced {
            name,
            file,
            old_address: old_function.address,
            old_size: old_function.size,
            new_size,
            why,
            first_change: first_change.map(FirstChange::from),
        });
        self.selection.draft.funcs.push(Func {
            name: old_function.name,
            old_address: old_function.address,
            old_size: old_function.size,
            new: (part, offset),
            new_size,
            expected: old_function.expected,
            preimage: old_function.preimage,
        });
    }

    /// The name of another function that shares the code of `original` of the unit
    /// `origin`, and that is not `patched`.
    fn merged_with(
        &self,
        origin: UnitId,
        original: SymbolIx,
        (unit, patched): (UnitId, SymbolIx),
    ) -> Option<&str> {
        let u = &self.units[origin];
        let (old, new) = (&u.original.symbols, &u.patched.symbols);
        let differs = |other: SymbolIx| origin != unit || !new[other].is_at(&new[patched]);
        let matched = u.comparison.correlation.iter();
        let others = matched.filter(|&(other, pair)| {
            let same_code = old[pair.original].is_at(&old[original]) && old[original].size > 0;
            pair.original != original && same_code && differs(other)
        });
        let names = others.map(|(_, pair)| old[pair.original].name.as_str());
        names.min()
    }

    /// The record of a function of the hypervisor to replace; `None` if it cannot be
    /// replaced.
    fn old_function(
        &mut self,
        unit: UnitId,
        (origin, original): (UnitId, SymbolIx),
        address: u64,
    ) -> Option<OldFunction> {
        let build = self.units[origin].stages.len();
        let shipped = self.homes.shipped(origin, build, original);
        let (name, old_size, extent) = match shipped {
            Some((object, index)) => {
                let old = &object.symbols[index];
                (
                    object.runtime_name(index).to_string(),
                    old.size,
                    old.extent(),
                )
            }
            // A payload below moved it here from another file.
            None => {
                let symbol = self.image.function_at(address)?;
                (symbol.full_name().into_owned(), symbol.size, symbol.size)
            }
        };
        let code = self.image.bytes(address, old_size).unwrap_or_default();
        let needed = u64::from(trampoline::needed(code));
        let mut size = old_size;
        if size < needed {
            let padding = padding(self.image, address + size);
            if size + padding < needed {
                let message = format!(
                    "{} has {size} bytes and {padding} bytes of padding behind it, too few for \
                     the {needed} bytes of a trampoline; patch the functions that call it",
                    name
                );
                self.refuse(Code::TooSmall, unit, message);
                return None;
            }
            size = needed;
        }
        // A payload below has written its own trampoline over the old code.
        let replaced = self.below.replaces(address);
        let whole = self.image.bytes(address, extent).unwrap_or_default();
        let sites = shipped.map(|(object, index)| boot_patches(object, index, whole));
        let sites = sites.filter(|_| !replaced);
        let code = self.image.bytes(address, size).unwrap_or_default();
        Some(OldFunction {
            name,
            address,
            size,
            expected: sites
                .as_ref()
                .map_or(Vec::new(), |sites| stable_start(sites, code).to_vec()),
            preimage: sites.and_then(|sites| preimage(address, whole, sites)),
        })
    }
}

/// Whether only hooks of payloads below refer to the function at `original`.
fn is_hook_below(u: &Unit, original: SymbolIx) -> bool {
    let mut users = u.original.uses(original).peekable();
    let is_hook = |section: SectionIx| hook::stage(&u.original.sections[section].name).is_some();
    users.peek().is_some() && users.all(|(section, _)| is_hook(section))
}

/// An address outside the assembly function that it jumps to without a relocation.
fn leaves_without_relocation(object: &Object, index: SymbolIx) -> Option<u64> {
    let symbol = &object.symbols[index];
    let code = object.bytes(symbol.span());
    let fields = object.relocations(symbol.span());
    let mut decoder = iced_x86::Decoder::with_ip(64, code, 0, iced_x86::DecoderOptions::NONE);
    decoder
        .iter()
        .filter(|instruction| {
            let place = symbol.offset + instruction.ip();
            let relocated = fields
                .iter()
                .any(|f| (place..place + instruction.len() as u64).contains(&f.offset));
            let target = instruction.near_branch_target();
            let branches = instruction.is_jcc_short_or_near()
                || instruction.is_jmp_short_or_near()
                || instruction.is_call_near();
            branches && !relocated && target >= symbol.extent()
        })
        .map(|instruction| instruction.ip())
        .next()
}

/// The places that the hypervisor itself patches in a function at boot, as sorted
/// offsets and lengths: alternatives, call sites, and the landing pad of a function that
/// is never called indirectly.
fn boot_patches(object: &Object, function: SymbolIx, code: &[u8]) -> Vec<(u32, u32)> {
    let mut sites = Vec::new();
    if code.starts_with(&LANDING_PAD) {
        sites.push((0, trampoline::LANDING_PAD_SIZE.into()));
    }
    for entry in special::entries(object) {
        if entry.owner != Some(function) {
            continue;
        }
        let Some(size) = entry.read(object).and_then(|read| read.patched_len()) else {
            continue;
        };
        let place = entry
            .about(object)
            .and_then(|field| u32::try_from(field.reference.offset).ok());
        sites.extend(place.map(|place| (place, size)));
    }
    sites.sort_unstable();
    sites
}

/// The first bytes of a function that boot-time patching does not change, at most the
/// size of an expectation.
fn stable_start<'a>(sites: &[(u32, u32)], code: &'a [u8]) -> &'a [u8] {
    let first = sites.first();
    let limit = first.map_or(usize::MAX, |&(at, _)| usize::try_from(at).unwrap_or(0));
    &code[..code.len().min(limit).min(xsplice_abi::payload::OPAQUE_SIZE)]
}

/// The preimage of the complete function.
fn preimage(address: u64, code: &[u8], sites: Vec<(u32, u32)>) -> Option<Preimage> {
    let mut preimage = Preimage {
        address,
        size: u32::try_from(code.len()).ok()?,
        hash: [0; 32],
        masked: sites,
    };
    let mut code = code.to_vec();
    preimage.mask(&mut code);
    preimage.hash = Sha256::digest(&code).into();
    Some(preimage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::compiled;

    #[test]
    fn call_sites_and_alternatives_are_patched_at_boot_and_bug_frames_are_not() {
        let text = r#"
            extern void (*pointer)(void);
            void patched(void)
            {
                asm volatile("nop; 1: call *pointer(%rip); 2: .byte 0x66, 0x90; 3: ud2\n\t"
                             ".pushsection .alt_call_sites, \"a\"; .long 1b - .; .popsection\n\t"
                             ".pushsection .altinstructions, \"a\"; .long 2b - ., 2b - .;"
                             ".word 3; .byte 2, 0, 0, 0; .popsection\n\t"
                             ".pushsection .bug_frames.2, \"a\"; .long 3b - ., 0; .popsection");
            }"#;
        let data = compiled(text, &["-O2", "-ffunction-sections"]);
        let object = Object::read("patched.o", &data).expect("an object");
        let function = object.symbols.position(|s| s.name == "patched");
        let function = function.expect("patched");
        assert_eq!(boot_patches(&object, function, &[]), [(1, 6), (7, 2)]);
    }
}

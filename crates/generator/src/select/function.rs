// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changed functions: their originals in the hypervisor, and their records in the
//! payload.

use super::{Counterparts, FirstChange, Origin, Replaced, Selector, replacement};
use crate::arch::Arch;
use crate::code::Code;
use crate::image::padding;
use crate::payload::Func;
use crate::problem::Problem;
use sha2::{Digest, Sha256};
use xsplice_abi::preimage::Preimage;
use xsplice_objdiff::compare::{Change, Kind};
use xsplice_objdiff::explain;
use xsplice_objdiff::object::{Object, SymbolIx};
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
                            let (old, new) = ((unit, original), (unit, patched));
                            self.take_function(change, Counterparts { old, new });
                        }
                    }
                    Kind::Added => {
                        let new = (unit, patched);
                        if let Some(&old) = self.moves.moved.get(&new)
                            && u.patched.symbols[patched].function
                        {
                            self.take_function(change, Counterparts { old, new });
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

    fn take_function(&mut self, change: &Change, pair: Counterparts) {
        if let Some((code, message)) = replacement::refusal(self.units, pair) {
            self.refuse(code, pair.new.0, message);
            return;
        }
        match self.old_function(pair) {
            Ok(Some(old)) => self.replace(old, change, pair),
            // It is new, if anything refers to it.
            Ok(None) => {}
            Err(problem) => self.refuse_with(problem),
        }
    }

    /// Replaces `old` by the function of the patched source.
    fn replace(&mut self, old: OldFunction, change: &Change, pair: Counterparts) {
        let ((origin, original), (unit, patched)) = (pair.old, pair.new);
        let (before, u) = (&self.units[origin], &self.units[unit]);
        let new = &u.patched.symbols[patched];
        let first_change = explain::first_change(&before.original, original, &u.patched, patched);
        let Some(place) = self.take_symbol(unit, patched) else {
            return;
        };
        let same = |func: &Func| match old.address {
            0 => func.old_address == 0 && func.name == old.name,
            _ => func.old_address == old.address,
        };
        if self.selection.draft.funcs.iter().any(same) {
            // An alias of a function that is already taken.
            return;
        }
        self.selection.replaced.push(Replaced {
            name: new.name.to_string(),
            file: u.file.source.clone(),
            old_address: old.address,
            old_size: old.size,
            new_size: new.extent(),
            why: match origin == unit {
                true => change.why.clone(),
                false => format!("it was in {}", before.file.source),
            },
            first_change: first_change.map(FirstChange::from),
        });
        self.selection.draft.funcs.push(Func {
            name: old.name,
            old_address: old.address,
            old_size: old.size,
            new: place,
            new_size: new.extent(),
            expected: old.expected,
            preimage: old.preimage,
        });
    }

    /// The function to replace; `None` if it is not in memory.
    ///
    /// # Errors
    /// If it is unclear where it is, or it has no room for a trampoline.
    fn old_function(&self, pair: Counterparts) -> Result<Option<OldFunction>, Problem> {
        let (origin, original) = pair.old;
        match self.origin(origin, original)? {
            Origin::Hypervisor(address) => self.function_at(address, pair),
            Origin::Below { name, size } => Ok(Some(OldFunction {
                name,
                address: 0,
                size,
                expected: Vec::new(),
                preimage: None,
            })),
            Origin::Nowhere => Ok(None),
        }
    }

    /// The hypervisor's function at `address`.
    ///
    /// # Errors
    /// If it has no room for a trampoline.
    fn function_at(
        &self,
        address: u64,
        pair: Counterparts,
    ) -> Result<Option<OldFunction>, Problem> {
        let (origin, original) = pair.old;
        let file = &self.units[pair.new.0].file.source;
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
                let symbol = self.image.function_at(address).ok_or_else(|| {
                    let message = format!("xen-syms has no function at {address:#x}");
                    Problem::new(Code::NotProved, file, message)
                })?;
                (symbol.full_name().into_owned(), symbol.size, symbol.size)
            }
        };
        let code = self.image.bytes(address, old_size).unwrap_or_default();
        let needed = self.arch.trampoline(code);
        let mut size = old_size;
        if size < needed {
            let padding = padding(self.arch.objects(), self.image, address + size);
            if size + padding < needed {
                let message = format!(
                    "{name} has {size} bytes and {padding} bytes of padding after it, too few for \
                     the {needed} bytes of a trampoline; patch the functions that call it"
                );
                return Err(Problem::new(Code::TooSmall, file, message));
            }
            size = needed;
        }
        // A payload below has written its own trampoline over the old code.
        let replaced = self.below.replaces(address);
        let whole = self.image.bytes(address, extent).unwrap_or_default();
        let sites = shipped.map(|(object, index)| boot_patches(self.arch, object, index, whole));
        let sites = sites.filter(|_| !replaced);
        let code = self.image.bytes(address, size).unwrap_or_default();
        Ok(Some(OldFunction {
            name,
            address,
            size,
            expected: sites
                .as_ref()
                .map_or(Vec::new(), |sites| stable_start(sites, code).to_vec()),
            preimage: sites.and_then(|sites| preimage(address, whole, sites)),
        }))
    }
}

/// The places that the hypervisor itself patches in a function at boot, as sorted
/// offsets and lengths: alternatives, call sites, and the landing pad of a function that
/// is never called indirectly.
fn boot_patches(
    arch: &dyn Arch,
    object: &Object,
    function: SymbolIx,
    code: &[u8],
) -> Vec<(u32, u32)> {
    let mut sites = Vec::new();
    match arch.landing_pad(code) {
        0 => {}
        size => sites.push((0, size)),
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
        let arch = crate::arch::of(object.machine());
        assert_eq!(boot_patches(arch, &object, function, &[]), [(1, 6), (7, 2)]);
    }
}

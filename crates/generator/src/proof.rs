// SPDX-License-Identifier: MIT OR Apache-2.0
//! The proof that an object is the one that was linked into the hypervisor.
//!
//! With `-ffunction-sections` a function's bytes in `xen-syms` are those of its
//! object with relocations applied. So every byte outside relocated fields must be
//! equal, and every relocated field must lead to the symbol that the object names.
//! The targets of the fields of proved functions yield the address of each local
//! symbol, even of duplicates.

use crate::code::Code;
use crate::problem::Problem;
use std::collections::{BTreeMap, BTreeSet};
use xsplice_objdiff::object::width;
use xsplice_objdiff::object::{Object, Symbol, SymbolIx, Target};
use xsplice_xen_image::Image;

/// The original object tied to the image.
#[derive(Debug)]
pub struct Proof<'a> {
    object: &'a Object,
    image: &'a Image,
    /// The targets of fields of functions with a single candidate.
    implied: BTreeMap<SymbolIx, BTreeSet<u64>>,
}

impl<'a> Proof<'a> {
    /// Ties `object` to `image`.
    pub fn new(object: &'a Object, image: &'a Image) -> Self {
        let mut proof = Self {
            object,
            image,
            implied: BTreeMap::new(),
        };
        let mut implied: BTreeMap<SymbolIx, BTreeSet<u64>> = BTreeMap::new();
        for symbol in object.symbols.iter().filter(|s| s.function && s.size > 0) {
            let matching: Vec<_> = proof
                .candidates(symbol)
                .into_iter()
                .filter_map(|address| proof.matches(symbol, address).ok())
                .collect();
            if let [leads_to] = matching.as_slice() {
                for &(target, address) in leads_to {
                    implied.entry(target).or_default().insert(address);
                }
            }
        }
        proof.implied = implied;
        proof
    }

    /// The proved address of the symbol at `index`.
    ///
    /// # Errors
    /// If no place in the hypervisor, or more than one, matches.
    pub fn address(&self, index: SymbolIx) -> Result<u64, Problem> {
        let symbol = &self.object.symbols[index];
        let mut candidates = self.candidates(symbol);
        if candidates.len() > 1
            && let Some(implied) = self.implied.get(&index)
        {
            candidates.retain(|address| implied.contains(address));
        }
        let mut reasons = Vec::new();
        let matching: Vec<u64> = candidates
            .iter()
            .copied()
            .filter(|&address| match self.matches(symbol, address) {
                Ok(_) => true,
                Err(reason) => {
                    reasons.push(reason);
                    false
                }
            })
            .collect();
        let refuse =
            |message: String| Err(Problem::new(Code::NotProved, &self.object.file, message));
        match matching.as_slice() {
            [address] => Ok(*address),
            [] if candidates.is_empty() => refuse(format!(
                "{} is not in xen-syms; was Xen built with a different configuration?",
                symbol.name
            )),
            [] => refuse(format!(
                "{} is not what the hypervisor has: {}; \
                 was the hypervisor built with another compiler, configuration or source?",
                symbol.name,
                reasons.join("; ")
            )),
            several => refuse(format!(
                "{} matches {} identical places in the hypervisor",
                symbol.name,
                several.len()
            )),
        }
    }

    fn candidates(&self, symbol: &Symbol) -> Vec<u64> {
        if symbol.global {
            return self.image.address_of(&symbol.name).into_iter().collect();
        }
        let locals = self.image.locals(&self.object.file, &symbol.name);
        let fitting = locals
            .iter()
            .filter(|l| l.size == symbol.size || symbol.size == 0);
        fitting.map(|l| l.address).collect()
    }

    /// Whether the bytes of `symbol` are those at `address`; if so, returns the
    /// addresses of this object's local symbols from its fields.
    fn matches(&self, symbol: &Symbol, address: u64) -> Result<Vec<(SymbolIx, u64)>, String> {
        let ours = self.object.bytes(symbol.span());
        if ours.is_empty() {
            // Zeroed data: nothing to compare.
            return Ok(Vec::new());
        }
        let theirs = self
            .image
            .bytes(address, symbol.extent())
            .ok_or_else(|| format!("{address:#x} is outside of its sections"))?;
        let fields = self.object.relocations(symbol.span());
        let mut relocated = vec![false; ours.len()];
        for field in fields {
            let start = usize::try_from(field.offset - symbol.offset).unwrap_or(usize::MAX);
            relocated
                .iter_mut()
                .skip(start)
                .take(width(field.r_type))
                .for_each(|b| *b = true);
        }
        let differs = (0..ours.len()).find(|&at| !relocated[at] && ours[at] != theirs[at]);
        if let Some(at) = differs {
            return Err(format!(
                "at +{at:#x} it has byte {:#04x}, the tree's {:#04x}",
                theirs[at], ours[at]
            ));
        }
        let mut leads_to = Vec::new();
        for field in fields {
            let at = usize::try_from(field.offset - symbol.offset).unwrap_or(usize::MAX);
            let place = address.wrapping_add(field.offset - symbol.offset);
            let reference = &field.reference;
            let target = field_target(field.r_type, theirs, at, place)
                .ok_or_else(|| format!("relocation type {} at +{at:#x} is unknown", field.r_type))?
                .wrapping_sub_signed(reference.bias);
            let base = target.wrapping_sub_signed(reference.offset);
            let wrong = |name: &str| Err(format!("at +{at:#x} it does not lead to {name}"));
            match &reference.target {
                Target::External(name) => {
                    if self
                        .image
                        .address_of(name)
                        .is_some_and(|known| known != base)
                    {
                        return wrong(name);
                    }
                }
                Target::Symbol(index) => {
                    let other = &self.object.symbols[*index];
                    if !self.candidates(other).contains(&base) {
                        return wrong(&other.name);
                    }
                    leads_to.push((*index, base));
                }
                Target::Anonymous(section) => {
                    let merged = self.object.merged(*section, reference.offset);
                    if let Some((content, within)) = merged
                        && self
                            .image
                            .bytes(target.wrapping_sub(within), content.len() as u64)
                            != Some(content)
                    {
                        return wrong("the same text or constant");
                    }
                }
            }
        }
        Ok(leads_to)
    }
}

/// What the field at `at` of `bytes`, itself at `place`, holds: S + A.
fn field_target(r_type: u32, bytes: &[u8], at: usize, place: u64) -> Option<u64> {
    let relocation = xsplice_reloc::reloc::x86_64::lookup(r_type)?;
    let value = relocation.read(bytes.get(at..)?)?;
    Some(if relocation.pc_relative() {
        place.wrapping_add_signed(value)
    } else {
        value.cast_unsigned()
    })
}

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
use xsplice_objdiff::object::{Object, Reference, Symbol, SymbolIx, Target};
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
                "{} matches {} identical places in the hypervisor, and it is unclear which is meant; \
                 patch the functions that use it",
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
        if let Some(at) = self.object.first_difference(symbol, theirs) {
            return Err(format!(
                "at +{at:#x} it has byte {:#04x}, the tree's {:#04x}",
                theirs[at], ours[at]
            ));
        }
        let mut locals = Vec::new();
        for field in self.object.relocations(symbol.span()) {
            let at = field.offset - symbol.offset;
            let bytes = usize::try_from(at).ok().and_then(|at| theirs.get(at..));
            let target = field_target(
                field.r_type,
                bytes.unwrap_or_default(),
                address.wrapping_add(at),
            )
            .ok_or_else(|| format!("relocation type {} at +{at:#x} is unknown", field.r_type))?;
            let wrong = |name| format!("at +{at:#x} it does not lead to {name}");
            locals.extend(self.leads_to(&field.reference, target).map_err(wrong)?);
        }
        Ok(locals)
    }

    /// Whether a field that leads to `target` in the hypervisor can mean `reference`;
    /// if so, returns the address of the local symbol that it names.
    ///
    /// # Errors
    /// The name of what it would have to lead to.
    fn leads_to<'b>(
        &'b self,
        reference: &'b Reference,
        target: u64,
    ) -> Result<Option<(SymbolIx, u64)>, &'b str> {
        let target = target.wrapping_sub_signed(reference.bias);
        let base = target.wrapping_sub_signed(reference.offset);
        match &reference.target {
            Target::External(name) => match self.image.address_of(name) {
                Some(known) if known != base => Err(name),
                _ => Ok(None),
            },
            Target::Symbol(index) => {
                let other = &self.object.symbols[*index];
                match self.candidates(other).contains(&base) {
                    true => Ok(Some((*index, base))),
                    false => Err(&other.name),
                }
            }
            Target::Anonymous(section) => {
                let Some((content, within)) = self.object.merged(*section, reference.offset) else {
                    return Ok(None);
                };
                let start = target.wrapping_sub(within);
                match self.image.bytes(start, content.len() as u64) {
                    Some(bytes) if bytes == content => Ok(None),
                    _ => Err("the same text or constant"),
                }
            }
        }
    }
}

/// What the field at the start of `bytes`, itself at `place`, holds: S + A.
fn field_target(r_type: u32, bytes: &[u8], place: u64) -> Option<u64> {
    let relocation = xsplice_reloc::reloc::x86_64::lookup(r_type)?;
    let value = relocation.read(bytes)?;
    Some(if relocation.pc_relative() {
        place.wrapping_add_signed(value)
    } else {
        value.cast_unsigned()
    })
}

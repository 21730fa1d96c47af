// SPDX-License-Identifier: MIT OR Apache-2.0
//! The proof that an object is the one that was linked into the hypervisor.
//!
//! With `-ffunction-sections` a function's bytes in `xen-syms` are those of its
//! object with relocations applied. So every byte outside relocated fields must be
//! equal, and every relocated field must lead to the symbol that the object names.
//! The targets of the fields of proved functions yield the address of each local
//! symbol, even of duplicates.

use crate::arch::{self, Arch};
use crate::code::Code;
use crate::problem::Problem;
use std::collections::{BTreeMap, BTreeSet};
use xsplice_objdiff::object::{Object, Reference, SectionIx, Symbol, SymbolIx, Target};
use xsplice_reloc::reloc::{Field, Origin, Relocation};
use xsplice_xen_image::Image;

/// The original object tied to the image.
#[derive(Debug)]
pub struct Proof<'a> {
    arch: &'static dyn Arch,
    object: &'a Object,
    image: &'a Image,
    /// The targets of fields of functions with a single candidate.
    implied: BTreeMap<SymbolIx, BTreeSet<u64>>,
}

impl<'a> Proof<'a> {
    /// Ties `object` to `image`.
    pub(crate) fn new(arch: &'static dyn Arch, object: &'a Object, image: &'a Image) -> Self {
        let mut proof = Self {
            arch,
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
                for (&target, addresses) in leads_to {
                    implied.entry(target).or_default().extend(addresses);
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

    /// Whether the bytes of `symbol` are those at `address`; if so, returns the possible
    /// addresses of this object's local symbols from its fields.
    fn matches(&self, symbol: &Symbol, address: u64) -> Result<Locals, String> {
        let ours = self.object.bytes(symbol.span());
        if ours.is_empty() {
            // Zeroed data: nothing to compare.
            return Ok(Locals::new());
        }
        let linked = self
            .image
            .bytes(address, symbol.extent())
            .ok_or_else(|| format!("{address:#x} is outside of its sections"))?;
        let place = arch::Linked {
            image: self.image,
            address,
            bytes: linked,
        };
        let theirs = self.arch.before_linking(self.object, symbol, &place);
        if let Some(at) = self.object.first_difference(symbol, &theirs) {
            return Err(format!(
                "at +{at:#x} it has byte {:#04x}, the tree's {:#04x}",
                linked[at], ours[at]
            ));
        }
        let mut leads = Leads::default();
        for field in self.object.relocations(symbol.span()) {
            let at = field.offset - symbol.offset;
            let relocation = self.arch.objects().relocation(field.r_type);
            let relocation = relocation.ok_or_else(|| {
                format!("relocation type {} at +{at:#x} is unknown", field.r_type)
            })?;
            let bytes = usize::try_from(at).ok().and_then(|at| theirs.get(at..));
            let found = Placed {
                relocation,
                place: address.wrapping_add(at),
                bytes: bytes.unwrap_or_default(),
            };
            self.leads_to(&field.reference, &found, &mut leads)
                .map_err(|name| format!("at +{at:#x} it does not lead to {name}"))?;
        }
        self.have_contents(&leads)?;
        Ok(leads.locals)
    }

    /// Whether the field `found` in the hypervisor can mean `reference`; if so, adds what
    /// it shows to `leads`.
    ///
    /// # Errors
    /// The name of what it would have to lead to.
    fn leads_to<'b>(
        &'b self,
        reference: &'b Reference,
        found: &Placed,
        leads: &mut Leads,
    ) -> Result<(), &'b str> {
        let addend = reference.offset.wrapping_add(reference.bias);
        match &reference.target {
            Target::External(name) => match self.image.address_of(name) {
                Some(known) if !found.holds(known, addend) => Err(name),
                _ => Ok(()),
            },
            Target::Symbol(index) => {
                let other = &self.object.symbols[*index];
                let known = leads.locals.get(index);
                let candidates = known.cloned().unwrap_or_else(|| {
                    let all = self.candidates(other);
                    all.into_iter().collect()
                });
                let candidates = candidates.into_iter();
                let fitting: BTreeSet<u64> = candidates
                    .filter(|&base| found.holds(base, addend))
                    .collect();
                if fitting.is_empty() {
                    return Err(&other.name);
                }
                leads.locals.insert(*index, fitting);
                Ok(())
            }
            Target::Anonymous(section) => {
                let key = (*section, reference.offset, reference.bias);
                let known = leads.contents.entry(key).or_default();
                known.add(found).ok_or("one place")
            }
        }
    }

    /// Whether the hypervisor has the same mergeable contents where the fields lead to.
    fn have_contents(&self, leads: &Leads) -> Result<(), String> {
        for (&(section, offset, bias), known) in &leads.contents {
            let Some((content, within)) = self.object.merged(section, offset) else {
                continue;
            };
            let target = known
                .address()
                .map(|target| target.wrapping_sub_signed(bias));
            let start = target.map(|target| target.wrapping_sub(within));
            let theirs = start.and_then(|start| self.image.bytes(start, content.len() as u64));
            if theirs != Some(content) {
                let name = &self.object.sections[section].name;
                return Err(format!(
                    "it does not lead to the same text or constant of {name}"
                ));
            }
        }
        Ok(())
    }
}

/// The possible addresses of local symbols.
type Locals = BTreeMap<SymbolIx, BTreeSet<u64>>;

/// What the fields of a function show together.
#[derive(Default)]
struct Leads {
    locals: Locals,
    /// The places of contents without a name, by section and offset in the object, and
    /// what the fields add.
    contents: BTreeMap<(SectionIx, i64, i64), Known>,
}

/// A relocated field in the hypervisor.
struct Placed<'a> {
    relocation: &'static Relocation,
    /// Its address.
    place: u64,
    /// The bytes from there on.
    bytes: &'a [u8],
}

impl Placed<'_> {
    /// Whether it leads to `symbol` plus `addend`.
    fn holds(&self, symbol: u64, addend: i64) -> bool {
        let value = self.relocation.value(symbol, addend, self.place);
        let Some(bytes) = self.bytes.get(..self.relocation.size) else {
            return false;
        };
        let mut written = bytes.to_vec();
        self.relocation.write(&mut written, value).is_ok() && written == bytes
    }
}

/// What fields with one target show of its address. Some have only a part of it.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    address: Option<u64>,
    high: Option<u64>,
    low: Option<u64>,
}

/// The bits of an address within its page.
const WITHIN_PAGE: u64 = 0xfff;

impl Known {
    /// Adds what `found` shows; `None` if that contradicts another field, or is nothing.
    fn add(&mut self, found: &Placed) -> Option<()> {
        let relocation = found.relocation;
        let value = relocation.read(found.bytes)?;
        let (known, new) = match (relocation.origin, relocation.field) {
            (Origin::Place, _) => (&mut self.address, found.place.wrapping_add_signed(value)),
            (Origin::Zero, Field::Whole) => (&mut self.address, value.cast_unsigned()),
            (Origin::Page, _) => {
                let page = found.place & !WITHIN_PAGE;
                (&mut self.high, page.wrapping_add_signed(value))
            }
            (Origin::Zero, Field::Bits { width, shift, .. }) if width + shift == 12 => {
                (&mut self.low, value.cast_unsigned() & WITHIN_PAGE)
            }
            (Origin::Zero, Field::Half { shift: 0 }) => (&mut self.low, value.cast_unsigned()),
            (Origin::Zero, Field::Half { .. }) => (&mut self.high, value.cast_unsigned()),
            (Origin::Zero, _) => return None,
        };
        (*known.get_or_insert(new) == new).then_some(())
    }

    fn address(&self) -> Option<u64> {
        let parts = self.high.zip(self.low).map(|(high, low)| high | low);
        match (self.address, parts) {
            (Some(address), Some(parts)) if address != parts => None,
            (address, parts) => address.or(parts),
        }
    }
}

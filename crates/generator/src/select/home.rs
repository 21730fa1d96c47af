// SPDX-License-Identifier: MIT OR Apache-2.0
//! Finds the addresses of everything in the source below the payload.
//!
//! The payloads below are levels on top of the hypervisor. A level's payload is right
//! about its symbols, because it was proved to match its source; other symbols are
//! looked up in the level below. At the bottom is the hypervisor, which was proved
//! likewise.

use crate::arch::Arch;
use crate::below::Level;
use crate::below::contents::Place;
use crate::below::proof::LevelProof;
use crate::code::Code;
use crate::name::{is_from_hooks, is_new, is_trap, plain};
use crate::problem::Problem;
use crate::proof::Proof;
use crate::unit::{UnitId, Units};
use index_vec::IndexVec;
use std::collections::BTreeSet;
use xsplice_objdiff::compare::Kind;
use xsplice_objdiff::object::{Object, SymbolIx};
use xsplice_xen_image::Image;

/// The place in memory of a symbol of the source below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// In the hypervisor, at a proved address.
    Hypervisor(u64),
    /// In a payload below, by a unique name.
    Below {
        /// The name.
        name: String,
        /// The size in bytes.
        size: u64,
    },
    /// Nowhere: nothing in memory uses it.
    Nowhere,
}

/// All proofs.
pub struct Homes<'a> {
    pub(super) arch: &'static dyn Arch,
    pub(super) units: &'a Units,
    levels: &'a [Level],
    pub(super) image: &'a Image,
    /// The proof of each unit's object in the hypervisor.
    hypervisor: IndexVec<UnitId, Proof<'a>>,
    /// The proofs of each unit's stages.
    payloads: IndexVec<UnitId, Vec<LevelProof<'a>>>,
}

impl<'a> Homes<'a> {
    /// Ties all units to the hypervisor and the payloads below.
    ///
    /// # Errors
    /// If a payload does not match its source.
    pub fn new(
        units: &'a Units,
        levels: &'a [Level],
        image: &'a Image,
    ) -> Result<Self, Vec<Problem>> {
        let arch = crate::arch::of(image.machine());
        let mut problems = Vec::new();
        let mut payloads = IndexVec::new();
        for u in units {
            let mut proofs = Vec::new();
            for (at, stage) in u.stages.iter().enumerate() {
                let level = &levels[stage.level];
                match LevelProof::new(level, (&u.file, u.build(at + 1)), image) {
                    Ok(proof) => proofs.push(proof),
                    Err(wrong) => problems.extend(wrong.into_iter().map(|(name, why)| {
                        not_of_its_source(level, &u.file.source, &format!("of {name}: {why}"))
                    })),
                }
            }
            payloads.push(proofs);
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let hypervisor = units.iter().map(|u| Proof::new(arch, u.shipped(), image));
        let homes = Self {
            arch,
            units,
            levels,
            image,
            hypervisor: hypervisor.collect(),
            payloads,
        };
        problems.extend(homes.unexplained());
        problems.extend(homes.misplaced());
        problems.extend(homes.not_replaced());
        if problems.is_empty() {
            Ok(homes)
        } else {
            Err(problems)
        }
    }

    /// The place of the symbol at `original` of a unit's original.
    ///
    /// # Errors
    /// If it cannot be proved.
    pub(super) fn of(&self, unit: UnitId, original: SymbolIx) -> Result<Origin, Problem> {
        self.at(unit, self.units[unit].stages.len(), original)
    }

    /// Whether the symbol at `original` of a unit's original is not in memory.
    pub(super) fn is_nowhere(&self, unit: UnitId, original: SymbolIx) -> bool {
        let stages = &self.units[unit].stages;
        !stages.is_empty() && matches!(self.of(unit, original), Ok(Origin::Nowhere))
    }

    /// The place of the symbol at `index` of a unit's `build`.
    pub(super) fn at(
        &self,
        unit: UnitId,
        build: usize,
        index: SymbolIx,
    ) -> Result<Origin, Problem> {
        let u = &self.units[unit];
        let Some(below) = build.checked_sub(1) else {
            return self.hypervisor[unit].address(index).map(Origin::Hypervisor);
        };
        let stage = &u.stages[below];
        let symbol = &u.build(build).symbols[index];
        let said = self.payloads[unit][below].place(index);
        let said = said.map_err(|why| {
            Problem::new(
                Code::AmbiguousVariable,
                &u.file.source,
                format!("{} is not clear: {why}", symbol.name),
            )
        })?;
        if let Some(place) = said {
            return self.home(stage.level, &u.file.source, &place);
        }
        match stage.comparison.correlation.original(index) {
            Some(before) => {
                let changes = stage.comparison.changes.iter();
                let mut of_this = changes.filter(|change| change.patched == Some(index));
                // Nothing uses this level's version.
                if of_this.any(|change| change.kind == Kind::Constant) {
                    return Ok(Origin::Nowhere);
                }
                self.at(unit, below, before)
            }
            None if symbol.global => Ok(self.global(stage.level, &symbol.name)),
            None => match self.lost(stage.level, unit, symbol.name.base()) {
                Some(file) => Err(Problem::new(
                    Code::AmbiguousVariable,
                    &u.file.source,
                    format!(
                        "the payload {} took {} out of {file}, and it is unclear whether this one \
                         is the same; give all patches to one build, to be used with `replace`",
                        self.levels[stage.level].name, symbol.name
                    ),
                )),
                None => Ok(Origin::Nowhere),
            },
        }
    }

    /// The place of a global symbol that another file had before `level`.
    fn global(&self, level: usize, name: &str) -> Origin {
        for (unit, u) in self.units.iter_enumerated() {
            for (build, stage) in u
                .stages
                .iter()
                .enumerate()
                .filter(|(_, s)| s.level == level)
            {
                let symbols = &stage.object.symbols;
                let index = symbols.position(|symbol| symbol.global && symbol.name == name);
                if let Some(home) = index.and_then(|index| self.at(unit, build, index).ok()) {
                    return home;
                }
            }
        }
        let address = self.image.address_of(name);
        address.map_or(Origin::Nowhere, Origin::Hypervisor)
    }

    /// The other file in which `level` leaves out a private symbol of this name.
    fn lost(&self, level: usize, unit: UnitId, name: &str) -> Option<&str> {
        let others = self.units.iter_enumerated().filter(|(at, _)| *at != unit);
        let losers = others.map(|(_, u)| u).find(|u| {
            let mut stages = u.stages.iter().filter(|stage| stage.level == level);
            stages.any(|stage| {
                let mut removed = stage
                    .comparison
                    .changes
                    .iter()
                    .filter(|c| c.patched.is_none());
                removed.any(|c| c.name.base() == name)
            })
        });
        losers.map(|u| u.file.source.as_str())
    }

    /// The origin of a place in a payload.
    fn home(&self, level: usize, file: &str, place: &Place) -> Result<Origin, Problem> {
        let unnamed = || {
            let message = format!(
                "{} uses {place:?}, which nothing names",
                self.levels[level].name
            );
            Problem::new(Code::WrongStack, file, message)
        };
        match place {
            Place::Address(address) => Ok(Origin::Hypervisor(*address)),
            Place::Here(..) => {
                let symbol = self.levels[level].symbol_at(place).ok_or_else(unnamed)?;
                Ok(Origin::Below {
                    name: symbol.name.clone(),
                    size: symbol.size,
                })
            }
            Place::Name(name, 0) => {
                let mut below = self.levels[..level]
                    .iter()
                    .flat_map(|l| &l.contents.symbols);
                if let Some(symbol) = below.find(|symbol| symbol.name == *name && is_new(name)) {
                    return Ok(Origin::Below {
                        name: name.clone(),
                        size: symbol.size,
                    });
                }
                let address = self.image.only_known_as(name).map(|symbol| symbol.address);
                address.map(Origin::Hypervisor).ok_or_else(unnamed)
            }
            Place::Name(..) => Err(unnamed()),
        }
    }

    /// The hypervisor's counterpart of the symbol at `index` of a unit's `build`, if
    /// the unit's object has it.
    pub(super) fn shipped(
        &self,
        unit: UnitId,
        build: usize,
        index: SymbolIx,
    ) -> Option<(&'a Object, SymbolIx)> {
        let u = &self.units[unit];
        let mut stages = u.stages[..build].iter().rev();
        let index = stages.try_fold(index, |index, stage| {
            stage.comparison.correlation.original(index)
        })?;
        Some((u.shipped(), index))
    }

    /// Contents of payloads that their source does not explain.
    fn unexplained(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (at, level) in self.levels.iter().enumerate() {
            let mut known = BTreeSet::new();
            for (u, proofs) in self.units.iter().zip(&self.payloads) {
                for (_, proof) in u.stages.iter().zip(proofs).filter(|(s, _)| s.level == at) {
                    known.extend(proof.copies());
                }
            }
            let mut records = level.contents.records.iter();
            if records.any(|record| level.symbol_at(&record.new).is_none()) {
                let what = "it replaces a function by code without a name";
                problems.push(not_of_its_source(level, &level.name, what));
            }
            for (index, symbol) in level.contents.symbols.iter_enumerated() {
                // Traps and veneers are not in the source, and nothing may refer to hooks
                // from `--hooks`.
                let own = is_trap(&symbol.name)
                    || level.veneer(symbol, self.arch).is_some()
                    || is_from_hooks(&symbol.name);
                let replaces = level.record_of(index).is_some();
                let listed = replaces || is_new(&symbol.name);
                if listed && (replaces || !own) && !known.contains(&index) {
                    problems.push(not_of_its_source(level, plain(&symbol.name), "of it"));
                }
            }
        }
        problems
    }

    /// What a payload refers to in the hypervisor elsewhere than it was proved to be.
    fn misplaced(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (unit, u) in self.units.iter_enumerated() {
            for (build, (stage, proof)) in u.stages.iter().zip(&self.payloads[unit]).enumerate() {
                for index in proof.referred() {
                    let original = stage.comparison.correlation.original(index);
                    let proved = original.and_then(|before| self.at(unit, build, before).ok());
                    let said = self.at(unit, build + 1, index).ok();
                    if let (Some(Origin::Hypervisor(proved)), Some(Origin::Hypervisor(said))) =
                        (proved, said)
                        && proved != said
                    {
                        let name = &stage.object.symbols[index].name;
                        let what = format!("of {name}: it has it at {said:#x}, not {proved:#x}");
                        let level = &self.levels[stage.level];
                        problems.push(not_of_its_source(level, &u.file.source, &what));
                    }
                }
            }
        }
        problems
    }

    /// Functions that the source of a level changes but its payload does not replace.
    fn not_replaced(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for (unit, u) in self.units.iter_enumerated() {
            for (build, stage) in u.stages.iter().enumerate() {
                let level = &self.levels[stage.level];
                for change in &stage.comparison.changes {
                    let (Some(before), Some(_)) = (change.original, change.patched) else {
                        continue;
                    };
                    if change.kind != Kind::Function || change.name.is_cold() {
                        continue;
                    }
                    let place = match self.at(unit, build, before) {
                        Ok(Origin::Hypervisor(address)) => Place::Address(address),
                        Ok(Origin::Below { name, .. }) => Place::Name(name, 0),
                        Ok(Origin::Nowhere) => continue,
                        Err(problem) => {
                            problems.push(problem);
                            continue;
                        }
                    };
                    let replaced = level.replaces(&place);
                    if !replaced {
                        let what = format!("a change of {}: {}", change.name, change.why);
                        problems.push(not_of_its_source(level, &u.file.source, &what));
                    }
                }
            }
        }
        problems
    }
}

fn not_of_its_source(level: &Level, place: &str, what: &str) -> Problem {
    Problem::new(
        Code::WrongStack,
        place,
        format!(
            "the payload {} differs from what its source compiles to ({what}): was it built \
             with other options, another compiler, another version of xsplice, or from another \
             tree? Build it again",
            level.name
        ),
    )
}

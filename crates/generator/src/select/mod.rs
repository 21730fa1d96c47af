// SPDX-License-Identifier: MIT OR Apache-2.0
//! Collects the contents of a payload: the changed functions and everything new that
//! they refer to.

mod clone;
mod function;
mod global;
mod home;
mod in_place;
mod label;
mod moved;
mod per_cpu;
mod piece;
mod private;
mod reach;
mod refuse;
mod renamed;
mod replacement;
mod revived;
mod selection;

pub(crate) use per_cpu::brings_per_cpu;
pub use selection::{Carried, FirstChange, Hook, Replaced, Selection};

use crate::arch::Arch;
use crate::below::Below;
use crate::choice::Choices;
use crate::code::Code;
use crate::patch::Edits;
use crate::payload::Kind as PartKind;
use crate::per_cpu::Room;
use crate::problem::Problem;
use crate::unit::{UnitId, Units};
use global::Globals;
pub use home::Homes;
use home::Origin;
use in_place::InPlace;
use index_vec::IndexVec;
use moved::Moves;
use private::Privates;
use renamed::Renamed;
use revived::Revived;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use xsplice_abi::hooks::Table;
use xsplice_objdiff::object::{SectionIx, Span, SymbolIx};
use xsplice_objdiff::special::{self, Entry};
use xsplice_xen_image::Image;

/// The caller's options.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Whether to resolve all hypervisor symbols to addresses.
    pub prelink: bool,
    /// Changed variables and boot-only code to leave out, by name: a hook does the
    /// work, or none is needed.
    pub leave_out: &'a Choices,
    /// Whether to leave out all changes to boot-only code.
    pub leave_out_init: bool,
    /// Variables and constants that hooks change in place.
    pub patch_data: &'a Choices,
    /// Variables that start from their initial value, although they may be renamed
    /// old ones, or their old value is lost.
    pub allow: &'a Choices,
    /// The lines that the patches change.
    pub edits: &'a Edits,
}

/// Selects what goes into a payload on top of the payloads `below`, from objects that
/// have their `homes` in memory.
///
/// # Errors
/// Everything that cannot be patched, by name.
pub fn select<'a>(
    homes: Homes<'a>,
    below: &'a Below,
    rules: &'a Rules<'a>,
) -> Result<Selection, Vec<Problem>> {
    let (units, image, arch) = (homes.units, homes.image, homes.arch);
    let moves = Moves::new(units);
    let (globals, problems) = Globals::new(units, &moves, image);
    let privates = Privates::find(units);
    let renamed = Renamed::find(units, (&moves, &privates), rules.edits);
    let tables = units.iter().map(|u| special::entries(&u.patched)).collect();
    let mut selector = Selector {
        arch,
        units,
        homes,
        image,
        below,
        rules,
        globals,
        moves,
        privates,
        renamed,
        revived: revived::find(units),
        tables,
        placed: BTreeMap::new(),
        empty: BTreeSet::new(),
        queue: VecDeque::new(),
        in_place: Vec::new(),
        room: Room::beside(image, below),
        per_cpu: BTreeMap::new(),
        generated: BTreeMap::new(),
        problems,
        follower: String::new(),
        usage: Usage::Address,
        selection: Selection::new(arch),
    };
    selector.refuse_unpatchable();
    selector.compare_moved_data();
    selector.take_changed_functions();
    selector.patch_data();
    selector.place_per_cpu();
    selector.take_hooks();
    selector.follow();
    selector.refuse_unreached_table_entries();
    selector.refuse_divided();
    selector.tell_renamed();
    arch.route(&mut selector.selection.draft, image);
    if selector.problems.is_empty() {
        Ok(selector.selection)
    } else {
        Err(selector.problems)
    }
}

/// A piece of a patched object: unit, section, offset.
type Place = (UnitId, SectionIx, u64);

/// A symbol of a unit: of its original or of its patched object.
type At = (UnitId, SymbolIx);

/// A symbol of the original, and what the patch makes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counterparts {
    /// In the original of a unit.
    old: At,
    /// In the patched object of a unit.
    new: At,
}

impl Counterparts {
    /// Whether it goes to another unit.
    fn moves(self) -> bool {
        self.old.0 != self.new.0
    }
}

/// Why a change cannot be made, and what to do.
type Refusal = (Code, String);

struct Selector<'a> {
    arch: &'static dyn Arch,
    units: &'a Units,
    homes: Homes<'a>,
    image: &'a Image,
    below: &'a Below,
    rules: &'a Rules<'a>,
    /// Where the patched objects define each global symbol.
    globals: Globals<'a>,
    /// The old places of moved symbols.
    moves: Moves,
    /// Variables that move between files, at least one end private.
    privates: Privates,
    /// Variables that replace others.
    renamed: Renamed,
    /// Symbols that are in memory although the source below does not have them.
    revived: Revived,
    tables: IndexVec<UnitId, Vec<Entry>>,
    /// Pieces that are in the draft: part and offset in it.
    placed: BTreeMap<Place, (PartKind, u64)>,
    /// Empty pieces, which may start at the same place as another.
    empty: BTreeSet<Place>,
    /// Pieces whose references have not been followed yet.
    queue: VecDeque<(UnitId, Span)>,
    /// Data that hooks change in place.
    in_place: Vec<InPlace>,
    /// Space for new per-CPU variables.
    room: Room,
    /// Their addresses; `None` if refused.
    per_cpu: BTreeMap<Place, Option<u64>>,
    /// Tables that generated hooks read: offset in the read-only data, and size.
    generated: BTreeMap<Table, (u64, u64)>,
    problems: Vec<Problem>,
    /// Name of the piece whose references are being followed.
    follower: String,
    /// The use of that reference.
    usage: Usage,
    selection: Selection,
}

/// The use of a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Usage {
    /// It is in an entry of a table about code, or of hooks.
    Table,
    /// A call or jump.
    Branch,
    /// An indirect call or jump that becomes direct when the payload is loaded.
    Pointer,
    /// Everything else: the address is taken, or the memory accessed.
    Address,
}

impl Selector<'_> {
    /// The origin of a symbol of the original.
    fn origin(&self, unit: UnitId, original: SymbolIx) -> Result<Origin, Problem> {
        self.homes.of(unit, original)
    }

    fn refuse(&mut self, code: Code, unit: UnitId, message: String) {
        self.refuse_with(Problem::new(code, &self.units[unit].file.source, message));
    }

    /// Refuses once.
    fn refuse_with(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

//! Collects what a payload needs: the changed functions and everything new
//! that they lead to.

use crate::Problem;
use crate::below::Below;
use crate::deny;
use crate::image::Image;
use crate::payload::{Content, Draft, Field, Func, Kind as PartKind, Reaches, VERSION_SUFFIX};
use crate::proof::Proof;
use crate::unit::Unit;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use xsplice_abi::preimage::Preimage;
use xsplice_diff::compare::{Change, Kind, is_once_flag};
use xsplice_diff::explain;
use xsplice_diff::object::{Class, Object, Relocation, Symbol, Target};
use xsplice_diff::special::{self, Entry};

/// A function that the payload replaces.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Replaced {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Address in the hypervisor.
    pub old_address: u64,
    /// Size in the hypervisor in bytes.
    pub old_size: u64,
    /// Size in the payload in bytes.
    pub new_size: u64,
    /// Why it is in the payload.
    pub why: String,
    /// The first instruction that changed, if one did.
    pub first_change: Option<FirstChange>,
}

/// Where the old and the new function part.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct FirstChange {
    /// Offset in the old function.
    pub old_offset: u64,
    /// The old instruction; empty at the function's end.
    pub old: String,
    /// Offset in the new function.
    pub new_offset: u64,
    /// The new instruction; empty at the function's end.
    pub new: String,
}

impl From<explain::FirstChange> for FirstChange {
    fn from(change: explain::FirstChange) -> Self {
        Self {
            old_offset: change.old_offset,
            old: change.old,
            new_offset: change.new_offset,
            new: change.new,
        }
    }
}

/// Something new that the payload carries.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Carried {
    /// Name in the source.
    pub name: String,
    /// Source file.
    pub file: String,
    /// Size in bytes.
    pub size: u64,
    /// What in the payload refers to it.
    pub used_by: String,
}

/// What was selected.
#[derive(Debug, Default)]
pub struct Selection {
    /// The contents of the payload.
    pub draft: Draft,
    /// Functions that are replaced.
    pub replaced: Vec<Replaced>,
    /// New functions and variables.
    pub carried: Vec<Carried>,
    /// Hooks: the section and the functions that it points to.
    pub hooks: Vec<Hook>,
    /// Changes that the payload does without.
    pub left_out: Vec<LeftOut>,
}

/// A change that the payload does without, as the caller asked for.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct LeftOut {
    /// Name of the function, variable or section.
    pub name: String,
    /// Source file.
    pub file: String,
    /// What differs.
    pub why: String,
}

/// A function that the hypervisor calls at a stage of the payload's life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Hook {
    /// The stage: `load`, `unload`, `preapply`, `apply`, `postapply`,
    /// `prerevert`, `revert`, `postrevert`.
    pub stage: String,
    /// Source file.
    pub file: String,
    /// How many functions are called.
    pub functions: u64,
}

/// What a caller decides about the selection.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Makes the names of new symbols unlike those of any other payload.
    pub tag: &'a str,
    /// Whether all of the hypervisor's symbols are given by address.
    pub prelink: bool,
    /// Changed variables and boot-only code that the payload does without, by
    /// name: a hook does what is needed, or nothing is.
    pub leave_out: &'a BTreeSet<String>,
    /// Whether the payload does without all changes of boot-only code.
    pub leave_out_init: bool,
    /// Functions to be patched although [`deny`] names them.
    pub allow: &'a BTreeSet<String>,
}

/// Selects from `units` what goes into a payload for `image`, on top of the
/// payloads `below`.
///
/// # Errors
/// Everything that cannot be patched, by name.
pub fn select(
    units: &[Unit],
    image: &Image,
    below: &Below,
    rules: &Rules,
) -> Result<Selection, Vec<Problem>> {
    let proofs: Vec<Proof> = units
        .iter()
        .map(|u| Proof::new(u.shipped.as_ref().map_or(&u.original, |s| &s.object), image))
        .collect();
    let mut globals = HashMap::new();
    for (unit, u) in units.iter().enumerate() {
        for (index, symbol) in u.patched.symbols.iter().enumerate() {
            if symbol.global {
                globals.insert(symbol.name.as_str(), (unit, index));
            }
        }
    }
    let tables = units.iter().map(|u| special::entries(&u.patched)).collect();
    let mut selector = Selector {
        units,
        proofs,
        image,
        below,
        rules,
        globals,
        moved: moved(units),
        tables,
        placed: BTreeMap::new(),
        empty: BTreeSet::new(),
        queue: VecDeque::new(),
        problems: Vec::new(),
        follower: String::new(),
        selection: Selection::default(),
    };
    selector.refuse_unpatchable();
    selector.take_changed_functions();
    selector.take_hooks();
    selector.follow();
    selector.refuse_unreached_table_entries();
    if selector.problems.is_empty() {
        Ok(selector.selection)
    } else {
        Err(selector.problems)
    }
}

/// A piece of a patched object: unit, section, offset.
type Place = (usize, usize, u64);

struct Selector<'a> {
    units: &'a [Unit],
    proofs: Vec<Proof<'a>>,
    image: &'a Image,
    below: &'a Below,
    rules: &'a Rules<'a>,
    /// Where the patched objects define each global symbol.
    globals: HashMap<&'a str, (usize, usize)>,
    /// Global symbols that one object loses and another gains: where they
    /// were, by where they are.
    moved: HashMap<(usize, usize), (usize, usize)>,
    tables: Vec<Vec<Entry>>,
    /// Pieces that are in the draft: part and offset in it.
    placed: BTreeMap<Place, (PartKind, u64)>,
    /// Pieces of no bytes, which another piece may begin with too.
    empty: BTreeSet<Place>,
    /// Pieces whose references are not followed yet.
    queue: VecDeque<(Place, u64)>,
    problems: Vec<Problem>,
    /// Name of the piece whose references are being followed.
    follower: String,
    selection: Selection,
}

/// What the payload says about a function that it replaces.
struct OldFunction {
    name: String,
    /// 0 to have the name looked up.
    address: u64,
    size: u64,
    expected: Vec<u8>,
    preimage: Option<Preimage>,
}

/// Where something of the original is.
enum Origin {
    /// In the hypervisor, at a proved address.
    Hypervisor(u64),
    /// In a payload below, by name.
    Below(String),
}

impl Selector<'_> {
    fn origin(&self, unit: usize, original: usize) -> Result<Origin, Problem> {
        let u = &self.units[unit];
        let proof = &self.proofs[unit];
        let Some(shipped) = &u.shipped else {
            return proof.address(original).map(Origin::Hypervisor);
        };
        if let Some(&index) = shipped.comparison.correlated.get(&original) {
            return proof.address(index).map(Origin::Hypervisor);
        }
        let name = &u.original.symbols[original].name;
        match self.below.symbol(&u.file.source, name) {
            Some(symbol) => Ok(Origin::Below(symbol.to_owned())),
            None => Err(Problem::new(
                &u.file.source,
                format!(
                    "{name} is new in the source of the payloads below, but none of them has it; \
                     do --depends and --depends-patch belong together?"
                ),
            )),
        }
    }

    /// The symbol as the hypervisor has it.
    fn shipped_symbol(&self, unit: usize, original: usize) -> (&Object, usize) {
        let u = &self.units[unit];
        u.shipped
            .as_ref()
            .and_then(|shipped| {
                let index = shipped.comparison.correlated.get(&original)?;
                Some((&shipped.object, *index))
            })
            .unwrap_or((&u.original, original))
    }

    /// Whether the payloads below were to replace a function of the original.
    fn changed_below(&self, unit: usize, original: usize) -> bool {
        self.units[unit].shipped.as_ref().is_some_and(|shipped| {
            let changes = shipped.comparison.changes.iter();
            changes
                .filter(|change| change.kind == Kind::Function)
                .any(|change| change.patched == Some(original))
        })
    }

    fn refuse(&mut self, unit: usize, message: String) {
        let problem = Problem::new(&self.units[unit].file.source, message);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn refuse_unpatchable(&mut self) {
        for (unit, u) in self.units.iter().enumerate() {
            for change in &u.comparison.changes {
                let Some(message) = unpatchable(u, change) else {
                    continue;
                };
                let may_leave_out = matches!(change.kind, Kind::Init | Kind::Data | Kind::Unsized);
                let left_out = self.rules.leave_out.contains(&change.name)
                    || (self.rules.leave_out_init && change.kind == Kind::Init);
                if may_leave_out && left_out {
                    self.selection.left_out.push(LeftOut {
                        name: change.name.clone(),
                        file: u.file.source.clone(),
                        why: change.why.clone(),
                    });
                } else {
                    self.refuse(unit, message);
                }
            }
        }
    }

    fn take_changed_functions(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter().enumerate() {
            for change in &u.comparison.changes {
                let Some(patched) = change.patched else {
                    continue;
                };
                match (change.kind, change.original) {
                    // Reached through its parent, by jumps, not by a trampoline.
                    (Kind::Function, Some(_)) if change.name.ends_with(".cold") => {
                        self.take_symbol(unit, patched);
                    }
                    (Kind::Function, Some(original)) => {
                        self.take_function(unit, change, (unit, original), patched);
                    }
                    (Kind::Added, None) if u.patched.symbols[patched].function => {
                        if let Some(&origin) = self.moved.get(&(unit, patched)) {
                            self.take_function(unit, change, origin, patched);
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn take_function(
        &mut self,
        unit: usize,
        change: &Change,
        (origin, original): (usize, usize),
        patched: usize,
    ) {
        let u = &self.units[unit];
        let old_object = &self.units[origin].original;
        let old = &old_object.symbols[original];
        let new = &u.patched.symbols[patched];
        if let Some(why) = deny::reason(&old.name)
            && !self.rules.allow.contains(&old.name)
        {
            let message = format!(
                "{} must not be patched: {why}; `--allow {}` does it nevertheless",
                old.name, old.name
            );
            self.refuse(unit, message);
            return;
        }
        if let Some(place) = leaves_without_relocation(&u.patched, patched) {
            let message = format!(
                "{} jumps out of itself at +{place:#x} to other code of its section, which the \
                 compiler or assembler took to stay where it is; nothing tells how much of it \
                 belongs to the function",
                new.name
            );
            self.refuse(unit, message);
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
            Origin::Below(name) => OldFunction {
                name,
                address: 0,
                size: old.extent(),
                expected: Vec::new(),
                preimage: None,
            },
        };
        let new_size = new.extent();
        let first_change = explain::first_change(old_object, original, &u.patched, patched);
        let why = if origin == unit {
            change.why.clone()
        } else {
            format!("it was in {}", self.units[origin].file.source)
        };
        let (name, file) = (new.name.clone(), u.file.source.clone());
        let Some((part, offset)) = self.take_symbol(unit, patched) else {
            return;
        };
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

    /// What the payload says about a function of the hypervisor that it
    /// replaces; `None` if it cannot be.
    fn old_function(
        &mut self,
        unit: usize,
        (origin, original): (usize, usize),
        address: u64,
    ) -> Option<OldFunction> {
        let (object, index) = self.shipped_symbol(origin, original);
        let old = &object.symbols[index];
        let code = self.image.bytes(address, old.size).unwrap_or_default();
        let landing_pad = code.starts_with(&ENDBR64);
        let needed = TRAMPOLINE + if landing_pad { ENDBR64.len() as u64 } else { 0 };
        let mut size = old.size;
        if size < needed {
            let padding = self.image.padding(address + size);
            if size + padding < needed {
                let message = format!(
                    "{} has {size} bytes and {padding} bytes of padding behind it, too few for \
                     the {needed} bytes of a trampoline; patch the functions that call it",
                    old.name
                );
                self.refuse(unit, message);
                return None;
            }
            size = needed;
        }
        let replaced = self.below.replaces(address);
        if self.changed_below(origin, original) && !replaced {
            let message = format!(
                "{} changes in the source of the payloads below, but none of them replaces it; do \
                 --depends and --depends-patch belong together?",
                old.name
            );
            self.refuse(unit, message);
            return None;
        }
        let whole = self.image.bytes(address, old.extent()).unwrap_or_default();
        let sites = boot_patches(object, index, whole);
        // A payload below has put its own trampoline where the old code was.
        let known = |bytes: &[u8]| if replaced { Vec::new() } else { bytes.to_vec() };
        let code = self.image.bytes(address, size).unwrap_or_default();
        Some(OldFunction {
            name: runtime_name(object, index),
            address,
            size,
            expected: known(stable_start(&sites, code)),
            preimage: preimage(address, whole, sites).filter(|_| !replaced),
        })
    }

    /// Puts a symbol of a patched object into the draft, with the entries of
    /// the tables about it.
    fn take_symbol(&mut self, unit: usize, index: usize) -> Option<(PartKind, u64)> {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        if let Some(at) = self.placed.get(&(unit, symbol.section, symbol.offset)) {
            return Some(at.clone());
        }
        let section = &u.patched.sections[symbol.section];
        let kind = match section.class {
            Class::Text => PartKind::Text,
            // Relocated at load time, read-only afterwards.
            Class::ReadOnly => PartKind::RoData,
            Class::Data => PartKind::Data,
            Class::Bss => PartKind::Bss,
            Class::PerCpu => {
                self.refuse(
                    unit,
                    format!(
                        "{} is a new per-CPU variable: the CPUs' areas were laid out at boot and \
                         have no place for it; use an array indexed by CPU",
                        symbol.name
                    ),
                );
                return None;
            }
            Class::Init | Class::Special | Class::Ignored => {
                let message = format!(
                    "{} in {} is not there any more when the payload is applied",
                    symbol.name, section.name
                );
                self.refuse(unit, message);
                return None;
            }
        };
        if symbol.size == 0 {
            self.refuse(
                unit,
                format!("{} has no size and cannot be carried", symbol.name),
            );
            return None;
        }
        let moved = self
            .moved
            .get(&(unit, index))
            .copied()
            .filter(|_| symbol.function);
        let replaces = u.comparison.changes.iter().any(|c| {
            c.kind == Kind::Function && c.patched == Some(index) && !c.name.ends_with(".cold")
        });
        let name = if let Some((origin, original)) = moved {
            runtime_name(&self.units[origin].original, original)
        } else if replaces {
            runtime_name(&u.patched, index)
        } else {
            format!(
                "{}#{}{VERSION_SUFFIX}{}",
                u.file.source, symbol.name, self.rules.tag
            )
        };
        let at = self.place(unit, symbol.section, symbol.offset, symbol.extent(), kind);
        self.selection
            .draft
            .name(&at, name, symbol.extent(), symbol.function);
        if !replaces && moved.is_none() && !symbol.name.ends_with(".cold") {
            self.selection.carried.push(Carried {
                name: symbol.name.clone(),
                file: u.file.source.clone(),
                size: symbol.extent(),
                used_by: self.follower.clone(),
            });
        }
        let entries: Vec<Entry> = self.tables[unit]
            .iter()
            .filter(|e| e.owner == Some(index))
            .cloned()
            .collect();
        for entry in entries {
            self.take_entry(unit, &entry);
        }
        // A function and its cold part jump into each other.
        let cold = format!("{}.cold", symbol.name);
        if let Some(cold) = u.patched.symbols.iter().position(|s| s.name == cold) {
            self.take_symbol(unit, cold);
        }
        Some(at)
    }

    /// The sections of hooks in patched objects: every function that they
    /// point to goes into the payload.
    fn take_hooks(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter().enumerate() {
            for (index, section) in u.patched.sections.iter().enumerate() {
                let Some(stage) = section.name.strip_prefix(HOOKS) else {
                    continue;
                };
                if section.size == 0 || u.original.sections.iter().any(|s| s.name == section.name) {
                    continue;
                }
                let several = matches!(stage, "load" | "unload");
                let functions = section.size / POINTER;
                let taken = self.selection.hooks.iter().filter(|h| h.stage == stage);
                let all: u64 = functions + taken.map(|h| h.functions).sum::<u64>();
                if all > 1 && !several {
                    let message = format!(
                        "there is more than one {stage} hook, and the hypervisor calls one only; \
                         call the others from it"
                    );
                    self.refuse(unit, message);
                    continue;
                }
                let kind = PartKind::Hooks(section.name.clone());
                self.place(unit, index, 0, section.size, kind);
                self.selection.hooks.push(Hook {
                    stage: stage.to_owned(),
                    file: u.file.source.clone(),
                    functions,
                });
            }
        }
    }

    /// What the hypervisor finds by walking a section, such as its schedulers,
    /// cannot be added to.
    fn refuse_unreached_table_entries(&mut self) {
        for (unit, u) in self.units.iter().enumerate() {
            for change in u
                .comparison
                .changes
                .iter()
                .filter(|c| c.kind == Kind::Added)
            {
                let Some(symbol) = change.patched.map(|index| &u.patched.symbols[index]) else {
                    continue;
                };
                let section = &u.patched.sections[symbol.section];
                let reached = self
                    .placed
                    .contains_key(&(unit, symbol.section, symbol.offset));
                let walked = matches!(section.class, Class::Data | Class::ReadOnly)
                    && !is_usual_section(&section.name, &symbol.name)
                    && !section.name.starts_with(HOOKS);
                if walked && !reached {
                    let message = format!(
                        "{} is a new entry of the section {}, which the hypervisor walked while \
                         booting: a payload cannot add to it",
                        symbol.name, section.name
                    );
                    self.refuse(unit, message);
                }
            }
        }
    }

    fn take_entry(&mut self, unit: usize, entry: &Entry) {
        let object = &self.units[unit].patched;
        let table = object.sections[entry.section].name.clone();
        if table == ".ex_table.pre" {
            self.refuse(
                unit,
                "a changed function has an entry in .ex_table.pre, which the hypervisor does not \
                 read from payloads"
                    .to_owned(),
            );
            return;
        }
        for (section, offset, size) in special::pieces(object, entry) {
            // An empty replacement begins where the next one does.
            let placed = self.placed.contains_key(&(unit, section, offset));
            if !placed || self.empty.remove(&(unit, section, offset)) {
                if size == 0 {
                    self.empty.insert((unit, section, offset));
                }
                let kind = PartKind::named_code(&object.sections[section].name);
                self.place(unit, section, offset, size, kind);
            }
        }
        self.place(
            unit,
            entry.section,
            entry.offset,
            entry.size,
            PartKind::table(&table),
        );
    }

    fn place(
        &mut self,
        unit: usize,
        section: usize,
        offset: u64,
        size: u64,
        kind: PartKind,
    ) -> (PartKind, u64) {
        let object = &self.units[unit].patched;
        let from = &object.sections[section];
        let align = from.align;
        let at = if kind == PartKind::Bss {
            self.selection.draft.zeroes(size, align)
        } else {
            let range = usize::try_from(offset)
                .ok()
                .zip(usize::try_from(offset + size).ok());
            let data = range
                .and_then(|(start, end)| from.data.get(start..end))
                .unwrap_or_default();
            self.selection.draft.append(&kind, data, align)
        };
        self.placed
            .insert((unit, section, offset), (kind.clone(), at));
        self.queue.push_back(((unit, section, offset), size));
        (kind, at)
    }

    /// Follows every reference out of the pieces taken so far, and out of
    /// those that this brings in.
    fn follow(&mut self) {
        let units = self.units;
        while let Some((place, size)) = self.queue.pop_front() {
            let (unit, section, offset) = place;
            let (kind, at) = self.placed[&place].clone();
            let object = &units[unit].patched;
            self.follower = object
                .symbol_at(section, offset)
                .map_or(&object.sections[section].name, |i| &object.symbols[i].name)
                .clone();
            for relocation in units[unit].patched.relocations(section, offset, size) {
                if let Some(reaches) = self.reach(unit, relocation) {
                    self.selection.draft.fields.push(Field {
                        part: kind.clone(),
                        offset: at + (relocation.offset - offset),
                        r_type: relocation.r_type,
                        addend: relocation.reference.bias,
                        reaches,
                    });
                }
            }
        }
    }

    /// What a relocated field of the payload is to lead to.
    fn reach(&mut self, unit: usize, relocation: &Relocation) -> Option<Reaches> {
        let object = &self.units[unit].patched;
        let reference = &relocation.reference;
        match &reference.target {
            Target::External(name) => self.reach_global(unit, name, reference.offset),
            Target::Symbol(index) => self.reach_symbol(unit, *index, reference.offset),
            Target::Anonymous(section) => {
                let from = &object.sections[*section];
                let Ok(offset) = u64::try_from(reference.offset) else {
                    let message = format!("a reference leads out of {}", from.name);
                    self.refuse(unit, message);
                    return None;
                };
                let content = match from.merge {
                    Some(1) => object
                        .string(*section, reference.offset)
                        .map(|text| Content {
                            kind: PartKind::Strings,
                            bytes: text.to_vec(),
                            align: 1,
                        }),
                    Some(entry) => object
                        .sections
                        .get(*section)
                        .and_then(|s| {
                            let start = usize::try_from(offset).ok()?;
                            s.data
                                .get(start..start.checked_add(usize::try_from(entry).ok()?)?)
                        })
                        .map(|bytes| Content {
                            kind: PartKind::RoData,
                            bytes: bytes.to_vec(),
                            align: entry,
                        }),
                    None => return self.reach_piece(unit, *section, offset),
                };
                let Some(content) = content else {
                    let message = format!("a reference leads out of {}", from.name);
                    self.refuse(unit, message);
                    return None;
                };
                let (kind, at) = self.selection.draft.constant(&content);
                Some(Reaches::Part(kind, at.cast_signed()))
            }
        }
    }

    fn reach_piece(&mut self, unit: usize, section: usize, offset: u64) -> Option<Reaches> {
        if let Some((kind, at)) = self.placed.get(&(unit, section, offset)) {
            return Some(Reaches::Part(kind.clone(), at.cast_signed()));
        }
        let object = &self.units[unit].patched;
        let from = &object.sections[section];
        let kind = match from.class {
            Class::Text | Class::Special => PartKind::named_code(&from.name),
            Class::ReadOnly => PartKind::RoData,
            _ => {
                let message = format!("a changed function refers to unnamed data in {}", from.name);
                self.refuse(unit, message);
                return None;
            }
        };
        let end = special::piece_end(object, section, offset);
        let (kind, at) = self.place(unit, section, offset, end - offset, kind);
        Some(Reaches::Part(kind, at.cast_signed()))
    }

    fn reach_symbol(&mut self, unit: usize, index: usize, offset: i64) -> Option<Reaches> {
        let u = &self.units[unit];
        let symbol = &u.patched.symbols[index];
        let placed = self
            .placed
            .contains_key(&(unit, symbol.section, symbol.offset));
        if let Some(&(origin, original)) = self.moved.get(&(unit, index))
            && !symbol.function
        {
            return self.reach_moved_variable((origin, original), symbol, offset);
        }
        let original = u.comparison.correlated.get(&index).copied();
        let changed = u
            .comparison
            .changes
            .iter()
            .any(|c| c.patched == Some(index));
        if placed || changed || original.is_none() {
            if original.is_none()
                && u.comparison.ambiguous.contains(&index)
                && is_writable(&u.patched, index)
                && !is_once_flag(&u.patched, symbol)
            {
                let message = format!(
                    "the variable {} may be the same as one of several in the original, and \
                     nothing tells which; give it a name of its own",
                    symbol.name
                );
                self.refuse(unit, message);
                return None;
            }
            let (kind, at) = self.take_symbol(unit, index)?;
            return Some(Reaches::Part(kind, at.cast_signed() + offset));
        }
        let original = original?;
        match self.origin(unit, original) {
            Ok(Origin::Below(name)) => Some(Reaches::Name(name, offset)),
            Ok(Origin::Hypervisor(address)) if self.image.is_init(address) => {
                self.reach_init(unit, &symbol.name, address, symbol.function, offset)
            }
            Ok(Origin::Hypervisor(address))
                if u.original.symbols[original].global && !self.rules.prelink =>
            {
                debug_assert_eq!(self.image.global(&symbol.name), Some(address));
                Some(Reaches::Name(symbol.name.clone(), offset))
            }
            Ok(Origin::Hypervisor(address)) => Some(Reaches::Address(
                runtime_name(&u.original, original),
                address,
                offset,
            )),
            // Private constants are what they contain: a copy is as good.
            Err(_) if u.patched.sections[symbol.section].class == Class::ReadOnly => {
                let (kind, at) = self.take_symbol(unit, index)?;
                Some(Reaches::Part(kind, at.cast_signed() + offset))
            }
            Err(problem) => {
                if !self.problems.contains(&problem) {
                    self.problems.push(problem);
                }
                None
            }
        }
    }

    /// A variable that another object defines now is where it was.
    fn reach_moved_variable(
        &mut self,
        (origin, original): (usize, usize),
        symbol: &Symbol,
        offset: i64,
    ) -> Option<Reaches> {
        let old = &self.units[origin].original.symbols[original];
        if old.size != symbol.size {
            let message = format!(
                "the variable {} goes from {} to {} bytes: other code uses the old layout",
                symbol.name, old.size, symbol.size
            );
            self.refuse(origin, message);
            return None;
        }
        match self.origin(origin, original) {
            Ok(_) => Some(Reaches::Name(symbol.name.clone(), offset)),
            Err(problem) => {
                self.problems.push(problem);
                None
            }
        }
    }

    /// Boot-only code that a function calls under a condition that is never
    /// true after boot, as the original does: in the payload the call leads to
    /// a trap instead of to memory that is used for something else by now.
    fn reach_init(
        &mut self,
        unit: usize,
        name: &str,
        address: u64,
        function: bool,
        offset: i64,
    ) -> Option<Reaches> {
        let original = &self.units[unit].original;
        let refers = |target: &Target| match target {
            Target::Symbol(index) => original.symbols[*index].name == name,
            Target::External(external) => external == name,
            Target::Anonymous(_) => false,
        };
        let used_before = original
            .sections
            .iter()
            .filter(|section| section.class == Class::Text)
            .flat_map(|section| &section.relocations)
            .any(|relocation| refers(&relocation.reference.target));
        if !used_before || !function || offset != 0 {
            let message = format!(
                "{name} at {address:#x} is freed after boot, and a changed function refers to it"
            );
            self.refuse(unit, message);
            return None;
        }
        let trap = format!("{}#{name}{VERSION_SUFFIX}{}", INIT_TRAP, self.rules.tag);
        let at = self.selection.draft.trap(&trap);
        Some(Reaches::Part(PartKind::Text, at.cast_signed()))
    }

    fn reach_global(&mut self, unit: usize, name: &str, offset: i64) -> Option<Reaches> {
        if let Some(&(other, index)) = self.globals.get(name) {
            return self.reach_symbol(other, index, offset);
        }
        match self.image.global(name) {
            Some(address) if self.image.is_init(address) => {
                self.reach_init(unit, name, address, self.image.is_function(name), offset)
            }
            Some(address) if self.rules.prelink => {
                Some(Reaches::Address(name.to_owned(), address, offset))
            }
            Some(_) => Some(Reaches::Name(name.to_owned(), offset)),
            None => {
                self.refuse(
                    unit,
                    format!(
                        "{name} is neither in the hypervisor nor in anything the patch reaches"
                    ),
                );
                None
            }
        }
    }
}

/// Why a change cannot be in a payload, and the ways out; `None` if it can.
fn unpatchable(u: &Unit, change: &Change) -> Option<String> {
    let name = &change.name;
    let size = |object: &Object, index: Option<usize>| index.map_or(0, |i| object.symbols[i].size);
    Some(match change.kind {
        Kind::Init => format!(
            "{name} is only used while booting and freed afterwards, and it changed ({}): a \
             payload comes too late for it; `--leave-out {name}` builds the payload without \
             this part if the running hypervisor does not need it, a hook can do what it does",
            change.why
        ),
        Kind::Data => format!(
            "the initial value of the variable {name} changed ({}): the running hypervisor \
             already uses the old one; change it in a hook (--hooks) and say `--leave-out {name}`",
            change.why
        ),
        Kind::Unsized => format!(
            "hand-written assembly in the section {name} changed ({}): nothing tells where its \
             functions end, so it cannot be patched; leave this part out of the patch if the \
             running hypervisor does not need it",
            change.why
        ),
        Kind::Resized => format!(
            "the variable {name} goes from {} to {} bytes: other code uses the old layout; keep \
             the layout and put what is new into a new variable",
            size(&u.original, change.original),
            size(&u.patched, change.patched)
        ),
        Kind::Constant if is_global(u, change) => format!(
            "the constant {name} changed ({}), and code in other files uses it: it cannot be \
             replaced in place",
            change.why
        ),
        _ => return None,
    })
}

/// Global symbols that one object loses and another gains.
fn moved(units: &[Unit]) -> HashMap<(usize, usize), (usize, usize)> {
    let mut lost: HashMap<&str, (usize, usize)> = HashMap::new();
    for (unit, u) in units.iter().enumerate() {
        for change in u.comparison.changes.iter().filter(|c| c.patched.is_none()) {
            if let Some(index) = change.original.filter(|&i| u.original.symbols[i].global) {
                lost.insert(&change.name, (unit, index));
            }
        }
    }
    let mut moved = HashMap::new();
    for (unit, u) in units.iter().enumerate() {
        for change in u.comparison.changes.iter().filter(|c| c.original.is_none()) {
            if let Some(index) = change.patched.filter(|&i| u.patched.symbols[i].global)
                && let Some(&origin) = lost.get(change.name.as_str())
            {
                moved.insert((unit, index), origin);
            }
        }
    }
    moved
}

/// Whether variables are in `section` because of what they are, not in order
/// to be found there: the compiler's sections, and Xen's for variables that
/// are rarely or never written after boot.
fn is_usual_section(section: &str, symbol: &str) -> bool {
    const USUAL: [&str; 8] = [
        ".data",
        ".rodata",
        ".data.rel.ro",
        ".data.rel.ro.local",
        ".data.rel",
        ".data.rel.local",
        ".data.read_mostly",
        ".data.ro_after_init",
    ];
    USUAL.contains(&section)
        || section.starts_with(".rodata.")
        || section.ends_with(&format!(".{symbol}"))
}

/// Where an assembly function jumps out of itself without a relocation.
fn leaves_without_relocation(object: &Object, index: usize) -> Option<u64> {
    let symbol = &object.symbols[index];
    let code = object.bytes(symbol);
    let fields = object.relocations(symbol.section, symbol.offset, symbol.extent());
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

/// What the names of sections of hooks start with; the stage follows.
const HOOKS: &str = ".livepatch.hooks.";
/// Size of a pointer in bytes.
const POINTER: u64 = 8;
/// What stands for the file in the name of a trap in place of boot-only code.
const INIT_TRAP: &str = "freed-after-boot";
/// Size of the jump that leads from an old function to the new one.
const TRAMPOLINE: u64 = 5;
/// The landing pad that an indirect call needs at the start of a function.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

fn is_global(unit: &Unit, change: &Change) -> bool {
    change
        .original
        .is_some_and(|i| unit.original.symbols[i].global)
}

fn is_writable(object: &Object, index: usize) -> bool {
    let class = object.sections[object.symbols[index].section].class;
    matches!(class, Class::Data | Class::Bss | Class::PerCpu)
}

/// The name by which the hypervisor's own symbol table knows a symbol.
fn runtime_name(object: &Object, index: usize) -> String {
    let symbol = &object.symbols[index];
    if symbol.global {
        symbol.name.clone()
    } else {
        format!("{}#{}", object.file, symbol.name)
    }
}

/// Where the hypervisor itself patches a function while booting, as offsets
/// and lengths in order: alternatives, and the landing pad of a function that
/// is never called through a pointer.
fn boot_patches(object: &Object, function: usize, code: &[u8]) -> Vec<(u32, u32)> {
    /// Offsets in `struct alt_instr` of the length of the code and of its padding.
    const LENGTHS: [usize; 2] = [10, 12];
    let mut sites = Vec::new();
    if code.starts_with(&ENDBR64) {
        sites.push((0, 4));
    }
    for entry in special::entries(object) {
        let section = &object.sections[entry.section];
        if entry.owner != Some(function) || section.name != ".altinstructions" {
            continue;
        }
        let fields = object.relocations(entry.section, entry.offset, 4);
        let place = fields
            .first()
            .and_then(|r| u32::try_from(r.reference.offset).ok());
        let start = usize::try_from(entry.offset).unwrap_or(usize::MAX);
        let bytes = section.data.get(start..).unwrap_or_default();
        let length = LENGTHS
            .iter()
            .filter_map(|&at| bytes.get(at))
            .map(|&b| u32::from(b));
        sites.extend(place.map(|place| (place, length.sum())));
    }
    sites.sort_unstable();
    sites
}

/// The first bytes of a function that no boot-time patching changes, at most
/// as many as an expectation holds.
fn stable_start<'a>(sites: &[(u32, u32)], code: &'a [u8]) -> &'a [u8] {
    let first = sites.first();
    let limit = first.map_or(usize::MAX, |&(at, _)| usize::try_from(at).unwrap_or(0));
    &code[..code.len().min(limit).min(xsplice_abi::payload::OPAQUE_SIZE)]
}

/// What the whole function must be when the payload is applied.
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

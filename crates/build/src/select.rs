//! Collects what a payload needs: the changed functions and everything new
//! that they lead to.

use crate::Problem;
use crate::image::Image;
use crate::payload::{Content, Draft, Field, Func, Kind as PartKind, Reaches, VERSION_SUFFIX};
use crate::proof::Proof;
use crate::unit::Unit;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use xsplice_diff::compare::{Change, Kind};
use xsplice_diff::object::{Class, Object, Relocation, Target};
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
}

/// What a caller decides about the selection.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Makes the names of new symbols unlike those of any other payload.
    pub tag: &'a str,
    /// Whether all of the hypervisor's symbols are given by address.
    pub prelink: bool,
}

/// Selects from `units` what goes into a payload for `image`.
///
/// # Errors
/// Everything that cannot be patched, by name.
pub fn select(units: &[Unit], image: &Image, rules: &Rules) -> Result<Selection, Vec<Problem>> {
    let proofs: Vec<Proof> = units
        .iter()
        .map(|u| Proof::new(&u.original, image))
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
        rules,
        globals,
        tables,
        placed: BTreeMap::new(),
        queue: VecDeque::new(),
        problems: Vec::new(),
        selection: Selection::default(),
    };
    selector.refuse_unpatchable();
    selector.take_changed_functions();
    selector.follow();
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
    rules: &'a Rules<'a>,
    /// Where the patched objects define each global symbol.
    globals: HashMap<&'a str, (usize, usize)>,
    tables: Vec<Vec<Entry>>,
    /// Pieces that are in the draft: part and offset in it.
    placed: BTreeMap<Place, (PartKind, u64)>,
    /// Pieces whose references are not followed yet.
    queue: VecDeque<(Place, u64)>,
    problems: Vec<Problem>,
    selection: Selection,
}

impl Selector<'_> {
    fn refuse(&mut self, unit: usize, message: String) {
        let problem = Problem::new(&self.units[unit].file.source, message);
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn refuse_unpatchable(&mut self) {
        for (unit, u) in self.units.iter().enumerate() {
            for change in &u.comparison.changes {
                let name = &change.name;
                let size = |object: &Object, index: Option<usize>| {
                    index.map_or(0, |i| object.symbols[i].size)
                };
                let message = match change.kind {
                    Kind::Init => format!(
                        "{name} is only used while booting and freed afterwards, and it changed \
                         ({}): a payload comes too late for it; leave this part out of the patch \
                         if the running hypervisor does not need it",
                        change.why
                    ),
                    Kind::Data => format!(
                        "the initial value of the variable {name} changed ({}): the running \
                         hypervisor already uses the old one; change it in a load hook, or leave \
                         this part out of the patch",
                        change.why
                    ),
                    Kind::Unsized => format!(
                        "hand-written assembly in the section {name} changed ({}): nothing tells \
                         where its functions end, so this version cannot patch it; leave this \
                         part out of the patch if the running hypervisor does not need it",
                        change.why
                    ),
                    Kind::Resized => format!(
                        "the variable {name} goes from {} to {} bytes: other code uses the old \
                         layout; keep the layout and put what is new into a new variable",
                        size(&u.original, change.original),
                        size(&u.patched, change.patched)
                    ),
                    Kind::Constant if is_global(u, change) => format!(
                        "the constant {name} changed ({}), and code in other files uses it: it \
                         cannot be replaced in place",
                        change.why
                    ),
                    _ => continue,
                };
                self.refuse(unit, message);
            }
        }
    }

    fn take_changed_functions(&mut self) {
        let units = self.units;
        for (unit, u) in units.iter().enumerate() {
            for change in u
                .comparison
                .changes
                .iter()
                .filter(|c| c.kind == Kind::Function)
            {
                let (Some(original), Some(patched)) = (change.original, change.patched) else {
                    continue;
                };
                if u.file.is_assembly() {
                    self.refuse(
                        unit,
                        format!(
                            "the assembly function {} changed, which this version cannot patch",
                            change.name
                        ),
                    );
                    continue;
                }
                // Reached through its parent, by jumps, not by a trampoline.
                if change.name.ends_with(".cold") {
                    self.take_symbol(unit, patched);
                    continue;
                }
                self.take_function(unit, change, original, patched);
            }
        }
    }

    fn take_function(&mut self, unit: usize, change: &Change, original: usize, patched: usize) {
        let u = &self.units[unit];
        let old = &u.original.symbols[original];
        let new = &u.patched.symbols[patched];
        let address = match self.proofs[unit].address(original) {
            Ok(address) => address,
            Err(problem) => {
                self.problems.push(problem);
                return;
            }
        };
        let code = self.image.bytes(address, old.size).unwrap_or_default();
        let landing_pad = code.starts_with(&ENDBR64);
        let needed = TRAMPOLINE + if landing_pad { ENDBR64.len() as u64 } else { 0 };
        if old.size < needed {
            let size = old.size;
            self.refuse(
                unit,
                format!(
                    "{} has {size} bytes, too few for the {needed} bytes of a trampoline",
                    old.name
                ),
            );
            return;
        }
        let (old_size, new_size) = (old.size, new.size);
        let expected = if landing_pad {
            &[]
        } else {
            stable_start(&u.original, original, code)
        };
        let expected = expected.to_vec();
        let runtime_name = runtime_name(&u.original, original);
        let (name, file) = (new.name.clone(), u.file.source.clone());
        let Some((part, offset)) = self.take_symbol(unit, patched) else {
            return;
        };
        self.selection.draft.funcs.push(Func {
            name: runtime_name,
            old_address: address,
            old_size,
            new: (part, offset),
            new_size,
            expected,
        });
        self.selection.replaced.push(Replaced {
            name,
            file,
            old_address: address,
            old_size,
            new_size,
            why: change.why.clone(),
        });
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
        let replaces = u.comparison.changes.iter().any(|c| {
            c.kind == Kind::Function && c.patched == Some(index) && !c.name.ends_with(".cold")
        });
        let name = if replaces {
            runtime_name(&u.patched, index)
        } else {
            format!(
                "{}#{}{VERSION_SUFFIX}{}",
                u.file.source, symbol.name, self.rules.tag
            )
        };
        let at = self.place(unit, symbol.section, symbol.offset, symbol.size, kind);
        self.selection
            .draft
            .name(&at, name, symbol.size, symbol.function);
        if !replaces && !symbol.name.ends_with(".cold") {
            self.selection.carried.push(Carried {
                name: symbol.name.clone(),
                file: u.file.source.clone(),
                size: symbol.size,
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
            if !self.placed.contains_key(&(unit, section, offset)) || size == 0 {
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
        match self.proofs[unit].address(original) {
            Ok(address) if u.original.symbols[original].global && !self.rules.prelink => {
                debug_assert_eq!(self.image.global(&symbol.name), Some(address));
                Some(Reaches::Name(symbol.name.clone(), offset))
            }
            Ok(address) => Some(Reaches::Address(
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

    fn reach_global(&mut self, unit: usize, name: &str, offset: i64) -> Option<Reaches> {
        if let Some(&(other, index)) = self.globals.get(name) {
            return self.reach_symbol(other, index, offset);
        }
        match self.image.global(name) {
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

/// The first bytes of a function that no boot-time patching changes: up to the
/// first alternative, at most as many as an expectation holds.
fn stable_start<'a>(object: &Object, function: usize, code: &'a [u8]) -> &'a [u8] {
    let sites: BTreeSet<u64> = special::entries(object)
        .iter()
        .filter(|e| {
            e.owner == Some(function) && object.sections[e.section].name == ".altinstructions"
        })
        .filter_map(|e| object.relocations(e.section, e.offset, 4).first())
        .filter_map(|r| u64::try_from(r.reference.offset).ok())
        .collect();
    let limit = sites
        .first()
        .map_or(usize::MAX, |&s| usize::try_from(s).unwrap_or(0));
    &code[..code.len().min(limit).min(xsplice_abi::payload::OPAQUE_SIZE)]
}

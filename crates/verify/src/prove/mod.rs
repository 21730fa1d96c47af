// SPDX-License-Identifier: MIT OR Apache-2.0
//! Walks the patched hypervisor and the running one in step.
//!
//! A pair is a place in the patched hypervisor and its counterpart in the running
//! one. A pair is right if the contents are the same, apart from fields with targets,
//! and if these targets are pairs. Functions of the same name are the first pairs;
//! all others follow from these.

mod arrays;
mod contents;
mod finish;
mod meaning;
mod step;
mod words;

pub(crate) use step::number;

use crate::class::Class;
use crate::generated::{self, Declared};
use crate::image::{EntityId, Image, Name};
use crate::objects::Objects;
use crate::running::Running;
use crate::tables::{self, Tables};
use crate::verdict::{Difference, Kind, Verdict};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;
use xsplice_abi::special::Table;

/// Compares `running` with `patched`; with `lower_hooks`, payloads below the topmost
/// may have hooks that `patched` lacks.
pub(crate) fn prove(
    patched: &Image,
    objects: &Objects,
    mut running: Running,
    files: &BTreeMap<String, String>,
    lower_hooks: bool,
) -> Result<Verdict, String> {
    let tables = Tables::linked(patched)?;
    if let Some(&table) = objects
        .tables
        .iter()
        .find_map(|(table, &size)| (tables.size(patched, *table) != size).then_some(table))
    {
        return Err(format!(
            "its {} table is not where it is expected: this version of Xen is not known",
            tables::name(table)
        ));
    }
    let declared = Declared::of(patched);
    let terms = Terms {
        patched,
        objects,
        files,
        lower_hooks,
        declared: &declared,
    };
    // Where the code of hooks leads to is looked up first, and proved with all else: what
    // hooks do comes before the comparison of what they do it to.
    let mut first = terms.walk(&running, tables.clone(), BTreeMap::new());
    first.follow_generated();
    let (found, functions) = (first.found, first.mates);
    let functions = functions.into_keys();
    let (wrong, notes) = generated::prepare(&mut running, patched, &declared, &found, functions);
    let mut walk = terms.walk(&running, tables, found);
    walk.differences.extend(wrong);
    walk.notes.extend(notes);
    walk.start();
    walk.run();
    walk.pair_at_borders();
    walk.run();
    walk.pair_the_rest();
    walk.run();
    walk.pair_boot_only();
    walk.run();
    walk.pair_numbered();
    walk.compare_stretches();
    walk.compare_arrays();
    walk.compare_hooks();
    walk.run();
    Ok(walk.finish())
}

/// What the running hypervisor is compared with, and how.
struct Terms<'a> {
    patched: &'a Image,
    objects: &'a Objects,
    files: &'a BTreeMap<String, String>,
    lower_hooks: bool,
    declared: &'a Declared,
}

impl<'a> Terms<'a> {
    fn walk(
        &self,
        running: &'a Running,
        tables: Tables,
        found: BTreeMap<EntityId, u64>,
    ) -> Walk<'a> {
        Walk {
            patched: self.patched,
            objects: self.objects,
            running,
            files: self.files,
            lower_hooks: self.lower_hooks,
            tables,
            declared: self.declared,
            found,
            mates: BTreeMap::new(),
            taken: HashMap::new(),
            unnamed: HashMap::new(),
            unnamed_there: HashMap::new(),
            queue: VecDeque::new(),
            halves: Vec::new(),
            compared: HashSet::new(),
            entries: HashSet::new(),
            borders: Vec::new(),
            differences: BTreeSet::new(),
            notes: BTreeSet::new(),
        }
    }
}

/// The context of a comparison, for messages and for its rules.
#[derive(Debug, Clone)]
struct Origin {
    /// Name of the function or object in the patched hypervisor.
    name: Rc<str>,
    place: Place,
    /// Whether it is boot-only.
    init: bool,
    /// Whether its counterpart is in a payload.
    payload: bool,
}

impl Origin {
    fn at(&self, place: Place) -> Self {
        Self {
            place,
            ..self.clone()
        }
    }
}

/// A place within a function or an object.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// An offset from its start.
    Offset(u64),
    /// The instruction at this address of the patched hypervisor, and its offset in
    /// the function.
    Instruction(u64, u64),
    /// An address of the patched hypervisor.
    Address(u64),
    /// An entry of a table about the code at this offset.
    Entry(Table, u64),
}

/// Two places to compare.
#[derive(Debug)]
enum Pair {
    Function(EntityId, u64),
    Object(EntityId, u64),
    /// Unnamed code: fixups, and assembly without a size.
    Code(u64, u64, Origin),
}

struct Walk<'a> {
    patched: &'a Image,
    objects: &'a Objects,
    running: &'a Running,
    /// The source files of global symbols.
    files: &'a BTreeMap<String, String>,
    /// Whether payloads below the topmost may have hooks that the patched hypervisor
    /// lacks.
    lower_hooks: bool,
    tables: Tables,
    /// What hooks of the generator's own lead to, and is made for each payload.
    declared: &'a Declared,
    /// Where the running hypervisor has it.
    found: BTreeMap<EntityId, u64>,
    /// The counterparts of each function and object of the patched hypervisor.
    mates: BTreeMap<EntityId, Vec<u64>>,
    /// The variable of the patched hypervisor that each variable of the running one
    /// belongs to.
    taken: HashMap<u64, EntityId>,
    /// Where variables without names begin in the running hypervisor, and the reverse.
    unnamed: HashMap<u64, u64>,
    unnamed_there: HashMap<u64, u64>,
    queue: VecDeque<Pair>,
    /// Halves of addresses in the code that is being compared.
    halves: Vec<words::Half>,
    /// Unnamed code and constants that were compared.
    compared: HashSet<(u64, u64)>,
    /// Table entries of the running hypervisor that have a counterpart.
    entries: HashSet<u64>,
    /// Addresses at the border of two objects, where it is unknown which one is
    /// meant.
    borders: Vec<Border>,
    differences: BTreeSet<Difference>,
    notes: BTreeSet<String>,
}

/// An address in the running hypervisor whose counterpart is the end of one object or
/// the start of the next.
struct Border {
    origin: Origin,
    before: EntityId,
    behind: EntityId,
    running: u64,
}

impl Walk<'_> {
    fn run(&mut self) {
        while let Some(pair) = self.queue.pop_front() {
            match pair {
                Pair::Function(id, at) => self.function(id, at),
                Pair::Object(id, at) => self.object(id, at),
                Pair::Code(patched, running, origin) => {
                    self.nameless_code(patched, running, origin)
                }
            }
        }
    }

    fn differ(&mut self, kind: Kind, name: &str, message: impl Into<String>) {
        self.differences.insert(Difference {
            kind,
            name: name.to_owned(),
            message: message.into(),
        });
    }

    /// Reports a difference of an operand or pointer.
    fn leads_astray(&mut self, origin: &Origin, kind: Kind, message: &str) {
        let kind = if origin.init { Kind::BootOnly } else { kind };
        let message = format!("{}: {message}", self.place(origin.place));
        self.differ(kind, &origin.name, message);
    }

    /// A description of a place.
    fn place(&self, place: Place) -> String {
        match place {
            Place::Offset(offset) => format!("+{offset:#x}"),
            Place::Instruction(address, offset) => {
                let text = self.patched.arch.text(self.patched, address);
                format!("+{offset:#x} `{text}`")
            }
            Place::Address(address) => self.patched.place(address),
            Place::Entry(table, offset) => format!("{} of +{offset:#x}", tables::name(table)),
        }
    }

    /// Makes `at` the counterpart of the function or object `id`.
    fn pair(&mut self, id: EntityId, at: u64) {
        let mates = self.mates.entry(id).or_default();
        if mates.contains(&at) {
            return;
        }
        mates.push(at);
        self.queue.push_back(if self.patched.entities[id].runs {
            Pair::Function(id, at)
        } else {
            Pair::Object(id, at)
        });
    }

    /// The running hypervisor's own address for one of the entity's names; with
    /// `booting`, it may be boot-only.
    fn with_its_name(&self, id: EntityId, booting: bool) -> Option<u64> {
        let names = &self.patched.entities[id].names;
        let found = names
            .iter()
            .find_map(|name| self.running.image.names.get(name));
        let class = |&at: &u64| self.running.image.class(at);
        found.copied().filter(|at| {
            class(at).is_some_and(|class| !class.is_payload() && (booting || !class.is_init()))
        })
    }

    /// Like [`Self::with_its_name`]; boot-only memory, which has been freed, only
    /// counts for boot-only entities.
    fn namesake(&self, id: EntityId) -> Option<u64> {
        self.with_its_name(id, self.patched.entities[id].class.is_init())
    }

    /// Pairs functions with names from the source, and assembly code without a size.
    fn start(&mut self) {
        for (id, entity) in self.patched.entities.iter().enumerate() {
            let made = entity.names.iter().all(|name| name.symbol.contains('.'));
            if !entity.runs || entity.class.is_init() || made {
                continue;
            }
            if let Some(at) = self.namesake(id) {
                self.pair(id, self.running.live(at));
            }
        }
        for (&address, names) in &self.patched.at {
            let class = self.patched.class(address);
            let code = class.is_some_and(|class| class.is_code() && !class.is_init());
            if !code || self.patched.containing(address).is_some() {
                continue;
            }
            for name in names.iter().filter(|name| !name.symbol.contains('.')) {
                let Some(&at) = self.running.image.names.get(name) else {
                    continue;
                };
                let origin = Origin {
                    name: name.to_string().into(),
                    place: Place::Offset(0),
                    init: false,
                    payload: false,
                };
                let at = self.running.live(at);
                self.queue.push_back(Pair::Code(address, at, origin));
            }
        }
    }

    /// Pairs objects that are only referred to at their border with another: with
    /// their namesakes in the running hypervisor, if these start there too.
    fn pair_at_borders(&mut self) {
        let places = self
            .borders
            .iter()
            .map(|border| (border.behind, border.running));
        for (id, running) in places.collect::<Vec<_>>() {
            let image = &self.running.image;
            let names = &self.patched.entities[id].names;
            let alike = image.starting_at(running).is_some_and(|there| {
                let there = &image.entities[there].names;
                there
                    .iter()
                    .any(|name| names.iter().any(|ours| name.is_like(ours)))
            });
            if alike && !self.mates.contains_key(&id) {
                self.pair(id, running);
            }
        }
    }

    /// The running hypervisor's own constant with a compiler's name and the contents of
    /// `id`. Such names are numbered, and a patch changes the numbers of others.
    fn same_constant(&self, id: EntityId) -> Option<u64> {
        let entity = &self.patched.entities[id];
        let made = entity.names.iter().all(|name| name.symbol.contains('.'));
        if !made || entity.class != Class::ReadOnly {
            return None;
        }
        let contents = self.patched.bytes(entity.address, entity.size)?;
        let image = &self.running.image;
        let same = image.entities.iter().find(|there| {
            let mut names = there.names.iter();
            there.class == Class::ReadOnly
                && names.any(|name| entity.names.iter().any(|ours| name.is_like(ours)))
                && there.size == entity.size
                && image.bytes(there.address, there.size).as_ref() == Some(&contents)
        });
        same.map(|there| there.address)
    }

    /// Pairs functions and objects that no reference led to.
    fn pair_the_rest(&mut self) {
        for (id, entity) in self.patched.entities.iter().enumerate() {
            if entity.class.is_init() || self.mates.contains_key(&id) {
                continue;
            }
            if let Some(at) = self.same_constant(id).or_else(|| self.namesake(id)) {
                let at = if entity.runs {
                    self.running.live(at)
                } else {
                    at
                };
                self.pair(id, at);
            }
        }
    }

    /// Pairs boot-only code and data with names from the source.
    fn pair_boot_only(&mut self) {
        for (id, entity) in self.patched.entities.iter().enumerate() {
            let numbered = entity.names.iter().all(Name::is_numbered);
            if entity.class.is_init() && !numbered && !self.mates.contains_key(&id) {
                self.pair_past(id, self.namesake(id));
            }
        }
    }

    /// Pairs boot-only static variables and clones that no reference led to: the
    /// compiler renumbers them in every build.
    fn pair_numbered(&mut self) {
        for (id, entity) in self.patched.entities.iter().enumerate() {
            if !entity.class.is_init() || self.mates.contains_key(&id) {
                continue;
            }
            let running = &self.running.image;
            let alike = running.entities.iter().filter(|there| {
                let same = |ours: &Name| there.names.iter().any(|name| name.is_like(ours));
                there.class.is_init() && entity.names.iter().any(same)
            });
            let places: Vec<u64> = alike.map(|there| there.address).collect();
            let at = match places.as_slice() {
                &[only] => Some(only),
                _ => self.namesake(id),
            };
            self.pair_past(id, at);
        }
    }

    /// Pairs boot-only code and data.
    fn pair_past(&mut self, id: EntityId, at: Option<u64>) {
        match at {
            Some(at) => self.pair(id, at),
            None => self.differ(
                Kind::BootOnly,
                &self.patched.entities[id].name(),
                "is used only while booting, and is not in the running hypervisor",
            ),
        }
    }
}

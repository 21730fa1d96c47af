// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks that the generator makes itself ([`xsplice_abi::hooks`]): for data that
//! is changed in place, and for new per-CPU variables.
//!
//! What they do is known, as their source is. It is compiled with the patched
//! hypervisor, and the payload's must be the same code. The tables that this code leads
//! to say what it does; [`prepare`] does the same to the running hypervisor.

use crate::Input;
use crate::class::Class;
use crate::elf::Wide;
use crate::image::{Entity, EntityId, Image, Name};
use crate::running::{NewPerCpu, Running};
use crate::verdict::{Difference, Kind};
use object::{Object as _, ObjectSymbol as _};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use xsplice_abi::hooks::{GRANULE, Need, PatchedData, PerCpu, Place, Row, SOURCE, Table};
use xsplice_abi::symbol::RuntimeName;

/// How the names of the files begin that the sources are compiled from.
const FILE: &str = "xsplice-generated-";

/// The source of the hooks that the generator made for a payload; `None` if it has none.
#[must_use]
pub fn generated_hooks(payload: &Input) -> Option<String> {
    let file = Wide::of(payload.data).ok()?;
    let elf = file.parse().ok()?;
    let names: BTreeSet<&str> = elf
        .symbols()
        .filter_map(|symbol| Some(base(symbol.name().ok()?)))
        .collect();
    let has = |need: &Need| names.contains(need.hook());
    if !names.iter().any(|name| is_made(name)) {
        return None;
    }
    let needs = [Need::PatchedData, Need::PatchedVariables, Need::PerCpu];
    let needs = needs.iter().filter(|need| has(need));
    let definitions: String = needs.map(|need| need.definition()).collect();
    Some(definitions + SOURCE)
}

/// Whether a hook of this name is one of those by which a payload's needs are known.
pub(crate) fn is_made(name: &str) -> bool {
    [Need::PatchedData, Need::PerCpu]
        .iter()
        .any(|need| need.hook() == name)
}

/// Whether the source has a hook of this name.
pub(crate) fn has(name: &str) -> bool {
    SOURCE.contains(&format!(" cf_check {name}("))
}

/// A symbol's name in the source: neither with its file nor with its payload.
pub(crate) fn base(symbol: &str) -> &str {
    let name = RuntimeName::parse(symbol).name;
    name.split('@').next().unwrap_or(name)
}

/// The name of the file for the `number`th payload with such hooks, without `.c`.
pub(crate) fn file(number: usize) -> String {
    format!("{FILE}{number}")
}

/// What the file of the `number`th payload has besides its `source`: something for each
/// place that the source declares, so that it can be linked. It has the size of some rows:
/// compilers make addresses in a table of that of its start.
pub(crate) fn with_places(source: &str, number: usize) -> String {
    let place = |place: &Place| {
        let name = place.name();
        let lines = [
            format!(".pushsection .data.{FILE}{number}.{name}, \\\"aw\\\""),
            format!(".type {name}, %object"),
            format!("{name}: .space {SOME_ROWS}"),
            format!(".size {name}, {SOME_ROWS}"),
            ".popsection".to_owned(),
        ];
        format!("asm ( \"{}\" );\n", lines.join("\\n"))
    };
    let places: String = Place::ALL.iter().map(place).collect();
    format!("{source}\n{places}")
}

/// In bytes.
const SOME_ROWS: usize = 128;

/// Which of the payloads with such hooks the file of the symbol is for.
fn number(name: &Name) -> Option<usize> {
    let (_, rest) = name.file.as_ref()?.rsplit_once(FILE)?;
    rest.strip_suffix(".c")?.parse().ok()
}

/// Whether `entity` of the patched hypervisor is of such hooks, and for which payload.
pub(crate) fn owner(entity: &Entity) -> Option<usize> {
    entity.names.iter().find_map(number)
}

/// The places that the sources declare, as the patched hypervisor has them.
#[derive(Debug, Default)]
pub(crate) struct Declared(HashMap<EntityId, (usize, Place)>);

impl Declared {
    pub(crate) fn of(patched: &Image) -> Self {
        let entities = patched.entities.iter().enumerate();
        let places = entities.filter_map(|(id, entity)| {
            let names = entity.names.iter();
            let mut places = names.filter_map(|n| Some((number(n)?, Place::named(&n.symbol)?)));
            Some((id, places.next()?))
        });
        Self(places.collect())
    }

    /// Whether the patched hypervisor was built with the source of any.
    pub(crate) fn is_there(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn contains(&self, id: EntityId) -> bool {
        self.0.contains_key(&id)
    }
}

/// What the hooks of a payload do, as far as their code says it.
#[derive(Debug, Default)]
struct Hooks {
    /// Where the code has what its source declares.
    places: BTreeMap<Place, u64>,
    /// Whether the payload is refused where variables do not have their initial values,
    /// or where another payload has the place of its per-CPU variables.
    checks: bool,
}

/// Does to `running` what hooks do: `found` is where the code of the payloads has what
/// is `declared`, and `functions` are those of the patched hypervisor that the payloads
/// have. Returns what is wrong with it, and what a reader should know.
pub(crate) fn prepare(
    running: &mut Running,
    patched: &Image,
    declared: &Declared,
    found: &BTreeMap<EntityId, u64>,
    functions: impl Iterator<Item = EntityId>,
) -> (Vec<Difference>, Vec<String>) {
    let mut payloads: BTreeMap<usize, Hooks> = BTreeMap::new();
    for (id, at) in found {
        if let Some(&(number, place)) = declared.0.get(id) {
            payloads
                .entry(number)
                .or_default()
                .places
                .insert(place, *at);
        }
    }
    for id in functions {
        let entity = &patched.entities[id];
        let check = Need::PatchedVariables.hook();
        if let Some(number) = owner(entity)
            && entity.names.iter().any(|name| name.symbol == check)
        {
            payloads.entry(number).or_default().checks = true;
        }
    }
    // Before any payload has something of it.
    let padding = Padding::of(&running.image);
    let mut report = Report::default();
    for hooks in payloads.values() {
        hooks.change_data(running, &mut report);
        hooks.bring_per_cpu(running, &padding, &mut report);
    }
    (report.differences, report.notes)
}

#[derive(Debug, Default)]
struct Report {
    differences: Vec<Difference>,
    notes: Vec<String>,
}

impl Report {
    fn wrong(&mut self, name: String, message: impl Into<String>) {
        self.differences.push(Difference {
            kind: Kind::Hook,
            name,
            message: message.into(),
        });
    }
}

impl Hooks {
    /// The rows of a table; none if the code has no such table.
    fn rows<T: Row>(&self, image: &Image, table: Table) -> Result<Vec<T>, &'static str> {
        let ends = [Place::Start(table), Place::End(table)];
        let (start, end) = match ends.map(|end| self.places.get(&end).copied()) {
            [None, None] => return Ok(Vec::new()),
            [Some(start), Some(end)] => (start, end),
            _ => return Err("the code reads a table that has no start or no end"),
        };
        let size = end.checked_sub(start);
        let size = size.ok_or("the end of a table is before its start")?;
        if size == 0 {
            return Ok(Vec::new());
        }
        if image.class(start) != Some(Class::PayloadReadOnly) {
            return Err("a table is not read-only data of the payload");
        }
        let bytes = image.bytes(start, size);
        let bytes = bytes.ok_or("a table is longer than the memory that it is in")?;
        let width = image.width();
        let rows = bytes.chunks(T::size(width));
        rows.map(|row| T::read(row, width).ok_or("a table ends within a row"))
            .collect()
    }

    /// What is changed in place.
    fn change_data(&self, running: &mut Running, report: &mut Report) {
        let rows: Vec<PatchedData> = match self.rows(&running.image, Table::PatchedData) {
            Ok(rows) => rows,
            Err(why) => return report.wrong(Need::PatchedData.hook().to_owned(), why),
        };
        let mut written: Vec<Range<u64>> = Vec::new();
        let mut bytes: BTreeMap<String, usize> = BTreeMap::new();
        for row in rows {
            let place = row.place.get()..row.place.get().saturating_add(row.size.get().into());
            let name = running.image.place(place.start);
            let twice = written.iter().any(|other| overlap(other, &place));
            let result = if twice {
                Err(
                    "two rows of the table write to it: a revert does not bring back what was"
                        .into(),
                )
            } else {
                self.new_contents(&running.image, &row, &place)
            };
            match result {
                Ok(now) => {
                    running.image.write(place.start, &now);
                    let whole = running.image.containing(place.start);
                    let whole = whole.map(|id| running.image.entities[id].name());
                    *bytes.entry(whole.unwrap_or(name)).or_default() += now.len();
                }
                Err(why) => report.wrong(name, why),
            }
            written.push(place);
        }
        let changed = bytes.into_iter();
        report.notes.extend(changed.map(|(name, bytes)| {
            format!("{name} is changed in place by a hook (bytes written: {bytes})")
        }));
    }

    /// What the hook writes for a row; else why it must not, or does not.
    fn new_contents(
        &self,
        image: &Image,
        row: &PatchedData,
        place: &Range<u64>,
    ) -> Result<Vec<u8>, String> {
        let entity = image.containing(place.start).map(|id| &image.entities[id]);
        let Some(entity) = entity.filter(|entity| place.end <= entity.end()) else {
            return Err("the hooks write to it, but not within one variable or constant".into());
        };
        let variable = match entity.class {
            Class::ReadOnly => false,
            Class::RoAfterInit | Class::ReadMostly | Class::Data | Class::Bss => true,
            class => return Err(format!("the hooks write to it, but it is {}", class.name())),
        };
        if variable && row.variable.get() == 0 {
            return Err(
                "the hooks change it without asking whether it has its initial value".into(),
            );
        }
        if variable && !self.checks {
            return Err("no pre-apply hook asks whether it has its initial value".into());
        }
        let own = |at: u64| image.class(at) == Some(Class::PayloadReadOnly);
        let name = row.name.get();
        if !own(name) || !image.from(name).contains(&0) {
            return Err("the hooks have no name for it that they can print".into());
        }
        let contents = |at: u64| {
            let bytes = image.bytes(at, row.size.get().into());
            bytes.filter(|_| own(at))
        };
        let (Some(was), Some(now)) = (contents(row.was.get()), contents(row.now.get())) else {
            return Err("what the hooks write there is not read-only data of the payload".into());
        };
        if image.bytes(place.start, row.size.get().into()) != Some(was) {
            return Err(
                "the hooks write to it where they find other contents than it has: it keeps its own"
                    .into(),
            );
        }
        Ok(now)
    }

    /// New per-CPU variables.
    fn bring_per_cpu(&self, running: &mut Running, padding: &Option<Padding>, report: &mut Report) {
        let name = || Need::PerCpu.hook().to_owned();
        let rows = self.rows::<PerCpu>(&running.image, Table::PerCpu);
        let claims = self.rows(&running.image, Table::PerCpuClaims);
        let (rows, claims) = match (rows, claims) {
            (Ok(rows), Ok(claims)) => (rows, claims),
            (Err(why), _) | (_, Err(why)) => return report.wrong(name(), why),
        };
        let map = self.places.get(&Place::AllClaims).copied();
        if rows.is_empty() && claims.is_empty() && map.is_none() {
            return;
        }
        let Some(padding) = padding else {
            return report.wrong(name(), "there is no padding in the per-CPU areas");
        };
        if map != Some(padding.map) {
            return report.wrong(
                name(),
                "it claims padding elsewhere than all payloads for this hypervisor do",
            );
        }
        let start = self.places.get(&Place::Start(Table::PerCpu));
        let lower = start.is_some_and(|&start| running.is_in_lower_payload(start));
        let mut places = Vec::new();
        for row in rows {
            let place = row.place.get()..row.place.get().saturating_add(row.size.get());
            match running.add_per_cpu(&place, lower, padding) {
                Ok(()) => places.push(place),
                Err(why) => report.wrong(running.image.place(place.start), why),
            }
        }
        let claims: Vec<u64> = claims.into_iter().map(u64::from_le_bytes).collect();
        if padding.bits(&places) != claims {
            report.wrong(
                name(),
                "it claims other padding than the payload's per-CPU variables are in",
            );
        }
        if !self.checks {
            report.wrong(
                name(),
                "no pre-apply hook asks whether another payload has the padding",
            );
        }
    }
}

impl Running {
    /// Adds a new per-CPU variable, of this payload or of one below.
    fn add_per_cpu(
        &mut self,
        place: &Range<u64>,
        lower: bool,
        padding: &Padding,
    ) -> Result<(), String> {
        if place.is_empty() || !padding.contains(place) {
            return Err(format!(
                "a new per-CPU variable of {} bytes is not in padding of the per-CPU areas",
                place.end - place.start
            ));
        }
        let mut others = self.new_per_cpu.iter();
        if others.any(|other| overlap(&other.place, place)) {
            return Err("two new per-CPU variables have the same place".to_owned());
        }
        let name = Name {
            file: None,
            symbol: format!("padding of the per-CPU areas at {:#x}", place.start),
        };
        self.image.add_object(place.clone(), name);
        self.new_per_cpu.push(NewPerCpu {
            place: place.clone(),
            lower,
        });
        Ok(())
    }
}

fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}

/// What lies between the variables of the per-CPU areas.
#[derive(Debug, PartialEq, Eq)]
struct Padding {
    /// Addresses of the pieces that can be given out, in ascending order.
    pieces: Vec<u64>,
    /// Where the bit map of what is given out is.
    map: u64,
}

impl Padding {
    fn of(image: &Image) -> Option<Self> {
        let area = image.global("__per_cpu_start")?..image.global("__per_cpu_data_end")?;
        let names = image.at.range(area.clone()).map(|(&at, _)| at);
        let taken = names.filter_map(|at| match image.containing(at) {
            Some(id) => Some(at..image.entities[id].end()),
            None if at == area.start => None,
            // Nobody knows where it ends.
            None => Some(at..area.end),
        });
        Self::between(taken, area.clone())
    }

    /// What of `area` is not `taken`, which is in ascending order.
    fn between(taken: impl Iterator<Item = Range<u64>>, area: Range<u64>) -> Option<Self> {
        const BITS: usize = u64::BITS as usize;
        let mut pieces = Vec::new();
        let mut free = area.start;
        for taken in taken.chain(std::iter::once(area.end..area.end)) {
            let first = free.next_multiple_of(GRANULE);
            let whole = (first..).step_by(usize::try_from(GRANULE).ok()?);
            pieces.extend(whole.take_while(|at| at + GRANULE <= taken.start));
            free = free.max(taken.end);
        }
        let words = pieces.len().div_ceil(BITS);
        let last = pieces.len().checked_sub(words.max(1))?;
        let adjoin = |first: &usize| {
            let length = pieces[first + words - 1] - pieces[*first];
            length == (words as u64 - 1) * GRANULE
        };
        let first = (0..=last).rev().find(adjoin)?;
        let map = pieces[first];
        pieces.drain(first..first + words);
        Some(Self { pieces, map })
    }

    /// The pieces that `place` touches.
    fn touched(place: &Range<u64>) -> impl Iterator<Item = u64> {
        (place.start / GRANULE..place.end.div_ceil(GRANULE)).map(|piece| piece * GRANULE)
    }

    fn contains(&self, place: &Range<u64>) -> bool {
        Self::touched(place).all(|piece| self.pieces.binary_search(&piece).is_ok())
    }

    /// The words of the bit map that say that `places` are given out.
    fn bits(&self, places: &[Range<u64>]) -> Vec<u64> {
        const BITS: usize = u64::BITS as usize;
        let mut words = vec![0; self.pieces.len().div_ceil(BITS)];
        for piece in places.iter().flat_map(Self::touched) {
            if let Ok(index) = self.pieces.binary_search(&piece) {
                words[index / BITS] |= 1 << (index % BITS);
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_what_is_between_variables() {
        let taken = [0x1000..0x1010, 0x1008..0x100c, 0x1040..0x1044];
        let padding = Padding::between(taken.into_iter(), 0x1000..0x1080).expect("some");
        assert_eq!(padding.map, 0x1078);
        assert_eq!(padding.pieces.len(), 6 + 6);
        assert!(padding.contains(&(0x1010..0x1040)));
        for other in [
            0x100f..0x1018,
            0x1038..0x1041,
            0x1044..0x1048,
            0x1070..0x1079,
        ] {
            assert!(!padding.contains(&other), "{other:x?}");
        }
        let far = 0x1079..u64::MAX;
        assert!(!padding.contains(&far));
        assert_eq!(
            padding.bits(std::slice::from_ref(&(0x1010..0x1019))),
            [0b11]
        );
        assert_eq!(
            padding.bits(&[0x1048..0x1049, 0x1070..0x1078]),
            [0b1000_0100_0000]
        );
    }

    #[test]
    fn the_bit_map_is_in_one_piece() {
        // 65 pieces need two words, which only one gap has room for.
        let gaps = (0..65).map(|piece| 0x1000 + piece * 24..0x1010 + piece * 24);
        let end = 0x1000 + 65 * 24;
        assert_eq!(Padding::between(gaps.clone(), 0x1000..end), None);
        let padding = Padding::between(
            gaps.chain(std::iter::once(end + 24..end + 32)),
            0x1000..end + 40,
        );
        let padding = padding.expect("some");
        assert_eq!(padding.map, end + 8);
        assert_eq!(Padding::between(std::iter::once(0..8), 0..8), None);
    }

    #[test]
    fn a_payload_without_such_hooks_needs_no_source() {
        let payload = Input {
            name: "payload",
            data: b"no payload",
        };
        assert_eq!(generated_hooks(&payload), None);
        assert_eq!(base("common/xsplice.hooks.c#check@1a2b"), "check");
        assert_eq!(base("check"), "check");
    }

    #[test]
    fn hooks_are_known_by_their_file() {
        let name = |file: &str| Name {
            file: Some(format!("{file}.c")),
            symbol: Place::AllClaims.name().to_owned(),
        };
        assert_eq!(number(&name(&format!("common/{}", file(12)))), Some(12));
        assert_eq!(number(&name("common/xsplice-hooks-1")), None);
    }
}

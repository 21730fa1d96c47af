// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payloads that a new one depends on, each with its source patches.

pub(crate) mod contents;
pub(crate) mod proof;

use crate::arch;
use crate::code::Code;
use crate::name::drafted;
use crate::problem::{Problem, Refused};
use crate::record::Record;
use crate::source::SourcePatch;
use contents::{Contents, CopyIx, Place};
use object::read::elf::{ElfFile, ElfFile32, ElfFile64, FileHeader};
use object::{Endianness, FileKind, Object as _, ObjectSection as _};
use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use xsplice_abi::machine::Machine;
use xsplice_abi::note::{hex, parse_build_id};
use xsplice_abi::payload::hook;
use xsplice_abi::payload::section;
use xsplice_abi::record;
use xsplice_abi::record::{PatchedData, PerCpuVariable};
use xsplice_system::file;

/// The key of the payload's metadata that names a source patch.
pub(crate) const PATCH_KEY: &str = "patch";

/// The same for a patch without effect on the payload. Other patches may still depend
/// on its lines.
const UNUSED_PATCH_KEY: &str = "unused-patch";

/// Marks patches without effect on the payload in `metadata`, by their order; returns
/// notes about them.
pub(crate) fn mark_unused(
    metadata: &mut [(String, String)],
    unused: &BTreeSet<usize>,
) -> Vec<String> {
    let patches = metadata.iter_mut().filter(|(key, _)| key == PATCH_KEY);
    let unused = patches
        .enumerate()
        .filter(|(index, _)| unused.contains(index));
    unused
        .map(|(_, (key, record))| {
            UNUSED_PATCH_KEY.clone_into(key);
            let name = record.rsplit_once(' ').map_or(&**record, |(name, _)| name);
            format!(
                "{name}: nothing of this patch is in the payload, and the payload's metadata says \
                 so (`{UNUSED_PATCH_KEY}`)"
            )
        })
        .collect()
}

/// An applied payload.
#[derive(Debug)]
pub struct Level {
    /// The payload's name: its file's, without the extension.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
    /// Number of source patches up to and including its own.
    pub patches: usize,
    /// Its build-id.
    build_id: Vec<u8>,
    /// Build-id of what it depends on.
    depends: Vec<u8>,
    /// Its build record, or why there is none.
    record: Result<Record, String>,
    /// Whether it has hooks.
    pub(crate) has_hooks: bool,
    /// Its record of each source patch.
    records: Vec<String>,
    /// Its code and data.
    pub(crate) contents: Contents,
    /// Its symbols by name, without the tag at the end of new names.
    by_name: HashMap<String, Vec<CopyIx>>,
}

/// The stack of applied payloads, the lowest first.
#[derive(Debug, Default)]
pub struct Below {
    /// Each of them.
    pub levels: Vec<Level>,
}

impl Below {
    /// Reads the payloads at `paths`, the lowest first.
    ///
    /// # Errors
    /// Files that cannot be read, or are not payloads.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Refused> {
        let levels = crate::problem::all(paths.iter().map(|path| Level::read(path)).collect())?;
        Ok(Self { levels })
    }

    /// Ties the payloads to each other, to the hypervisor with the build-id
    /// `hypervisor`, and to their source `patches`, in order.
    ///
    /// # Errors
    /// Payloads that do not form a stack; patches that they were not built from.
    pub(crate) fn tie(
        &mut self,
        patches: &[SourcePatch],
        hypervisor: &[u8],
    ) -> Result<(), Refused> {
        if self.levels.is_empty() != patches.is_empty() {
            return Err(Refused::one(
                Code::BadOption,
                "--on",
                "a payload on top of others needs both: the payloads (--on) and the source patches \
                 that they were built from (--on-patch)",
            ));
        }
        check_order(&self.levels, hypervisor)?;
        assign(&mut self.levels, patches)
    }

    /// Build-id of the topmost payload; what a new one depends on.
    pub fn build_id(&self) -> Option<&[u8]> {
        self.levels.last().map(|level| level.build_id.as_slice())
    }

    /// Whether a payload replaces the hypervisor's function at `address`.
    pub fn replaces(&self, address: u64) -> bool {
        let mut levels = self.levels.iter();
        levels.any(|level| level.replaces(&Place::Address(address)))
    }
}

impl Level {
    fn read(path: &Path) -> Result<Self, Problem> {
        let place = || file::shown(path);
        let bad = |reason: &str| {
            Problem::new(
                Code::NotAPayload,
                place(),
                format!("not a payload: {reason}"),
            )
        };
        let data = file::read(path)
            .map_err(|e| Problem::new(Code::UnreadableFile, place(), e.to_string()))?;
        let read = match FileKind::parse(&*data) {
            Ok(FileKind::Elf32) => ElfFile32::parse(&*data).map(|file| Self::of(&file, path)),
            _ => ElfFile64::parse(&*data).map(|file| Self::of(&file, path)),
        };
        let level = read.map_err(|error| error.to_string()).flatten();
        level.map_err(|reason| bad(&reason))
    }

    /// The payload `file`, which is at `path`.
    ///
    /// # Errors
    /// Why it is not a payload.
    fn of<H: FileHeader<Endian = Endianness>>(
        file: &ElfFile<'_, H>,
        path: &Path,
    ) -> Result<Self, String> {
        let machine = file.elf_header().e_machine(file.endian()).0;
        let machine = Machine::from_elf(machine);
        let machine = machine.ok_or_else(|| "it is for no known machine".to_owned())?;
        let contents = |name: &str| file.section_by_name(name)?.data().ok();
        let id = |name: &str| Some(contents(name).and_then(parse_build_id)?.to_vec());
        let build_id = id(section::BUILD_ID).ok_or("it has no build-id")?;
        let depends = id(section::DEPENDS).ok_or("it does not say what it depends on")?;
        let metadata = contents(section::MODINFO).unwrap_or_default();
        let records: Vec<String> = metadata
            .split(|&byte| byte == 0)
            .filter_map(|text| {
                let (key, value) = std::str::from_utf8(text).ok()?.split_once('=')?;
                [PATCH_KEY, UNUSED_PATCH_KEY]
                    .contains(&key)
                    .then(|| value.to_owned())
            })
            .collect();
        let record = Record::read(contents(record::SECTION));
        let is_list = |name: &str| hook::stage(name).is_some();
        let hooks = file.sections().any(|s| s.name().is_ok_and(is_list));
        let contents = Contents::read(file, arch::of(machine).objects())?;
        let mut by_name: HashMap<String, Vec<CopyIx>> = HashMap::new();
        for (index, symbol) in contents.symbols.iter_enumerated() {
            let name = drafted(&symbol.name).to_owned();
            by_name.entry(name).or_default().push(index);
        }
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Ok(Self {
            name: name.into_owned(),
            data: file.data().to_vec(),
            patches: 0,
            build_id,
            depends,
            record,
            has_hooks: hooks,
            records,
            contents,
            by_name,
        })
    }

    /// The data that it changes in place.
    pub(crate) fn patched_data(&self) -> &[PatchedData] {
        let record = self.record.as_ref();
        record.map_or(&[], |record| &record.patched_data)
    }

    /// Its new per-CPU variables.
    pub(crate) fn per_cpu(&self) -> &[PerCpuVariable] {
        let record = self.record.as_ref();
        record.map_or(&[], |record| &record.per_cpu)
    }

    /// Names of changes that it left out.
    pub(crate) fn left_out(&self) -> BTreeSet<String> {
        let record = self.record.as_ref();
        record.map_or(BTreeSet::new(), |record| record.options.leave_out.clone())
    }

    /// Whether the payload replaces the function at `place`.
    pub(crate) fn replaces(&self, place: &Place) -> bool {
        self.contents
            .records
            .iter()
            .any(|record| record.old == *place)
    }
}

/// Checks that each payload depends on the one before it.
fn check_order(levels: &[Level], hypervisor: &[u8]) -> Result<(), Refused> {
    let mut below = ("the hypervisor", hypervisor);
    let mut problems = Vec::new();
    for level in levels {
        if level.depends != below.1 {
            let meant = levels.iter().find(|l| l.build_id == level.depends);
            problems.push(Problem::new(
                Code::WrongStack,
                format!("--on {}", level.name),
                format!(
                    "it depends on {}, not on {}: give every payload of the stack, the lowest \
                     first",
                    match meant {
                        Some(meant) => meant.name.clone(),
                        None if level.depends == hypervisor => "the hypervisor itself".to_owned(),
                        None => format!("what has the build-id {}", hex(&level.depends)),
                    },
                    below.0
                ),
            ));
        }
        below = (&level.name, &level.build_id);
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(Refused(problems))
    }
}

/// Assigns `patches` to the levels, by the hashes in the payloads' metadata.
fn assign(levels: &mut [Level], patches: &[SourcePatch]) -> Result<(), Refused> {
    let given: Vec<String> = patches.iter().map(SourcePatch::record).collect();
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for level in &*levels {
        let records = level.records.iter().map(String::as_str);
        wanted.extend(records.map(|record| (level.name.as_str(), record)));
    }
    // The file may have been renamed.
    let same = |a: &str, b: &str| a.rsplit(' ').next() == b.rsplit(' ').next();
    let mut problems = without_source(levels);
    for (level, record) in &wanted {
        if !given.iter().any(|given| same(given, record)) {
            let message = format!("{level} was built from {record}, which is not one of the files");
            problems.push(Problem::new(Code::WrongStack, "--on-patch", message));
        }
    }
    for (patch, record) in patches.iter().zip(&given) {
        if !wanted.iter().any(|(_, wanted)| same(wanted, record)) {
            let place = format!("--on-patch {}", patch.name);
            let message = format!("none of the payloads was built from this file ({record})");
            problems.push(Problem::new(Code::WrongStack, place, message));
        }
    }
    let in_order = given.len() == wanted.len()
        && given
            .iter()
            .zip(&wanted)
            .all(|(given, (_, wanted))| same(given, wanted));
    if problems.is_empty() && !in_order {
        let right = wanted
            .iter()
            .map(|(level, record)| format!("{record} ({level})"));
        let message = format!(
            "the payloads were built from these files in another order, which is: {}",
            right.collect::<Vec<_>>().join(", ")
        );
        problems.push(Problem::new(Code::WrongStack, "--on-patch", message));
    }
    if !problems.is_empty() {
        return Err(Refused(problems));
    }
    let mut count = 0;
    for level in levels {
        count += level.records.len();
        level.patches = count;
    }
    Ok(())
}

/// Payloads that nothing can be built upon.
fn without_source(levels: &[Level]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for level in levels {
        let message = match &level.record {
            _ if level.records.is_empty() => {
                "its metadata does not name the source patches that it was built from: only \
                 payloads that `xsplice build` made can be built upon"
                    .to_owned()
            }
            Err(why) => format!(
                "{why}: it is unclear with which options it was built, and so what a payload on \
                 top is to be compared with; build it again with this version of xsplice"
            ),
            Ok(_) => continue,
        };
        let place = format!("--on {}", level.name);
        problems.push(Problem::new(Code::WrongStack, place, message));
    }
    problems
}

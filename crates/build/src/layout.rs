// SPDX-License-Identifier: MIT OR Apache-2.0
//! Layouts of structures, before and after the patch.
//!
//! What the running hypervisor has in memory keeps the old layout, and so does
//! every function that is not in the payload. A structure that changes its
//! size, or a member that moves, is found in the debugging information of one
//! object for each file that the patch changes, compiled for this purpose with
//! all types in it, used or not.

use crate::rebuild::{Pair, Patched, Rebuild};
use crate::tree::ObjectFile;
use crate::variant::Variant;
use crate::{Problem, all};
use gimli::{AttributeValue, DwarfSections, EndianSlice, LittleEndian, UnitOffset};
use object::{Object, ObjectSection, ObjectSymbol, RelocationKind, RelocationTarget};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

/// Size in bytes of a structure or union, and where its members are.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Layout {
    size: u64,
    /// Offset in bits of each member, members of unnamed members included.
    members: BTreeMap<String, u64>,
}

type Layouts = BTreeMap<String, Layout>;

/// Every structure whose layout changes between the source `below`, or the
/// tree's own, and `patched`, and that is not in `allowed`.
pub(crate) fn check(
    rebuild: &Rebuild,
    (below, patched): (Option<&Patched>, &Patched),
    pairs: &[Pair],
    allowed: &BTreeSet<String>,
) -> Vec<Problem> {
    let before = below.map_or(rebuild.original_source(), |below| &below.variant);
    let found: Vec<Result<BTreeMap<String, Problem>, Problem>> = representatives(patched, pairs)
        .par_iter()
        .map(|pair| {
            let object = pair.object.with_all_types();
            let (old, new) = rayon::join(
                || layouts_from(before, &object),
                || layouts_from(&patched.variant, &object),
            );
            Ok(differences(&old?, &new?)
                .into_iter()
                .filter(|(name, _)| !allowed.contains(name))
                .map(|(name, what)| {
                    let message = format!(
                        "{name} {what}: what the running hypervisor has in memory keeps the old \
                         layout, and so does all code that is not in the payload; put what is new \
                         elsewhere or into padding, or say `--allow {name}` if no such structure \
                         outlives a call of the changed functions"
                    );
                    (name, Problem::new(&object.source, message))
                })
                .collect())
        })
        .collect();
    match all(found) {
        // One problem for each structure, however many objects show it.
        Ok(found) => found
            .into_iter()
            .flatten()
            .collect::<BTreeMap<_, _>>()
            .into_values()
            .collect(),
        Err(refused) => refused.0,
    }
}

/// The layouts that `variant` gives `object`.
fn layouts_from(variant: &Variant, object: &ObjectFile) -> Result<Layouts, Problem> {
    let bad = |error: &dyn std::fmt::Display| {
        Problem::new(&object.path, format!("its debugging information: {error}"))
    };
    let kept = variant.derive(object, "layouts 1", |bytes| {
        let layouts = layouts(bytes).map_err(|e| bad(&e))?;
        serde_json::to_vec(&layouts).map_err(|e| bad(&e))
    })?;
    serde_json::from_slice(&kept).map_err(|e| bad(&e))
}

/// For each file that the patch changes the smallest object that has it.
fn representatives<'a>(patched: &Patched, pairs: &'a [Pair]) -> Vec<&'a Pair> {
    let both = |pair: &&Pair| {
        pair.original.is_some() && pair.patched.is_some() && pair.object.source.ends_with(".c")
    };
    let mut chosen: BTreeMap<&str, &Pair> = BTreeMap::new();
    for file in &patched.touched {
        let readers = pairs
            .iter()
            .filter(both)
            .filter(|pair| pair.object.dependencies.contains(file));
        if let Some(pair) = readers.min_by_key(|pair| pair.original.as_ref().map(Vec::len)) {
            chosen.insert(&pair.object.path, pair);
        }
    }
    chosen.into_values().collect()
}

fn differences(old: &Layouts, new: &Layouts) -> Vec<(String, String)> {
    let both = old
        .iter()
        .filter_map(|(name, layout)| Some((name, layout, new.get(name)?)));
    both.filter_map(|(name, old, new)| Some((name.clone(), difference(old, new)?)))
        .collect()
}

fn difference(old: &Layout, new: &Layout) -> Option<String> {
    let mut words = Vec::new();
    if old.size != new.size {
        words.push(format!("goes from {} to {} bytes", old.size, new.size));
    }
    for (member, from) in &old.members {
        if let Some(to) = new.members.get(member).filter(|to| *to != from) {
            words.push(format!(
                "has {member} at byte {} instead of {}",
                to / 8,
                from / 8
            ));
        }
    }
    (!words.is_empty()).then(|| words.join(", "))
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;

/// The layouts that the object file `bytes` describes.
fn layouts(bytes: &[u8]) -> Result<Layouts, Box<dyn std::error::Error + Send + Sync>> {
    let file = object::File::parse(bytes)?;
    let sections = DwarfSections::load(|id| relocated(&file, id.name()))?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let mut layouts = Layouts::new();
    let mut headers = dwarf.units();
    while let Some(header) = headers.next()? {
        let unit = dwarf.unit(header)?;
        let mut tree = unit.entries_tree(None)?;
        let mut children = tree.root()?.children();
        while let Some(child) = children.next()? {
            let entry = child.entry();
            let Some(name) = entry.attr_value(gimli::DW_AT_name) else {
                continue;
            };
            let name = dwarf
                .attr_string(&unit, name)?
                .to_string_lossy()
                .into_owned();
            let described = match entry.tag() {
                gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type => Some(entry.offset()),
                // `typedef struct { ... } name;`
                gimli::DW_TAG_typedef => unnamed_structure(&unit, entry)?,
                _ => None,
            };
            if let Some(offset) = described {
                let mut layout = Layout::default();
                add_members(&dwarf, &unit, offset, 0, &mut layout)?;
                if let Some(size) = size_of(&unit, offset)? {
                    layout.size = size;
                    layouts.insert(name, layout);
                }
            }
        }
    }
    Ok(layouts)
}

fn size_of(unit: &gimli::Unit<Reader>, offset: UnitOffset) -> Result<Option<u64>, gimli::Error> {
    let size = unit.entry(offset)?.attr_value(gimli::DW_AT_byte_size);
    Ok(size.and_then(|value| value.udata_value()))
}

fn type_of(entry: &gimli::DebuggingInformationEntry<Reader>) -> Option<UnitOffset> {
    match entry.attr_value(gimli::DW_AT_type)? {
        AttributeValue::UnitRef(offset) => Some(offset),
        _ => None,
    }
}

/// The structure or union without a name of its own that `entry` is of.
fn unnamed_structure(
    unit: &gimli::Unit<Reader>,
    entry: &gimli::DebuggingInformationEntry<Reader>,
) -> Result<Option<UnitOffset>, gimli::Error> {
    let Some(offset) = type_of(entry) else {
        return Ok(None);
    };
    let target = unit.entry(offset)?;
    let structure = matches!(
        target.tag(),
        gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type
    );
    Ok((structure && target.attr_value(gimli::DW_AT_name).is_none()).then_some(offset))
}

fn add_members(
    dwarf: &gimli::Dwarf<Reader>,
    unit: &gimli::Unit<Reader>,
    structure: UnitOffset,
    start: u64,
    layout: &mut Layout,
) -> Result<(), gimli::Error> {
    let mut tree = unit.entries_tree(Some(structure))?;
    let mut children = tree.root()?.children();
    while let Some(child) = children.next()? {
        let entry = child.entry();
        if entry.tag() != gimli::DW_TAG_member {
            continue;
        }
        let number = |attribute| {
            entry
                .attr_value(attribute)
                .and_then(|value| value.udata_value())
        };
        let bytes = number(gimli::DW_AT_data_member_location).unwrap_or(0);
        let bits = number(gimli::DW_AT_data_bit_offset).unwrap_or(0);
        let place = start + bytes * 8 + bits;
        match entry.attr_value(gimli::DW_AT_name) {
            Some(name) => {
                let name = dwarf
                    .attr_string(unit, name)?
                    .to_string_lossy()
                    .into_owned();
                layout.members.insert(name, place);
            }
            None => {
                if let Some(inner) = unnamed_structure(unit, entry)? {
                    add_members(dwarf, unit, inner, place, layout)?;
                }
            }
        }
    }
    Ok(())
}

/// The contents of a section of debugging information, with its relocations
/// applied: references to other such sections.
fn relocated(file: &object::File, name: &str) -> Result<Vec<u8>, object::Error> {
    let Some(section) = file.section_by_name(name) else {
        return Ok(Vec::new());
    };
    let mut data = section.data()?.to_vec();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        if relocation.kind() != RelocationKind::Absolute {
            continue;
        }
        let base = file.symbol_by_index(index)?.address();
        let value = base.wrapping_add_signed(relocation.addend()).to_le_bytes();
        let size = usize::from(relocation.size() / 8).min(value.len());
        let field = usize::try_from(offset)
            .ok()
            .and_then(|at| data.get_mut(at..at.checked_add(size)?));
        if let Some(field) = field {
            field.copy_from_slice(&value[..size]);
        }
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn layouts_of(source: &str) -> Layouts {
        let directory = tempfile::tempdir().expect("a directory");
        let (c, o) = (directory.path().join("x.c"), directory.path().join("x.o"));
        std::fs::write(&c, source).expect("written");
        let status = Command::new("gcc")
            .args(["-g", "-fno-eliminate-unused-debug-types", "-c", "-o"])
            .args([&o, &c])
            .status()
            .expect("these tests need gcc");
        assert!(status.success());
        layouts(&std::fs::read(o).expect("compiled")).expect("described")
    }

    const OLD: &str = "struct s { int a; char b; long c; };\n\
                       typedef struct { union { int x; long y; }; int z; } t;\n";

    #[test]
    fn moved_members_and_other_sizes_are_named() {
        let new = "struct s { int a, d; char b; long c; };\n\
                   typedef struct { union { int x; long y; char w[16]; }; int z; } t;\n";
        let found = differences(&layouts_of(OLD), &layouts_of(new));
        let text: Vec<String> = found
            .iter()
            .map(|(name, what)| format!("{name} {what}"))
            .collect();
        assert_eq!(
            text,
            [
                "s goes from 16 to 24 bytes, has b at byte 8 instead of 4, has c at byte 16 \
                 instead of 8",
                "t goes from 16 to 24 bytes, has z at byte 16 instead of 8"
            ]
        );
    }

    #[test]
    fn what_fits_into_padding_changes_no_layout() {
        let new = "struct s { int a; char b, d; long c; };\n\
                   typedef struct { union { int x; long y; }; int z, w; } t;\n";
        assert_eq!(differences(&layouts_of(OLD), &layouts_of(new)), []);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Describes the types in an object's debugging information, for comparison.

use crate::elf::Wide;
use gimli::{AttributeValue, DebuggingInformationEntry, EndianSlice, LittleEndian, UnitOffset};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationFlags};
use object::{RelocationTarget, elf};
use std::collections::BTreeMap;

/// The description of a type or variable: its size, and a line for each member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Described {
    lines: Vec<String>,
}

impl Described {
    /// The first difference.
    pub(crate) fn differs(&self, then: &Self) -> String {
        let now = self.lines.iter().find(|line| !then.lines.contains(line));
        let then = then.lines.iter().find(|line| !self.lines.contains(line));
        match (now, then) {
            (Some(now), Some(then)) => format!("it has {now} and had {then}"),
            (Some(now), None) => format!("it has {now}"),
            (None, Some(then)) => format!("it had {then}"),
            (None, None) => "its members are in another order".to_owned(),
        }
    }

    /// Number of different lines.
    pub(crate) fn distance(&self, other: &Self) -> usize {
        let missing = |of: &Self, from: &Self| {
            let lines = of.lines.iter();
            lines.filter(|line| !from.lines.contains(line)).count()
        };
        missing(self, other) + missing(other, self)
    }
}

type Reader<'a> = EndianSlice<'a, LittleEndian>;
type Entry<'a> = DebuggingInformationEntry<Reader<'a>>;

/// All structures, unions, enumerations and variables of the object `data`.
pub(crate) fn read(data: &[u8]) -> Result<BTreeMap<String, Described>, String> {
    let file = Wide::of(data).map_err(|e| e.to_string())?;
    let elf = file.parse().map_err(|e| e.to_string())?;
    let load = |id: gimli::SectionId| relocated(&elf, id.name());
    let sections = gimli::DwarfSections::load(load)?;
    let dwarf = sections.borrow(|data| EndianSlice::new(data, LittleEndian));
    let mut described = BTreeMap::new();
    let mut headers = dwarf.units();
    while let Some(header) = headers.next().map_err(|e| e.to_string())? {
        let unit = dwarf.unit(header).map_err(|e| e.to_string())?;
        let unit = Unit {
            dwarf: &dwarf,
            unit: &unit,
        };
        unit.describe(&mut described).map_err(|e| e.to_string())?;
    }
    if described.is_empty() && elf.section_by_name(".debug_info").is_none() {
        return Err("the compiler wrote no debugging information".to_owned());
    }
    Ok(described)
}

/// A section with the relocations of debugging information applied: offsets into
/// other such sections.
fn relocated(elf: &ElfFile64<'_, Endianness>, name: &str) -> Result<Vec<u8>, String> {
    let Some(section) = elf.section_by_name(name) else {
        return Ok(Vec::new());
    };
    let contents = section.uncompressed_data().map_err(|e| e.to_string())?;
    let mut contents = contents.into_owned();
    for (offset, relocation) in section.relocations() {
        let RelocationTarget::Symbol(index) = relocation.target() else {
            continue;
        };
        let symbol = elf.symbol_by_index(index).map_err(|e| e.to_string())?;
        let value = symbol.address().wrapping_add_signed(relocation.addend());
        let size = match relocation.flags() {
            RelocationFlags::Elf {
                r_type: elf::R_X86_64_64 | elf::R_AARCH64_ABS64,
            } => 8,
            RelocationFlags::Elf {
                r_type: elf::R_X86_64_32 | elf::R_AARCH64_ABS32,
            } => 4,
            _ => continue,
        };
        let at = usize::try_from(offset).map_err(|e| e.to_string())?;
        let field = contents.get_mut(at..).and_then(|rest| rest.get_mut(..size));
        let field = field.ok_or_else(|| format!("{name} is truncated"))?;
        field.copy_from_slice(&value.to_le_bytes()[..size]);
    }
    Ok(contents)
}

struct Unit<'a, 'd> {
    dwarf: &'a gimli::Dwarf<Reader<'d>>,
    unit: &'a gimli::Unit<Reader<'d>>,
}

/// Maximum nesting of unnamed types in a description.
const DEEPEST: usize = 24;

impl<'d> Unit<'_, 'd> {
    fn describe(&self, all: &mut BTreeMap<String, Described>) -> gimli::Result<()> {
        let mut entries = self.unit.entries();
        while let Some(entry) = entries.next_dfs()? {
            // Skip declarations, and entries made by the compiler, such as a
            // function's name.
            let passed_over = [gimli::DW_AT_declaration, gimli::DW_AT_artificial];
            if passed_over.iter().any(|&at| entry.attr_value(at).is_some()) {
                continue;
            }
            let Some(name) = self.name(entry)? else {
                continue;
            };
            let (key, lines) = match entry.tag() {
                gimli::DW_TAG_structure_type => (format!("struct {name}"), self.lines(entry, 0)?),
                gimli::DW_TAG_union_type => (format!("union {name}"), self.lines(entry, 0)?),
                gimli::DW_TAG_enumeration_type => (format!("enum {name}"), self.lines(entry, 0)?),
                gimli::DW_TAG_typedef => {
                    let Some(target) = self.target(entry)? else {
                        continue;
                    };
                    if self.name(&target)?.is_some() || !is_aggregate(&target) {
                        continue;
                    }
                    (name, self.lines(&target, 0)?)
                }
                gimli::DW_TAG_variable if self.is_kept(entry)? => {
                    (name, vec![self.type_of(entry, 0)?])
                }
                _ => continue,
            };
            all.insert(key, Described { lines });
        }
        Ok(())
    }

    /// Whether the variable has a fixed address.
    fn is_kept(&self, entry: &Entry<'d>) -> gimli::Result<bool> {
        let Some(AttributeValue::Exprloc(expression)) = entry.attr_value(gimli::DW_AT_location)
        else {
            return Ok(false);
        };
        let first = expression.operations(self.unit.encoding()).next()?;
        Ok(matches!(
            first,
            Some(gimli::Operation::Address { .. } | gimli::Operation::AddressIndex { .. })
        ))
    }

    fn name(&self, entry: &Entry<'d>) -> gimli::Result<Option<String>> {
        let Some(value) = entry.attr_value(gimli::DW_AT_name) else {
            return Ok(None);
        };
        let text = self.dwarf.attr_string(self.unit, value)?;
        Ok(Some(text.to_string_lossy().into_owned()))
    }

    fn number(entry: &Entry<'d>, attribute: gimli::DwAt) -> Option<i64> {
        let value = entry.attr_value(attribute)?;
        value
            .sdata_value()
            .or_else(|| value.udata_value().map(u64::cast_signed))
    }

    fn target(&self, entry: &Entry<'d>) -> gimli::Result<Option<Entry<'d>>> {
        match entry.attr_value(gimli::DW_AT_type) {
            Some(AttributeValue::UnitRef(offset)) => self.unit.entry(offset).map(Some),
            _ => Ok(None),
        }
    }

    fn children(&self, offset: UnitOffset) -> gimli::Result<Vec<Entry<'d>>> {
        let mut tree = self.unit.entries_tree(Some(offset))?;
        let mut children = tree.root()?.children();
        let mut all = Vec::new();
        while let Some(child) = children.next()? {
            all.push(child.entry().clone());
        }
        Ok(all)
    }

    /// Size, members or enumerators.
    fn lines(&self, entry: &Entry<'d>, depth: usize) -> gimli::Result<Vec<String>> {
        let size = Self::number(entry, gimli::DW_AT_byte_size).unwrap_or(-1);
        let mut lines = vec![format!("{size} bytes")];
        for child in self.children(entry.offset())? {
            let name = self.name(&child)?.unwrap_or_else(|| "(unnamed)".to_owned());
            match child.tag() {
                gimli::DW_TAG_member => {
                    let bytes = Self::number(&child, gimli::DW_AT_data_member_location);
                    let bits = Self::number(&child, gimli::DW_AT_data_bit_offset);
                    let place = match (bytes, bits) {
                        (Some(bytes), _) => format!("at byte {bytes}"),
                        (None, Some(bits)) => format!("at bit {bits}"),
                        (None, None) => "at byte 0".to_owned(),
                    };
                    let width = Self::number(&child, gimli::DW_AT_bit_size);
                    let width = width.map_or_else(String::new, |width| format!(" of {width} bits"));
                    let of = self.type_of(&child, depth + 1)?;
                    lines.push(format!("{name} {place}{width}: {of}"));
                }
                gimli::DW_TAG_enumerator => {
                    let value = Self::number(&child, gimli::DW_AT_const_value).unwrap_or(0);
                    lines.push(format!("{name} = {value}"));
                }
                _ => {}
            }
        }
        Ok(lines)
    }

    /// The description of an entry's type. Named types are compared separately.
    fn type_of(&self, entry: &Entry<'d>, depth: usize) -> gimli::Result<String> {
        let Some(target) = self.target(entry)? else {
            return Ok("void".to_owned());
        };
        if depth > DEEPEST {
            return Ok("...".to_owned());
        }
        let name = self.name(&target)?;
        let inner = || self.type_of(&target, depth + 1);
        Ok(match target.tag() {
            gimli::DW_TAG_base_type => {
                let size = Self::number(&target, gimli::DW_AT_byte_size).unwrap_or(-1);
                let encoding = Self::number(&target, gimli::DW_AT_encoding).unwrap_or(-1);
                format!(
                    "{} ({size} bytes, encoding {encoding})",
                    name.unwrap_or_default()
                )
            }
            gimli::DW_TAG_pointer_type => format!("pointer to {}", inner()?),
            // Qualifiers are not part of the layout.
            gimli::DW_TAG_const_type | gimli::DW_TAG_volatile_type => inner()?,
            gimli::DW_TAG_typedef => match self.target(&target)? {
                Some(of) if self.name(&of)?.is_none() && is_aggregate(&of) => {
                    name.unwrap_or_default()
                }
                _ => inner()?,
            },
            gimli::DW_TAG_array_type => {
                let mut counts = String::new();
                for range in self.children(target.offset())? {
                    let count = Self::number(&range, gimli::DW_AT_count);
                    let bound = Self::number(&range, gimli::DW_AT_upper_bound);
                    let count = count.or_else(|| Some(bound?.wrapping_add(1)));
                    counts += &count.map_or_else(|| "[]".to_owned(), |count| format!("[{count}]"));
                }
                format!("{counts} of {}", inner()?)
            }
            gimli::DW_TAG_subroutine_type => {
                let mut parameters = Vec::new();
                for parameter in self.children(target.offset())? {
                    parameters.push(self.type_of(&parameter, depth + 1)?);
                }
                format!("function({}) returning {}", parameters.join(", "), inner()?)
            }
            tag => {
                let kind = match tag {
                    gimli::DW_TAG_structure_type => "struct",
                    gimli::DW_TAG_union_type => "union",
                    gimli::DW_TAG_enumeration_type => "enum",
                    _ => "type",
                };
                match name {
                    Some(name) => format!("{kind} {name}"),
                    None => format!(
                        "{kind} {{ {} }}",
                        self.lines(&target, depth + 1)?.join("; ")
                    ),
                }
            }
        })
    }
}

fn is_aggregate(entry: &Entry<'_>) -> bool {
    matches!(
        entry.tag(),
        gimli::DW_TAG_structure_type | gimli::DW_TAG_union_type | gimli::DW_TAG_enumeration_type
    )
}

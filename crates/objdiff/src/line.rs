// SPDX-License-Identifier: MIT OR Apache-2.0
//! Source lines of instructions, from debugging information (DWARF's `.debug_line`).

use crate::object::{Object, SectionIx, Target};
use gimli::{AttributeValue, DebugLine, DebugLineOffset, EndianSlice, LittleEndian};
use index_vec::IndexVec;

/// A source line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    /// The file, as passed to the compiler.
    pub file: String,
    /// The line, counted from one.
    pub line: u64,
}

impl std::fmt::Display for SourceLine {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// The section with lines.
pub(crate) const LINES: &str = ".debug_line";
/// The sections with file names.
pub(crate) const NAMES: [&str; 2] = [".debug_line_str", ".debug_str"];

/// The source line of the instruction at `offset` of `section`; `None` if the object
/// does not have it.
pub fn source_line(object: &Object, section: SectionIx, offset: u64) -> Option<SourceLine> {
    let table = object.sections.position(|s| s.name == LINES)?;
    let starts = starts(object);
    let data = relocated(object, table, &starts);
    let address_size = u8::try_from(object.machine().width().bytes()).ok()?;
    let lines = DebugLine::new(&data, LittleEndian);
    let wanted = starts[section].wrapping_add(offset);
    let mut unit = 0;
    while unit < data.len() {
        let program = lines
            .program(DebugLineOffset(unit), address_size, None, None)
            .ok()?;
        let header = program.header();
        let length = header.unit_length() + usize::from(header.format().initial_length_size());
        unit = unit.checked_add(length)?;
        let mut rows = program.rows();
        let mut last = None;
        while let Ok(Some((header, row))) = rows.next_row() {
            if let Some((start, line, file)) = last
                && (start..row.address()).contains(&wanted)
            {
                return Some(SourceLine {
                    file: file_name(object, header, file)?,
                    line,
                });
            }
            let line = row.line().map(std::num::NonZeroU64::get);
            last = line
                .filter(|_| !row.end_sequence())
                .map(|line| (row.address(), line, row.file_index()));
        }
    }
    None
}

type Header<'a> = gimli::LineProgramHeader<EndianSlice<'a, LittleEndian>>;

fn file_name(object: &Object, header: &Header, index: u64) -> Option<String> {
    let file = header.file(index)?;
    let name = text(object, &file.path_name())?;
    let directory = file
        .directory(header)
        .filter(|_| file.directory_index() > 0);
    Some(match directory.and_then(|d| text(object, &d)) {
        Some(directory) => format!("{directory}/{name}"),
        None => name,
    })
}

fn text(object: &Object, value: &AttributeValue<EndianSlice<LittleEndian>>) -> Option<String> {
    let within = |section: &str, offset: usize| {
        let section = object.sections.iter().find(|s| s.name == section)?;
        let rest = section.data.get(offset..)?;
        Some(rest.split(|&b| b == 0).next()?.to_vec())
    };
    let bytes = match value {
        AttributeValue::String(text) => text.slice().to_vec(),
        AttributeValue::DebugLineStrRef(offset) => within(NAMES[0], offset.0)?,
        AttributeValue::DebugStrRef(offset) => within(NAMES[1], offset.0)?,
        _ => return None,
    };
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The addresses of sections if they were linked one behind another.
fn starts(object: &Object) -> IndexVec<SectionIx, u64> {
    let mut next = 0_u64;
    let sections = object.sections.iter();
    sections
        .map(|section| {
            let start = next;
            // The end of one is not the start of another.
            next = next.wrapping_add(section.size).wrapping_add(1);
            start
        })
        .collect()
}

/// The bytes of the section at `index` with their relocations applied.
fn relocated(object: &Object, index: SectionIx, starts: &IndexVec<SectionIx, u64>) -> Vec<u8> {
    let address = |section: SectionIx, offset: u64| starts[section].wrapping_add(offset);
    let section = &object.sections[index];
    let mut data = section.data.clone();
    for field in &section.relocations {
        let reference = &field.reference;
        let offset = reference.offset.wrapping_add(reference.bias);
        let value = match reference.target {
            Target::Symbol(symbol) => {
                let symbol = &object.symbols[symbol];
                address(symbol.section, symbol.offset.wrapping_add_signed(offset))
            }
            // File names are given by their offset in their section.
            Target::Anonymous(other) if object.sections[other].is_code() => {
                address(other, offset.cast_unsigned())
            }
            Target::Anonymous(_) => offset.cast_unsigned(),
            Target::External(_) => 0,
        };
        let width = object
            .arch
            .relocation(field.r_type)
            .map_or(0, |relocation| relocation.size);
        let place = usize::try_from(field.offset).unwrap_or(usize::MAX);
        let bytes = value.to_le_bytes();
        if let Some(field) = data.get_mut(place..).and_then(|rest| rest.get_mut(..width)) {
            field.copy_from_slice(&bytes[..width.min(bytes.len())]);
        }
    }
    data
}

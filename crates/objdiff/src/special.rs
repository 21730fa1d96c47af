// SPDX-License-Identifier: MIT OR Apache-2.0
//! Special sections: tables about code elsewhere, such as bug frames, alternatives
//! and exception tables.
//!
//! Each entry belongs to the function that its first field leads to, and goes into a
//! payload only together with that function.

use crate::arch::Arch;
use crate::object::{Object, Relocation, SectionIx, Span, Symbol, SymbolIx, Target};
use xsplice_abi::special::{self, Alternative, FIELD_SIZE, REPLACEMENTS, Table, table};

/// The part of an addend that is not an offset, from the offset of its field in
/// `section` and the addend; `None` if there is no such part.
///
/// The displacements of a bug frame count from the start of the frame; a line number may
/// be above them.
pub(crate) fn bias(arch: &'static dyn Arch, section: &str) -> Option<impl Fn(u64, i64) -> i64> {
    let frame = bug_frame_size(arch, section)?;
    Some(move |offset: u64, addend: i64| {
        arch.line_part(addend)
            .wrapping_add((offset % frame).cast_signed())
    })
}

/// Whether two fields of `section` have the same bias, apart from the line number: a
/// function that only moved within its source is unchanged.
pub(crate) fn same_bias(arch: &dyn Arch, section: &str, (old, new): (i64, i64)) -> bool {
    let difference = old.wrapping_sub(new);
    let only_line = || arch.only_line_differs(difference);
    difference == 0 || bug_frame_size(arch, section).is_some() && only_line()
}

fn bug_frame_size(arch: &dyn Arch, section: &str) -> Option<u64> {
    match table(section)? {
        kind @ Table::BugFrames(_) => Some(arch.entry_size(kind)),
        Table::Exceptions | Table::EarlyExceptions | Table::Alternatives | Table::CallSites => None,
    }
}

/// One entry of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The table.
    pub table: Table,
    /// Its bytes.
    pub span: Span,
    /// The symbol that the entry describes; `None` for code without a symbol.
    pub owner: Option<SymbolIx>,
}

/// All entries of all tables of `object`, in order.
pub fn entries(object: &Object) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (index, section) in object.sections.iter_enumerated() {
        let Some(table) = table(&section.name) else {
            continue;
        };
        let size = object.arch.entry_size(table);
        let mut offset = 0;
        let end = section.data.len() as u64;
        while offset < end {
            let span = Span {
                section: index,
                offset,
                size,
            };
            let mut entry = Entry {
                table,
                span,
                owner: None,
            };
            if let Some(Target::Symbol(owner)) = entry.about(object).map(|f| &f.reference.target) {
                entry.owner = Some(*owner);
            }
            entries.push(entry);
            offset += size;
        }
    }
    entries
}

/// The anonymous piece that contains `offset` of `section`. Jump tables, and code in
/// sections without symbols, extend to the next referenced place. Other data may be
/// walked across labels, so it extends from one symbol to the next; so does what is
/// between functions with symbols, which may be code or data.
pub fn piece(object: &Object, section: SectionIx, offset: u64) -> Span {
    let end = object.sections[section].size;
    let starts = object.pieces_in(section);
    let next = starts.get(starts.partition_point(|&start| start <= offset));
    let upto = |start: u64, end: u64| Span {
        section,
        offset: start,
        size: end.saturating_sub(start),
    };
    let piece = upto(offset, next.map_or(end, |&next| next.min(end)));
    let code_only =
        object.sections[section].is_code() && object.symbols_in(section).next().is_none();
    if code_only || is_jump_table(object, piece) {
        return piece;
    }
    let symbols = || {
        let indices = object.symbols_in(section);
        indices.map(|index| &object.symbols[index])
    };
    let before = symbols().filter(|s| s.offset <= offset).map(Symbol::end);
    let behind = symbols().map(|s| s.offset).filter(|&start| start > offset);
    let start = before.max().unwrap_or(0).min(offset);
    upto(start, behind.min().unwrap_or(end).max(offset))
}

/// Whether all references of a piece lead into one function.
fn is_jump_table(object: &Object, piece: Span) -> bool {
    let fields = object.relocations(piece);
    let widths = fields.iter().map(|field| object.width(field.r_type) as u64);
    let relocated: u64 = widths.sum();
    let into = |field: &Relocation| match field.reference.target {
        Target::Symbol(index) if object.symbols[index].function => Some(index),
        _ => None,
    };
    let first = fields.first().and_then(into);
    first.is_some() && relocated == piece.size && fields.iter().all(|field| into(field) == first)
}

/// Whether the field at `offset` of `section` belongs to an indirect call or jump
/// that the hypervisor makes direct, according to one of `entries`: it reads the
/// pointer when it loads the code, not when it runs it.
pub fn becomes_direct(object: &Object, entries: &[Entry], section: SectionIx, offset: u64) -> bool {
    let code = &object.sections[section].data;
    let Some(start) = object.arch.call_through(code, offset) else {
        return false;
    };
    let is_here = |entry: &Entry| {
        let reference = entry.about(object).map(|field| &field.reference);
        reference.is_some_and(|reference| match reference.target {
            Target::Symbol(code) => {
                let code = &object.symbols[code];
                let at = code.offset.wrapping_add_signed(reference.offset);
                (code.section, at) == (section, start)
            }
            Target::External(_) | Target::Anonymous(_) => false,
        })
    };
    let mut entries = entries.iter().filter(|entry| entry.table.changes_code());
    entries.any(is_here)
}

impl Entry {
    /// Its first field, which leads to what it is about.
    pub fn about<'a>(&self, object: &'a Object) -> Option<&'a Relocation> {
        let first = Span {
            size: FIELD_SIZE,
            ..self.span
        };
        object.relocations(first).first()
    }

    /// What the entry says, as if it were in memory at its offset.
    pub fn read(&self, object: &Object) -> Option<special::Entry> {
        let bytes = object.bytes(self.span);
        object.arch.read_entry(self.table, bytes, self.span.offset)
    }

    /// The part of it that says something about the code, apart from its line.
    pub(crate) fn compared(&self, object: &Object) -> Span {
        Span {
            size: object.arch.compared_size(self.table),
            ..self.span
        }
    }

    fn alternative(&self, object: &Object) -> Option<Alternative> {
        match self.read(object)? {
            special::Entry::Alternative(alternative) => Some(alternative),
            special::Entry::BugFrame { .. }
            | special::Entry::Exception(_)
            | special::Entry::CallSite(_) => None,
        }
    }
}

/// The anonymous pieces that the fields of `entry` lead to: replacement code, fixup
/// code.
pub fn pieces(object: &Object, entry: &Entry) -> Vec<Span> {
    let fields = object.relocations(entry.span);
    let leads_to = fields
        .iter()
        .filter_map(|field| match field.reference.target {
            Target::Anonymous(section) if object.sections[section].merge.is_none() => {
                Some((section, u64::try_from(field.reference.offset).ok()?))
            }
            _ => None,
        });
    leads_to
        .map(|(section, offset)| {
            if object.sections[section].name == REPLACEMENTS {
                let alternative = entry.alternative(object);
                let size = alternative.map_or(0, |alternative| alternative.replacement_len);
                return Span {
                    section,
                    offset,
                    size: size.into(),
                };
            }
            piece(object, section, offset)
        })
        .collect()
}

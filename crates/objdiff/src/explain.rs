// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first instruction that differs between two builds of a function.

use crate::arch::Instruction;
use crate::compare::describe;
use crate::line::{SourceLine, source_line};
use crate::object::{Object, Relocation, SectionIx, Span, SymbolIx};
use xsplice_abi::suffix;

/// The first difference between two builds of a function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirstChange {
    /// Offset of the instruction in the original function.
    pub old_offset: u64,
    /// The original instruction; empty at the function's end.
    pub old: String,
    /// Offset of the instruction in the patched function.
    pub new_offset: u64,
    /// The patched instruction; empty at the function's end.
    pub new: String,
    /// Source line of the original instruction, if the object has it.
    pub old_line: Option<SourceLine>,
    /// Source line of the patched instruction, if the object has it.
    pub new_line: Option<SourceLine>,
}

/// Finds the first instruction that differs between symbol `old` of `original` and
/// symbol `new` of `patched`. Branch distances do not count: they change with
/// everything in between. `None` if there is no other difference, for example if only
/// a table about the function changed.
pub fn first_change(
    original: &Object,
    old: SymbolIx,
    patched: &Object,
    new: SymbolIx,
) -> Option<FirstChange> {
    let (mut old, mut new) = (Walk::new(original, old), Walk::new(patched, new));
    loop {
        match (old.next(), new.next()) {
            (None, None) => return None,
            (Some(a), Some(b)) if a.same_as(&b) => {}
            (a, b) => {
                let line = |walk: &Walk, step: &Option<Step>| {
                    let place = walk.start.checked_add(step.as_ref()?.offset)?;
                    source_line(walk.object, walk.section, place)
                };
                return Some(FirstChange {
                    old_line: line(&old, &a),
                    new_line: line(&new, &b),
                    old_offset: a.as_ref().map_or(old.size, |step| step.offset),
                    old: a.map(|step| step.text).unwrap_or_default(),
                    new_offset: b.as_ref().map_or(new.size, |step| step.offset),
                    new: b.map(|step| step.text).unwrap_or_default(),
                });
            }
        }
    }
}

struct Walk<'a> {
    object: &'a Object,
    fields: &'a [Relocation],
    section: SectionIx,
    start: u64,
    size: u64,
    code: &'a [u8],
    instructions: Box<dyn Iterator<Item = Instruction> + 'a>,
}

struct Step {
    offset: u64,
    /// The bytes, with relocated fields and branch distances zeroed.
    bytes: Vec<u8>,
    /// The targets of relocated fields, by name and offset.
    leads_to: Vec<String>,
    text: String,
}

impl Step {
    fn same_as(&self, other: &Self) -> bool {
        self.bytes == other.bytes && self.leads_to == other.leads_to
    }
}

impl<'a> Walk<'a> {
    fn new(object: &'a Object, index: SymbolIx) -> Self {
        let symbol = &object.symbols[index];
        let code = object.bytes(symbol.span());
        Self {
            object,
            fields: object.relocations(symbol.span()),
            section: symbol.section,
            start: symbol.offset,
            size: code.len() as u64,
            code,
            instructions: object.arch.decode(code, 0),
        }
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let instruction = self.instructions.next()?;
        let (offset, end) = (instruction.start, instruction.end);
        let code = crate::object::slice(self.code, offset, end - offset);
        let mut bytes = code.to_vec();
        let fields = self
            .fields
            .iter()
            .filter(|field| (offset..end).contains(&field.offset.wrapping_sub(self.start)));
        let leads_to: Vec<String> = fields
            .map(|field| describe(self.object, &field.reference))
            .collect();
        let span = Span {
            section: self.section,
            offset: self.start + offset,
            size: end - offset,
        };
        self.object.clear_fields(span, &mut bytes);
        if leads_to.is_empty() && instruction.branch_target().is_some() {
            self.object.arch.clear_distance(&mut bytes);
        }
        let mut text = self.object.arch.text(code, offset);
        if !leads_to.is_empty() {
            text = format!("{text} <{}>", leads_to.join(", "));
        }
        let leads_to = leads_to
            .iter()
            .map(|target| suffix::unnumbered(target).to_owned())
            .collect();
        Some(Step {
            offset,
            bytes,
            leads_to,
            text,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn object(patched: bool, compiler: &str) -> Object {
        const SOURCE: &str = "int other(const char *);\n\
            #ifdef PATCHED\nint f(int x) { if ( x > 3 ) other(\"b\"); return x * 9; }\n\
            #else\nint f(int x) { if ( x > 3 ) other(\"a\"); return x * 9; }\n#endif\n";
        let directory = tempfile::tempdir().expect("a directory");
        let (c, o) = (directory.path().join("x.c"), directory.path().join("x.o"));
        std::fs::write(&c, SOURCE).expect("written");
        let mut build = Command::new(compiler);
        build.args([
            "-O2",
            "-ffunction-sections",
            "-fno-pie",
            "-fcf-protection=none",
            "-g",
            "-c",
            "-o",
        ]);
        build.args([&o, &c]).args(patched.then_some("-DPATCHED"));
        assert!(
            build
                .status()
                .expect("the test needs gcc and clang")
                .success()
        );
        Object::read("x.o", &std::fs::read(o).expect("compiled")).expect("an object")
    }

    #[test]
    fn the_first_changed_instruction_is_told_with_what_it_refers_to() {
        for compiler in ["gcc", "clang"] {
            let (original, patched) = (object(false, compiler), object(true, compiler));
            let find = |object: &Object| object.symbols.position(|s| s.name == "f");
            let (old, new) = (find(&original).expect("f"), find(&patched).expect("f"));
            assert_eq!(first_change(&original, old, &original, old), None);
            let change = first_change(&original, old, &patched, new).expect("a difference");
            assert_eq!(change.old_offset, change.new_offset);
            assert!(change.old.ends_with("<\"a\">"), "{change:?}");
            assert!(change.new.ends_with("<\"b\">"), "{change:?}");
            let line = |line: &Option<SourceLine>| {
                let line = line.clone().expect("a line");
                assert!(line.file.ends_with("x.c"), "{line}");
                line.line
            };
            assert_eq!((line(&change.old_line), line(&change.new_line)), (5, 3));
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Determines which variable of a shared section a reference means.
//!
//! An assembler writes a reference to a private variable as its section and an
//! offset. If several variables share the section, `array + ARRAY_SIZE(array)` is
//! then the start of the next one, and `array - 1` is within the one before. An
//! object assembled with these variables declared global must name them.

use crate::elf::Wide;
use crate::image::Name;
use object::read::elf::ElfSymbol64;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex,
    SymbolKind,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A field, given by its distance from a name, and the variable that it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reference {
    pub(crate) from: Name,
    pub(crate) offset: u64,
    pub(crate) to: Name,
}

/// The private variables of an object that share a section, and its source file.
#[derive(Debug, Default)]
pub(crate) struct Private {
    file: Option<String>,
    names: BTreeSet<String>,
}

impl Private {
    /// Reads them from the build's object `data`.
    pub(crate) fn of(data: &[u8]) -> Self {
        let Ok(file) = Wide::of(data) else {
            return Self::default();
        };
        let Ok(elf) = file.parse() else {
            return Self::default();
        };
        let source = elf
            .symbols()
            .find(|symbol| symbol.kind() == SymbolKind::File);
        let file = source.and_then(|source| Some(source.name().ok()?.to_owned()));
        let mut sections: HashMap<SectionIndex, Vec<ElfSymbol64<'_, '_, Endianness>>> =
            HashMap::new();
        for symbol in elf.symbols().filter(|s| s.kind() == SymbolKind::Data) {
            if let Some(section) = symbol.section_index() {
                sections.entry(section).or_default().push(symbol);
            }
        }
        let shared = sections
            .values()
            .filter(|inside| inside.len() > 1)
            .flatten();
        let names = shared
            .filter(|symbol| symbol.is_local())
            .filter_map(|symbol| Some(symbol.name().ok()?.to_owned()));
        Self {
            file,
            names: names.collect(),
        }
    }

    /// Assembly that declares them global; `None` if there are none.
    pub(crate) fn declarations(&self) -> Option<String> {
        let lines = self.names.iter().map(|name| format!(".globl \"{name}\"\n"));
        (!self.names.is_empty()).then(|| lines.collect())
    }

    /// The references to them in `data`, the object assembled with the declarations.
    pub(crate) fn references(&self, data: &[u8]) -> Vec<Reference> {
        let Ok(file) = Wide::of(data) else {
            return Vec::new();
        };
        let Ok(elf) = file.parse() else {
            return Vec::new();
        };
        let mut references = Vec::new();
        for section in elf.sections() {
            let mut names = BTreeMap::new();
            let inside = elf.symbols().filter(|symbol| {
                let known = [SymbolKind::Text, SymbolKind::Data].contains(&symbol.kind());
                known && symbol.section_index() == Some(section.index())
            });
            for symbol in inside {
                if let Ok(name) = symbol.name() {
                    let local = symbol.is_local() || self.names.contains(name);
                    names.insert(symbol.address(), self.name(name, local));
                }
            }
            for (offset, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else {
                    continue;
                };
                let target = elf.symbol_by_index(index);
                let target = target.and_then(|target| target.name()).unwrap_or_default();
                let base = names.range(..=offset).next_back();
                if let (Some((start, from)), true) = (base, self.names.contains(target)) {
                    references.push(Reference {
                        from: from.clone(),
                        offset: offset - start,
                        to: self.name(target, true),
                    });
                }
            }
        }
        references
    }

    fn name(&self, symbol: &str, local: bool) -> Name {
        Name {
            file: self.file.clone().filter(|_| local),
            symbol: symbol.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const SOURCE: &str = r#"
#define SHARED __attribute__((section(".data.shared")))
static unsigned int before[3] SHARED = { 1, 2, 3 };
static unsigned int array[3] SHARED = { 4, 5, 6 };
unsigned int *border = before + 3, *inside = array - 1;
unsigned int *start(void) { return array; }
"#;

    fn compiled(options: &[&str]) -> Vec<u8> {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("file.c"), SOURCE).expect("written");
        let private = Private {
            names: ["before", "array"].map(str::to_owned).into(),
            file: None,
        };
        std::fs::write(at("list.s"), private.declarations().expect("some")).expect("written");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-pipe", "-c", "file.c", "-o", "file.o"]);
        let status = gcc.args(options).current_dir(&directory).status();
        assert!(status.expect("it runs").success());
        std::fs::read(at("file.o")).expect("there")
    }

    #[test]
    fn references_name_the_variable_that_is_meant() {
        let private = Private::of(&compiled(&[]));
        let names: Vec<&str> = private.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["array", "before"]);
        assert_eq!(private.file.as_deref(), Some("file.c"));
        assert_eq!(private.references(&compiled(&[])), []);
        let references = private.references(&compiled(&["-Wa,list.s,-"]));
        let meant = |from: &str| {
            let mut of = references.iter().filter(|r| r.from.symbol == from);
            of.next()
                .map(|r| (r.to.symbol.as_str(), r.to.file.as_deref()))
        };
        assert_eq!(meant("border"), Some(("before", Some("file.c"))));
        assert_eq!(meant("inside"), Some(("array", Some("file.c"))));
        assert_eq!(meant("start"), Some(("array", Some("file.c"))));
    }

    #[test]
    fn what_is_no_object_says_nothing() {
        let private = Private::of(b"no object");
        assert!(private.declarations().is_none());
        assert_eq!(private.references(b"no object"), []);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payloads that a new one goes on top of.

use crate::{Problem, Refused};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use xsplice_abi::note::parse_build_id;
use xsplice_abi::payload::{LivepatchFunc, section};
use zerocopy::FromBytes as _;

/// Payloads that are applied already, the first one lowest.
#[derive(Debug, Default)]
pub struct Below {
    /// Build-id of the topmost; what the new payload depends on.
    pub build_id: Vec<u8>,
    /// Name and contents of each.
    pub payloads: Vec<(String, Vec<u8>)>,
    /// Names of the symbols that they define.
    symbols: BTreeSet<String>,
    /// Addresses of the hypervisor's functions that they replace.
    replaced: BTreeSet<u64>,
}

impl Below {
    /// Reads the payloads at `paths`, the lowest first.
    ///
    /// # Errors
    /// What cannot be read, or is no payload.
    pub fn read(paths: &[PathBuf]) -> Result<Self, Refused> {
        let mut below = Self::default();
        let mut problems = Vec::new();
        for path in paths {
            if let Err(problem) = below.add(path) {
                problems.push(problem);
            }
        }
        if problems.is_empty() {
            Ok(below)
        } else {
            Err(Refused(problems))
        }
    }

    /// The full name under which a payload defines what `file` calls `name`.
    pub fn symbol(&self, file: &str, name: &str) -> Option<&str> {
        let start = format!("{file}#{name}{}", crate::payload::VERSION_SUFFIX);
        let after = self.symbols.range(start.clone()..);
        // The topmost definition would have another tag; a name is new once.
        let mut found = after.take_while(|symbol| symbol.starts_with(&start));
        found.next().map(String::as_str)
    }

    /// Whether a payload replaces the hypervisor's function at `address`.
    pub fn replaces(&self, address: u64) -> bool {
        self.replaced.contains(&address)
    }

    fn add(&mut self, path: &Path) -> Result<(), Problem> {
        let place = || path.display().to_string();
        let bad = |reason: &str| Problem::new(place(), format!("it is no payload: {reason}"));
        let data = std::fs::read(path).map_err(|e| Problem::new(place(), e.to_string()))?;
        let file = object::File::parse(&*data).map_err(|e| bad(&e.to_string()))?;
        let contents = |name: &str| {
            let section = file.section_by_name(name)?;
            section.data().ok()
        };
        let id = contents(section::BUILD_ID).and_then(parse_build_id);
        self.build_id = id.ok_or_else(|| bad("it has no build-id"))?.to_vec();
        let functions = contents(section::FUNCS).ok_or_else(|| bad("it replaces no functions"))?;
        for record in functions.chunks_exact(size_of::<LivepatchFunc>()) {
            if let Ok(record) = LivepatchFunc::read_from_bytes(record) {
                self.replaced.insert(record.old_addr.get());
            }
        }
        let defined = file.symbols().filter(|symbol| symbol.is_definition());
        let names = defined.filter_map(|symbol| Some(symbol.name().ok()?.to_owned()));
        self.symbols.extend(names);
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        self.payloads.push((name.into_owned(), data));
        Ok(())
    }
}

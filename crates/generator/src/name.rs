// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of symbols in the hypervisor and in a payload.

use crate::tree::ObjectFile;
use xsplice_abi::symbol::RuntimeName;

/// Suffix of new symbols in a draft. The payload appends its tag, because the
/// hypervisor refuses names that another payload also has.
const NEW: &str = "@";

/// File-name prefix of traps in place of freed boot-only code.
const TRAP: &str = "freed-after-boot";

/// File-name prefix of veneers.
const VENEER: &str = "veneer";

/// The end of the names of files with hooks.
const HOOKS: &str = ".hooks.c";

/// The name of a new symbol in a payload, from symbol and file. For a source that is
/// compiled several times, the object is the file.
pub(crate) fn payload_name(file: &ObjectFile, symbol: &str) -> String {
    fn stem(path: &str) -> &str {
        path.rsplit_once('.').map_or(path, |(stem, _)| stem)
    }
    let place = match stem(&file.path) == stem(&file.source) {
        true => &file.source,
        false => &file.path,
    };
    new_name(place, symbol)
}

/// The name of the new contents of a symbol of `source` that hooks change in place.
pub(crate) fn contents_name(source: &str, symbol: &str) -> String {
    new_name(&hooks_source(source), symbol)
}

/// The name of the trap in place of a symbol.
pub(crate) fn trap_name(symbol: &str) -> String {
    new_name(TRAP, symbol)
}

/// The name of the veneer to a symbol of a draft, so many bytes behind a multiple of what
/// its distances must be.
pub(crate) fn veneer_name(symbol: &str, behind: u64) -> String {
    let name = RuntimeName::parse(plain(symbol)).name;
    match behind {
        0 => new_name(VENEER, name),
        _ => new_name(VENEER, &format!("{name}.{behind}")),
    }
}

fn new_name(file: &str, symbol: &str) -> String {
    format!("{}{NEW}", RuntimeName::local(file, symbol))
}

/// The path of a file with hooks.
pub(crate) fn hooks_source(path: &str) -> String {
    format!("{path}{HOOKS}")
}

/// Whether a symbol in a payload is new, not the hypervisor's.
pub(crate) fn is_new(name: &str) -> bool {
    name.contains(NEW)
}

/// The name of a payload's symbol as drafts have it: without the payload's tag.
pub(crate) fn drafted(name: &str) -> &str {
    let end = name.find(NEW).map_or(name.len(), |at| at + NEW.len());
    &name[..end]
}

/// A name of a draft with the payload's `tag`, if the symbol is new.
pub(crate) fn tagged(name: &str, tag: &str) -> String {
    let tag = if name.ends_with(NEW) { tag } else { "" };
    [name, tag].concat()
}

/// The file and name of a payload's symbol, new or not.
pub(crate) fn plain(name: &str) -> &str {
    let drafted = drafted(name);
    drafted.strip_suffix(NEW).unwrap_or(drafted)
}

/// Whether a payload's symbol is a trap in place of boot-only code.
pub(crate) fn is_trap(name: &str) -> bool {
    name.starts_with(TRAP)
}

/// Whether a payload's symbol is a veneer.
pub(crate) fn is_veneer(name: &str) -> bool {
    RuntimeName::parse(plain(name)).file == Some(VENEER)
}

/// Whether a payload's symbol is from a file with hooks.
pub(crate) fn is_from_hooks(name: &str) -> bool {
    let file = RuntimeName::parse(plain(name)).file;
    file.is_some_and(|file| file.ends_with(HOOKS))
}

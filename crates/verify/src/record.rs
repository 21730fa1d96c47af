// SPDX-License-Identifier: MIT OR Apache-2.0
//! Reads the build records of a Kbuild tree.

use crate::elf::Wide;
use object::{Object as _, ObjectSymbol, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Make arguments that keep it from rebuilding the tree's objects.
pub(crate) fn arguments(xen: &Path) -> std::io::Result<Vec<String>> {
    let mut arguments = vec![
        // Keep the date of the build.
        "cmd_compile.h=:".to_owned(),
        // No second hypervisor for UEFI.
        "efi-y=".to_owned(),
        "WGET=false".to_owned(),
        "GIT=false".to_owned(),
        "PYTHON=/usr/bin/python3".to_owned(),
    ];
    let record = |name: &str| std::fs::read_to_string(xen.join(name));
    let link = record(".prelink.o.cmd")?;
    let linker = words(&link).first().copied();
    arguments.extend(linker.map(|linker| format!("LD={linker}")));
    // Without a configuration, make says what is missing.
    let config = match record(".config") {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        config => config?,
    };
    let has = |option: &str| config.lines().any(|line| line == option);
    let target = [("CONFIG_ARM_64=y", "arm64"), ("CONFIG_ARM_32=y", "arm32")];
    if let Some((_, target)) = target.iter().find(|(option, _)| has(option)) {
        arguments.push(format!("XEN_TARGET_ARCH={target}"));
        // The linker's rewrites against this erratum of ARM64 depend on where code is, and
        // are not there to be compared.
        arguments.push("CONFIG_ARM64_ERRATUM_843419=n".to_owned());
        let prefix = linker.and_then(|linker| linker.strip_suffix("ld"));
        arguments.extend(prefix.map(|prefix| format!("CROSS_COMPILE={prefix}")));
    }
    let compile = record("common/.version.o.cmd")?;
    let words = words(&compile);
    if let Some(compiler) = words.first() {
        arguments.push(format!("CC={compiler}"));
    }
    let maps = words.iter().filter(|word| {
        let options = [
            "-ffile-prefix-map=",
            "-fdebug-prefix-map=",
            "-fmacro-prefix-map=",
        ];
        options.iter().any(|option| word.starts_with(option))
    });
    let maps: Vec<&str> = maps.copied().collect();
    if !maps.is_empty() {
        arguments.push(format!("EXTRA_CFLAGS_XEN_CORE={}", maps.join(" ")));
    }
    Ok(arguments)
}

/// The recorded command.
fn command(record: &str) -> &str {
    let first = record.lines().next().unwrap_or_default();
    first.split_once(":=").unwrap_or_default().1
}

fn words(record: &str) -> Vec<&str> {
    command(record).split_whitespace().collect()
}

/// The command that compiles the C source of `object` to `output`, with debugging
/// information and with the assembly `first` prepended; `None` if `object` is not
/// from C.
pub(crate) fn debug_command(
    xen: &Path,
    object: &Path,
    output: &Path,
    first: Option<&Path>,
) -> Option<String> {
    let record = std::fs::read_to_string(xen.join(cmd_file(object))).ok()?;
    let compile = command(&record).split([';', '|']).next()?;
    let compile = compile.split("&&").next()?;
    let mut words = compile.split_whitespace().peekable();
    let mut wanted = Vec::new();
    let mut source = false;
    while let Some(word) = words.next() {
        match word {
            "-MF" | "-MQ" | "-MT" | "-o" => drop(words.next()),
            "-MMD" | "-MD" | "-MP" => {}
            word => {
                source |= word.ends_with(".c");
                wanted.push(word);
            }
        }
    }
    let compiles = source && wanted.contains(&"-c");
    // The compiler's own output, piped or named, follows.
    let first = first.map(|first| format!(" '-Wa,{},-'", first.display()));
    let first = first.unwrap_or_default();
    compiles.then(|| format!("{}{first} -g -o '{}'", wanted.join(" "), output.display()))
}

/// Objects that differ between two trees, and those that only one has.
pub(crate) fn different(before: &Path, after: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let (old, new) = (objects(before)?, objects(after)?);
    let contents = |tree: &Path, object: &PathBuf| std::fs::read(tree.join(object)).ok();
    let all = old.union(&new).cloned();
    Ok(all
        .filter(|o| contents(before, o) != contents(after, o))
        .collect())
}

/// The source file of each global symbol that an object of the tree defines.
pub(crate) fn files(xen: &Path) -> std::io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for object in objects(xen)? {
        let data = std::fs::read(xen.join(&object))?;
        let Ok(file) = Wide::of(&data) else {
            continue;
        };
        let Ok(elf) = file.parse() else {
            continue;
        };
        let is_file = |symbol: &_| ObjectSymbol::kind(symbol) == SymbolKind::File;
        let mut sources = elf.symbols().filter(is_file);
        // An object linked from several has several sources.
        let (Some(source), None) = (sources.next(), sources.next()) else {
            continue;
        };
        let globals = elf.symbols().filter(|s| s.is_global() && s.is_definition());
        for name in globals.filter_map(|symbol| symbol.name().ok()) {
            let source = source.name().unwrap_or_default();
            files.insert(name.to_owned(), source.to_owned());
        }
    }
    Ok(files)
}

/// All objects that the build compiled, relative to the tree.
fn objects(xen: &Path) -> std::io::Result<BTreeSet<PathBuf>> {
    let mut objects = BTreeSet::new();
    let mut directories = vec![PathBuf::new()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(xen.join(&directory))? {
            let entry = entry?;
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "o")
                && xen.join(cmd_file(&path)).is_file()
            {
                objects.insert(path);
            }
        }
    }
    Ok(objects)
}

/// Path of the record with the command for `object`.
fn cmd_file(object: &Path) -> PathBuf {
    let name = object.file_name().unwrap_or_default().to_string_lossy();
    object.with_file_name(format!(".{name}.cmd"))
}

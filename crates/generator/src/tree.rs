// SPDX-License-Identifier: MIT OR Apache-2.0
//! A built Xen source tree, with its build records.

use crate::code::Code;
use crate::generated_file::GeneratedFile;
use crate::problem::Refused;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use xsplice_system::file;

/// A compiled object of the tree.
#[derive(Debug, Clone)]
pub struct ObjectFile {
    /// Path of the object, relative to the `xen` directory.
    pub path: String,
    /// The recorded compile command, to run in the `xen` directory.
    pub command: String,
    /// The file that the command writes, relative to the `xen` directory.
    pub output: String,
    /// The source file, relative to the `xen` directory.
    pub source: String,
    /// Every file that was read to compile it, the source included.
    pub dependencies: BTreeSet<String>,
}

impl ObjectFile {
    /// Whether the source is assembly.
    pub fn is_assembly(&self) -> bool {
        self.source.ends_with(".S")
    }

    /// The same object with debugging information.
    pub(crate) fn with_types(&self) -> Self {
        self.with_flags("-g -fno-var-tracking")
    }

    /// The same object with only the debugging information that GCC has before code
    /// generation: types, in a third of the time.
    pub(crate) fn with_early_types(&self) -> Self {
        self.with_flags("-g -flto -fno-fat-lto-objects")
    }

    /// The same, preprocessed only.
    pub(crate) fn preprocessed(&self) -> Self {
        self.with_flags("-E")
    }

    fn with_flags(&self, flags: &str) -> Self {
        // C files that assembly is generated from are compiled with `-S`.
        let step = [" -c ", " -S "]
            .into_iter()
            .find(|step| self.command.contains(step));
        let step = step.unwrap_or(" -o ");
        Self {
            command: self.command.replacen(step, &format!(" {flags}{step}"), 1),
            ..self.clone()
        }
    }
}

/// A built Xen source tree.
#[derive(Debug)]
pub struct Tree {
    /// The directory that contains `xen`, absolute.
    pub top: PathBuf,
    /// All objects compiled into the hypervisor.
    pub objects: Vec<ObjectFile>,
    /// All other files generated from files of the tree.
    pub generated: Vec<GeneratedFile>,
    /// Symbolic links to source files, and their targets, both relative to the `xen`
    /// directory.
    pub links: BTreeMap<String, String>,
    /// Objects in the hypervisor's library, of which only some are linked.
    pub archived: BTreeSet<String>,
}

impl Tree {
    /// Reads the build records of the tree at `path`; `path` is the top of the source
    /// or its `xen` directory.
    ///
    /// # Errors
    /// If there is no Xen source, or if it was not built.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let refuse = |code, message: &str| Refused::one(code, file::shown(path), message);
        let top = top_of(path)?.ok_or_else(|| {
            refuse(
                Code::NotATree,
                "not a Xen source tree: there is no xen/Rules.mk",
            )
        })?;
        let xen = top.join("xen");
        let mut records = Records::default();
        collect(&xen, &xen, &mut records)?;
        if let Some(version) = too_old(&xen) {
            let message = format!(
                "this is the source of Xen {version}; xsplice needs what the build records \
                 from 4.17 on"
            );
            return Err(refuse(Code::NotATree, &message));
        }
        if records.objects.is_empty() {
            let message = "the tree was not built: no compile commands are recorded in it; \
                           build it once with `make -C xen` and the hypervisor's own configuration";
            return Err(refuse(Code::NotBuilt, message));
        }
        records.complete(&xen);
        Ok(Self {
            top,
            objects: records.objects,
            generated: records.generated,
            links: records.links,
            archived: inputs(&xen, "lib/lib.a").collect(),
        })
    }

    /// The Python interpreter for the build's scripts, some of which take it from the
    /// environment.
    pub(crate) fn python(&self) -> &str {
        let programs = self.generated.iter().filter_map(|file| {
            let program = file.command.split_whitespace().next()?;
            let name = program.rsplit('/').next()?;
            name.starts_with("python").then_some(program)
        });
        programs.min().unwrap_or("python3")
    }

    /// The value of `option`, such as `CONFIG_HVM`, in the tree's configuration;
    /// empty if unset.
    pub fn setting(&self, option: &str) -> String {
        let config = std::fs::read_to_string(self.top.join("xen/.config")).unwrap_or_default();
        let mut values = config
            .lines()
            .filter_map(|line| line.strip_prefix(option)?.strip_prefix('='));
        values.next().unwrap_or_default().to_owned()
    }

    /// The new object `path`, compiled from the source of the same name like the
    /// other sources of its directory. `None` if there are none.
    pub fn new_object(&self, path: &str, source: &str) -> Option<ObjectFile> {
        let directory = |path: &str| path.rsplit_once('/').map_or("", |(dir, _)| dir).to_owned();
        let extension = |path: &str| path.rsplit_once('.').map_or("", |(_, e)| e).to_owned();
        let like = |object: &&ObjectFile| {
            directory(&object.path) == directory(path)
                && extension(&object.source) == extension(source)
                && object.command.contains(" -c ")
        };
        // The most common command, since some objects have special flags.
        let mut commands: BTreeMap<String, usize> = BTreeMap::new();
        let output = format!("{path}.xsplice");
        for model in self.objects.iter().filter(like) {
            let command = compile_like(model, &format!("-c -o {output} {source}"));
            *commands.entry(command).or_default() += 1;
        }
        let (command, _) = commands.into_iter().max_by_key(|(_, count)| *count)?;
        Some(ObjectFile {
            path: path.to_owned(),
            command,
            output,
            source: source.to_owned(),
            dependencies: BTreeSet::from([source.to_owned()]),
        })
    }

    /// The objects that depend on any of `files` (relative to the `xen` directory).
    pub fn reached_by<'a>(&'a self, files: &'a BTreeSet<String>) -> Vec<&'a ObjectFile> {
        self.objects
            .iter()
            .filter(|o| !o.dependencies.is_disjoint(files))
            .collect()
    }
}

/// Parts of the tree whose objects do not go into the hypervisor.
const NOT_LINKED: [&str; 4] = ["tools", "test", "scripts", "Documentation"];

#[derive(Default)]
struct Records {
    objects: Vec<ObjectFile>,
    generated: Vec<GeneratedFile>,
    links: BTreeMap<String, String>,
}

impl Records {
    /// Adds what has no record, leaves out what is not linked, and lets an object
    /// depend on what its links lead to.
    fn complete(&mut self, xen: &Path) {
        self.objects.extend(assembly_offsets(xen, &self.objects));
        let unrecorded = crate::unrecorded::generated(xen, &self.generated);
        self.generated.extend(unrecorded);
        let linked = linked(xen);
        if !linked.is_empty() {
            self.objects
                .retain(|object| linked.contains(&object.path) || is_used_unlinked(xen, object));
        }
        for object in &mut self.objects {
            let through = object.dependencies.iter();
            let through = through.filter_map(|d| self.links.get(d)).cloned();
            let through: Vec<String> = through.collect();
            object.dependencies.extend(through);
        }
        self.objects.sort_by(|a, b| a.path.cmp(&b.path));
        self.generated.sort_by(|a, b| a.path.cmp(&b.path));
    }
}

/// The top of the source tree at `path`, if it is one.
fn top_of(path: &Path) -> Result<Option<PathBuf>, Refused> {
    let path = path.canonicalize().map_err(|e| Refused::io(path, &e))?;
    if path.join("xen/Rules.mk").is_file() {
        return Ok(Some(path));
    }
    let is_xen = path.join("Rules.mk").is_file() && path.join("common").is_dir();
    Ok(is_xen.then(|| path.parent().unwrap_or(&path).to_owned()))
}

fn collect(xen: &Path, directory: &Path, records: &mut Records) -> Result<(), Refused> {
    let entries = std::fs::read_dir(directory).map_err(|e| Refused::io(directory, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Refused::io(directory, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| Refused::io(&path, &e))?;
        if kind.is_dir() {
            if directory != xen || !NOT_LINKED.contains(&name.as_str()) {
                collect(xen, &path, records)?;
            }
        } else if kind.is_symlink() {
            let names = path.canonicalize().ok().filter(|target| target.is_file());
            let names = names.and_then(|target| Some((from(xen, &path)?, from(xen, &target)?)));
            records.links.extend(names);
        } else if name.starts_with('.') && name.ends_with(".cmd") {
            let text = std::fs::read_to_string(&path).map_err(|e| Refused::io(&path, &e))?;
            let Some(record) = Record::parse(&text) else {
                continue;
            };
            if name.ends_with(".o.cmd") {
                records.objects.extend(record.object());
            } else if GENERATED.iter().any(|end| name.ends_with(end)) {
                records.generated.push(record.generated(xen));
            }
        }
    }
    Ok(())
}

fn from(xen: &Path, path: &Path) -> Option<String> {
    Some(path.strip_prefix(xen).ok()?.to_str()?.to_owned())
}

/// Names of records of files that go into compiling or linking.
const GENERATED: [&str; 6] = [
    ".h.cmd", ".c.cmd", ".i.cmd", ".lst.cmd", ".S.cmd", ".lds.cmd",
];

/// The contents of a `.NAME.cmd` file.
struct Record {
    path: String,
    command: String,
    source: Option<String>,
    dependencies: BTreeSet<String>,
}

impl Record {
    fn parse(text: &str) -> Option<Self> {
        let (head, rest) = text.split_once(" := ")?;
        let path = head
            .strip_prefix("savedcmd_")
            .or_else(|| head.strip_prefix("cmd_"))?;
        let (command, rest) = rest.split_once('\n').unwrap_or((rest, ""));
        let source = rest
            .lines()
            .find_map(|line| line.strip_prefix("source_")?.split_once(" := "))
            .map(|(_, source)| normal(source));
        let list = rest
            .split_once("deps_")
            .and_then(|(_, rest)| rest.split_once(":="))
            .map_or("", |(_, list)| list);
        let list = list.split("\n\n").next().unwrap_or_default();
        let dependencies = list
            .lines()
            .map(|line| line.trim().trim_end_matches('\\').trim())
            .filter(|line| !line.is_empty() && !line.starts_with("$(wildcard"))
            .map(normal)
            .chain(source.clone())
            .collect();
        Some(Self {
            path: path.to_owned(),
            command: unescaped(command),
            source,
            dependencies,
        })
    }

    /// `None` if it records no compilation.
    fn object(self) -> Option<ObjectFile> {
        let mut words = self.command.split_whitespace();
        let output = words
            .find(|&w| w == "-o")
            .and_then(|_| words.next())?
            .to_owned();
        Some(ObjectFile {
            path: self.path,
            output,
            source: self.source?,
            dependencies: self.dependencies,
            command: self.command,
        })
    }

    /// If the build recorded no dependencies, every tree file named in the command is
    /// one.
    fn generated(self, xen: &Path) -> GeneratedFile {
        let named = self
            .command
            .split(|c: char| c.is_whitespace() || "<>;\"'()".contains(c))
            .filter(|word| word.contains(['/', '.']) && !word.starts_with(['-', '/']))
            .map(normal)
            .filter(|path| *path != self.path && xen.join(path).is_file());
        let inputs = named.chain(self.dependencies.iter().cloned()).collect();
        GeneratedFile {
            path: self.path,
            command: self.command,
            inputs,
        }
    }
}

/// The version of the source at `xen` if its build records too little.
fn too_old(xen: &Path) -> Option<String> {
    const OLDEST: (u32, u32) = (4, 17);
    let makefile = std::fs::read_to_string(xen.join("Makefile")).ok()?;
    let number = |name: &str| -> Option<u32> {
        let mut lines = makefile.lines();
        lines.find_map(|line| {
            let line = line.trim_start_matches("export ").trim_start();
            let value = line.strip_prefix(name)?.trim_start();
            value
                .trim_start_matches([':', '?'])
                .strip_prefix('=')?
                .trim()
                .parse()
                .ok()
        })
    };
    let version = (number("XEN_VERSION")?, number("XEN_SUBVERSION")?);
    (version < OLDEST).then(|| format!("{}.{}", version.0, version.1))
}

/// Every object that was linked into the hypervisor, or put into its library; empty
/// if not recorded.
fn linked(xen: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec!["prelink.o".to_owned()];
    while let Some(path) = waiting.pop() {
        for input in inputs(xen, &path) {
            if found.insert(input.clone()) {
                waiting.push(input);
            }
        }
    }
    found
}

/// The recorded inputs of `path`: objects and libraries.
fn inputs(xen: &Path, path: &str) -> impl Iterator<Item = String> {
    let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
    let record = xen.join(directory).join(format!(".{name}.cmd"));
    let text = std::fs::read_to_string(record).unwrap_or_default();
    let command = text.split_once(" := ").map_or("", |(_, rest)| rest);
    let command = command.lines().next().unwrap_or_default();
    let words = command
        .split([' ', ';'])
        .filter(|word| (word.ends_with(".o") || word.ends_with(".a")) && !word.starts_with('-'));
    words.map(normal).collect::<Vec<_>>().into_iter()
}

/// Whether an unlinked object is part of the hypervisor in another way: its code is
/// included elsewhere, or the linker's first pass needs it.
fn is_used_unlinked(xen: &Path, object: &ObjectFile) -> bool {
    let stem = object.path.strip_suffix(".o").unwrap_or(&object.path);
    !object.path.ends_with(".o")
        || stem.ends_with("-dummy")
        || xen.join(format!("{stem}.bin")).is_file()
}

/// A recorded command as passed to the shell: the record is in makefile syntax.
fn unescaped(command: &str) -> String {
    const ESCAPES: [(&str, &str); 6] = [
        ("$$", "$"),
        ("\\#", "#"),
        ("$(pound)", "#"),
        ("$(comma)", ","),
        ("$(squote)", "'"),
        ("$(empty)", ""),
    ];
    let mut text = String::new();
    let mut rest = command;
    while let Some(first) = rest.chars().next() {
        let escape = ESCAPES.iter().find(|(escape, _)| rest.starts_with(escape));
        let (length, meant) = match escape {
            Some((escape, meant)) => (escape.len(), *meant),
            None => (first.len_utf8(), &rest[..first.len_utf8()]),
        };
        text.push_str(meant);
        rest = &rest[length..];
    }
    text
}

/// The list of structure offsets for assembly code, which the build derives from a C
/// file. Its compile command is not recorded: it is that of any C file of the tree,
/// with different file names and `-S`.
fn assembly_offsets(xen: &Path, objects: &[ObjectFile]) -> Option<ObjectFile> {
    let record = std::fs::read_to_string(xen.join(".asm-offsets.s.d")).ok()?;
    let list = record.split_once(':')?.1.split("\n\n").next()?;
    let files: Vec<String> = list
        .split_whitespace()
        .filter(|w| *w != "\\")
        .take_while(|w| !w.ends_with(':'))
        .map(normal)
        .collect();
    let source = files.first()?.clone();
    let model = objects.iter().find(|o| {
        o.source.ends_with(".c") && o.path.starts_with("common/") && o.command.contains(" -c ")
    })?;
    let output = ".asm-offsets.xsplice".to_owned();
    let command = compile_like(model, &format!("-S -g0 -o {output} {source}"));
    let dependencies = files.into_iter().collect();
    Some(ObjectFile {
        path: "asm-offsets.s".to_owned(),
        command,
        output,
        source,
        dependencies,
    })
}

/// The compile command of `model` with different file names: `rest` has the input and
/// output.
fn compile_like(model: &ObjectFile, rest: &str) -> String {
    let mut words = model.command.split_whitespace();
    let mut command = String::new();
    while let Some(word) = words.next() {
        match word {
            "-o" | "-MF" | "-MQ" => drop(words.next()),
            "-c" | "-MMD" | "-MP" => {}
            word if normal(word) == model.source => {}
            word => {
                command.push_str(word);
                command.push(' ');
            }
        }
    }
    command.push_str(rest);
    command
}

/// `path` with `.` and `..` resolved lexically where possible.
fn normal(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.trim().split('/') {
        match part {
            "." => {}
            ".." if parts.last().is_some_and(|&p| p != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_commands_are_read_as_make_reads_them() {
        let recorded = "grep -v '^$(pound)' x; echo $$(id) $$$$ \\#define a$(comma)b";
        assert_eq!(
            unescaped(recorded),
            "grep -v '^#' x; echo $(id) $$ #define a,b"
        );
    }
}

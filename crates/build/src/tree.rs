//! A built Xen source tree: what was compiled from what, and how.

use crate::Refused;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// A compiled object of the tree.
#[derive(Debug, Clone)]
pub struct ObjectFile {
    /// Path of the object, from the `xen` directory.
    pub path: String,
    /// The recorded compile command, to be run in the `xen` directory.
    pub command: String,
    /// The file that the command writes, from the `xen` directory.
    pub output: String,
    /// The source file, from the `xen` directory.
    pub source: String,
    /// Every file that was read to compile it, the source included.
    pub dependencies: BTreeSet<String>,
}

impl ObjectFile {
    /// Whether the source is assembly.
    pub fn is_assembly(&self) -> bool {
        self.source.ends_with(".S")
    }
}

/// A built Xen source tree.
#[derive(Debug)]
pub struct Tree {
    /// The directory that holds `xen`, absolute.
    pub top: PathBuf,
    /// Everything that was compiled into the hypervisor.
    pub objects: Vec<ObjectFile>,
}

impl Tree {
    /// Reads what the build of the tree at `path` recorded; `path` is the top
    /// of the source or its `xen` directory.
    ///
    /// # Errors
    /// If there is no Xen source, or if it was not built.
    pub fn read(path: &Path) -> Result<Self, Refused> {
        let place = || path.display().to_string();
        let path = path.canonicalize().map_err(|e| Refused::io(path, &e))?;
        let top = if path.join("xen/Rules.mk").is_file() {
            path.clone()
        } else if path.join("Rules.mk").is_file() && path.join("common").is_dir() {
            path.parent().unwrap_or(&path).to_owned()
        } else {
            return Err(Refused::one(
                place(),
                "this is no Xen source tree: there is no xen/Rules.mk",
            ));
        };
        let mut objects = Vec::new();
        let xen = top.join("xen");
        collect(&xen, &xen, &mut objects)?;
        if objects.is_empty() {
            return Err(Refused::one(
                place(),
                "the tree was not built: no compile commands are recorded in it; \
                 build it once with `make -C xen` and the hypervisor's own configuration",
            ));
        }
        objects.extend(assembly_offsets(&xen, &objects));
        objects.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self { top, objects })
    }

    /// The objects that any of `files` (from the `xen` directory) goes into.
    pub fn reached_by<'a>(&'a self, files: &'a BTreeSet<String>) -> Vec<&'a ObjectFile> {
        self.objects
            .iter()
            .filter(|o| !o.dependencies.is_disjoint(files))
            .collect()
    }
}

/// Parts of the tree whose objects do not go into the hypervisor.
const NOT_LINKED: [&str; 4] = ["tools", "test", "scripts", "Documentation"];

fn collect(xen: &Path, directory: &Path, objects: &mut Vec<ObjectFile>) -> Result<(), Refused> {
    let entries = std::fs::read_dir(directory).map_err(|e| Refused::io(directory, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Refused::io(directory, &e))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        let kind = entry.file_type().map_err(|e| Refused::io(&path, &e))?;
        if kind.is_dir() {
            if directory != xen || !NOT_LINKED.contains(&name.as_str()) {
                collect(xen, &path, objects)?;
            }
        } else if name.starts_with('.') && name.ends_with(".o.cmd") {
            let text = std::fs::read_to_string(&path).map_err(|e| Refused::io(&path, &e))?;
            objects.extend(parse_record(&text));
        }
    }
    Ok(())
}

/// Reads one `.NAME.o.cmd` file; `None` if it records no compilation.
fn parse_record(text: &str) -> Option<ObjectFile> {
    let (head, rest) = text.split_once(" := ")?;
    let path = head
        .strip_prefix("savedcmd_")
        .or_else(|| head.strip_prefix("cmd_"))?;
    let (command, rest) = rest.split_once('\n')?;
    // The record is a makefile: `$$` and `\#` stand for one character.
    let command = command.replace("$$", "$").replace("\\#", "#");
    let source = rest
        .lines()
        .find_map(|line| line.strip_prefix("source_")?.split_once(" := "))?;
    let mut words = command.split_whitespace();
    let output = words
        .find(|&w| w == "-o")
        .and_then(|_| words.next())?
        .to_owned();
    let list = rest.split_once("deps_")?.1.split_once(":=")?.1;
    let list = list.split("\n\n").next()?;
    let mut dependencies: BTreeSet<String> = list
        .lines()
        .map(|line| line.trim().trim_end_matches('\\').trim())
        .filter(|line| !line.is_empty() && !line.starts_with("$(wildcard"))
        .map(normal)
        .collect();
    let source = normal(source.1);
    dependencies.insert(source.clone());
    Some(ObjectFile {
        path: path.to_owned(),
        command,
        output,
        source,
        dependencies,
    })
}

/// The list of offsets of structure members that assembly code uses, which the
/// build derives from a C file. Its compile command is not recorded: it is that
/// of any C file of the tree but for the file names and `-S`.
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
    let mut words = model.command.split_whitespace();
    let mut command = String::new();
    while let Some(word) = words.next() {
        match word {
            "-c" | "-o" | "-MF" | "-MQ" => drop(words.next()),
            "-MMD" | "-MP" => {}
            _ => {
                command.push_str(word);
                command.push(' ');
            }
        }
    }
    command.push_str(&format!("-S -g0 -o {output} {source}"));
    let dependencies = files.into_iter().collect();
    Some(ObjectFile {
        path: "asm-offsets.s".to_owned(),
        command,
        output,
        source,
        dependencies,
    })
}

/// `path` without `.` and `..` where that needs no file system.
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Writes an initramfs: a cpio archive in the `newc` format (the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format`).

use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::{Endianness, FileKind, elf};
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

/// An initramfs under construction.
#[derive(Debug, Default)]
pub struct Initramfs {
    archive: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
    files: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

impl Initramfs {
    /// Adds a file with the permissions `mode`, and the directories above it.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) {
        if self.files.insert(path.to_owned()) {
            self.parents(path);
            self.entry(path, FILE | mode, data);
        }
    }

    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        self.parents(path);
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, &[]);
        }
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// Adds the program at `from` with the program interpreter and every shared
    /// library that it needs, found in `libraries`.
    ///
    /// # Errors
    /// If a file cannot be read, or a library is in none of the directories.
    pub fn program(&mut self, path: &str, from: &Path, libraries: &[PathBuf]) -> io::Result<()> {
        let data = std::fs::read(from)?;
        let mut needed = dependencies(&data);
        self.file(path, 0o755, &data);
        while let Some(name) = needed.pop() {
            // A program interpreter is needed at its own path.
            let place = match name.strip_prefix('/') {
                Some(interpreter) => interpreter.to_owned(),
                None => format!("lib/{name}"),
            };
            if self.files.contains(&place) {
                continue;
            }
            let file = name
                .rsplit_once('/')
                .map_or(name.as_str(), |(_, file)| file);
            let found = libraries.iter().map(|d| d.join(file)).find(|p| p.exists());
            let found = found.ok_or_else(|| {
                let message = format!("{}: cannot find its library {name}", from.display());
                io::Error::new(io::ErrorKind::NotFound, message)
            })?;
            let library = std::fs::read(found)?;
            needed.extend(dependencies(&library));
            self.file(&place, 0o755, &library);
        }
        Ok(())
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.archive
    }

    fn parents(&mut self, path: &str) {
        for (end, _) in path.match_indices('/') {
            let parent = &path[..end];
            if self.directories.insert(parent.to_owned()) {
                self.entry(parent, DIRECTORY, &[]);
            }
        }
    }

    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.entries += 1;
        let name_size = name.len() + 1;
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.entries,
            0,
            0,
            1,
            0,
            data.len(),
            0,
            0,
            0,
            0,
            0
        );
        self.archive.extend_from_slice(header.as_bytes());
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
        self.archive.extend_from_slice(data);
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// Names of the libraries that an ELF file needs, and the path of its program
/// interpreter; nothing for a static one.
fn dependencies(data: &[u8]) -> Vec<String> {
    let names = match FileKind::parse(data) {
        Ok(FileKind::Elf32) => names::<elf::FileHeader32<Endianness>>(data),
        Ok(FileKind::Elf64) => names::<elf::FileHeader64<Endianness>>(data),
        _ => return Vec::new(),
    };
    names.unwrap_or_default()
}

fn names<H: FileHeader<Endian = Endianness>>(data: &[u8]) -> object::read::Result<Vec<String>> {
    let header = H::parse(data)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, data)?;
    let mut names = Vec::new();
    for segment in header.program_headers(endian, data)? {
        if let Some(path) = segment.interpreter(endian, data)? {
            names.push(String::from_utf8_lossy(path).into_owned());
        }
    }
    if let Some((dynamic, link)) = sections.dynamic(endian, data)? {
        let strings = sections.strings(endian, data, link)?;
        for entry in dynamic {
            if entry.tag(endian) == elf::DT_NEEDED {
                names.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
            }
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn libraries_and_interpreter_of_a_program_are_found() -> io::Result<()> {
        let directory = xsplice_system::interrupt::Directory::new("xsplice-lab-")?;
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program)
                .args(arguments)
                .current_dir(directory.path())
                .output()
                .expect("the test needs binutils");
            assert!(output.status.success(), "{arguments:?}: {output:?}");
        };
        for (width, format) in [("--32", "elf_i386"), ("--64", "elf_x86_64")] {
            run("as", &[width, "-o", "o", "/dev/null"]);
            let library = ["-m", format, "-shared", "-soname", "liba.so", "o"];
            run("ld", &[&library[..], &["-o", "liba.so"]].concat());
            let program = ["-m", format, "-e", "0", "--dynamic-linker", "/lib/ld.so"];
            run(
                "ld",
                &[&program[..], &["o", "liba.so", "-o", "program"]].concat(),
            );
            let program = std::fs::read(directory.path().join("program"))?;
            assert_eq!(dependencies(&program), ["/lib/ld.so", "liba.so"], "{width}");
        }
        Ok(())
    }

    #[test]
    fn busybox_or_cpio_reads_the_archive_back() {
        let mut initramfs = Initramfs::default();
        initramfs.file("a/b/hello", 0o644, b"hello\n");
        initramfs.file("init", 0o755, b"#!/bin/sh\n");
        initramfs.symlink("bin", "a/b");
        initramfs.directory("proc");
        let archive = initramfs.finish();
        let mut cpio = Command::new("cpio")
            .args(["-it", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test needs the program cpio");
        cpio.stdin
            .take()
            .expect("piped")
            .write_all(&archive)
            .expect("cpio reads");
        let output = cpio.wait_with_output().expect("cpio ends");
        let names = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(
            names.lines().collect::<Vec<_>>(),
            ["a", "a/b", "a/b/hello", "init", "bin", "proc"]
        );
    }
}

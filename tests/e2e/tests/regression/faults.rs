// SPDX-License-Identifier: MIT OR Apache-2.0

//! Invalid requests and files: the error number that the hypervisor returns for each,
//! and whether the list of payloads counts as changed. Both cores agree, except for
//! what is listed here.

use crate::Core;
use anyhow::{Context as _, ensure};
use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_abi::errno::Errno;
use xsplice_e2e::{Base, list_is_given_room};
use xsplice_lab::{Host, HostConfig};

/// The payload that each invalid file is derived from.
const PAYLOAD: &str = "/lab/xen_hello_world.livepatch";

/// An invalid request from `faults/raw-requests.c`; its error number, and whether the
/// version of the list changes.
type Request = (&'static str, Errno, &'static str);

const DONE: Errno = Errno(0);
const REQUESTS: [Request; 41] = [
    ("padding", Errno::EINVAL, "same"),
    ("unknown operation", Errno::EOPNOTSUPP, "same"),
    ("upload, name without size", Errno::EINVAL, "same"),
    ("upload, name too long", Errno::EINVAL, "same"),
    ("upload, padding of the name", Errno::EINVAL, "same"),
    ("upload, name without end", Errno::EINVAL, "same"),
    ("upload, unreadable name", Errno::EINVAL, "same"),
    ("upload, no file", Errno::EINVAL, "same"),
    ("upload, file too large", Errno::EINVAL, "same"),
    ("upload, unreadable file", Errno::EFAULT, "same"),
    ("upload, no payload", Errno::EINVAL, "same"),
    ("get, before the upload", Errno::ENOENT, "same"),
    ("action, before the upload", Errno::ENOENT, "same"),
    ("unknown action, before the upload", Errno::ENOENT, "same"),
    ("upload", DONE, "changed"),
    ("upload, name taken", Errno::EEXIST, "same"),
    ("upload, name taken, unreadable file", Errno::EEXIST, "same"),
    ("get", DONE, "same"),
    ("get, unreadable name", Errno::EFAULT, "same"),
    ("get, name without end", Errno::EINVAL, "same"),
    ("list", DONE, "same"),
    ("list, padding", Errno::EINVAL, "same"),
    ("list, too many", Errno::E2BIG, "same"),
    ("list, from the end on", Errno::EINVAL, "same"),
    ("list, unwritable status", Errno::EFAULT, "same"),
    ("list, unwritable names", Errno::EFAULT, "same"),
    (ROOM[0], Errno::ENOBUFS, "same"),
    (ROOM[1], Errno::ENOBUFS, "same"),
    ("action, padding", Errno::EINVAL, "same"),
    ("action, unknown flags", DONE, "same"),
    ("action, unreadable name", Errno::EFAULT, "same"),
    ("action, none", Errno::EOPNOTSUPP, "same"),
    ("unknown action", Errno::EOPNOTSUPP, "same"),
    ("revert, not applied", DONE, "same"),
    ("apply", DONE, "same"),
    ("apply, applied", DONE, "same"),
    ("replace, applied", DONE, "same"),
    ("unload, applied", Errno::EINVAL, "same"),
    ("revert", DONE, "same"),
    ("unload", DONE, "changed"),
    ("unload, unloaded", Errno::ENOENT, "same"),
];

/// Requests for a list with too little room, which older hypervisors do not look at.
const ROOM: [&str; 2] = ["list, no room for names", "list, no room for metadata"];

/// Where our core returns a different error number, see `docs/xen-core.md`.
const OURS: [(&str, Errno); 1] = [("action, unknown flags", Errno::EINVAL)];

/// An invalid file: a field of the file header or of a section header.
type File = (
    &'static str,
    Option<&'static str>,
    usize,
    &'static [u8],
    Errno,
);

const FILES: [File; 26] = [
    ("magic", None, 0, b"#!", Errno::EINVAL),
    ("class", None, 4, &[1], Errno::EOPNOTSUPP),
    ("byte-order", None, 5, &[2], Errno::EOPNOTSUPP),
    ("ident-version", None, 6, &[2], Errno::EOPNOTSUPP),
    ("os-abi", None, 7, &[3], Errno::EOPNOTSUPP),
    ("abi-version", None, 8, &[1], Errno::EOPNOTSUPP),
    ("type", None, 16, &[2], Errno::EOPNOTSUPP),
    ("machine", None, 18, &[40], Errno::EOPNOTSUPP),
    ("version", None, 20, &[2], Errno::EOPNOTSUPP),
    ("section-headers-far", None, 40, &[0xff; 8], Errno::EINVAL),
    ("program-headers", None, 56, &[1], Errno::EOPNOTSUPP),
    ("section-header-size", None, 58, &[63], Errno::EINVAL),
    ("no-sections", None, 60, &[0, 0], Errno::EINVAL),
    ("many-sections", None, 60, &[0, 4], Errno::EOPNOTSUPP),
    ("sections-past-end", None, 60, &[0xff, 3], Errno::EINVAL),
    ("no-names", None, 62, &[0, 0], Errno::EINVAL),
    ("names-past-end", None, 62, &[0xff, 0], Errno::EINVAL),
    ("name-outside", Some(".text"), 0, &[0xff; 4], Errno::EINVAL),
    (
        "section-past-end",
        Some(".livepatch.funcs"),
        24,
        &[0, 0, 0, 0x7f],
        Errno::EINVAL,
    ),
    (
        "section-too-long",
        Some(".livepatch.funcs"),
        32,
        &[0, 0, 0, 0x7f],
        Errno::EINVAL,
    ),
    (
        "alignment",
        Some(".livepatch.funcs"),
        48,
        &[3],
        Errno::EOPNOTSUPP,
    ),
    (
        "no-functions",
        Some(".livepatch.funcs"),
        32,
        &[0],
        Errno::EINVAL,
    ),
    (
        "part-of-a-record",
        Some(".livepatch.funcs"),
        32,
        &[103],
        Errno::EINVAL,
    ),
    (
        "no-dependency",
        Some(".livepatch.depends"),
        32,
        &[0, 0],
        Errno::EINVAL,
    ),
    (
        "no-build-id",
        Some(".note.gnu.build-id"),
        32,
        &[0, 0],
        Errno::EINVAL,
    ),
    (
        "writable-text",
        Some(".livepatch.funcs"),
        8,
        &[7],
        Errno::EOPNOTSUPP,
    ),
];

/// Adds the program and the files to the host.
pub(crate) fn add_to(config: &mut HostConfig, base: &Base, directory: &Path) -> anyhow::Result<()> {
    let program = compile(base, directory)?;
    config
        .programs
        .push(("bin/raw-requests".to_owned(), program));
    let driver = PathBuf::from(env!("CARGO_BIN_EXE_in-dom0"));
    config.programs.push(("bin/in-dom0".to_owned(), driver));
    let good = std::fs::read(base.test_payloads.join("xen_hello_world.livepatch"))?;
    for (name, section, at, bytes, _) in FILES {
        let mut file = good.clone();
        let begin = match section {
            Some(section) => section_header(&good, section).context(section)?,
            None => 0,
        };
        let field = file.get_mut(begin + at..begin + at + bytes.len());
        let field = field.context(name)?;
        ensure!(field != bytes, "{name} is no fault");
        field.copy_from_slice(bytes);
        let path = directory.join(name);
        std::fs::write(&path, file)?;
        config.files.push((format!("faults/{name}"), path));
    }
    Ok(())
}

/// The file offset of a section header.
fn section_header(file: &[u8], name: &str) -> Option<usize> {
    use object::{Object as _, ObjectSection as _};
    /// Offset in the file header, and the size of a section header.
    const TABLE: usize = 40;
    const SIZE: usize = 64;
    let object = object::File::parse(file).ok()?;
    let index = object.section_by_name(name)?.index().0;
    let table = u64::from_le_bytes(file.get(TABLE..TABLE + 8)?.try_into().ok()?);
    Some(usize::try_from(table).ok()? + index * SIZE)
}

fn compile(base: &Base, directory: &Path) -> anyhow::Result<PathBuf> {
    let headers = directory.join("include");
    std::fs::create_dir(&headers)?;
    symlink(base.tree.join("xen/include/public"), headers.join("xen"))?;
    let program = directory.join("raw-requests");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/faults/raw-requests.c");
    let mut command = Command::new("gcc");
    command.args(["-Wall", "-Werror", "-static", "-D__XEN_TOOLS__", "-I"]);
    command.arg(&headers).arg("-o").arg(&program).arg(source);
    let output = command.output().context("gcc")?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(program)
}

/// The hypervisor's answers: an error number, and for requests whether the version of
/// the list changes.
pub(crate) type Said = BTreeMap<String, (Errno, String)>;

/// Makes the requests and uploads the files.
pub(crate) fn make(host: &mut Host) -> anyhow::Result<Said> {
    let files: Vec<String> = FILES.map(|(name, ..)| format!("/faults/{name}")).into();
    let files: Vec<&str> = files.iter().map(String::as_str).collect();
    let mut said = Said::new();
    for (argv, separator) in [
        (vec!["raw-requests", PAYLOAD], '\t'),
        ([&["in-dom0", "try-each"], files.as_slice()].concat(), ' '),
    ] {
        let output = host.run(&argv)?;
        ensure!(output.code == Some(0), "{argv:?}: {output:?}");
        for line in output.stdout.lines() {
            let mut words = line.split(separator);
            let (what, errno) = (words.next(), words.next());
            let (what, errno) = what.zip(errno).with_context(|| line.to_owned())?;
            let errno = Errno(errno.parse().with_context(|| line.to_owned())?);
            let version = words.next().unwrap_or_default().to_owned();
            said.insert(what.to_owned(), (errno, version));
        }
    }
    Ok(said)
}

/// Deviations from the expected answers of this core.
pub(crate) fn wrong(said: &Said, base: &Base, core: Core) -> anyhow::Result<Vec<String>> {
    let has_room = list_is_given_room(base)?;
    let requests = REQUESTS.iter().map(|(what, errno, version)| {
        let ignored = ROOM.contains(what) && !has_room;
        (*what, if ignored { DONE } else { *errno }, *version)
    });
    let files = FILES.iter().map(|(what, .., errno)| (*what, *errno, ""));
    let mut wrong = Vec::new();
    let mut expected = 0;
    for (what, errno, version) in requests.chain(files) {
        expected += 1;
        let other = OURS
            .iter()
            .find(|(other, _)| core == Core::Rust && *other == what);
        let errno = other.map_or(errno, |(_, errno)| *errno);
        let found = said.get(what);
        if found != Some(&(errno, version.to_owned())) {
            wrong.push(format!("{what}: {found:?}, not {errno:?} {version}"));
        }
    }
    if said.len() != expected {
        wrong.push(format!("{} answers to {expected} faults", said.len()));
    }
    Ok(wrong)
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Runs the recorded compile commands in a shadow tree.

use crate::code::Code;
use crate::problem::{Problem, Refused};
use crate::shadow::Shadow;
use crate::tree::{ObjectFile, Tree};
use std::process::Command;
use std::time::SystemTime;
use xsplice_system::interrupt;

/// Compiles `object` in `shadow`; returns the bytes of the result.
pub(crate) fn compile(
    tree: &Tree,
    shadow: &Shadow,
    object: &ObjectFile,
) -> Result<Vec<u8>, Problem> {
    run(tree, shadow, &object.command).map_err(|words| {
        Problem::new(
            Code::DoesNotCompile,
            &object.source,
            format!("does not compile:\n{words}"),
        )
    })?;
    let path = shadow.xen().join(&object.output);
    std::fs::read(&path).map_err(|e| {
        Problem::new(
            Code::DoesNotCompile,
            &object.path,
            Refused::io(&path, &e).to_string(),
        )
    })
}

/// Runs a recorded command in `shadow`; the error is the command's output.
pub(crate) fn run(tree: &Tree, shadow: &Shadow, command: &str) -> Result<(), String> {
    let (from, to) = (tree.top.to_string_lossy(), shadow.top().to_string_lossy());
    // Temporary files of compilers are removed with the shadow.
    let (status, words) = interrupt::run(
        Command::new("/bin/sh")
            .args(["-c", &command.replace(&*from, &quoted(&to))])
            .current_dir(shadow.xen())
            .env("TMPDIR", shadow.top())
            .env("PYTHON", tree.python()),
    )
    .map_err(|e| format!("cannot run the command: {e}"))?;
    if status.success() {
        Ok(())
    } else {
        let words = String::from_utf8_lossy(&words);
        Err(words.trim_end().replace(&*to, &from))
    }
}

/// `path` quoted for a shell, since a work directory can be anywhere.
fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+".contains(c);
    match path.chars().all(plain) {
        true => path.to_owned(),
        false => format!("'{}'", path.replace('\'', "'\\''")),
    }
}

/// The tree's own object, if it is newer than all its inputs, as in make.
pub(crate) fn built(tree: &Tree, object: &ObjectFile) -> Option<Vec<u8>> {
    let xen = tree.top.join("xen");
    let age =
        |path: &str| -> Option<SystemTime> { xen.join(path).metadata().ok()?.modified().ok() };
    let made = age(&object.path)?;
    let fresh = object
        .dependencies
        .iter()
        .all(|path| age(path).is_some_and(|changed| changed <= made));
    fresh
        .then(|| std::fs::read(xen.join(&object.path)).ok())
        .flatten()
}

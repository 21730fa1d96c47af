// SPDX-License-Identifier: MIT OR Apache-2.0
//! Objects assembled once more, so that relocations name what they mean.
//!
//! See [`xsplice_objdiff::shared`] for when this is needed and why.

use crate::code::Code;
use crate::problem::Problem;
use crate::tree::ObjectFile;
use xsplice_objdiff::{Object, ReadError};

/// A build of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// From the source before this one of the payloads below.
    Before(usize),
    /// From the original source, as the payloads below left it.
    Original,
    /// From the patched source.
    Patched,
}

/// Compiles an object again, by the command that it has now, which reads a
/// file `LIST` with the given text, too.
pub(crate) type Compile<'a> =
    dyn Fn(Build, &ObjectFile, String) -> Result<Vec<u8>, Problem> + Sync + 'a;

/// The file with the names that are to be seen, from the `xen` directory.
pub(crate) const LIST: &str = ".xsplice-names.s";

/// Reads `bytes`, which are `build` of `file` and were read as `object` before,
/// with every reference leading to the variable that the source means.
pub(crate) fn read(
    file: &ObjectFile,
    (build, bytes): (Build, &[u8]),
    object: &Object,
    compile: &Compile,
) -> Result<Object, Problem> {
    let unknown = |why: &dyn std::fmt::Display| {
        Problem::new(
            Code::SharedSection,
            &file.source,
            format!(
                "the patch adds, removes or moves a variable in a section that several share, and \
                 nothing tells which of them other references mean ({why}); give it a section of \
                 its own, or leave the others in their places"
            ),
        )
    };
    let globals: String = xsplice_objdiff::shared::variables(object)
        .iter()
        .map(|name| format!(".globl \"{name}\"\n"))
        .collect();
    let again = ObjectFile {
        // The list first, then what the compiler pipes or names.
        command: format!("{} -Wa,{LIST},-", file.command),
        ..file.clone()
    };
    let witness = compile(build, &again, globals).map_err(|problem| unknown(&problem.message))?;
    Object::read_with(&file.path, bytes, &witness).map_err(|error| match error {
        ReadError::Doubtful { .. } => unknown(&error),
        ReadError::Malformed { .. }
        | ReadError::WrongKind { .. }
        | ReadError::BadRelocation { .. }
        | ReadError::UnknownTable { .. } => Problem::unreadable(&file.source, &error),
    })
}

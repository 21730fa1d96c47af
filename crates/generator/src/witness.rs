// SPDX-License-Identifier: MIT OR Apache-2.0
//! Witnesses: objects assembled once more so that relocations name the variables they
//! mean.
//!
//! See [`xsplice_objdiff::shared`] for when this is needed and why.

use crate::code::Code;
use crate::problem::Problem;
use crate::tree::ObjectFile;
use xsplice_objdiff::{Object, ReadError};

/// A build of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Build {
    /// From the source before this payload below.
    Before(usize),
    /// From the original source, at the level of the payloads below.
    Original,
    /// From the patched source.
    Patched,
}

/// Recompiles an object with its current command, which also reads a file `LIST` with
/// the given text.
pub(crate) type Compile<'a> =
    dyn Fn(Build, &ObjectFile, String) -> Result<Vec<u8>, Problem> + Sync + 'a;

/// The file with the names to make visible, relative to the `xen` directory.
pub(crate) const LIST: &str = ".xsplice-names.s";

/// Reads `bytes`, `build` of `file`, already read as `object`, with every reference
/// resolved to the variable that the source means.
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
                 it is unclear which of them other references mean ({why}); give it a section of \
                 its own, or leave the others in their places"
            ),
        )
    };
    let globals: String = xsplice_objdiff::shared::variables(object)
        .iter()
        .map(|name| format!(".globl \"{name}\"\n"))
        .collect();
    let again = ObjectFile {
        // The list first, then the compiler's own output, piped or named.
        command: format!("{} -Wa,{LIST},-", file.command),
        ..file.clone()
    };
    let witness = compile(build, &again, globals).map_err(|problem| unknown(&problem.message))?;
    Object::read_with(&file.path, bytes, &witness).map_err(|error| match error {
        ReadError::Doubtful { .. } => unknown(&error),
        ReadError::Malformed { .. }
        | ReadError::WrongKind { .. }
        | ReadError::BadRelocation { .. }
        | ReadError::ForeignCode { .. }
        | ReadError::Unnamed { .. }
        | ReadError::UnknownTable { .. } => Problem::unreadable(&file.source, &error),
    })
}

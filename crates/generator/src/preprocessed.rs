// SPDX-License-Identifier: MIT OR Apache-2.0
//! The preprocessed source of an object.

use crate::code::Code;
use crate::problem::Problem;
use crate::tree::ObjectFile;
use crate::variant::Variant;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::path::Path;
use xsplice_abi::note::hex;

/// The source of an object after the preprocessor.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Preprocessed {
    /// Every file that it includes, relative to the `xen` directory.
    pub(crate) files: BTreeSet<String>,
    /// Hash of the text, in which every `__LINE__` is a number. Equal text compiles
    /// to equal objects.
    pub(crate) hash: String,
}

/// Cache key; raised when it is made differently.
const KEPT: &str = "preprocessed 1";

/// Preprocesses the source of `object`.
pub(crate) fn preprocess(source: &Variant, object: &ObjectFile) -> Result<Preprocessed, Problem> {
    let kept = source.derive(&object.preprocessed(), KEPT, |text| {
        let read = Preprocessed::read(&String::from_utf8_lossy(text));
        serde_json::to_vec(&read)
            .map_err(|e| Problem::new(Code::UnreadableObject, &object.path, e.to_string()))
    })?;
    serde_json::from_slice(&kept)
        .map_err(|e| Problem::new(Code::UnreadableObject, &object.path, e.to_string()))
}

impl Preprocessed {
    fn read(text: &str) -> Self {
        let mut files = BTreeSet::new();
        let mut hash = Sha256::new();
        for line in text.split_inclusive('\n') {
            match marked_file(line) {
                Some(path) => drop(files.insert(path)),
                None => hash.update(line),
            }
        }
        Self {
            files,
            hash: hex(&hash.finalize()[..16]),
        }
    }
}

/// The file that a line marker such as `# 12 "./include/xen/lib.h" 2` names.
fn marked_file(line: &str) -> Option<String> {
    let rest = line.strip_prefix("# ")?;
    let (number, rest) = rest.split_once(" \"")?;
    number.parse::<u64>().ok()?;
    let path = Path::new(rest.rsplit_once('"')?.0);
    let path = path.strip_prefix(".").unwrap_or(path);
    Some(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_name_files_and_are_no_part_of_the_text() {
        let one = Preprocessed::read(
            "# 0 \"common/a.c\"\n# 1 \"./include/xen/a.h\" 1\nint a;\n# 3 \"common/a.c\" 2\n#pragma x\n",
        );
        let files = ["common/a.c", "include/xen/a.h"].map(str::to_owned);
        assert_eq!(one.files, BTreeSet::from(files));
        assert_eq!(one.hash, Preprocessed::read("int a;\n#pragma x\n").hash);
        assert_ne!(one.hash, Preprocessed::read("int b;\n#pragma x\n").hash);
    }
}

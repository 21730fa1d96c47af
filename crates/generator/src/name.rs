// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names of symbols in the hypervisor and in a payload.

use crate::tree::ObjectFile;
use xsplice_abi::symbol::RuntimeName;

/// Suffix of new symbols in a draft. The payload appends its tag, because the
/// hypervisor refuses names that another payload also has.
pub(crate) const VERSION_SUFFIX: &str = "@";

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
    format!("{}{VERSION_SUFFIX}", RuntimeName::local(place, symbol))
}

/// File-name prefix of symbols for freed boot-only code.
pub(crate) const INIT_TRAP: &str = "freed-after-boot";

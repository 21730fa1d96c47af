// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache directory.

use std::path::PathBuf;

/// `$XDG_CACHE_HOME/xsplice`, or `~/.cache/xsplice`; `None` if neither variable has an
/// absolute path.
#[must_use]
pub fn root() -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("xsplice"))
}

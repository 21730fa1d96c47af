// SPDX-License-Identifier: MIT OR Apache-2.0
//! The cache directory.

use std::path::PathBuf;

/// `xsplice/OF` in the user's cache directory, if there is one.
pub(crate) fn cache(of: &str) -> Option<PathBuf> {
    let variable = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("xsplice").join(of))
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the engine costs in the file that is booted.

use anyhow::Context as _;
use std::path::Path;

/// How many bytes `xen.gz` may be larger than Debian's.
pub const MOST: i64 = 72 << 10;

/// How many bytes a hypervisor has, and how many more than another.
pub struct Size {
    /// How many it has.
    pub bytes: i64,
    /// How many more than the other.
    pub more: i64,
}

impl Size {
    /// The size of the file `built`, next to that of `stock`.
    pub fn of(built: &Path, stock: &Path) -> anyhow::Result<Self> {
        let bytes = bytes(built)?;
        let more = bytes - self::bytes(stock)?;
        Ok(Self { bytes, more })
    }
}

fn bytes(path: &Path) -> anyhow::Result<i64> {
    let metadata = path
        .metadata()
        .with_context(|| path.display().to_string())?;
    Ok(i64::try_from(metadata.len())?)
}

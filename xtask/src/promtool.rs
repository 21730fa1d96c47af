// SPDX-License-Identifier: MIT OR Apache-2.0
//! Prometheus's checker of alert rules, from Debian's package of Prometheus.

use std::path::{Path, PathBuf};
use xsplice_testbed::debian::Apt;
use xsplice_testbed::{cache, println};

const PACKAGE: &str = "prometheus";
/// Its path in the package.
const PROGRAM: &str = "usr/bin/promtool";

/// The program, from the cache if possible.
pub(crate) fn get() -> anyhow::Result<PathBuf> {
    let directory = cache::entry("promtool", "debian", include_str!("promtool.rs"), unpack)?;
    Ok(directory.join(PROGRAM))
}

fn unpack(directory: &Path) -> anyhow::Result<()> {
    println!("downloading {PACKAGE}");
    let lists = cache::root()?.join(cache::APT);
    Apt::new(&lists)?.unpack(directory, &[PACKAGE.to_owned()])
}

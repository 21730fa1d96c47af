// SPDX-License-Identifier: MIT OR Apache-2.0
//! The files of a package, at their places in the system that they are installed on.

use super::crates::Crates;
use super::{Release, program};
use crate::man;
use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Files of this repository that are installed as they are, each with its directory.
const COPIED: [(&str, &str); 11] = [
    ("packaging/xsplice-dom0.service", UNITS),
    ("packaging/xsplice-keep.service", UNITS),
    ("packaging/xsplice-keep.timer", UNITS),
    ("packaging/xsplice-metrics.service", UNITS),
    ("packaging/xsplice-metrics.timer", UNITS),
    ("packaging/xsplice-settle.service", UNITS),
    ("packaging/xsplice-sync.service", UNITS),
    ("packaging/xsplice.dashboard.json", EXAMPLES),
    ("packaging/xsplice.rules.yml", EXAMPLES),
    ("packaging/host.toml", EXAMPLES),
    ("docs/operating.md", DOCUMENTS),
];
const UNITS: &str = "usr/lib/systemd/system";
const DOCUMENTS: &str = "usr/share/doc/xsplice";
const EXAMPLES: &str = "usr/share/doc/xsplice/examples";
/// What `xen-livepatch` leads to where xsplice is to be it.
const CLASSIC: &str = "usr/lib/xsplice/xen-livepatch";

/// The directory that they are below.
pub(super) struct Contents {
    pub(super) root: PathBuf,
}

impl Contents {
    pub(super) fn at(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// Makes all of them.
    pub(super) fn lay_out(&self, release: &Release) -> anyhow::Result<()> {
        let xsplice = self.root.join("usr/bin/xsplice");
        program::build(&xsplice)?;
        man::pages(&xsplice, &self.root.join("usr/share/man/man1"))?;
        for shell in man::SHELLS {
            shell.complete(&xsplice, &shell.installed(&self.root))?;
        }
        for (from, to) in COPIED {
            let name = Path::new(from).file_name().context("a file has a name")?;
            let data = std::fs::read(from).with_context(|| from.to_owned())?;
            self.write(&Path::new(to).join(name), &data)?;
        }
        let crates = Crates::read(release)?;
        let documents = Path::new(DOCUMENTS);
        self.write(&documents.join("xsplice.cdx.json"), crates.list.as_bytes())?;
        self.write(&documents.join("NOTICES"), crates.notices.as_bytes())?;
        let classic = self.root.join(CLASSIC);
        std::fs::create_dir_all(classic.parent().unwrap_or(&self.root))?;
        std::os::unix::fs::symlink("../../bin/xsplice", &classic).context(CLASSIC)
    }

    fn write(&self, place: &Path, data: &[u8]) -> anyhow::Result<()> {
        let path = self.root.join(place);
        std::fs::create_dir_all(path.parent().unwrap_or(&self.root))
            .and_then(|()| std::fs::write(&path, data))
            .with_context(|| path.display().to_string())
    }
}

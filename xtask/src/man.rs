// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask man`: manual pages and completions for packages.

use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_testbed::{command, print, println, programs};

/// A shell, with the file where it expects the completions of `xsplice`.
pub(crate) struct Shell {
    name: &'static str,
    file: &'static str,
    /// Where a system has the completions that packages install.
    system: &'static str,
}

/// The shells that have completions.
pub(crate) const SHELLS: [Shell; 3] = [
    Shell {
        name: "bash",
        file: "xsplice",
        system: "usr/share/bash-completion/completions",
    },
    Shell {
        name: "zsh",
        file: "_xsplice",
        system: "usr/share/zsh/vendor-completions",
    },
    Shell {
        name: "fish",
        file: "xsplice.fish",
        system: "usr/share/fish/vendor_completions.d",
    },
];

impl Shell {
    /// The file of a system whose files are below `root`.
    pub(crate) fn installed(&self, root: &Path) -> PathBuf {
        root.join(self.system).join(self.file)
    }

    /// Writes the completions to `path`.
    pub(crate) fn complete(&self, xsplice: &Path, path: &Path) -> anyhow::Result<()> {
        let script = command::output(Command::new(xsplice).args(["completions", self.name]))?;
        std::fs::create_dir_all(path.parent().unwrap_or(path))
            .and_then(|()| std::fs::write(path, script))
            .with_context(|| path.display().to_string())
    }
}

/// Writes them below `target/man`.
pub(crate) fn run() -> anyhow::Result<()> {
    let xsplice = programs::build_xsplice()?;
    let root = Path::new("target/man");
    print!("{}", pages(&xsplice, &root.join("man1"))?);
    for shell in SHELLS {
        let path = root.join("completions").join(shell.name).join(shell.file);
        shell.complete(&xsplice, &path)?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Writes the manual pages to `directory`; returns what the program says of it.
pub(crate) fn pages(xsplice: &Path, directory: &Path) -> anyhow::Result<String> {
    command::output(Command::new(xsplice).arg("man").arg(directory))
}

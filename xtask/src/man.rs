// SPDX-License-Identifier: MIT OR Apache-2.0
//! `cargo xtask man`: manual pages and completions for packages.

use anyhow::Context as _;
use std::path::Path;
use std::process::Command;
use xsplice_testbed::{command, print, println, programs};

/// Each shell with the file name that it expects for completions.
const SHELLS: [(&str, &str); 3] = [
    ("bash", "xsplice"),
    ("zsh", "_xsplice"),
    ("fish", "xsplice.fish"),
];

/// Writes them below `target/man`.
pub(crate) fn run() -> anyhow::Result<()> {
    let xsplice = programs::build_xsplice()?;
    let root = Path::new("target/man");
    let pages = command::output(Command::new(&xsplice).arg("man").arg(root.join("man1")))?;
    print!("{pages}");
    for (shell, name) in SHELLS {
        let script = command::output(Command::new(&xsplice).args(["completions", shell]))?;
        let directory = root.join("completions").join(shell);
        let path = directory.join(name);
        std::fs::create_dir_all(&directory)
            .and_then(|()| std::fs::write(&path, script))
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

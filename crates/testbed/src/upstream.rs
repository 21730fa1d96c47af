// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask xen build --source DIR`: any supported Xen, from a tree that the
//! caller has, with the engine of our choice.
//!
//! The tree stays as it is: a copy is patched and built, a new one each time. Objects
//! that the tree was built to are copied too, and make decides which of them it needs
//! again.

use crate::Machine;
use crate::base::{self, Base};
use crate::compiler::Compiler;
use crate::xen::{self, Build, tree};
use crate::{cache, command};
use anyhow::{Context as _, bail, ensure};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

/// The oldest version that the engine can be part of.
const OLDEST: (u32, u32) = (4, 17);
/// For a tree without a configuration.
const CONFIG: &str = "CONFIG_EXPERT=y\n# CONFIG_DEBUG is not set\n";
/// What the hypervisor must have been configured with afterwards.
const LIVEPATCH: &str = "CONFIG_LIVEPATCH=y";

/// An option of Xen's configuration that is on or off, such as `CONFIG_UBSAN=y`.
///
/// ```
/// use xsplice_testbed::upstream::Setting;
/// let off: Setting = "CONFIG_XEN_IBT=n".parse()?;
/// assert_eq!(off.to_string(), "CONFIG_XEN_IBT=n");
/// assert!("XEN_IBT".parse::<Setting>().is_err());
/// # Ok::<(), anyhow::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Setting {
    name: String,
    on: bool,
}

impl FromStr for Setting {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (name, on) = match text.split_once('=') {
            Some((name, "y")) => (name, true),
            Some((name, "n")) => (name, false),
            _ => bail!("write CONFIG_NAME=y or CONFIG_NAME=n"),
        };
        ensure!(
            name.starts_with("CONFIG_"),
            "the name of an option begins with CONFIG_"
        );
        Ok(Self {
            name: name.to_owned(),
            on,
        })
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, if self.on { 'y' } else { 'n' })
    }
}

impl Setting {
    /// Its line in the configuration.
    fn line(&self) -> String {
        if self.on {
            self.to_string()
        } else {
            format!("# {} is not set", self.name)
        }
    }

    /// Whether the configuration `text` has it. Kconfig leaves out what cannot be on.
    fn is_in(&self, text: &str) -> bool {
        let on = format!("{}=y", self.name);
        text.lines().any(|line| line == on) == self.on
    }
}

/// How a tree is configured and compiled.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Variant {
    /// Build with this program, gcc or clang.
    #[arg(long, value_name = "PROGRAM", default_value = "gcc")]
    pub compiler: Compiler,
    /// Configure Xen with this; may be given more than once. CONFIG_DEBUG=y, for example.
    #[arg(long = "config", value_name = "CONFIG_NAME=y|n")]
    pub settings: Vec<Setting>,
}

impl Variant {
    /// What it is, such as `gcc 12.2.0, CONFIG_UBSAN=y`.
    ///
    /// # Errors
    /// If the compiler does not run.
    pub fn name(&self) -> anyhow::Result<String> {
        let mut parts = vec![self.compiler.name()?];
        parts.extend(self.settings.iter().map(Setting::to_string));
        Ok(parts.join(", "))
    }
}

/// Builds the hypervisor of the tree `source`; returns the file that says where everything
/// is, in the form of the base's. Kernel and tools are Debian's.
pub fn build(source: &Path, variant: &Variant, what: &Build) -> anyhow::Result<PathBuf> {
    what.check(Machine::X86_64)?;
    let version = version(source)?;
    let base = base::get()?;
    let directory = cache::root()?.join(cache::VERSIONS);
    let directory = directory.join(format!("{version}-{}", what.name()));
    if directory.exists() {
        std::fs::remove_dir_all(&directory)?;
    }
    std::fs::create_dir_all(&directory)?;
    let tree = directory.join("source");
    println!("copying Xen {version}");
    command::run(Command::new("cp").arg("-a").arg(source).arg(&tree))?;
    tree::patch(&tree)?;
    let config = tree.join("xen/.config");
    let text = std::fs::read_to_string(&config).unwrap_or_else(|_| CONFIG.to_owned());
    let settings = variant.settings.iter().map(Setting::line);
    let settings = settings.chain([LIVEPATCH.to_owned()]).collect::<Vec<_>>();
    std::fs::write(&config, format!("{text}{}\n", settings.join("\n")))?;
    tree::configure(&tree, what)?;
    xen::put_core(&tree, Machine::X86_64, what)?;
    xen::forget_payloads(&tree.join("xen/test/livepatch"))?;
    println!("building it");
    let make = |arguments: &[&str]| make(&tree, &variant.compiler, arguments);
    make(&["olddefconfig"])?;
    let text = std::fs::read_to_string(&config)?;
    let needed = tree::options(what).into_iter().chain([LIVEPATCH]);
    let needed = needed
        .map(Setting::from_str)
        .collect::<Result<Vec<_>, _>>()?;
    for setting in needed.iter().chain(&variant.settings) {
        ensure!(
            setting.is_in(&text),
            "{}: the configuration does not allow {setting}: look for what excludes it",
            source.display()
        );
    }
    let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
    make(&[&format!("-j{jobs}"), "build"])?;
    make(&["tests"])?;
    let built = Base {
        version,
        xen: tree.join("xen/xen.gz"),
        xen_syms: tree.join("xen/xen-syms"),
        // There is no other build to compare with.
        identical: false,
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
        ..base
    };
    let description = directory.join("base.json");
    std::fs::write(&description, built.summary())?;
    Ok(description)
}

/// The version of a tree, as its makefile has it.
fn version(source: &Path) -> anyhow::Result<String> {
    let makefile = source.join("xen/Makefile");
    let text = std::fs::read_to_string(&makefile).with_context(|| {
        let source = source.display();
        format!("{source} is not the top of a Xen tree: it has no xen/Makefile")
    })?;
    let value = |name: &str| {
        let mut values = text.lines().filter_map(|line| {
            let (left, right) = line.trim_start_matches("export ").split_once('=')?;
            let left = left.trim_end_matches([' ', '\t', '?', ':']);
            (left == name).then(|| right.trim())
        });
        values.next().unwrap_or_default()
    };
    let number = |name: &str| value(name).parse::<u32>();
    let (Ok(major), Ok(minor)) = (number("XEN_VERSION"), number("XEN_SUBVERSION")) else {
        bail!(
            "{}: it does not say which version it is",
            makefile.display()
        );
    };
    ensure!(
        (major, minor) >= OLDEST,
        "{}: Xen {major}.{minor} is older than 4.17",
        source.display()
    );
    // Without what the environment may add.
    let extra = value("XEN_EXTRAVERSION");
    let extra = extra.split('$').next().unwrap_or_default();
    Ok(format!("{major}.{minor}{extra}"))
}

fn make(tree: &Path, compiler: &Compiler, arguments: &[&str]) -> anyhow::Result<()> {
    let mut make = Command::new("make");
    make.current_dir(tree)
        .args(["-C", "xen"])
        .args(["XEN_COMPILE_ARCH=x86_64", "XEN_TARGET_ARCH=x86_64"])
        .arg("PYTHON=/usr/bin/python3")
        .args(compiler.make_arguments())
        .args(arguments)
        .env_remove("MAKEFLAGS");
    command::output(&mut make).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version_of(makefile: &str) -> anyhow::Result<String> {
        let tree = tempfile::tempdir()?;
        std::fs::create_dir(tree.path().join("xen"))?;
        std::fs::write(tree.path().join("xen/Makefile"), makefile)?;
        version(tree.path())
    }

    #[test]
    fn a_setting_is_compared_with_the_configuration() -> anyhow::Result<()> {
        let text = "CONFIG_UBSAN=y\n# CONFIG_DEBUG is not set\n";
        for (setting, is_in, line) in [
            ("CONFIG_UBSAN=y", true, "CONFIG_UBSAN=y"),
            ("CONFIG_UBSAN=n", false, "# CONFIG_UBSAN is not set"),
            ("CONFIG_DEBUG=y", false, "CONFIG_DEBUG=y"),
            ("CONFIG_DEBUG=n", true, "# CONFIG_DEBUG is not set"),
            ("CONFIG_XEN_IBT=n", true, "# CONFIG_XEN_IBT is not set"),
        ] {
            let read = setting.parse::<Setting>()?;
            assert_eq!((read.is_in(text), read.line().as_str()), (is_in, line));
            assert_eq!(read.to_string(), setting);
        }
        for wrong in ["CONFIG_UBSAN", "CONFIG_UBSAN=yes", "UBSAN=y"] {
            assert!(wrong.parse::<Setting>().is_err(), "{wrong}");
        }
        Ok(())
    }

    #[test]
    fn the_version_is_the_makefiles() -> anyhow::Result<()> {
        let makefile = |minor: &str, extra: &str| {
            format!(
                "export XEN_VERSION       = 4\nexport XEN_SUBVERSION    = {minor}\n\
                 export XEN_EXTRAVERSION ?= {extra}$(XEN_VENDORVERSION)\n\
                 export XEN_FULLVERSION   = $(XEN_VERSION).$(XEN_SUBVERSION)\n"
            )
        };
        assert_eq!(version_of(&makefile("20", ".4"))?, "4.20.4");
        assert_eq!(version_of(&makefile("23", "-unstable"))?, "4.23-unstable");
        for (wrong, why) in [
            (makefile("16", ".7"), "Xen 4.16 is older than 4.17"),
            (String::new(), "does not say which version"),
        ] {
            let error = version_of(&wrong).err().context("it is taken")?;
            assert!(error.to_string().contains(why), "{error}");
        }
        let nothing = tempfile::tempdir()?;
        let error = version(nothing.path()).err().context("it is taken")?;
        assert!(
            error.to_string().contains("not the top of a Xen tree"),
            "{error}"
        );
        Ok(())
    }
}

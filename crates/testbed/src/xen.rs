// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask xen build`: Debian's Xen with the engine of our choice.
//!
//! The tree is a copy of the base's, with the patches of `crates/host-xen`, and
//! stays in the cache; the shim and the Rust object are put into it whenever
//! they change, and make does the rest.

use crate::Machine;
use crate::base::{self, Base};
use crate::debian_build::DebianBuild;
use crate::keys::Keys;
use crate::size::{MOST, Size};
use crate::{arm64, cache, command, rust_core};
use anyhow::{Context as _, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which live-patch core the hypervisor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Engine {
    /// Xen's own.
    C,
    /// Ours.
    Rust,
}

/// What to build.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Build {
    /// The live-patch core.
    #[arg(long, value_enum, default_value = "rust")]
    pub engine: Engine,
    /// With Xen's assertions (`CONFIG_DEBUG`).
    #[arg(long)]
    pub debug: bool,
    /// With microcode loading on the rendezvous (`CONFIG_MICROCODE_RUST`).
    #[arg(long)]
    pub microcode: bool,
    /// Who may sign payloads, if not everybody.
    #[command(flatten)]
    pub keys: Keys,
}

impl Build {
    /// With nothing but a core.
    pub const fn new(engine: Engine) -> Self {
        Self {
            engine,
            debug: false,
            microcode: false,
            keys: Keys::NONE,
        }
    }

    /// Refuses what only our core can do, or only on x86-64.
    pub(crate) fn check(&self, machine: Machine) -> anyhow::Result<()> {
        if self.engine == Engine::C {
            let keys = self.keys.directory.is_none();
            ensure!(keys, "Xen's own engine does not look at signatures");
            let microcode = "Xen's own engine has no rendezvous to load microcode on";
            ensure!(!self.microcode, microcode);
        }
        ensure!(
            machine == Machine::X86_64 || !self.microcode,
            "Xen loads no microcode on {machine}"
        );
        Ok(())
    }

    /// A name for its parts. Keys are not in it, but a locked hypervisor has its own tree:
    /// a build would otherwise undo the other's.
    pub(crate) fn name(&self) -> String {
        let engine = match self.engine {
            Engine::C => "c",
            Engine::Rust => "rust",
        };
        let microcode = if self.microcode { "-microcode" } else { "" };
        let debug = if self.debug { "-debug" } else { "" };
        let locked = if self.keys.lock_signatures {
            "-locked"
        } else {
            ""
        };
        format!("{engine}{microcode}{debug}{locked}")
    }

    /// What the configuration must have because of it.
    pub(crate) fn options(&self) -> Vec<&'static str> {
        let rust = self.engine == Engine::Rust;
        let mut options = Vec::new();
        options.extend(rust.then_some("CONFIG_LIVEPATCH_RUST=y"));
        options.extend(self.microcode.then_some("CONFIG_MICROCODE_RUST=y"));
        options
    }
}

/// How a tree is made: this file, how Debian builds, and the patches.
const RECIPE: &str = concat!(
    include_str!("xen.rs"),
    include_str!("debian_build.rs"),
    include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
    include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
    include_str!("../../host-xen/patches/0003-events-wait.patch"),
    include_str!("../../host-xen/patches/0004-arm64.patch"),
    include_str!("../../host-xen/patches/0005-microcode.patch"),
);

/// The same on ARM64.
const ARM64_RECIPE: &str = concat!(
    include_str!("xen.rs"),
    include_str!("arm.rs"),
    include_str!("arm64.rs"),
    include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
    include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
    include_str!("../../host-xen/patches/0004-arm64.patch"),
);

/// Our part of the tree.
const SOURCES: &str = "crates/host-xen";
/// Where the shim and the Rust object go.
const fn place(machine: Machine) -> &'static str {
    match machine {
        Machine::X86_64 => "xen/arch/x86",
        Machine::Arm64 | Machine::Arm32 => "xen/arch/arm",
    }
}

/// The Rust object, which the makefile copies to its place.
const OBJECT: &str = "livepatch-core.o_shipped";
/// The shim's table of keys.
const KEYS: &str = "livepatch-keys.h";
/// The part of the shim that is for one architecture, in a directory of its name.
const ARCH: &str = "livepatch-arch.h";
/// The rest of the shim.
const SHIM: [&str; 5] = [
    "livepatch-rust.c",
    "livepatch-rust.h",
    "livepatch-xen.h",
    "microcode-rust.c",
    KEYS,
];

/// Builds Debian's hypervisor; returns the file that says where everything is, in the
/// form of the base's.
pub fn build(machine: Machine, what: &Build) -> anyhow::Result<PathBuf> {
    what.check(machine)?;
    let base = base_of(machine)?;
    let kind = kind(machine, what);
    let version = base.version.replace(['/', ':'], "_");
    let recipe = match machine {
        Machine::X86_64 => RECIPE,
        Machine::Arm64 | Machine::Arm32 => ARM64_RECIPE,
    };
    let directory = cache::entry(&kind, &version, recipe, |directory| {
        println!("copying Xen {}", base.version);
        prepare(&base, &directory.join("source"), what)
    })?;
    let tree = directory.join("source");
    put_core(&tree, machine, what)?;
    forget_payloads(&tree.join("xen/test/livepatch"))?;
    println!("building it");
    let file = make(&tree, machine)?;
    let built = Base {
        xen: tree.join(file),
        xen_syms: tree.join("xen/xen-syms"),
        identical: true,
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
        ..base
    };
    if what.engine == Engine::Rust && !what.debug {
        let Size { bytes, more } = Size::of(&built.xen, &base.xen)?;
        let limit = match machine {
            Machine::X86_64 => format!("; {MOST} are the limit"),
            // This file is not compressed, and padded.
            Machine::Arm64 | Machine::Arm32 => String::new(),
        };
        println!("{file} has {bytes} bytes, {more} more than with Xen's own core{limit}");
    }
    let description = directory.join("base.json");
    std::fs::write(&description, built.summary())?;
    Ok(description)
}

/// The base for a machine.
fn base_of(machine: Machine) -> anyhow::Result<Base> {
    match machine {
        Machine::X86_64 => base::get(),
        Machine::Arm64 => arm64::base(),
        Machine::Arm32 => bail!("there is no base for {machine}"),
    }
}

/// The kind of the cache entry of a hypervisor.
fn kind(machine: Machine, what: &Build) -> String {
    let machine = match machine {
        Machine::X86_64 => "",
        Machine::Arm64 => "-arm64",
        Machine::Arm32 => "-arm32",
    };
    format!("xen{machine}-{}", what.name())
}

/// Builds the configured tree; returns the hypervisor's file in it.
fn make(tree: &Path, machine: Machine) -> anyhow::Result<&'static str> {
    match machine {
        Machine::X86_64 => {
            DebianBuild::new(tree)?.build()?;
            Ok("xen/xen.gz")
        }
        Machine::Arm64 | Machine::Arm32 => {
            arm64::build_configured(tree)?;
            Ok("xen/xen")
        }
    }
}

/// Copies the base's tree to `tree` and patches it; nothing is compiled yet.
fn prepare(base: &Base, tree: &Path, what: &Build) -> anyhow::Result<()> {
    command::run(Command::new("cp").arg("-a").arg(&base.tree).arg(tree))?;
    patch(tree)?;
    configure(tree, what)
}

/// Puts the Rust object, the shim and the table of keys into the tree, if our core is
/// built.
pub(crate) fn put_core(tree: &Path, machine: Machine, what: &Build) -> anyhow::Result<()> {
    if what.engine == Engine::C {
        return Ok(());
    }
    let object = rust_core::object(machine, what.microcode)?;
    let (place, shims) = (tree.join(place(machine)), Path::new(SOURCES).join("shim"));
    refresh(&read(&object)?, &place.join(OBJECT))?;
    let arch = shims.join(rust_core::name(machine)?).join(ARCH);
    refresh(&read(&arch)?, &place.join(ARCH))?;
    for name in SHIM {
        let shim = read(&shims.join(name))?;
        let header = if name == KEYS {
            what.keys.header()?
        } else {
            None
        };
        let data = header.map_or(shim, String::into_bytes);
        refresh(&data, &place.join(name))?;
    }
    Ok(())
}

/// Applies our patches, which are the same for every version.
pub(crate) fn patch(tree: &Path) -> anyhow::Result<()> {
    let mut patches: Vec<PathBuf> = std::fs::read_dir(Path::new(SOURCES).join("patches"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    patches.sort();
    for patch in patches {
        let apply = [
            "--strip=1",
            "--fuzz=0",
            "--no-backup-if-mismatch",
            "--input",
        ];
        let patch = patch.canonicalize()?;
        command::output(
            Command::new("patch")
                .current_dir(tree)
                .args(apply)
                .arg(patch),
        )?;
    }
    Ok(())
}

/// Chooses what is built in the tree's configuration.
pub(crate) fn configure(tree: &Path, what: &Build) -> anyhow::Result<()> {
    let config = tree.join("xen/.config");
    let mut text = std::fs::read_to_string(&config)?;
    for option in what.options() {
        text.push_str(option);
        text.push('\n');
    }
    if what.debug {
        text = text.replace("# CONFIG_DEBUG is not set\n", "CONFIG_DEBUG=y\n");
    }
    std::fs::write(config, text)?;
    Ok(())
}

/// Removes the test payloads and what they are made from: they have addresses
/// of the hypervisor in them, and their makefile does not see that it changed.
pub(crate) fn forget_payloads(directory: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().unwrap_or_default();
        if ["h", "o", "livepatch"]
            .iter()
            .any(|made| extension == *made)
        {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| path.display().to_string())
}

/// Writes `data` to `to` if it differs, so that make sees changes only.
fn refresh(data: &[u8], to: &Path) -> anyhow::Result<()> {
    if std::fs::read(to).is_ok_and(|there| there == data) {
        return Ok(());
    }
    std::fs::write(to, data).with_context(|| to.display().to_string())
}

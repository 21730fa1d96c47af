// SPDX-License-Identifier: MIT OR Apache-2.0

//! `cargo xtask xen build`: Debian's Xen with the engine of our choice.
//!
//! The tree is a copy of the base's, with the patches of `crates/host-xen`, and
//! stays in the cache; the shim and the Rust object are put into it whenever
//! they change, and make does the rest.

pub(crate) mod tree;

use crate::Machine;
use crate::arm32::ARM32;
use crate::arm64::ARM64;
use crate::base::{self, Base};
use crate::debian_build::DebianBuild;
use crate::keys::Keys;
use crate::size::{MOST, Size};
use crate::{cache, rust_core};
use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};

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
}

/// How a hypervisor is made for one machine.
struct Made {
    /// What the names of its cache entries begin with.
    kind: &'static str,
    /// What its tree depends on: how it is made and built, and the patches that change
    /// what is built. A patch for another machine is applied too, and changes nothing.
    recipe: &'static str,
    /// Where the shim and the Rust object go.
    place: &'static str,
    /// The hypervisor's file in the tree.
    file: &'static str,
    /// The most bytes that our core may add to it, if that says something: the file is
    /// compressed, and not padded.
    most: Option<i64>,
    /// What it is built from.
    base: fn() -> anyhow::Result<Base>,
    /// Builds the configured tree.
    build: fn(&Path) -> anyhow::Result<()>,
}

/// How a hypervisor is made for a machine.
const fn made(machine: Machine) -> &'static Made {
    match machine {
        Machine::X86_64 => &FOR_X86_64,
        Machine::Arm64 => &FOR_ARM64,
        Machine::Arm32 => &FOR_ARM32,
    }
}

static FOR_X86_64: Made = Made {
    kind: "xen",
    recipe: concat!(
        include_str!("xen/tree.rs"),
        include_str!("debian_build.rs"),
        include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
        include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
        include_str!("../../host-xen/patches/0003-events-wait.patch"),
        include_str!("../../host-xen/patches/0005-microcode.patch"),
    ),
    place: "xen/arch/x86",
    file: "xen/xen.gz",
    most: Some(MOST),
    base: base::get,
    build: |tree| DebianBuild::new(tree)?.build(),
};

static FOR_ARM64: Made = Made {
    kind: "xen-arm64",
    recipe: concat!(
        include_str!("xen/tree.rs"),
        include_str!("arm.rs"),
        include_str!("arm64.rs"),
        include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
        include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
        include_str!("../../host-xen/patches/0004-arm.patch"),
    ),
    place: "xen/arch/arm",
    file: "xen/xen",
    most: None,
    base: || ARM64.base(),
    build: |tree| ARM64.build_configured(tree),
};

static FOR_ARM32: Made = Made {
    kind: "xen-arm32",
    recipe: concat!(
        include_str!("xen/tree.rs"),
        include_str!("arm.rs"),
        include_str!("arm32.rs"),
        include_str!("../../host-xen/patches/0001-sysctl-continuation.patch"),
        include_str!("../../host-xen/patches/0002-choice-of-engine.patch"),
        include_str!("../../host-xen/patches/0004-arm.patch"),
    ),
    base: || ARM32.base(),
    build: |tree| ARM32.build_configured(tree),
    ..FOR_ARM64
};

/// Our part of the tree.
const SHIMS: &str = "crates/host-xen/shim";
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
    let made = made(machine);
    let base = (made.base)()?;
    let kind = format!("{}-{}", made.kind, what.name());
    let version = base.version.replace(['/', ':'], "_");
    let directory = cache::entry(&kind, &version, made.recipe, |directory| {
        println!("copying Xen {}", base.version);
        tree::prepare(&base, &directory.join("source"), what)
    })?;
    let tree = directory.join("source");
    put_core(&tree, machine, what)?;
    forget_payloads(&tree.join("xen/test/livepatch"))?;
    println!("building it");
    (made.build)(&tree)?;
    let built = Base {
        xen: tree.join(made.file),
        xen_syms: tree.join("xen/xen-syms"),
        identical: true,
        test_payloads: tree.join("xen/test/livepatch"),
        tree,
        ..base
    };
    if what.engine == Engine::Rust && !what.debug {
        let Size { bytes, more } = Size::of(&built.xen, &base.xen)?;
        let limit = made.most.map(|most| format!("; {most} are the limit"));
        let (file, limit) = (made.file, limit.unwrap_or_default());
        println!("{file} has {bytes} bytes, {more} more than with Xen's own core{limit}");
    }
    let description = directory.join("base.json");
    std::fs::write(&description, built.summary())?;
    Ok(description)
}

/// Puts the Rust object, the shim and the table of keys into the tree, if our core is
/// built.
pub(crate) fn put_core(tree: &Path, machine: Machine, what: &Build) -> anyhow::Result<()> {
    if what.engine == Engine::C {
        return Ok(());
    }
    let object = rust_core::object(machine, what.microcode)?;
    let (place, shims) = (tree.join(made(machine).place), Path::new(SHIMS));
    refresh(&read(&object)?, &place.join(OBJECT))?;
    let arch = shims.join(rust_core::shim(machine)).join(ARCH);
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen on ARM: Debian's source, built with live patching, which Debian's own builds for
//! ARM do not have; and `xsplice` for its dom0.

use crate::base::{self, Base};
use crate::debian::Apt;
use crate::programs::{self, Foreign};
use crate::{cache, command, packages};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What differs between the ARM architectures.
pub struct Arm {
    /// Debian's name of the architecture.
    pub(crate) debian: &'static str,
    /// Xen's name.
    pub(crate) xen: &'static str,
    /// The GNU name.
    pub(crate) triple: &'static str,
    /// The target of programs for dom0.
    pub(crate) target: &'static str,
    /// The package that depends on dom0's newest kernel.
    pub(crate) kernel: &'static str,
    /// The packages that building and booting needs.
    pub(crate) packages: &'static [&'static str],
    /// How everything is made, for the names of cache entries.
    pub(crate) recipe: &'static str,
}

/// Debian's compiler.
const RUSTC: &str = "/usr/bin/rustc";
/// What Xen's default configuration gets.
const CONFIGURATION: &str = "CONFIG_DEBUG=n\nCONFIG_LIVEPATCH=y\n";
/// The C tool, and what it needs.
const TOOL: [&str; 12] = [
    "xen-utils-4.17",
    "libxenmisc4.17",
    "libxencall1",
    "libxendevicemodel1",
    "libxenevtchn1",
    "libxenforeignmemory1",
    "libxengnttab1",
    "libxenhypfs1",
    "libxentoolcore1",
    "libxentoollog1",
    "libxenstore4",
    "libc6",
];

impl Arm {
    /// Where the description of the base is; it is made if it is not in the cache.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn description(&self) -> anyhow::Result<PathBuf> {
        packages::ensure(self.packages)?;
        let version = base::get()?.version;
        let name = version.replace(['/', ':'], "_");
        let kind = format!("debian-xen-{}", self.xen);
        let directory = cache::entry(&kind, &name, self.recipe, |directory| {
            self.make(directory, &version)
        })?;
        Ok(directory.join("base.json"))
    }

    /// The base; it is made if it is not in the cache.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn base(&self) -> anyhow::Result<Base> {
        let text = std::fs::read_to_string(self.description()?)?;
        serde_json::from_str(&text)
            .context("the cached base.json is damaged; run cargo xtask cache --clear")
    }

    /// Builds `xsplice` for dom0; returns its path.
    ///
    /// # Errors
    /// If it cannot be built.
    pub fn build_xsplice(&self) -> anyhow::Result<PathBuf> {
        packages::ensure(self.packages)?;
        packages::ensure(packages::RUST)?;
        let version = command::output(Command::new(RUSTC).arg("--version"))?;
        let version = version.split_whitespace().nth(1).unwrap_or("unknown");
        let kind = format!("rust-std-{}", self.xen);
        let library = cache::entry(&kind, version, self.recipe, |directory| {
            println!(
                "compiling Rust {version}'s standard library for {}",
                self.debian
            );
            self.build_std(
                directory,
                &format!("/usr/src/rustc-{version}/library/vendor"),
            )
        })?;
        programs::build_foreign(&Foreign {
            target: self.target,
            linker: &format!("{}-gcc", self.triple),
            library: &library,
        })
    }

    /// Builds the standard library that fits Debian's compiler, which Debian does not
    /// always have for other architectures, into `lib` of the directory. `vendor` has
    /// the crates that it needs.
    fn build_std(&self, directory: &Path, vendor: &str) -> anyhow::Result<()> {
        let (package, built) = (directory.join("package"), directory.join("built"));
        std::fs::create_dir_all(package.join("src"))?;
        let manifest = "[package]\nname = \"nothing\"\nedition = \"2024\"\n[workspace]\n";
        std::fs::write(package.join("Cargo.toml"), manifest)?;
        std::fs::write(package.join("src/lib.rs"), "#![no_std]\n")?;
        command::output(
            Command::new("/usr/bin/cargo")
                .args([
                    "build",
                    "--release",
                    "--offline",
                    "-Zbuild-std=std,panic_unwind",
                ])
                .args(["--target", self.target, "--target-dir"])
                .arg(&built)
                .args(["--config", "source.crates-io.replace-with='vendor'"])
                .args(["--config", &format!("source.vendor.directory='{vendor}'")])
                .current_dir(&package)
                .envs([("RUSTC", RUSTC), ("RUSTC_BOOTSTRAP", "1")])
                .env_remove("RUSTUP_TOOLCHAIN"),
        )?;
        let library = directory.join("lib");
        std::fs::create_dir_all(&library)?;
        for entry in std::fs::read_dir(built.join(self.target).join("release/deps"))? {
            let path = entry?.path();
            if let (true, Some(name)) = (
                path.extension().is_some_and(|e| e == "rlib"),
                path.file_name(),
            ) {
                std::fs::rename(&path, library.join(name))?;
            }
        }
        std::fs::remove_dir_all(built)?;
        Ok(std::fs::remove_dir_all(package)?)
    }

    fn apt(&self) -> anyhow::Result<Apt> {
        println!("fetching Debian's package lists for {}", self.debian);
        let directory = cache::root()?.join(cache::APT).join(self.debian);
        Apt::with_architecture(&directory, self.debian)
    }

    fn foreign(&self, package: &str) -> String {
        format!("{package}:{}", self.debian)
    }

    fn make(&self, directory: &Path, version: &str) -> anyhow::Result<()> {
        let apt = self.apt()?;
        let tree = directory.join("source");
        println!("downloading Xen {version} and dom0 for {}", self.debian);
        apt.source("xen", version, &tree)?;
        let kernel = apt.dependency(&self.foreign(self.kernel))?;
        let mut names: Vec<String> = TOOL.iter().map(|name| self.foreign(name)).collect();
        names.push(kernel.clone());
        apt.unpack(directory, &names)?;
        let release = kernel
            .trim_start_matches("linux-image-")
            .trim_end_matches(&self.foreign(""))
            .to_owned();

        println!("building Xen {version} for {}", self.xen);
        self.build(&tree)?;
        let first = std::fs::read(tree.join("xen/xen-syms"))?;
        self.make_xen(&tree, &["clean"])?;
        self.build(&tree)?;
        let identical = std::fs::read(tree.join("xen/xen-syms"))? == first;
        println!(
            "two builds are {}",
            if identical { "equal" } else { "not equal" }
        );
        let base = Base {
            version: version.to_owned(),
            xen: tree.join("xen/xen"),
            xen_syms: tree.join("xen/xen-syms"),
            identical,
            kernel: directory.join(format!("boot/vmlinuz-{release}")),
            privcmd: directory.join(format!(
                "lib/modules/{release}/kernel/drivers/xen/xen-privcmd.ko"
            )),
            c_tool: directory.join("usr/lib/xen-4.17/bin/xen-livepatch"),
            libraries: ["lib", "usr/lib"]
                .into_iter()
                .flat_map(|place| {
                    [
                        directory.join(place),
                        directory.join(place).join(self.triple),
                    ]
                })
                .collect(),
            test_payloads: tree.join("xen/test/livepatch"),
            tree,
        };
        std::fs::write(directory.join("base.json"), base.summary())?;
        Ok(())
    }

    fn build(&self, tree: &Path) -> anyhow::Result<()> {
        std::fs::write(tree.join("xen/.config"), CONFIGURATION).context("xen/.config")?;
        self.build_configured(tree)
    }

    /// Builds the hypervisor that `.config` describes, and its test payloads.
    pub(crate) fn build_configured(&self, tree: &Path) -> anyhow::Result<()> {
        let jobs = std::thread::available_parallelism().map_or(2, |n| n.get() + 1);
        self.make_xen(tree, &["olddefconfig"])?;
        self.make_xen(tree, &[&format!("-j{jobs}"), "build"])?;
        self.make_xen(tree, &["tests"])
    }

    fn make_xen(&self, tree: &Path, arguments: &[&str]) -> anyhow::Result<()> {
        let mut make = Command::new("make");
        make.args(["-C", "xen", "PYTHON=/usr/bin/python3"])
            .arg(format!("XEN_TARGET_ARCH={}", self.xen))
            .arg("XEN_COMPILE_ARCH=x86_64")
            .arg(format!("CROSS_COMPILE={}-", self.triple))
            .args(arguments)
            .current_dir(tree)
            // The hypervisor has the time and the builder's name in it.
            .envs([
                ("SOURCE_DATE_EPOCH", "0"),
                ("XEN_BUILD_DATE", "Thu Jan 1 00:00:00 UTC 1970"),
                ("XEN_BUILD_TIME", "00:00:00"),
                ("XEN_WHOAMI", "xsplice"),
                ("XEN_DOMAIN", "localhost"),
                ("XEN_BUILD_HOST", "localhost"),
            ])
            // The build must not reach for the network.
            .envs([("WGET", "/bin/false"), ("GIT", "/bin/false")])
            .env_remove("MAKEFLAGS");
        command::output(&mut make).map(drop)
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisors on which payloads are tried, and what tries them in dom0.

use crate::{ALL, SAMPLE};
use std::path::{Path, PathBuf};
use xsplice_e2e::{
    Base, arm32_config, arm32_rust_base, arm64_config, arm64_rust_base, config, exhaustive,
    repository, rust_base, settled,
};
use xsplice_lab::{Error, Host, HostConfig, Output};

/// Number of payloads per process.
const AT_A_TIME: usize = 20;
/// Number of payloads for ARM: each takes several processes.
const ARM_SAMPLE: usize = 30;

/// A hypervisor with our core.
pub(crate) struct Target {
    pub(crate) base: Base,
    /// Patches of the tests, which payloads are made from as from the examples.
    patches: [&'static str; 2],
    /// Number of payloads to try.
    pub(crate) count: usize,
    pub(crate) dom0: Dom0,
    config: fn(&Base) -> anyhow::Result<HostConfig>,
}

/// What tries payloads in dom0.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dom0 {
    /// `in-dom0`, which tries many in one process.
    Driver,
    /// The tool, with a process for each step. Nothing else is built for ARM.
    Tool,
}

impl Target {
    pub(crate) fn x86_64() -> anyhow::Result<Self> {
        Ok(Self {
            base: rust_base()?,
            patches: ["patches/altcall", "patches/exception-table"],
            count: if exhaustive() { ALL } else { SAMPLE },
            dom0: Dom0::Driver,
            config,
        })
    }

    pub(crate) fn arm64() -> anyhow::Result<Self> {
        Ok(Self::arm(arm64_rust_base()?, arm64_config))
    }

    pub(crate) fn arm32() -> anyhow::Result<Self> {
        Ok(Self::arm(arm32_rust_base()?, arm32_config))
    }

    fn arm(base: Base, config: fn(&Base) -> anyhow::Result<HostConfig>) -> Self {
        Self {
            base,
            patches: ["patches-arm64/alternatives", "patches-arm64/switch"],
            count: if exhaustive() { ALL } else { ARM_SAMPLE },
            dom0: Dom0::Tool,
            config,
        }
    }

    /// The patches of the tests: name and path.
    pub(crate) fn patches(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        self.patches.into_iter().map(|place| {
            let path = repository().join(format!("tests/e2e/{place}.patch"));
            (name(place), path)
        })
    }

    /// A host whose dom0 has the files of `directory`.
    pub(crate) fn boot(&self, directory: &Path) -> anyhow::Result<Host> {
        let mut config = (self.config)(&self.base)?;
        if self.dom0 == Dom0::Driver {
            let driver = PathBuf::from(env!("CARGO_BIN_EXE_in-dom0"));
            config.programs.push(("bin/in-dom0".to_owned(), driver));
            // While it boots, dom0 has all of them twice.
            config.memory = 2048;
            config.xen_arguments.push_str(" dom0_mem=1280M");
        }
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            let place = place(&entry.file_name().to_string_lossy());
            config.files.push((place, entry.path()));
        }
        Ok(Host::boot(&config)?)
    }
}

/// Where dom0 has a file.
pub(crate) fn place(name: &str) -> String {
    format!("/lab/{name}")
}

/// The name of a file at a place.
fn name(place: &str) -> &str {
    place.rsplit('/').next().unwrap_or(place)
}

impl Dom0 {
    /// Tries the files in sequence; those with a `+` are applied and reverted. Adds a line
    /// for each to `printed`: its name, and the error numbers of its steps.
    pub(crate) fn run(
        self,
        host: &mut Host,
        files: &[String],
        printed: &mut String,
    ) -> Result<(), Error> {
        match self {
            Self::Driver => drive(host, files, printed),
            Self::Tool => {
                for file in files {
                    let codes = steps(host, file)?;
                    let codes = codes.iter().map(|code| format!(" {code}"));
                    *printed += &format!("{}{}\n", name(file), codes.collect::<String>());
                }
                Ok(())
            }
        }
    }
}

fn drive(host: &mut Host, files: &[String], printed: &mut String) -> Result<(), Error> {
    for files in files.chunks(AT_A_TIME) {
        let mut argv = vec!["in-dom0".to_owned(), "try-each".to_owned()];
        argv.extend_from_slice(files);
        let output = host.run(&argv)?;
        if output.code != Some(0) {
            return Err(Error::Dom0(format!("{output:?}")));
        }
        printed.push_str(&output.stdout);
    }
    Ok(())
}

/// The error numbers of its upload, and of its apply and revert, if any. It is unloaded at
/// the end.
fn steps(host: &mut Host, file: &str) -> Result<Vec<i32>, Error> {
    let (name, path) = (name(file), file.trim_start_matches('+'));
    let mut codes = vec![step(host, &["upload", name, path])?];
    if codes != [0] {
        return Ok(codes);
    }
    if file.starts_with('+') {
        codes.push(step(host, &["apply", name])?);
        if codes == [0, 0] {
            // The version call may be what is patched.
            host.run(&["xsplice", "info"])?;
            codes.push(step(host, &["revert", name])?);
        }
    }
    match step(host, &["unload", name])? {
        0 => Ok(codes),
        code => Err(Error::Dom0(format!("{name} cannot be unloaded: {code}"))),
    }
}

/// The error number of a step, 0 without one.
fn step(host: &mut Host, arguments: &[&str]) -> Result<i32, Error> {
    let failed = |output: &Output| Error::Dom0(format!("{arguments:?}: {output:?}"));
    let output = settled(host, &[&["/bin/xen-livepatch"], arguments].concat());
    let output = output.map_err(|error| Error::Dom0(format!("{error:#}")))?;
    match output.code {
        Some(0) => Ok(0),
        _ => error_number(&output).ok_or_else(|| failed(&output)),
    }
}

/// The number in `Error NUMBER: TEXT`.
fn error_number(output: &Output) -> Option<i32> {
    let mut lines = output.stderr.lines().chain(output.stdout.lines());
    let number = lines.find_map(|line| line.split_once("Error ")?.1.split_once(':'));
    number?.0.parse().ok()
}

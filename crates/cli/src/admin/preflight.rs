// SPDX-License-Identifier: MIT OR Apache-2.0
//! Checks a payload against the running hypervisor's image before an upload.
//!
//! A hypervisor checks less than the engine, and gives its reasons only on its
//! console. If the image with symbols is installed, the engine reports all of them
//! before the upload.

use super::payload_file::Identity;
use crate::code::Code;
use crate::output::{complain, shown};
use anyhow::Context as _;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use xsplice_abi::note::hex;
use xsplice_host_image::{Image, Severity, check};
use xsplice_system::file;

/// Where distributions install a hypervisor's image with symbols.
const DIRECTORIES: [&str; 4] = [
    "/boot",
    "/usr/lib/debug",
    "/usr/lib/debug/boot",
    "/usr/lib/debug/xen",
];

/// Whether and against what a payload is checked.
#[derive(clap::Args, Default)]
pub(crate) struct Preflight {
    /// Image of the running hypervisor with symbols, to check the payload
    /// against [default: found by its build-id in /boot and /usr/lib/debug].
    #[arg(long, value_name = "FILE")]
    xen_syms: Option<PathBuf>,
    /// Skip the pre-flight check.
    #[arg(long, conflicts_with = "xen_syms")]
    no_check: bool,
}

impl Preflight {
    /// Checks a payload for the running hypervisor, for a command with these options.
    ///
    /// # Errors
    /// Every reason for which the payload would or should be refused.
    pub(super) fn run(&self, name: &str, data: &[u8], identity: &Identity) -> anyhow::Result<()> {
        match self.refusal(name, data, identity)? {
            Some(refusal) => {
                let words =
                    format!("{refusal}\n  `--no-check` leaves the decision to the hypervisor");
                Err(Code::WouldNotLoad.error(words))
            }
            None => Ok(()),
        }
    }

    /// Every reason for which the payload would or should be refused.
    ///
    /// # Errors
    /// If it cannot be checked.
    pub(super) fn refusal(
        &self,
        name: &str,
        data: &[u8],
        identity: &Identity,
    ) -> anyhow::Result<Option<String>> {
        if self.no_check {
            return Ok(None);
        }
        let Some((path, image)) = self.image(identity)? else {
            return Ok(None);
        };
        // A payload on top of others can use their symbols, which only the hypervisor
        // has.
        if identity.depends != identity.hypervisor {
            complain!("warning: {}", unchecked(name, identity, &path));
            return Ok(None);
        }
        let reports = check(&image, &[(name, data)]);
        let problems = reports.iter().flat_map(|report| &report.problems);
        let (refused, warnings): (Vec<_>, Vec<_>) =
            problems.partition(|problem| problem.severity == Severity::NotLoaded);
        for problem in warnings {
            complain!("warning: {name}: {}", problem.message);
        }
        if refused.is_empty() {
            return Ok(None);
        }
        let mut message = format!(
            "{name} would not load into this hypervisor ({}):",
            shown(&path)
        );
        for problem in refused {
            let _ = write!(message, "\n  {}", problem.message);
        }
        Ok(Some(message))
    }

    /// The image that was given, or the installed one with the build-id of the
    /// running hypervisor.
    fn image(&self, identity: &Identity) -> anyhow::Result<Option<(PathBuf, Image)>> {
        let build_id = &identity.hypervisor;
        if let Some(path) = &self.xen_syms {
            let image = read(path).with_context(|| shown(path))?;
            if hex(image.build_id()) != *build_id {
                let of = hex(image.build_id());
                let words = format!(
                    "{}: it is the image with build-id {of}; this host runs {build_id}",
                    shown(path)
                );
                return Err(Code::WrongHypervisor.error(words));
            }
            return Ok(Some((path.clone(), image)));
        }
        let entries = DIRECTORIES.iter().filter_map(|d| std::fs::read_dir(d).ok());
        let found = entries.flatten().flatten().filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("xen-syms") && !name.ends_with(".map")
        });
        let mut images = found.filter_map(|entry| Some((entry.path(), read(&entry.path()).ok()?)));
        Ok(images.find(|(_, image)| hex(image.build_id()) == *build_id))
    }
}

/// Says that a payload on top of others is not checked, and what would check it.
fn unchecked(name: &str, identity: &Identity, path: &Path) -> String {
    format!(
        "{name}: not checked before the upload, because it depends on the payload with build-id \
         {}: to check it, run `xsplice check` with `--xen-syms {}`, and `--on FILE` for each \
         payload below it",
        identity.depends,
        shown(path)
    )
}

fn read(path: &Path) -> anyhow::Result<Image> {
    let data = file::read(path).context("cannot read it")?;
    Ok(Image::parse(&data)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use xsplice_abi::machine::Machine;

    /// The error of a check against the file at `path`.
    fn error(path: &Path) -> String {
        let identity = Identity {
            machine: Machine::X86_64,
            hypervisor: "ab".to_owned(),
            depends: "ab".to_owned(),
        };
        let preflight = Preflight {
            xen_syms: Some(path.to_owned()),
            no_check: false,
        };
        let error = preflight.run("fix", b"", &identity).expect_err("no image");
        format!("{error:#}")
    }

    #[test]
    fn a_missing_image_is_not_mistaken_for_a_wrong_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("xen-syms");
        assert!(error(&path).ends_with("cannot read it: No such file or directory (os error 2)"));
        std::fs::write(&path, "\x7fELF").expect("written");
        assert!(error(&path).contains("pass the xen-syms file of the hypervisor"));
    }
}

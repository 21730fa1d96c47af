// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice efi-syms`.

use crate::output::{Ended, failure, say, shown};
use anyhow::Context as _;
use std::path::PathBuf;
use std::process::ExitCode;
use xsplice_abi::note::hex;
use xsplice_host_image::{EfiError, Image, efi_symbols};
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice efi-syms --xen-syms xen-syms --xen-efi xen.efi -o xen-efi-syms
  xsplice build -s xen-4.17 -p fix.patch --xen-syms xen-efi-syms -o fix-efi.livepatch

xen.efi and the xen.gz of the same build have different build-ids and data
addresses: a payload fits only one of them.";

/// Arguments of `xsplice efi-syms`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The `xen-syms` of the same build.
    #[arg(long, value_name = "FILE")]
    xen_syms: PathBuf,
    /// The hypervisor that UEFI firmware starts.
    #[arg(long, value_name = "FILE")]
    xen_efi: PathBuf,
    /// The file to write; `-` is standard output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// The image that was created.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Created {
    /// Where it is.
    output: String,
    /// Build-id of the hypervisor in hexadecimal.
    build_id: String,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match write(args) {
        Ok(build_id) => {
            let output = shown(&args.output);
            if !json {
                say!("{output}: for the hypervisor with build-id {build_id}");
            }
            Ended::well(Created { output, build_id })
                .changed(true)
                .tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

/// Returns the build-id of `xen.efi`.
fn write(args: &Args) -> anyhow::Result<String> {
    file::check_output(&args.output, [&args.xen_syms, &args.xen_efi])
        .with_context(|| shown(&args.output))?;
    let read = |path: &PathBuf| file::read(path).with_context(|| shown(path));
    let image = efi_symbols(&read(&args.xen_syms)?, &read(&args.xen_efi)?);
    let image = image.map_err(|error| {
        let file = match error {
            EfiError::Symbols(_) => &args.xen_syms,
            _ => &args.xen_efi,
        };
        anyhow::Error::new(error).context(shown(file))
    })?;
    let build_id = hex(Image::parse(&image)?.build_id());
    file::write(&args.output, &image)
        .with_context(|| format!("cannot write {}", shown(&args.output)))?;
    Ok(build_id)
}

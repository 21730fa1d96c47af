// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice keygen`.

use crate::output::{Ended, failure, say, shown};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_signing::PrivateKey;
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice keygen --key vendor.key --cert vendor.pem
  xsplice sign --key vendor.key fix.livepatch

The RSA key is not encrypted: keep it where only those who sign payloads can read it.
For a key in a hardware module, see `xsplice sign --signer`.";

/// Arguments of `xsplice keygen`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The private key to write, readable by its owner only; the file must not exist.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The public key to write, for Xen and `xsplice verify-signature`.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// Size of the key in bits: 2048 to 4096, in steps of 64.
    #[arg(long, value_name = "N", default_value_t = 3072)]
    bits: usize,
}

/// The keys that were made.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Made {
    /// The private key.
    key: String,
    /// The public key.
    cert: String,
    /// How many bits they have.
    bits: usize,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match write(args) {
        Ok(()) => {
            let made = Made {
                key: shown(&args.key),
                cert: shown(&args.cert),
                bits: args.bits,
            };
            if !json {
                say!("{}: a private key with {} bits", made.key, made.bits);
                say!("{}: its public key", made.cert);
            }
            Ended::well(made).changed(true).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn write(args: &Args) -> anyhow::Result<()> {
    let cannot = |path: &Path| format!("cannot write {}", shown(path));
    file::check_output(&args.cert, [&args.key]).with_context(|| cannot(&args.cert))?;
    let (private, public) = PrivateKey::generate(args.bits)?.to_pem()?;
    file::create_private(&args.key, private.as_bytes()).with_context(|| cannot(&args.key))?;
    file::write(&args.cert, public.as_bytes()).with_context(|| cannot(&args.cert))
}

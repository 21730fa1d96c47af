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

The key is RSA, and not encrypted: keep it where only who signs payloads can read
it. A key in a hardware module signs with `xsplice sign --signer`.";

/// Arguments of `xsplice keygen`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The private key to write, which only its owner can read; it must not be there.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The public key to write, which Xen and `xsplice verify-signature` are given.
    #[arg(long, value_name = "FILE")]
    cert: PathBuf,
    /// How many bits the key has: 2048 to 4096, in steps of 64.
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice sign`.

use crate::output::{Ended, failure, say, shown};
use crate::signature::{self, read_cert};
use anyhow::{Context as _, bail, ensure};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use xsplice_signing::{PrivateKey, PublicKey, Unsigned};
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice sign --key vendor.key fix.livepatch
  xsplice sign --key vendor.key fix.livepatch -o signed.livepatch
  xsplice sign --signer ./sign-with-module --cert vendor.pem fix.livepatch

The signer is a shell command, for keys that are encrypted or in a hardware module.
Its standard input is the file to be signed, of which it makes an RSA signature with
SHA-256 (PKCS #1 version 1.5), as `openssl dgst -sha256 -sign KEY` does; it writes
that, and nothing else, to standard output.

A signature that is there is replaced, if the key has the same size. What the payload
does stays the same: Xen without signatures loads it as before.";

/// Arguments of `xsplice sign`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(group = clap::ArgGroup::new("with").required(true))]
pub(crate) struct Args {
    /// The payload.
    payload: PathBuf,
    /// The private key, in PEM.
    #[arg(long, value_name = "FILE", group = "with")]
    key: Option<PathBuf>,
    /// A command that signs, in place of --key.
    #[arg(long, value_name = "COMMAND", group = "with", requires = "cert")]
    signer: Option<String>,
    /// The signer's public key or certificate, with which its work is verified.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    cert: Option<PathBuf>,
    /// The signed payload to write, `-` is standard output [default: the payload
    /// itself].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match sign(args) {
        Ok(signed) => {
            if !json {
                let replaced = if signed.replaced {
                    ", in place of the signature that was there"
                } else {
                    ""
                };
                say!(
                    "{}: signed with a key of {} bits{replaced}",
                    signed.output,
                    signed.bits
                );
            }
            Ended::well(signed).changed(true).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

/// What was done.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Signed {
    /// The signed payload.
    output: String,
    /// How many bits the key has.
    bits: usize,
    /// Whether there was a signature before.
    replaced: bool,
}

/// What signs.
enum Signer<'a> {
    Key(Box<PrivateKey>),
    Command(&'a str),
}

fn sign(args: &Args) -> anyhow::Result<Signed> {
    if let Some(output) = &args.output {
        let others = args.key.iter().chain(&args.cert).chain([&args.payload]);
        file::check_output(output, others).with_context(|| shown(output))?;
    }
    let data = signature::read_payload(&args.payload)?;
    let (signer, key) = signer(args)?;
    let name = || shown(&args.payload);
    let unsigned = Unsigned::new(&data, key.signature_size()).with_context(name)?;
    let replaced = unsigned.replaces();
    let made = match signer {
        Signer::Key(key) => key.sign(unsigned.digest())?,
        Signer::Command(command) => run_signer(command, unsigned.bytes())?,
    };
    let signed = unsigned.with(&made, &key).with_context(name)?;
    let output = args.output.as_ref().unwrap_or(&args.payload);
    file::write(output, &signed).with_context(|| format!("cannot write {}", shown(output)))?;
    Ok(Signed {
        output: shown(output),
        bits: key.bits(),
        replaced,
    })
}

/// What signs, and its public key.
fn signer(args: &Args) -> anyhow::Result<(Signer<'_>, PublicKey)> {
    if let (Some(command), Some(cert)) = (&args.signer, &args.cert) {
        return Ok((Signer::Command(command), read_cert(cert)?));
    }
    let Some(path) = &args.key else {
        bail!("there is neither a key nor a signer")
    };
    let data = file::read(path).with_context(|| format!("cannot read {}", shown(path)))?;
    let key = PrivateKey::read(&data).with_context(|| shown(path))?;
    let public = key
        .public(&signature::name(path))
        .with_context(|| shown(path))?;
    Ok((Signer::Key(Box::new(key)), public))
}

/// What `command` writes when it is given `bytes`.
fn run_signer(command: &str, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run the signer")?;
    let mut input = child.stdin.take().context("the signer has no input")?;
    let output = std::thread::scope(|scope| {
        // It may end without having read all; then its output is wrong, too.
        scope.spawn(move || input.write_all(bytes));
        child.wait_with_output()
    });
    let output = output.context("cannot run the signer")?;
    ensure!(
        output.status.success(),
        "the signer failed: {}",
        output.status
    );
    Ok(output.stdout)
}

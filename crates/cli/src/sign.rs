// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice sign`.

use crate::output::{Ended, failure, say, shown};
use crate::signature::{self, read_cert};
use crate::store;
use anyhow::{Context as _, bail, ensure};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use xsplice_signature::Digest;
use xsplice_signing::{PrivateKey, PublicKey, Unsigned};
use xsplice_store::Paths;
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice sign --key vendor.key fix.livepatch
  xsplice sign --key vendor.key fix.livepatch -o signed.livepatch
  xsplice sign --signer ./sign-with-module --cert vendor.pem fix.livepatch
  xsplice sign --key vendor.key fixes-3.livepatch --level 3 --fix XSA-480

The signer is a shell command, for keys that are encrypted or in a hardware module. It
reads the file to sign from standard input, makes an RSA signature with SHA-256 (PKCS #1
version 1.5), as `openssl dgst -sha256 -sign KEY` does, and writes only that to standard
output.

With --level, it also writes the manifest of the payload, for the store of hosts, and
its signature by the same key: fixes-3.livepatch.json and fixes-3.livepatch.json.sig,
which `openssl dgst -sha256 -verify` verifies, too.

An existing signature is replaced if the key has the same size. The payload's code does
not change: Xen without signatures loads it as before.";

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
    /// A command that signs, instead of --key.
    #[arg(long, value_name = "COMMAND", group = "with", requires = "cert")]
    signer: Option<String>,
    /// The signer's public key or certificate, to verify the signature.
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    cert: Option<PathBuf>,
    /// The signed payload to write; `-` is standard output [default: the payload
    /// itself].
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a manifest, with this level: a number that rises with each payload for the
    /// same hypervisor.
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// What the payload fixes, such as `XSA-480`; repeat it for several.
    #[arg(long = "fix", value_name = "NAME", requires = "level")]
    fixes: Vec<String>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match sign(args) {
        Ok(signed) => {
            if !json {
                let replaced = if signed.replaced {
                    ", in place of an earlier signature"
                } else {
                    ""
                };
                say!(
                    "{}: signed with a key of {} bits{replaced}",
                    signed.output,
                    signed.bits
                );
                if let Some(manifest) = &signed.manifest {
                    say!("{manifest}: its manifest, signed with the same key");
                }
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
    /// The manifest; null if no level was given. Its signature is in `MANIFEST.sig`.
    manifest: Option<String>,
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
    let made = signer.sign(unsigned.digest(), unsigned.bytes())?;
    let signed = unsigned.with(&made, &key).with_context(name)?;
    let output = args.output.as_ref().unwrap_or(&args.payload);
    let manifest = args
        .level
        .map(|level| manifest(args, level, output, &signed, &signer, &key));
    let manifest = manifest.transpose()?;
    let write = |path: &Path, data: &[u8]| {
        file::write(path, data).with_context(|| format!("cannot write {}", shown(path)))
    };
    write(output, &signed)?;
    let place = Paths::manifest(output);
    if let Some((text, signature)) = &manifest {
        write(&Paths::signature(&place), signature)?;
        write(&place, text)?;
    }
    Ok(Signed {
        manifest: manifest.map(|_| shown(&place)),
        output: shown(output),
        bits: key.bits(),
        replaced,
    })
}

impl Signer<'_> {
    /// The signature of `bytes`, which have this `digest`.
    fn sign(&self, digest: &Digest, bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Key(key) => Ok(key.sign(digest)?),
            Self::Command(command) => run_signer(command, bytes),
        }
    }
}

/// The manifest of the payload `data`, which is to be at `output`, and its signature.
fn manifest(
    args: &Args,
    level: u32,
    output: &Path,
    data: &[u8],
    signer: &Signer,
    key: &PublicKey,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let manifest = store::manifest(data, output, level, &args.fixes)?;
    let text = manifest.to_json()?.into_bytes();
    let digest = xsplice_signature::digest(&text, 0..0).context("there is nothing to sign")?;
    let signature = signer.sign(&digest, &text)?;
    ensure!(
        key.has_signed(&digest, &signature),
        "the signature of the manifest is not that of the key {}",
        key.name()
    );
    Ok((text, signature))
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

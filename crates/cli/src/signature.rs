// SPDX-License-Identifier: MIT OR Apache-2.0
//! Who has signed a payload; `xsplice verify-signature`.

use crate::output::{Ended, Failure, failure, say, shown};
use anyhow::Context as _;
use schemars::JsonSchema;
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::signature::Kind;
use xsplice_engine::{Enforcement, Parsed, Signatures};
use xsplice_signature::Key;
use xsplice_signing::PublicKey;
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice verify-signature --cert vendor.pem fix.livepatch
  xsplice verify-signature --cert old.pem --cert new.pem fix.livepatch --json

Exit codes: 0 if one of the keys has signed the payload as it is; 1 if not.";

/// Arguments of `xsplice verify-signature`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
#[command(mut_arg("cert", |cert| cert.required(true)))]
pub(crate) struct Args {
    /// The payload.
    payload: PathBuf,
    #[command(flatten)]
    certs: Certs,
}

/// Whose signatures are accepted.
#[derive(clap::Args)]
pub(crate) struct Certs {
    /// Public key or certificate of an accepted signer; repeat it for several.
    #[arg(long, value_name = "FILE")]
    cert: Vec<PathBuf>,
}

/// The keys of [`Certs`], read.
pub(crate) struct Keys(Vec<PublicKey>);

/// What is known about the signature of a payload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(crate) enum State {
    /// There is none.
    Unsigned,
    /// There is one, and no key that could have made it is known.
    Unverified {
        /// How it is made.
        kind: String,
        /// Bits of the key.
        bits: usize,
    },
    /// One of the keys has made it.
    Signed {
        /// Whose.
        by: String,
    },
    /// None of the keys made it, it is for another file, or it is not a signature.
    Wrong {
        /// Why.
        reason: String,
    },
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => f.write_str("none"),
            Self::Unverified { kind, bits } => {
                write!(f, "{kind}, {bits} bits; not verified: no --cert is given")
            }
            Self::Signed { by } => write!(f, "by {by}"),
            Self::Wrong { reason } => write!(f, "WRONG: {reason}"),
        }
    }
}

impl Certs {
    /// The keys that are given.
    pub(crate) fn read(&self) -> anyhow::Result<Keys> {
        let keys = self.cert.iter().map(|path| read_cert(path));
        Ok(Keys(keys.collect::<anyhow::Result<_>>()?))
    }
}

impl Keys {
    /// As the engine takes them.
    pub(crate) fn keys(&self) -> anyhow::Result<Vec<Key<'_>>> {
        let keys = self.0.iter().map(|key| Key::new(key.name(), key.modulus()));
        Ok(keys.collect::<Result<_, _>>()?)
    }

    /// What a hypervisor with these keys does: without any, it does not look at
    /// signatures.
    pub(crate) fn demand<'k>(keys: &'k [Key<'k>]) -> Signatures<'k> {
        Signatures {
            keys,
            enforcement: Enforcement::decide(None, !keys.is_empty(), false),
        }
    }

    /// Who has signed the payload `data`. A file that is not a payload has none.
    pub(crate) fn state(&self, data: &[u8]) -> State {
        let signature = Parsed::parse("the payload", data).map(|parsed| parsed.signature());
        let signature = match signature {
            Ok(Ok(Some(signature))) => signature,
            Ok(Ok(None)) => return State::Unsigned,
            Ok(Err(fault)) => {
                let reason = fault.to_string();
                return State::Wrong { reason };
            }
            Err(refusal) => {
                let reason = refusal.to_string();
                return State::Wrong { reason };
            }
        };
        let (digest, bytes) = (signature.digest(), signature.bytes());
        if self.0.is_empty() {
            return State::Unverified {
                kind: Kind::RSA_SHA256.to_string(),
                bits: bytes.len() * 8,
            };
        }
        let signer = self.0.iter().find(|key| key.has_signed(&digest, bytes));
        match signer {
            Some(signer) => State::Signed {
                by: signer.name().to_owned(),
            },
            None => State::Wrong {
                reason: "it is not that of any of these keys, or the payload was changed after \
                         it was signed"
                    .to_owned(),
            },
        }
    }
}

/// What was found out about a payload.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Examined {
    /// Who has signed it.
    signature: State,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match verify(args) {
        Ok(signature) => {
            let words = format!("{}: signature {signature}", shown(&args.payload));
            if !json {
                say!("{words}");
            }
            let refused = match signature {
                State::Signed { .. } => None,
                _ => Some(Failure::refused(words, Vec::new())),
            };
            Ended::well(Examined { signature }).but(refused).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

fn verify(args: &Args) -> anyhow::Result<State> {
    let keys = args.certs.read()?;
    Ok(keys.state(&read_payload(&args.payload)?))
}

pub(crate) fn read_payload(path: &Path) -> anyhow::Result<Vec<u8>> {
    file::read_up_to(path, file::LARGEST_PAYLOAD)
        .with_context(|| format!("cannot read {}", shown(path)))
}

/// The key in the file, by whose name it goes.
pub(crate) fn read_cert(path: &Path) -> anyhow::Result<PublicKey> {
    let data = file::read(path).with_context(|| format!("cannot read {}", shown(path)))?;
    PublicKey::read(&name(path), &data).with_context(|| shown(path))
}

/// The name of a key: that of its file, without the extension.
pub(crate) fn name(path: &Path) -> String {
    let name = path.file_stem().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Problems with signatures.

use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_abi::signature::{Kind, SECTION};

/// A problem with a signature. Xen itself has none: all of these are *stricter*.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum SignatureFault {
    /// No signature.
    #[error("the payload is not signed: it has no section {SECTION}")]
    Missing,
    /// Several signatures: each would sign a file that contains the other.
    #[error("the payload has the section {SECTION} twice, as [{first}] and [{second}]")]
    Second { first: usize, second: usize },
    /// The section does not hold a signature.
    #[error("the section {SECTION} holds no signature: {what}")]
    Malformed { what: &'static str },
    /// An unknown kind of signature.
    #[error(
        "the payload is signed with {kind}; only {} is known",
        Kind::RSA_SHA256
    )]
    Kind { kind: Kind },
    /// The signature of another file, or by another key.
    #[error(
        "the signature is not that of any of the {keys} keys of this hypervisor, or the payload \
         was changed after it was signed"
    )]
    Wrong { keys: usize },
}

impl SignatureFault {
    pub(super) fn errno(&self) -> Errno {
        match self {
            Self::Missing | Self::Wrong { .. } => Errno::EPERM,
            Self::Kind { .. } => Errno::EOPNOTSUPP,
            Self::Second { .. } | Self::Malformed { .. } => Errno::EINVAL,
        }
    }
}

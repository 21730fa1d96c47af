// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a signature.

use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_abi::signature::{Kind, SECTION};

/// What is wrong with a signature. Xen itself has none: all of it is *stricter*.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
#[non_exhaustive]
pub enum SignatureFault {
    /// There is none.
    #[error("the payload is not signed: it has no section {SECTION}")]
    Missing,
    /// There are several: each would be of a file with the other one.
    #[error("the payload has the section {SECTION} twice, as [{first}] and [{second}]")]
    Second { first: usize, second: usize },
    /// It is there, but it is none.
    #[error("the section {SECTION} holds no signature: {what}")]
    Malformed { what: &'static str },
    /// It is made in a way that is not known.
    #[error(
        "the payload is signed with {kind}; only {} is known",
        Kind::RSA_SHA256
    )]
    Kind { kind: Kind },
    /// It is of another file, or by another key.
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

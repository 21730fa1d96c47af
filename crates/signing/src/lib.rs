// SPDX-License-Identifier: MIT OR Apache-2.0
//! Keys, certificates, and the signing of payloads.
#![forbid(unsafe_code)]

mod key;
mod note;
mod payload;

pub use key::{KeyError, PrivateKey, PublicKey, validity};
pub use payload::{SignError, Unsigned};

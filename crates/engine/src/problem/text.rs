// SPDX-License-Identifier: MIT OR Apache-2.0

//! Texts in problems.

use alloc::string::String;
use alloc::vec::Vec;
use xsplice_abi::note::Hex;
use xsplice_fallible::{self as fallible, NoMemory};

/// Bytes of an untrusted name, made printable.
#[inline(never)]
pub(crate) fn printable(name: &[u8]) -> Result<String, NoMemory> {
    const LIMIT: usize = 256;
    let mut text = fallible::with_room(LIMIT.min(name.len()))?;
    for byte in name.escape_ascii().take(LIMIT) {
        fallible::push(&mut text, byte)?;
    }
    // Escaped text is ASCII.
    Ok(String::from_utf8(text).unwrap_or_default())
}

/// A copy of a name.
#[inline(never)]
pub(crate) fn copied(name: &str) -> Result<String, NoMemory> {
    // It is valid UTF-8 already.
    fallible::copy(name.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap_or_default())
}

// A message is useful even without names: the functions below are for messages only,
// and return empty values if there is no memory.

/// Bytes of an untrusted name, made printable.
pub(crate) fn text(name: &[u8]) -> String {
    printable(name).unwrap_or_default()
}

/// A copy of a name.
pub(crate) fn same(name: &str) -> String {
    copied(name).unwrap_or_default()
}

/// A copy of bytes.
#[inline(never)]
pub(crate) fn bytes(bytes: &[u8]) -> Vec<u8> {
    fallible::copy(bytes).unwrap_or_default()
}

/// A build-id as messages have it: of more than 64 bytes, which a payload can have,
/// the first.
#[must_use]
pub fn hex(bytes: &[u8]) -> Hex<'_> {
    Hex(bytes.get(..64).unwrap_or(bytes))
}

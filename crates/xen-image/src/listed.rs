// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor's own list of its symbols, by which it links payloads.
//!
//! Xen makes the list from a link before the last one. Its makefile for ARM adds the
//! build-id only in the last, which can move what follows by a page: then the list is wrong
//! from there on, and payloads would read and write other data. Format: Xen's
//! `common/symbols.c`; a name is indices of tokens, the first of which begins with its type.

use crate::Image;
use xsplice_abi::symbol::RuntimeName;

/// What ends where the build-id is: these differ always, and no payload refers to them.
const ENDS: [&str; 2] = ["__note_gnu_build_id_end", "_erodata"];

/// A symbol that the hypervisor lists at another address than it has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    pub(crate) name: String,
    pub(crate) listed: u64,
    pub(crate) address: u64,
}

/// The first such symbol of `image`. A list in another form than that of ARM is not read:
/// on x86-64, all links have the build-id.
pub(crate) fn misplaced(image: &Image) -> Option<Misplaced> {
    let tail = |name: &str| image.tail(image.address_of(name)?);
    let width = image.machine().width();
    let count = u32::from_le_bytes(*tail("symbols_num_syms")?.first_chunk()?);
    let (index, table) = (tail("symbols_token_index")?, tail("symbols_token_table")?);
    let token = |number: u8| {
        let at = index.get(2 * usize::from(number)..)?.first_chunk()?;
        table
            .get(u16::from_le_bytes(*at).into()..)?
            .split(|&byte| byte == 0)
            .next()
    };
    let mut names = tail("symbols_names")?;
    let addresses = tail("symbols_addresses")?.chunks_exact(width.bytes());
    for listed in addresses.take(usize::try_from(count).ok()?) {
        let listed = width.read(listed)?;
        let (&length, rest) = names.split_first()?;
        let (tokens, rest) = rest.split_at_checked(length.into())?;
        names = rest;
        let name: Option<Vec<&[u8]>> = tokens.iter().map(|&number| token(number)).collect();
        let name = name?.concat();
        let name = String::from_utf8_lossy(name.get(1..)?);
        let name = RuntimeName::parse(&name).name;
        let mut known = image
            .all_named(name)
            .map(|symbol| symbol.address)
            .peekable();
        let Some(&address) = known.peek().filter(|_| !ENDS.contains(&name)) else {
            continue;
        };
        if !known.any(|address| address == listed) {
            return Some(Misplaced {
                name: name.to_owned(),
                listed,
                address,
            });
        }
    }
    None
}

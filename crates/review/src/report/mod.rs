// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload as one HTML page for the person who reviews it.
//!
//! The page is self-contained, runs no script, and is the same bytes for the same
//! input.

mod page;

use crate::arch;
use crate::payload::Payload;
use crate::uses::{Use, uses};
use crate::{Error, Listing, compare};
use maud::Markup;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use xsplice_abi::note::hex;
use xsplice_abi::text::escaped;
use xsplice_xen_image::Image;

/// Everything that the page shows.
pub struct Review<'a> {
    name: &'a str,
    sha256: String,
    payload: Payload,
    functions: Vec<Reviewed>,
    patches: &'a [SourcePatch],
    verdict: &'a xsplice_host_image::Report,
    opinion: Option<&'a Opinion>,
    signature: Option<&'a str>,
}

/// The verdict of `xsplice verify` when the page was made. A payload cannot vouch for
/// itself.
#[derive(Debug, Clone, Default)]
pub struct Opinion {
    /// Whether the hypervisor with the payload is the patched one.
    pub proved: bool,
    /// The verdict in one line.
    pub summary: String,
    /// Unexpected differences.
    pub differences: Vec<String>,
    /// Differences that the build was asked for.
    pub left_out: Vec<String>,
    /// Notes for the reader.
    pub notes: Vec<String>,
}

/// A function of the payload, and its users.
struct Reviewed {
    listing: Listing,
    uses: Vec<Caller>,
}

/// A reference to a function.
struct Caller {
    place: Use,
    /// The functions that refer to the one with the reference.
    callers: BTreeSet<String>,
}

/// A source patch that belongs to a payload.
pub struct SourcePatch {
    /// The name of its file.
    pub name: String,
    /// Its text.
    pub text: String,
    /// SHA-256 of its file in hexadecimal.
    pub sha256: String,
    /// Whether the payload records that it was built from this patch; `None` if it
    /// records no patches.
    pub recorded: Option<bool>,
}

impl SourcePatch {
    /// Looks the patch up in the source patches that `payload` records.
    pub fn new(name: &str, data: &[u8], payload: &Payload) -> Self {
        let sha256 = hex(&Sha256::digest(data));
        let mut recorded = recorded(payload).peekable();
        Self {
            name: name.to_owned(),
            text: String::from_utf8_lossy(data).into_owned(),
            recorded: recorded
                .peek()
                .is_some()
                .then(|| recorded.any(|(_, hash)| hash == sha256)),
            sha256,
        }
    }
}

/// Name and SHA-256 of each source patch that `payload` records in its metadata,
/// `patch=NAME sha256:HASH`.
pub fn recorded(payload: &Payload) -> impl Iterator<Item = (&str, &str)> {
    let entries = payload.metadata.iter();
    entries.filter_map(|entry| entry.strip_prefix("patch=")?.rsplit_once(" sha256:"))
}

/// Name of each source patch that had no effect on the hypervisor, which the metadata has
/// as `unused-patch=NAME sha256:HASH`.
pub fn unused(metadata: &[String]) -> impl Iterator<Item = &str> {
    let entries = metadata.iter();
    let entries = entries.filter_map(|entry| entry.strip_prefix("unused-patch="));
    entries.filter_map(|entry| Some(entry.rsplit_once(" sha256:")?.0))
}

impl<'a> Review<'a> {
    /// Collects everything about the payload `data` on the hypervisor `image`;
    /// `verdict` is the result of the pre-flight check.
    ///
    /// # Errors
    /// If the payload cannot be read.
    pub fn new(
        name: &'a str,
        data: &[u8],
        image: &Image,
        patches: &'a [SourcePatch],
        verdict: &'a xsplice_host_image::Report,
    ) -> Result<Self, Error> {
        let listings = compare(data, image)?;
        let places: Vec<_> = listings
            .iter()
            .map(|listing| {
                let function = &listing.function;
                let address = function.old_address.unwrap_or(0);
                (address, u64::from(function.old_size))
            })
            .collect();
        let arch = arch::of(image.machine());
        let uses = |places: &[(u64, u64)]| uses(arch, image, places);
        let found = uses(&places);
        // The callers' callers, in one pass for all of them.
        let callers: BTreeSet<u64> = found.iter().flatten().map(|place| place.address).collect();
        let callers: Vec<(u64, u64)> = callers.into_iter().map(|address| (address, 0)).collect();
        let above = uses(&callers);
        let caller = |place: Use| {
            let at = callers.binary_search_by_key(&place.address, |(address, _)| *address);
            let above = at.ok().and_then(|index| above.get(index));
            let names = above.into_iter().flatten().map(|place| place.user.clone());
            Caller {
                callers: names.filter(|name| *name != place.user).collect(),
                place,
            }
        };
        Ok(Self {
            name,
            sha256: hex(&Sha256::digest(data)),
            payload: Payload::read(data, Some(image))?,
            functions: listings
                .into_iter()
                .zip(found)
                .map(|(listing, uses)| Reviewed {
                    listing,
                    uses: uses.into_iter().map(caller).collect(),
                })
                .collect(),
            patches,
            verdict,
            opinion: None,
            signature: None,
        })
    }

    /// Says who has signed the payload.
    #[must_use]
    pub fn with_signature(mut self, signature: &'a str) -> Self {
        self.signature = Some(signature);
        self
    }

    /// Adds the second opinion, if requested.
    #[must_use]
    pub fn with_opinion(mut self, opinion: Option<&'a Opinion>) -> Self {
        self.opinion = opinion;
        self
    }

    /// The page. Text from files cannot hide in it: invisible characters, and those
    /// that change the order of others, are escaped.
    pub fn to_html(&self) -> String {
        undeceptive(page::page(self))
    }
}

/// A page with this title and content, in the style of the review.
#[must_use]
pub fn document(title: &str, content: &Markup) -> String {
    undeceptive(page::framed(title, content, None))
}

/// The text of a page, with deceptive characters escaped.
fn undeceptive(page: Markup) -> String {
    let page = page.into_string();
    let space = ['\n', '\t'];
    let pieces = page.split_inclusive(space).map(|piece| {
        let text = piece.trim_end_matches(space);
        format!("{}{}", escaped(text), &piece[text.len()..])
    });
    pieces.collect()
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What hypervisors for ARM64 and ARM32 have in common.

use super::{Flow, Step};
use crate::{Image, special};
use std::ops::Range;
use xsplice_abi::special::Alternative;
use xsplice_engine::{LandingPads, Limits};

const MIB: u64 = 1 << 20;
/// From the start of the hypervisor to the window for payloads, in Xen 4.17.
const TO_WINDOW: u64 = 8 * MIB;
/// Size of that window.
const WINDOW: u64 = 2 * MIB;
/// The hypervisor starts at a multiple of this, and its text there.
const START: u64 = 2 * MIB;

/// Why Xen's own core cannot patch code of payloads: it writes through a mapping of the
/// hypervisor's text, in which payloads are not.
macro_rules! keeps_payloads {
    ($machine:literal) => {
        concat!(
            "Xen's own core on ",
            $machine,
            " crashes the host when it patches code of a payload; give all patches to one \
             build, to be used instead of the payloads below"
        )
    };
}
pub(super) use keeps_payloads;

/// The words of `code`, each of which may be an instruction.
pub(super) fn words(code: &[u8]) -> impl Iterator<Item = u32> {
    let words = code.as_chunks().0.iter();
    words.map(|word| u32::from_le_bytes(*word))
}

/// The instructions of the code at `at`; `flow` is what one at an address does.
pub(super) fn steps(at: u64, code: &[u8], flow: fn(u32, u64) -> Flow) -> Vec<Step> {
    let steps = words(code).zip((at..).step_by(4)).map(|(word, at)| Step {
        at,
        next: at.wrapping_add(4),
        flow: flow(word, at),
    });
    steps.collect()
}

/// The addresses for payloads of a hypervisor whose text starts there.
pub(super) fn payload_area(start: u64) -> Range<u64> {
    let window = (start / START * START).saturating_add(TO_WINDOW);
    window..window.saturating_add(WINDOW)
}

/// The limits that the hypervisor imposes on payloads.
pub(super) fn limits(image: &Image) -> Limits {
    let own: Vec<Alternative> = special::alternatives(image).collect();
    let all = published(image).or_else(|| written(&own));
    Limits {
        features: all.unwrap_or_else(|| used(&own)),
        all_features: all.is_some(),
        always: None,
        call_sites: false,
        landing_pads: LandingPads::Unused,
        file_names: image.has_our_core(),
    }
}

/// The number of features, as our core says.
fn published(image: &Image) -> Option<u16> {
    let mut number = [0; 2];
    let addr = image.lookup_symbol(b"xsplice_features")?;
    let read = image.read(addr, &mut number);
    read.then_some(u16::from_le_bytes(number))
}

/// The number of features stands for code that a function writes: there is code, and no
/// replacement. Xen for ARM32 has none of that.
fn written(own: &[Alternative]) -> Option<u16> {
    let mut own = own.iter();
    let written = own.find(|own| own.replacement_len == 0 && own.original_len != 0);
    written.map(|own| own.condition)
}

/// The end of the features that the hypervisor itself uses; there may be more.
fn used(own: &[Alternative]) -> u16 {
    let most = own.iter().map(|own| own.condition).max();
    most.map_or(0, |most| most.saturating_add(1))
}

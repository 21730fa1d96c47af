// SPDX-License-Identifier: MIT OR Apache-2.0

//! The limits that an image's hypervisor imposes on payloads.

use crate::{Image, special};
use xsplice_abi::special::{Alternative, Table};
use xsplice_abi::trampoline;
use xsplice_engine::{LandingPads, Limits};

/// Read from the image: sizes of its tables, its own alternatives, its code.
pub(super) fn of(image: &Image) -> Limits {
    let own: Vec<Alternative> = special::alternatives(image).collect();
    let all = words(image).map(|words| 32 * words);
    Limits {
        features: all.unwrap_or_else(|| used(&own)),
        all_features: all.is_some(),
        always: own
            .iter()
            .find(|own| makes_direct(image, own))
            .map(|own| own.condition),
        call_sites: special::start(image, Table::CallSites).is_some(),
        landing_pads: if has_landing_pads(image) {
            LandingPads::Wanted
        } else {
            LandingPads::Unused
        },
        file_names: true,
    }
}

/// The number of feature words: this array has one element for each.
fn words(image: &Image) -> Option<u16> {
    let size = image.size_of("cleared_caps")?;
    u16::try_from(size / 4).ok().filter(|words| *words != 0)
}

/// The end of the last word with a feature that the hypervisor itself uses.
fn used(own: &[Alternative]) -> u16 {
    let most = own.iter().map(|own| own.feature()).max();
    most.map_or(0, |most| (most / 32 + 1) * 32)
}

/// Whether it makes an indirect call direct: the replacement is a branch to itself.
fn makes_direct(image: &Image, own: &Alternative) -> bool {
    let mut repl = [0; 5];
    let mut orig = [0; 2];
    own.original_len >= 6
        && image.read(own.replacement, &mut repl)
        && matches!(repl, [0xe8 | 0xe9, 0xfb, 0xff, 0xff, 0xff])
        && image.read(own.place, &mut orig)
        && matches!(orig, [0xff, 0x15 | 0x25])
}

/// Whether functions start with `endbr64`: the compiler emits it for all or for none.
fn has_landing_pads(image: &Image) -> bool {
    let mut first = [0; 4];
    image
        .text_symbols()
        .any(|(addr, _)| image.read(addr, &mut first) && first == trampoline::LANDING_PAD)
}

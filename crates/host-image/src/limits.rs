// SPDX-License-Identifier: MIT OR Apache-2.0

//! What the hypervisor of an image takes for granted of a payload.

use crate::Image;
use crate::alternatives::{self, Alternative};
use xsplice_engine::{LandingPads, Limits};

/// Read from the image: sizes of its tables, its own alternatives, its code.
pub(crate) fn of(image: &Image) -> Limits {
    let own = alternatives::of(image);
    Limits {
        features: words(image).map_or_else(|| used(&own), |words| 32 * words),
        always: own
            .iter()
            .find(|own| makes_direct(image, own))
            .map(|own| own.feature),
        call_sites: image.lookup_symbol(b"__alt_call_sites_start").is_some(),
        landing_pads: if has_landing_pads(image) {
            LandingPads::Wanted
        } else {
            LandingPads::Unused
        },
    }
}

/// How many words of features there are: this array has one for each.
fn words(image: &Image) -> Option<u16> {
    let size = image.size_of("cleared_caps")?;
    u16::try_from(size / 4).ok().filter(|words| *words != 0)
}

/// The end of the last word of which the hypervisor uses a feature itself.
fn used(own: &[Alternative]) -> u16 {
    let most = own.iter().map(|own| own.feature & 0x7fff).max();
    most.map_or(0, |most| (most / 32 + 1) * 32)
}

/// Whether it makes a call through a pointer direct: the replacement is a branch to
/// itself.
fn makes_direct(image: &Image, own: &Alternative) -> bool {
    let mut repl = [0; 5];
    let mut orig = [0; 2];
    own.orig_len >= 6
        && image.read(own.repl, &mut repl)
        && matches!(repl, [0xe8 | 0xe9, 0xfb, 0xff, 0xff, 0xff])
        && image.read(own.orig, &mut orig)
        && matches!(orig, [0xff, 0x15 | 0x25])
}

/// Whether functions begin with `endbr64`; where the compiler does not put it there,
/// none does.
fn has_landing_pads(image: &Image) -> bool {
    let mut first = [0; 4];
    image
        .text_symbols()
        .any(|(addr, _)| image.read(addr, &mut first) && first == [0xf3, 0x0f, 0x1e, 0xfa])
}

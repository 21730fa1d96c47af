// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the generator derives from the linked hypervisor.

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use xsplice_objdiff::Object;
use xsplice_xen_image::Image;

/// Number of padding bytes from `address` to the next symbol: complete no-op
/// instructions, or traps.
pub(crate) fn padding(image: &Image, address: u64) -> u64 {
    let next = image.start_from(address).unwrap_or(address);
    let code = image.bytes(address, next - address).unwrap_or_default();
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let only_padding = decoder
        .iter()
        .all(|instruction| matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Int3));
    if only_padding { code.len() as u64 } else { 0 }
}

/// The compiler's identification in an object.
pub(crate) fn compiler(object: &Object) -> Option<String> {
    let mut sections = object.sections.iter();
    let section = sections.find(|section| section.name == ".comment")?;
    Some(xsplice_xen_image::compiler(&section.data))
}

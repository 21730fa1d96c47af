// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the generator derives from the linked hypervisor.

use xsplice_objdiff::Object;
use xsplice_objdiff::arch::{Arch, Does};
use xsplice_xen_image::Image;

/// Number of padding bytes from `address` to the next symbol: complete no-op
/// instructions, or traps.
pub(crate) fn padding(arch: &dyn Arch, image: &Image, address: u64) -> u64 {
    let next = image.start_from(address).unwrap_or(address);
    let code = image.bytes(address, next - address).unwrap_or_default();
    let mut instructions = arch.decode(code, address);
    let only_padding = instructions.all(|instruction| instruction.does == Does::Nothing);
    if only_padding { code.len() as u64 } else { 0 }
}

/// The compiler's identification in an object.
pub(crate) fn compiler(object: &Object) -> Option<String> {
    let mut sections = object.sections.iter();
    let section = sections.find(|section| section.name == ".comment")?;
    Some(xsplice_xen_image::compiler(&section.data))
}

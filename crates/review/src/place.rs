// SPDX-License-Identifier: MIT OR Apache-2.0
//! Names for addresses of the hypervisor.

use std::borrow::Cow;
use xsplice_xen_image::Image;

/// The symbol that covers `address`, and the distance from it. Code without
/// a size, as in assembly, reaches to the next symbol.
pub(crate) fn symbol(image: &Image, address: u64) -> Option<(Cow<'_, str>, u64)> {
    let section = image.section(address)?;
    let symbol = image.symbol_before(address)?;
    let offset = address - symbol.address;
    let covers = section.executable || offset < symbol.size.max(1);
    let covers = covers && section.range.contains(&symbol.address);
    covers.then(|| (symbol.full_name(), offset))
}

/// The section that holds `address`, and the offset there.
pub(crate) fn section(image: &Image, address: u64) -> Option<(Cow<'_, str>, u64)> {
    let section = image.section(address)?;
    Some((section.name.as_str().into(), address - section.range.start))
}

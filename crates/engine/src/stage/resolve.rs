// SPDX-License-Identifier: MIT OR Apache-2.0

//! Resolves symbols to addresses.

use super::{Findings, LaidOut, Loader, Placed, Uses};
use crate::elf::{SHN_ABS, SHN_COMMON, SHN_LORESERVE, SHN_UNDEF};
use crate::problem::{Refusal, SymbolFault};
use crate::{Host, Region};
use alloc::boxed::Box;
use xsplice_fallible::{self as fallible, NoMemory};

/// The target of a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An address (or an absolute value).
    Address(u64),
    /// An address in the hypervisor that is freed after boot.
    Init(u64),
    /// In a section that is not loaded.
    Ignored,
    /// Not known; reported already.
    Unknown,
}

/// A payload whose symbols have addresses.
#[derive(Debug)]
pub struct Resolved<'a>(pub(super) Box<Placed<'a>>);

impl<'a> LaidOut<'a> {
    /// Looks up each symbol: in the payload, in the hypervisor, then in the loaded
    /// payloads.
    ///
    /// # Errors
    /// [`Refusal`] if there is no memory for the results.
    #[inline(never)]
    pub fn resolve(mut self, loader: &Loader<'_, impl Host>) -> Result<Resolved<'a>, Refusal> {
        let Placed {
            findings,
            elf,
            addresses,
            targets,
            ..
        } = &mut *self.0;
        let Findings { problems, uses, .. } = findings;
        *targets = fallible::with_room(elf.symbols.len())?;
        for (index, symbol) in elf.symbols.iter().enumerate() {
            let target = match symbol.section {
                _ if index == 0 => Target::Unknown,
                SHN_UNDEF => lookup(loader, symbol.name(), uses)?.unwrap_or_else(|| {
                    problems.symbol(index, symbol, SymbolFault::Unknown);
                    Target::Unknown
                }),
                SHN_ABS => target(loader, symbol.value),
                SHN_COMMON => {
                    problems.symbol(index, symbol, SymbolFault::Common);
                    Target::Unknown
                }
                section if section >= SHN_LORESERVE => {
                    problems.symbol(index, symbol, SymbolFault::SpecialSection { section });
                    Target::Unknown
                }
                section => match addresses.get(usize::from(section)) {
                    None => {
                        problems.symbol(index, symbol, SymbolFault::Section { section });
                        Target::Unknown
                    }
                    Some(None) => Target::Ignored,
                    Some(Some(base)) => Target::Address(base.wrapping_add(symbol.value)),
                },
            };
            fallible::push(targets, target)?;
        }
        Ok(Resolved(self.0))
    }
}

fn lookup(
    loader: &Loader<'_, impl Host>,
    name: &[u8],
    uses: &mut Uses,
) -> Result<Option<Target>, NoMemory> {
    let Some((owner, addr)) = loader.lookup(name) else {
        return Ok(None);
    };
    uses.note(owner)?;
    Ok(Some(target(loader, addr)))
}

/// An address, marked if it is freed after boot.
fn target(loader: &Loader<'_, impl Host>, addr: u64) -> Target {
    match loader.host.region(addr) {
        Region::Init => Target::Init(addr),
        _ => Target::Address(addr),
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Which address each symbol has.

use super::{Findings, LaidOut, Loader};
use crate::elf::{Elf, SHN_ABS, SHN_COMMON, SHN_LORESERVE, SHN_UNDEF};
use crate::image::Image;
use crate::problem::Problem;
use crate::stack::Id;
use crate::{Host, Region};
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// What a symbol stands for.
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
pub struct Resolved<'a> {
    pub(super) findings: Findings,
    pub(super) elf: Elf<'a>,
    pub(super) build_id: &'a [u8],
    pub(super) depends: &'a [u8],
    pub(super) image: Image,
    pub(super) addresses: Vec<Option<u64>>,
    pub(super) targets: Vec<Target>,
}

impl<'a> LaidOut<'a> {
    /// Looks each symbol up: in the payload, in the hypervisor, then in the
    /// payloads that are loaded.
    #[must_use]
    pub fn resolve(self, loader: &Loader<'_, impl Host>) -> Resolved<'a> {
        let Self {
            mut findings,
            elf,
            build_id,
            depends,
            image,
            addresses,
        } = self;
        let Findings { problems, uses, .. } = &mut findings;
        let mut targets = Vec::with_capacity(elf.symbols.len());
        for (index, symbol) in elf.symbols.iter().enumerate() {
            let target = match symbol.section {
                _ if index == 0 => Target::Unknown,
                SHN_UNDEF => lookup(loader, symbol.name, uses).unwrap_or_else(|| {
                    problems.push(Problem::UnknownSymbol {
                        index,
                        symbol: symbol.text(),
                    });
                    Target::Unknown
                }),
                SHN_ABS => target(loader, symbol.value),
                SHN_COMMON => {
                    problems.push(Problem::CommonSymbol {
                        index,
                        symbol: symbol.text(),
                    });
                    Target::Unknown
                }
                section if section >= SHN_LORESERVE => {
                    let symbol = symbol.text();
                    problems.push(Problem::SpecialSection {
                        index,
                        symbol,
                        section,
                    });
                    Target::Unknown
                }
                section => match addresses.get(usize::from(section)) {
                    None => {
                        let symbol = symbol.text();
                        problems.push(Problem::SymbolSection {
                            index,
                            symbol,
                            section,
                        });
                        Target::Unknown
                    }
                    Some(None) => Target::Ignored,
                    Some(Some(base)) => Target::Address(base.wrapping_add(symbol.value)),
                },
            };
            targets.push(target);
        }
        Resolved {
            findings,
            elf,
            build_id,
            depends,
            image,
            addresses,
            targets,
        }
    }
}

fn lookup(loader: &Loader<'_, impl Host>, name: &[u8], uses: &mut BTreeSet<Id>) -> Option<Target> {
    let (owner, addr) = loader.lookup(name)?;
    uses.extend(owner);
    Some(target(loader, addr))
}

/// An address, of which it is said when it is gone after boot.
fn target(loader: &Loader<'_, impl Host>, addr: u64) -> Target {
    match loader.host.region(addr) {
        Region::Init => Target::Init(addr),
        _ => Target::Address(addr),
    }
}

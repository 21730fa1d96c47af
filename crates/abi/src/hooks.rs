// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hooks that a payload has where its patch changes data in place or brings new
//! per-CPU variables: their source, of which each payload has what it needs, and the
//! tables that they read.
//!
//! Who writes a payload compiles the source and makes the tables. Who judges one compiles
//! the source again, and reads the tables. The bit map of padding that the source's
//! comments speak of has one bit for each piece of [`GRANULE`] bytes that lies between
//! the per-CPU variables of the hypervisor, in ascending order, but for the pieces that
//! the map itself is in: the last of those in the padding that adjoin and have room for
//! a map of all.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The source.
pub const SOURCE: &str = include_str!("hooks.c");

/// What a payload can need of [`SOURCE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Data that is changed in place.
    PatchedData,
    /// Variables among it, which must have their initial values.
    PatchedVariables,
    /// New per-CPU variables.
    PerCpu,
}

impl Need {
    /// What is defined where it is needed.
    pub fn definition(self) -> &'static str {
        match self {
            Self::PatchedData => "#define XSPLICE_PATCHES_DATA\n",
            Self::PatchedVariables => "#define XSPLICE_PATCHES_VARIABLES\n",
            Self::PerCpu => "#define XSPLICE_PER_CPU\n",
        }
    }

    /// The hook that a payload has where it is needed; only where, if `PatchedVariables`
    /// is not asked for without the others.
    pub fn hook(self) -> &'static str {
        match self {
            Self::PatchedData => "put_new_data",
            Self::PatchedVariables => "check",
            Self::PerCpu => "claim_per_cpu",
        }
    }
}

/// A table that [`SOURCE`] declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// What is changed in place: of [`PatchedData`].
    PatchedData,
    /// New per-CPU variables: of [`PerCpu`].
    PerCpu,
    /// The words of the bit map that say where these are.
    PerCpuClaims,
}

/// A place that [`SOURCE`] declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Where a table of the payload begins.
    Start(Table),
    /// Where it ends.
    End(Table),
    /// The bit map of all payloads, in the hypervisor.
    AllClaims,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Start(Table::PatchedData),
        Self::End(Table::PatchedData),
        Self::Start(Table::PerCpu),
        Self::End(Table::PerCpu),
        Self::Start(Table::PerCpuClaims),
        Self::End(Table::PerCpuClaims),
        Self::AllClaims,
    ];

    /// What [`SOURCE`] calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Start(Table::PatchedData) => "xsplice_patched_data",
            Self::End(Table::PatchedData) => "xsplice_patched_data_end",
            Self::Start(Table::PerCpu) => "xsplice_per_cpu",
            Self::End(Table::PerCpu) => "xsplice_per_cpu_end",
            Self::Start(Table::PerCpuClaims) => "xsplice_per_cpu_mine",
            Self::End(Table::PerCpuClaims) => "xsplice_per_cpu_mine_end",
            Self::AllClaims => "xsplice_per_cpu_claims",
        }
    }

    /// The one that [`SOURCE`] calls `name`.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }
}

/// `struct patched_data`: one piece of a variable or constant.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PatchedData {
    /// Where it is in the hypervisor.
    pub place: U64,
    /// What is there after boot.
    pub was: U64,
    /// What the patched source has there.
    pub now: U64,
    /// A name for messages.
    pub name: U64,
    /// How many bytes.
    pub size: U32,
    /// Whether the hypervisor may have written there.
    pub variable: U32,
}

/// `struct per_cpu_variable`: a new variable, in padding of the per-CPU areas.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PerCpu {
    /// Where it is in the area of the first CPU.
    pub place: U64,
    /// How many bytes.
    pub size: U64,
}

const _: () = assert!(size_of::<PatchedData>() == 40);
const _: () = assert!(size_of::<PerCpu>() == 16);

/// Padding is given out in pieces of this many bytes.
pub const GRANULE: u64 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_what_is_said_of_it() {
        for place in Place::ALL {
            let declared = SOURCE.contains(&[" ", place.name(), "[];"].concat());
            assert!(declared, "{}", place.name());
            assert_eq!(Place::named(place.name()), Some(place));
        }
        for need in [Need::PatchedData, Need::PatchedVariables, Need::PerCpu] {
            let name = need
                .definition()
                .trim_end()
                .rsplit(' ')
                .next()
                .unwrap_or_default();
            assert!(SOURCE.contains(name), "{name}");
            let hook = ["cf_check ", need.hook(), "("].concat();
            assert!(SOURCE.contains(&hook), "{hook}");
        }
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! The generated hooks of payloads that change data in place or add per-CPU
//! variables: their source, of which each payload has the parts it needs, and the
//! tables that they read.
//!
//! The generator compiles the source and fills the tables. The verifier compiles the
//! source again, and reads the tables. The bitmap of padding in the source's comments
//! has one bit for each piece of [`GRANULE`] bytes between the hypervisor's per-CPU
//! variables, in ascending order, except for the pieces that hold the map itself: the
//! last contiguous pieces of padding that are large enough for it.

use crate::machine::Width;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The source.
pub const SOURCE: &str = include_str!("hooks.c");

/// A part of [`SOURCE`] that a payload can need.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Data that is changed in place.
    PatchedData,
    /// Variables in it, which must have their initial values.
    PatchedVariables,
    /// New per-CPU variables.
    PerCpu,
}

impl Need {
    /// The macro to define for it.
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
    /// Data changed in place: of [`PatchedData`].
    PatchedData,
    /// New per-CPU variables: of [`PerCpu`].
    PerCpu,
    /// The words of the bitmap with their places.
    PerCpuClaims,
}

/// A symbol that [`SOURCE`] declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// The start of a table in the payload.
    Start(Table),
    /// The end of a table.
    End(Table),
    /// The bitmap of all payloads, in the hypervisor.
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

    /// Its name in [`SOURCE`].
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

    /// The one named `name` in [`SOURCE`].
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|place| place.name() == name)
    }
}

/// A row of a table. On a machine with addresses of 32 bits it is narrower.
pub trait Row: Sized {
    /// Size in bytes.
    fn size(width: Width) -> usize;

    /// The row in `bytes`; `None` if they have another size.
    fn read(bytes: &[u8], width: Width) -> Option<Self>;
}

/// `struct patched_data`: one piece of a variable or constant.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PatchedData<Address = U64> {
    /// Where it is in the hypervisor.
    pub place: Address,
    /// Address of the bytes that are there after boot.
    pub was: Address,
    /// Address of the new bytes.
    pub now: Address,
    /// A name for messages.
    pub name: Address,
    /// How many bytes.
    pub size: U32,
    /// Whether the hypervisor may have written there.
    pub variable: U32,
}

/// `struct per_cpu_variable`: a new variable, in padding of the per-CPU areas.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PerCpu<Address = U64> {
    /// Its address in the first CPU's area.
    pub place: Address,
    /// How many bytes.
    pub size: Address,
}

const _: () = assert!(size_of::<PatchedData>() == 40 && size_of::<PatchedData<U32>>() == 24);
const _: () = assert!(size_of::<PerCpu>() == 16 && size_of::<PerCpu<U32>>() == 8);

fn wide(address: U32) -> U64 {
    U64::new(address.get().into())
}

impl From<PatchedData<U32>> for PatchedData {
    fn from(narrow: PatchedData<U32>) -> Self {
        Self {
            place: wide(narrow.place),
            was: wide(narrow.was),
            now: wide(narrow.now),
            name: wide(narrow.name),
            size: narrow.size,
            variable: narrow.variable,
        }
    }
}

impl From<PerCpu<U32>> for PerCpu {
    fn from(narrow: PerCpu<U32>) -> Self {
        Self {
            place: wide(narrow.place),
            size: wide(narrow.size),
        }
    }
}

impl Row for PatchedData {
    fn size(width: Width) -> usize {
        match width {
            Width::Bits32 => size_of::<PatchedData<U32>>(),
            Width::Bits64 => size_of::<Self>(),
        }
    }

    fn read(bytes: &[u8], width: Width) -> Option<Self> {
        match width {
            Width::Bits32 => PatchedData::<U32>::read_from_bytes(bytes)
                .ok()
                .map(Self::from),
            Width::Bits64 => Self::read_from_bytes(bytes).ok(),
        }
    }
}

impl Row for PerCpu {
    fn size(width: Width) -> usize {
        match width {
            Width::Bits32 => size_of::<PerCpu<U32>>(),
            Width::Bits64 => size_of::<Self>(),
        }
    }

    fn read(bytes: &[u8], width: Width) -> Option<Self> {
        match width {
            Width::Bits32 => PerCpu::<U32>::read_from_bytes(bytes).ok().map(Self::from),
            Width::Bits64 => Self::read_from_bytes(bytes).ok(),
        }
    }
}

/// Eight bytes of the map of padding, which has no other form on a machine of 32 bits.
impl Row for [u8; 8] {
    fn size(_width: Width) -> usize {
        size_of::<Self>()
    }

    fn read(bytes: &[u8], _width: Width) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }
}

/// Allocation unit of padding, in bytes.
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

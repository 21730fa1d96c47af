// SPDX-License-Identifier: MIT OR Apache-2.0
//! The payload format, version 2 (design, "Design of payload format").

pub mod hook;

use crate::machine::Width;
use core::mem::{offset_of, size_of};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `LIVEPATCH_PAYLOAD_VERSION`.
pub const PAYLOAD_VERSION: u8 = 2;
/// `LIVEPATCH_OPAQUE_SIZE`: the most bytes that one function's patch changes.
pub const OPAQUE_SIZE: usize = 31;

/// Names of the sections that make an ELF file a payload.
pub mod section {
    /// Array of [`LivepatchFunc`](super::LivepatchFunc).
    pub const FUNCS: &str = ".livepatch.funcs";
    /// Build-id of what the payload depends on.
    pub const DEPENDS: &str = ".livepatch.depends";
    /// Build-id of the hypervisor.
    pub const XEN_DEPENDS: &str = ".livepatch.xen_depends";
    /// Build-id of the payload itself.
    pub const BUILD_ID: &str = ".note.gnu.build-id";
    /// Names that [`FUNCS`] points to. The format does not name this section; tools
    /// agree on this name.
    pub const STRINGS: &str = ".livepatch.strings";
    /// `key=value` texts, each with a terminating zero.
    pub const MODINFO: &str = ".modinfo";
    /// Name prefix of hook sections; the stage follows.
    pub const HOOKS: &str = ".livepatch.hooks.";
    /// Functions run when the payload is applied, CPUs stopped.
    pub const HOOKS_LOAD: &str = ".livepatch.hooks.load";
    /// Functions run when the payload is reverted, CPUs stopped.
    pub const HOOKS_UNLOAD: &str = ".livepatch.hooks.unload";
    /// One function run before apply; can veto it.
    pub const HOOKS_PREAPPLY: &str = ".livepatch.hooks.preapply";
    /// One function run in place of apply.
    pub const HOOKS_APPLY: &str = ".livepatch.hooks.apply";
    /// One function run after apply.
    pub const HOOKS_POSTAPPLY: &str = ".livepatch.hooks.postapply";
    /// One function run before revert; can veto it.
    pub const HOOKS_PREREVERT: &str = ".livepatch.hooks.prerevert";
    /// One function run in place of revert.
    pub const HOOKS_REVERT: &str = ".livepatch.hooks.revert";
    /// One function run after revert.
    pub const HOOKS_POSTREVERT: &str = ".livepatch.hooks.postrevert";
}

/// `struct livepatch_expectation`: the bytes that must be in memory where a function
/// is patched.
///
/// ```
/// use xsplice_abi::payload::Expectation;
///
/// let expectation = Expectation::new(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap();
/// assert!(expectation.enabled());
/// assert_eq!(expectation.bytes(), [0xf3, 0x0f, 0x1e, 0xfa]);
/// assert_eq!(Expectation::new(&[0; 32]), None, "there is room for 31 bytes");
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct Expectation {
    /// Bit 0: enabled; bits 1 to 5: number of bytes in `data`; others zero.
    pub flags: u8,
    /// The bytes.
    pub data: [u8; OPAQUE_SIZE],
}

impl Expectation {
    /// Expects `bytes`; `None` if there are none or more than
    /// [`OPAQUE_SIZE`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let length = u8::try_from(bytes.len()).ok().filter(|&l| l > 0)?;
        let mut data = [0; OPAQUE_SIZE];
        data.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self {
            flags: 1 | (length << 1),
            data,
        })
    }

    /// Whether it is checked at all.
    pub const fn enabled(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Number of valid bytes in `data`.
    pub const fn len(&self) -> usize {
        (self.flags as usize >> 1) & 0x1f
    }

    /// The valid bytes.
    pub fn bytes(&self) -> &[u8] {
        self.data.get(..self.len()).unwrap_or(&self.data)
    }

    /// Whether there are no valid bytes.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The reserved bits, which must be zero.
    pub const fn reserved(&self) -> u8 {
        self.flags >> 6
    }
}

/// `struct livepatch_func` on machines with addresses of 64 bits.
pub type LivepatchFunc = FuncRecord<U64>;
/// `struct livepatch_func` on machines with addresses of 32 bits.
pub type LivepatchFunc32 = FuncRecord<U32>;

/// `struct livepatch_func`: a function to patch.
///
/// ```
/// use xsplice_abi::payload::{LivepatchFunc, PAYLOAD_VERSION};
/// use zerocopy::{FromBytes as _, IntoBytes as _};
///
/// let mut record = LivepatchFunc {
///     version: PAYLOAD_VERSION,
///     ..LivepatchFunc::default()
/// };
/// record.old_addr.set(0xffff_82d0_4020_0100);
/// record.old_size.set(32);
/// let bytes = record.as_bytes();
/// assert_eq!(bytes.len(), 104);
/// assert_eq!(LivepatchFunc::ref_from_bytes(bytes).unwrap(), &record);
/// assert!(record.narrow().is_none());
///
/// record.old_addr.set(0x20_0100);
/// let narrow = record.narrow().unwrap();
/// assert_eq!(narrow.as_bytes().len(), 92);
/// assert_eq!(LivepatchFunc::from(narrow), record);
/// ```
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
)]
#[repr(C)]
pub struct FuncRecord<Address> {
    /// Address of the function's name.
    pub name: Address,
    /// Address of the new code; 0 to write NOPs.
    pub new_addr: Address,
    /// Address of the old code; 0 to have the name looked up.
    pub old_addr: Address,
    /// Size of the new code, or how many bytes of NOPs.
    pub new_size: U32,
    /// Size of the old code.
    pub old_size: U32,
    /// [`PAYLOAD_VERSION`].
    pub version: u8,
    /// Zero; the hypervisor's own.
    pub opaque: [u8; OPAQUE_SIZE],
    /// Zero; the hypervisor's own.
    pub applied: u8,
    /// Zero.
    pub pad: [u8; 7],
    /// What must be at `old_addr`.
    pub expect: Expectation,
}

impl From<LivepatchFunc32> for LivepatchFunc {
    fn from(narrow: LivepatchFunc32) -> Self {
        let wide = |address: U32| U64::new(address.get().into());
        Self {
            name: wide(narrow.name),
            new_addr: wide(narrow.new_addr),
            old_addr: wide(narrow.old_addr),
            new_size: narrow.new_size,
            old_size: narrow.old_size,
            version: narrow.version,
            opaque: narrow.opaque,
            applied: narrow.applied,
            pad: narrow.pad,
            expect: narrow.expect,
        }
    }
}

impl LivepatchFunc {
    /// The record for a machine with addresses of 32 bits; `None` if one of its addresses
    /// has more.
    #[must_use]
    pub fn narrow(&self) -> Option<LivepatchFunc32> {
        let narrow = |address: U64| u32::try_from(address.get()).ok().map(U32::new);
        Some(LivepatchFunc32 {
            name: narrow(self.name)?,
            new_addr: narrow(self.new_addr)?,
            old_addr: narrow(self.old_addr)?,
            new_size: self.new_size,
            old_size: self.old_size,
            version: self.version,
            opaque: self.opaque,
            applied: self.applied,
            pad: self.pad,
            expect: self.expect,
        })
    }

    /// The record at the start of `bytes`, for a machine with such addresses; `None` if it
    /// is cut off.
    #[must_use]
    pub fn read(bytes: &[u8], width: Width) -> Option<Self> {
        let bytes = bytes.get(..width.func_size())?;
        match width {
            Width::Bits32 => LivepatchFunc32::read_from_bytes(bytes).ok().map(Self::from),
            Width::Bits64 => Self::read_from_bytes(bytes).ok(),
        }
    }
}

impl Width {
    /// Size in bytes of a [`FuncRecord`].
    #[must_use]
    #[inline]
    pub const fn func_size(self) -> usize {
        match self {
            Self::Bits32 => size_of::<LivepatchFunc32>(),
            Self::Bits64 => size_of::<LivepatchFunc>(),
        }
    }

    /// Offset of [`old_addr`](FuncRecord::old_addr) in a [`FuncRecord`].
    #[must_use]
    #[inline]
    pub const fn old_addr_offset(self) -> usize {
        match self {
            Self::Bits32 => offset_of!(LivepatchFunc32, old_addr),
            Self::Bits64 => offset_of!(LivepatchFunc, old_addr),
        }
    }
}

/// As the compilers of the machines lay the structure out.
const _: () = {
    assert!(size_of::<Expectation>() == 32);
    assert!(size_of::<LivepatchFunc32>() == 92);
    assert!(offset_of!(LivepatchFunc32, new_addr) == 4);
    assert!(offset_of!(LivepatchFunc32, old_addr) == 8);
    assert!(offset_of!(LivepatchFunc32, new_size) == 12);
    assert!(offset_of!(LivepatchFunc32, old_size) == 16);
    assert!(offset_of!(LivepatchFunc32, version) == 20);
    assert!(offset_of!(LivepatchFunc32, opaque) == 21);
    assert!(offset_of!(LivepatchFunc32, applied) == 52);
    assert!(offset_of!(LivepatchFunc32, expect) == 60);
    assert!(size_of::<LivepatchFunc>() == 104);
    assert!(offset_of!(LivepatchFunc, new_addr) == 8);
    assert!(offset_of!(LivepatchFunc, old_addr) == 16);
    assert!(offset_of!(LivepatchFunc, new_size) == 24);
    assert!(offset_of!(LivepatchFunc, old_size) == 28);
    assert!(offset_of!(LivepatchFunc, version) == 32);
    assert!(offset_of!(LivepatchFunc, opaque) == 33);
    assert!(offset_of!(LivepatchFunc, applied) == 64);
    assert!(offset_of!(LivepatchFunc, pad) == 65);
    assert!(offset_of!(LivepatchFunc, expect) == 72);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expectation_holds_at_most_31_bytes() {
        assert_eq!(Expectation::new(&[]), None);
        assert_eq!(Expectation::new(&[0; 32]), None);
        let full = Expectation::new(&[0xcc; 31]).expect("31 bytes fit");
        assert!(full.enabled() && full.len() == 31 && full.reserved() == 0);
        let one = Expectation::new(&[0x90]).expect("one byte fits");
        assert_eq!((one.flags, one.data[0], one.data[1]), (3, 0x90, 0));
    }
}

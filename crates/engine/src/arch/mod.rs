// SPDX-License-Identifier: MIT OR Apache-2.0

//! What differs between processor architectures: the instructions that the engine
//! writes and reads, relocations, and the hypervisor's tables about code.
//!
//! A hypervisor's host names its own, [`Native`], and nothing of the others is linked.
//! A host of images names [`Any`], and chooses by the image.

mod aarch64;
mod any;
mod arm;
mod arm32;
mod x86_64;

pub use aarch64::Aarch64;
pub use any::Any;
pub use arm32::Arm32;
pub use x86_64::X86_64;

use crate::Host;
use crate::stage::Code;
use core::fmt;
use core::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::{Alternative, BugKind};
use xsplice_reloc::reloc::Relocation;

/// The architecture that this is compiled for.
#[cfg(target_arch = "x86_64")]
pub type Native = X86_64;
/// The architecture that this is compiled for.
#[cfg(target_arch = "aarch64")]
pub type Native = Aarch64;
/// The architecture that this is compiled for.
#[cfg(target_arch = "arm")]
pub type Native = Arm32;
/// The value of [`Native`].
#[cfg(target_arch = "x86_64")]
pub const NATIVE: Native = X86_64;
/// The value of [`Native`].
#[cfg(target_arch = "aarch64")]
pub const NATIVE: Native = Aarch64;
/// The value of [`Native`].
#[cfg(target_arch = "arm")]
pub const NATIVE: Native = Arm32;

/// A processor architecture: [`X86_64`], [`Aarch64`], [`Arm32`], or [`Any`] of them.
pub trait Architecture: Instructions {}

impl<A: Instructions> Architecture for A {}

/// The problem with an entry of a table, and the address or number concerned.
pub(crate) type Wrong = (&'static str, u64);

/// The entries of a table.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// Size of one in bytes.
    pub(crate) size: u64,
    /// What the size of the table must be.
    pub(crate) expected: &'static str,
}

/// A relocation that is to be performed.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Its address.
    pub(crate) place: u64,
    /// What is in its place.
    pub(crate) field: &'a [u8],
    /// The addend.
    pub(crate) addend: i64,
    /// What is written.
    pub(crate) value: u64,
}

/// A bug frame, as far as the hypervisor follows it.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// The instruction that traps.
    pub(crate) place: u64,
    /// The function that is called.
    pub(crate) function: Option<u64>,
    /// The name of the file.
    pub(crate) file: Option<u64>,
    /// The text of an assertion.
    pub(crate) message: Option<u64>,
}

/// What the engine needs of an architecture.
pub trait Instructions: Copy + fmt::Debug {
    /// The machine in ELF files.
    fn machine(self) -> Machine;

    /// What the flags of an ELF file must be, if not these.
    fn wrong_flags(self, _flags: u32) -> Option<&'static str> {
        None
    }

    /// Size of the window that all payloads together are loaded into, if it is so small
    /// that it can get full.
    fn window_size(self) -> Option<u64>;

    /// Size of the jump to a new function.
    fn jump_size(self) -> u8;

    /// What the address of every instruction is a multiple of.
    fn unit(self) -> u32;

    /// Whether a hypervisor cleans the new function, as long as its record says, from the
    /// data cache.
    fn cleans_new_code(self) -> bool;

    /// Offset of the patch in a function that starts with these bytes.
    fn patch_offset(self, first: [u8; 4]) -> u32;

    /// Whether indirect branches may lead to code that starts with these bytes, on a
    /// processor that checks for landing pads.
    fn is_landing_pad(self, first: [u8; 4]) -> bool;

    /// Whether a jump at `from` can lead to `to`.
    fn reaches(self, from: u64, to: u64) -> bool;

    /// Writes the jump at `from` to `to`, which it reaches.
    fn jump(self, from: u64, to: u64, code: &mut [u8]) -> Option<()>;

    /// Fills `code` with no-ops.
    fn nops(self, code: &mut [u8]);

    /// Size of the longest instruction.
    fn longest(self) -> u64;

    /// The start and end of the instruction of `code` that spans `at`, not one that
    /// starts there.
    ///
    /// # Errors
    /// The end of the decodable code, if that is before `at`.
    fn across(self, code: &[u8], at: usize) -> Result<Option<(usize, usize)>, usize>;

    /// The offset of the first place in `code`, which begins with an instruction, where
    /// there may be data, if compilers put data between instructions.
    fn may_be_data(self, _code: &[u8]) -> Option<usize> {
        None
    }

    /// The two instructions that compute an address together, the first of them before `at`
    /// and the second not, in a function that starts at `start`.
    fn pair_across(self, host: &impl Host, start: u64, at: u64) -> Option<(u64, u64)>;

    /// Calls `found` with each address that the code in `range` may refer to.
    fn each_reference(self, host: &impl Host, range: Range<u64>, found: impl FnMut(u64));

    /// The description of a relocation.
    fn relocation(self, r_type: u32) -> Option<&'static Relocation>;

    /// Whether files may have relocations without addends (`SHT_REL`), whose addends are
    /// in the places that are relocated.
    fn addends_in_places(self) -> bool {
        self.machine().has_addends_in_places()
    }

    /// Which relocations an unmodified Xen performs, if not this one.
    fn stock_lacks(self, r_type: u32) -> Option<&'static str>;

    /// What an unmodified Xen does wrong where it performs this relocation, if so.
    fn stock_fault(self, _relocation: &Relocation, _write: &Write<'_>) -> Option<&'static str> {
        None
    }

    /// What the address of a note or a table must be a multiple of, for the hypervisor's C
    /// code not to crash when it reads it.
    fn word_alignment(self) -> u64 {
        1
    }

    /// Whether a symbol of this name marks code of a kind that the hypervisor does not run.
    fn is_foreign_code(self, _symbol: &[u8]) -> bool {
        false
    }

    /// Whether the hypervisor has an exception table.
    fn has_exceptions(self) -> bool;

    /// The form of bug frames.
    fn bug_frames(self) -> Entries;

    /// The frame at the start of `rest`, the rest of the table, whose address is `at`.
    fn bug_frame(self, kind: BugKind, rest: &[u8], at: u64) -> Option<Frame>;

    /// Size of the instruction that traps.
    fn trap_size(self) -> u64;

    /// The form of alternatives.
    fn alternatives(self) -> Entries;

    /// The alternative at `at`.
    fn alternative(self, entry: &[u8], at: u64) -> Option<Alternative>;

    /// Whether the hypervisor can use the alternative, and nothing in it leads astray.
    /// Its place is in the payload's text.
    fn check_alternative<H: Host>(
        self,
        code: &Code<'_, '_, H>,
        replacements: &Range<u64>,
        entry: &Alternative,
    ) -> Result<(), Wrong>;

    /// Whether there is an indirect call at `at`, which is in the payload's text, that
    /// the hypervisor can make direct.
    fn check_call_site<H: Host>(self, code: &Code<'_, '_, H>, at: u64) -> Result<(), Wrong>;
}

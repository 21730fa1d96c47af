// SPDX-License-Identifier: MIT OR Apache-2.0
//! What differs between the machines that payloads are for. How their objects differ is
//! in [`xsplice_objdiff::arch`].

mod aarch64;
mod arm;
mod arm32;
mod x86_64;

use crate::payload::Draft;
use object::Architecture;
use std::borrow::Cow;
use std::fmt::Debug;
use std::ops::Range;
use xsplice_abi::machine::Machine;
use xsplice_abi::special::Entry;
use xsplice_objdiff::Object;
use xsplice_objdiff::arch::Arch as Objects;
use xsplice_objdiff::object::Symbol;
use xsplice_reloc::reloc::Relocation;
use xsplice_xen_image::Image;

/// Why a payload cannot be built for a kind of change or data on this machine.
pub(crate) type Unsupported = &'static str;

/// A function in the hypervisor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Linked<'a> {
    /// The hypervisor.
    pub(crate) image: &'a Image,
    /// Its address.
    pub(crate) address: u64,
    /// Its bytes.
    pub(crate) bytes: &'a [u8],
}

/// What differs between machines.
pub(crate) trait Arch: Debug + Sync {
    /// How objects for it differ.
    fn objects(&self) -> &'static dyn Objects;

    /// The machine in the header of an ELF file.
    fn elf(&self) -> Architecture;

    /// What is between functions of a payload, repeatedly.
    fn padding(&self) -> &'static [u8];

    /// An instruction that stops the hypervisor.
    fn trap(&self) -> &'static [u8];

    /// The least alignment of code and of tables about it, in bytes.
    fn least_alignment(&self) -> u64;

    /// Size in bytes of the mark at the start of `code` that indirect calls must land
    /// on, 0 without one. The trampoline goes after it.
    fn landing_pad(&self, code: &[u8]) -> u32;

    /// The least size of a function that starts with `code` and can be replaced.
    fn trampoline(&self, code: &[u8]) -> u64;

    /// The references into `target` that one piece of the hypervisor's code makes:
    /// their addresses, and whether they only read or call.
    fn uses(&self, at: u64, code: &[u8], target: &Range<u64>) -> Vec<(u64, bool)>;

    /// The bytes of the function `symbol` of `object` as the linker found them, except for
    /// relocated fields.
    fn before_linking<'a>(
        &self,
        _object: &Object,
        _symbol: &Symbol,
        linked: &Linked<'a>,
    ) -> Cow<'a, [u8]> {
        // Most linkers only fill in fields.
        Cow::Borrowed(linked.bytes)
    }

    /// Whether a processor may run `code` wrongly when it is so many bytes behind the
    /// start of a page: an erratum that the hypervisor's linker works around.
    fn meets_erratum(&self, _code: &[u8], _offset: u64) -> bool {
        false
    }

    /// Why the hypervisor would not take this entry of a table about code, if so.
    fn refuses_entry(&self, entry: &Entry, hypervisor: &Image) -> Option<Unsupported>;

    /// Why hooks cannot write to read-only data, if so.
    fn locks_constants(&self) -> Option<Unsupported>;

    /// The flags in the header of an ELF file.
    fn elf_flags(&self) -> u32;

    /// The least alignment of a section with code, in bytes.
    fn section_alignment(&self) -> u64;

    /// Whether the hypervisor's own core leaves out the addend of this relocation.
    fn loses_addend(&self, relocation: &Relocation) -> bool;

    /// The code of veneers in its payloads, behind which is a pointer to where they lead; if
    /// they may have any.
    fn veneer(&self) -> Option<&'static [u8]> {
        None
    }

    /// Lets the fields of a complete payload lead to their targets where the
    /// hypervisor's own core would not.
    fn route(&self, draft: &mut Draft, hypervisor: &Image);
}

/// The properties of a hypervisor's machine.
pub(crate) fn of(machine: Machine) -> &'static dyn Arch {
    match machine {
        Machine::X86_64 => &x86_64::X86_64,
        Machine::Arm64 => &aarch64::Aarch64,
        Machine::Arm32 => &arm32::Arm32,
    }
}

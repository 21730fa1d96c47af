// SPDX-License-Identifier: MIT OR Apache-2.0
//! The classes of the running hypervisor's memory.

use std::ops::Range;
use xsplice_abi::payload::hook;

/// The class of a piece of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Class {
    /// Code that is mapped in all page tables.
    EntryText,
    Text,
    InitText,
    ReadOnly,
    RoAfterInit,
    InitData,
    ReadMostly,
    Data,
    Bss,
    PerCpu,
    /// Pointers to a payload's hooks.
    Hooks,
    /// Code, constants and variables of a payload.
    PayloadText,
    PayloadReadOnly,
    PayloadData,
}

impl Class {
    pub(crate) fn is_code(self) -> bool {
        matches!(
            self,
            Self::Text | Self::EntryText | Self::InitText | Self::PayloadText
        )
    }

    /// Whether it is freed after boot.
    pub(crate) fn is_init(self) -> bool {
        matches!(self, Self::InitText | Self::InitData)
    }

    pub(crate) fn is_payload(self) -> bool {
        matches!(
            self,
            Self::PayloadText | Self::PayloadReadOnly | Self::PayloadData
        )
    }

    /// Whether running code may change it: then it is unique and has state.
    pub(crate) fn is_writable(self) -> bool {
        matches!(
            self,
            Self::ReadMostly | Self::Data | Self::Bss | Self::PerCpu | Self::PayloadData
        )
    }

    /// Whether it may have been written since the hypervisor started: writable
    /// memory, or memory locked after boot.
    pub(crate) fn has_state(self) -> bool {
        self.is_writable() || self == Self::RoAfterInit
    }

    /// Whether memory of this class in the patched hypervisor can be `other` in the
    /// running one.
    pub(crate) fn allows(self, other: Self) -> bool {
        match other {
            Self::PayloadText => self == Self::Text,
            Self::PayloadReadOnly => self == Self::ReadOnly,
            // A payload cannot lock its own data.
            Self::PayloadData => self.is_plain() || self == Self::RoAfterInit,
            _ => self == other || self.is_plain() && other.is_plain(),
        }
    }

    /// Variables whose place does not matter.
    fn is_plain(self) -> bool {
        matches!(self, Self::ReadMostly | Self::Data | Self::Bss)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::EntryText => "entry code",
            Self::Text => "code",
            Self::InitText => "boot-only code",
            Self::ReadOnly => "read-only data",
            Self::RoAfterInit => "data that is read-only after boot",
            Self::InitData => "boot-only data",
            Self::ReadMostly => "read-mostly data",
            Self::Data => "data",
            Self::Bss => "zero-initialised data",
            Self::PerCpu => "per-CPU data",
            Self::Hooks => "a list of hooks",
            Self::PayloadText => "the payload's code",
            Self::PayloadReadOnly => "the payload's read-only data",
            Self::PayloadData => "the payload's data",
        }
    }
}

/// The section header's information.
pub(crate) struct SectionKind<'a> {
    pub(crate) name: &'a str,
    pub(crate) writable: bool,
    pub(crate) code: bool,
}

/// The boundaries of memory classes within sections.
pub(crate) struct Borders {
    pub(crate) entry: Range<u64>,
    pub(crate) init: Range<u64>,
    /// The boot-only code.
    pub(crate) init_text: Range<u64>,
    pub(crate) ro_after_init: Range<u64>,
    pub(crate) per_cpu: Range<u64>,
}

impl Borders {
    pub(crate) fn all(&self) -> impl Iterator<Item = u64> {
        let all = [
            &self.entry,
            &self.init,
            &self.init_text,
            &self.ro_after_init,
            &self.per_cpu,
        ];
        all.map(|range| [range.start, range.end])
            .into_iter()
            .flatten()
    }

    pub(crate) fn class(&self, section: &SectionKind, address: u64) -> Class {
        if self.init.contains(&address) {
            // `xen.efi` has one section for all that is boot-only.
            let merged = section.name == ".init";
            return if section.code && (!merged || self.init_text.contains(&address)) {
                Class::InitText
            } else {
                Class::InitData
            };
        }
        match section.name {
            name if hook::stage(name).is_some() => Class::Hooks,
            ".text" if self.entry.contains(&address) => Class::EntryText,
            ".text" => Class::Text,
            _ if self.ro_after_init.contains(&address) => Class::RoAfterInit,
            _ if self.per_cpu.contains(&address) => Class::PerCpu,
            // A section of `xen.efi` has a name of eight characters at most.
            ".data.read_mostly" | ".data.re" => Class::ReadMostly,
            ".data" => Class::Data,
            ".bss" => Class::Bss,
            // Its header says that it is writable.
            ".rodata" => Class::ReadOnly,
            // Sections that the linker script does not name.
            _ if section.code => Class::Text,
            _ if section.writable => Class::Data,
            _ => Class::ReadOnly,
        }
    }
}

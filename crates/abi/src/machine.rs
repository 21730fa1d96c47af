// SPDX-License-Identifier: MIT OR Apache-2.0
//! The machines that Xen patches itself on.
//!
//! Sources: the ELF specification and its processor supplements for the numbers; for
//! the words in `capabilities`, `arch_get_xen_caps` of each architecture.

use core::fmt;

/// The width of addresses, which the records of payloads and of ELF files have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Width {
    /// 32 bits.
    Bits32,
    /// 64 bits.
    Bits64,
}

impl Width {
    /// The number of bytes of an address.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }

    /// The address at the start of `bytes`; `None` if it is cut off.
    ///
    /// ```
    /// use xsplice_abi::machine::Width;
    /// let bytes = [0x78, 0x56, 0x34, 0x12, 1, 0, 0];
    /// assert_eq!(Width::Bits32.read(&bytes), Some(0x1234_5678));
    /// assert_eq!(Width::Bits64.read(&bytes), None);
    /// ```
    #[must_use]
    #[inline]
    pub fn read(self, bytes: &[u8]) -> Option<u64> {
        Some(match self {
            Self::Bits32 => u32::from_le_bytes(*bytes.first_chunk()?).into(),
            Self::Bits64 => u64::from_le_bytes(*bytes.first_chunk()?),
        })
    }
}

/// A machine that Xen can be live-patched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Machine {
    /// x86-64.
    X86_64,
    /// ARM, 64 bits (`AArch64`).
    Arm64,
    /// ARM, 32 bits (`ARMv7`).
    Arm32,
}

impl Machine {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::X86_64, Self::Arm64, Self::Arm32];

    /// The machine that this is compiled for.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Self = Self::X86_64;
    /// The machine that this is compiled for.
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Self = Self::Arm64;
    /// The machine that this is compiled for.
    #[cfg(target_arch = "arm")]
    pub const NATIVE: Self = Self::Arm32;

    /// The machine whose ELF files have this `e_machine`.
    ///
    /// ```
    /// use xsplice_abi::machine::Machine;
    /// assert_eq!(Machine::from_elf(183), Some(Machine::Arm64));
    /// assert_eq!(Machine::from_elf(8), None);
    /// ```
    #[must_use]
    pub fn from_elf(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.elf_number() == number)
    }

    /// `e_machine` of its ELF files.
    #[must_use]
    #[inline]
    pub const fn elf_number(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Arm64 => 183,
            Self::Arm32 => 40,
        }
    }

    /// The width of its addresses, and the class of its ELF files.
    #[must_use]
    #[inline]
    pub const fn width(self) -> Width {
        match self {
            Self::X86_64 | Self::Arm64 => Width::Bits64,
            Self::Arm32 => Width::Bits32,
        }
    }

    /// Whether relocations have their addends in the places that they fill (`SHT_REL`).
    #[must_use]
    #[inline]
    pub const fn has_addends_in_places(self) -> bool {
        match self {
            Self::X86_64 | Self::Arm64 => false,
            Self::Arm32 => true,
        }
    }

    /// The machine of a hypervisor, from its list of the guests that it can run
    /// (`XENVER_capabilities`): `xen-3.0-aarch64 xen-3.0-armv7l ` for ARM64.
    #[must_use]
    pub fn from_capabilities(capabilities: &str) -> Option<Self> {
        // An ARM64 hypervisor names the 32-bit guests too.
        let names = |m: &Self| {
            let mut words = capabilities.split_ascii_whitespace();
            words.any(|word| word.ends_with(m.guest()))
        };
        Self::ALL.into_iter().find(names)
    }

    /// Whether a symbol of this name only marks where code or data begins (`$x`, `$d`,
    /// `$d.5` on ARM), in every file again. The hypervisor does not know such symbols.
    ///
    /// ```
    /// use xsplice_abi::machine::Machine;
    /// assert!(Machine::Arm64.is_mapping_symbol(b"$x"));
    /// assert!(Machine::Arm64.is_mapping_symbol(b"$d.17"));
    /// assert!(!Machine::Arm64.is_mapping_symbol(b"$data"));
    /// assert!(!Machine::X86_64.is_mapping_symbol(b"$x"));
    /// ```
    #[must_use]
    pub fn is_mapping_symbol(self, name: &[u8]) -> bool {
        let kinds: &[u8] = match self {
            Self::X86_64 => return false,
            Self::Arm64 => b"dx",
            Self::Arm32 => b"adt",
        };
        match name {
            [b'$', kind] | [b'$', kind, b'.', ..] => kinds.contains(kind),
            _ => false,
        }
    }

    /// What a hypervisor calls its own kind of guests.
    const fn guest(self) -> &'static str {
        match self {
            Self::X86_64 => "-x86_64",
            Self::Arm64 => "-aarch64",
            Self::Arm32 => "-armv7l",
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86-64",
            Self::Arm64 => "ARM64",
            Self::Arm32 => "ARM32",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Machine;

    /// As the hypervisors of Xen 4.17 answer.
    #[test]
    fn capabilities_tell_the_machine() {
        for (capabilities, machine) in [
            (
                "xen-3.0-x86_64 hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 ",
                Some(Machine::X86_64),
            ),
            ("xen-3.0-aarch64 xen-3.0-armv7l ", Some(Machine::Arm64)),
            ("xen-3.0-armv7l ", Some(Machine::Arm32)),
            ("", None),
        ] {
            assert_eq!(Machine::from_capabilities(capabilities), machine);
        }
    }
}

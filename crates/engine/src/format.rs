//! The payload format: names, sizes and records, read without trusting them.

/// Largest payload, and largest section without file contents, in bytes.
pub const MAX_SIZE: u64 = 2 << 20;
/// Most memory that the engine lays out for one payload.
pub(crate) const MAX_IMAGE: u64 = 16 * MAX_SIZE;
/// Section headers from this number on are refused.
pub(crate) const MAX_SECTIONS: u16 = 1024;
/// Symbol names that the hypervisor can hold, terminator not counted.
pub(crate) const MAX_NAME: usize = 127;
/// The version of the function record that is supported.
pub(crate) const PAYLOAD_VERSION: u8 = 2;
/// Most bytes of a function that can be replaced in place.
pub(crate) const OPAQUE_SIZE: u32 = 31;
/// Size of one function record.
pub(crate) const FUNC_SIZE: u64 = 104;

pub(crate) const BUILD_ID: &str = ".note.gnu.build-id";
pub(crate) const DEPENDS: &str = ".livepatch.depends";
pub(crate) const XEN_DEPENDS: &str = ".livepatch.xen_depends";
pub(crate) const FUNCS: &str = ".livepatch.funcs";
pub(crate) const MODINFO: &str = ".modinfo";
pub(crate) const ALTERNATIVES: &str = ".altinstructions";
pub(crate) const REPLACEMENTS: &str = ".altinstr_replacement";
pub(crate) const EX_TABLE: &str = ".ex_table";
/// Lists of hooks, run when the payload is applied and reverted.
pub(crate) const HOOK_LISTS: [&str; 2] = [".livepatch.hooks.load", ".livepatch.hooks.unload"];
/// Hooks of which there is one of each kind.
pub(crate) const HOOKS: [&str; 6] = [
    ".livepatch.hooks.preapply",
    ".livepatch.hooks.apply",
    ".livepatch.hooks.postapply",
    ".livepatch.hooks.prerevert",
    ".livepatch.hooks.revert",
    ".livepatch.hooks.postrevert",
];
/// Tables of places that raise a bug frame.
pub(crate) const BUG_FRAMES: [&str; 4] = [
    ".bug_frames.0",
    ".bug_frames.1",
    ".bug_frames.2",
    ".bug_frames.3",
];
/// Sections of which a payload has at most one.
pub(crate) const UNIQUE: [&str; 8] = [
    BUILD_ID,
    DEPENDS,
    XEN_DEPENDS,
    FUNCS,
    MODINFO,
    ALTERNATIVES,
    REPLACEMENTS,
    EX_TABLE,
];

/// Little-endian integers out of bytes that may be too short.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub(crate) &'a [u8]);

impl<'a> Bytes<'a> {
    fn chunk<const N: usize>(self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    pub(crate) fn u8(self, offset: usize) -> Option<u8> {
        self.0.get(offset).copied()
    }

    pub(crate) fn u16(self, offset: usize) -> Option<u16> {
        self.chunk(offset).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(self, offset: usize) -> Option<u32> {
        self.chunk(offset).map(u32::from_le_bytes)
    }

    pub(crate) fn i32(self, offset: usize) -> Option<i32> {
        self.chunk(offset).map(i32::from_le_bytes)
    }

    pub(crate) fn u64(self, offset: usize) -> Option<u64> {
        self.chunk(offset).map(u64::from_le_bytes)
    }

    /// `size` bytes at `offset`, both as they stand in a file.
    pub(crate) fn range(self, offset: u64, size: u64) -> Option<&'a [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.0
            .get(start..start.checked_add(usize::try_from(size).ok()?)?)
    }

    /// The string that starts at `offset`, when it ends within `limit` bytes.
    pub(crate) fn c_str(self, offset: usize, limit: usize) -> Option<&'a [u8]> {
        let bytes = self.0.get(offset..)?;
        let bytes = bytes.get(..limit.saturating_add(1)).unwrap_or(bytes);
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes.get(..end)
    }
}

/// The build-id in a note section, by the rules of Xen's loader.
pub(crate) fn note_build_id(note: &[u8]) -> Result<&[u8], &'static str> {
    const NT_GNU_BUILD_ID: u32 = 3;
    let bytes = Bytes(note);
    let (Some(name_size), Some(desc_size), Some(kind)) = (bytes.u32(0), bytes.u32(4), bytes.u32(8))
    else {
        return Err("it is shorter than a note's header");
    };
    if kind != NT_GNU_BUILD_ID {
        return Err("the note's type is not that of a build-id (3)");
    }
    if name_size < 4 {
        return Err("the note's name is shorter than \"GNU\"");
    }
    if desc_size == 0 {
        return Err("the build-id has no bytes");
    }
    let name = bytes
        .range(12, u64::from(name_size))
        .ok_or("the note's name is cut off")?;
    if name.strip_prefix(b"GNU\0").is_none() {
        return Err("the note's name is not \"GNU\"");
    }
    let start = 12 + u64::from(name_size).next_multiple_of(4);
    bytes
        .range(start, u64::from(desc_size))
        .ok_or("the build-id is cut off")
}

/// One record of `.livepatch.funcs`.
pub(crate) struct FuncRecord {
    pub(crate) name: u64,
    pub(crate) new_addr: u64,
    pub(crate) old_addr: u64,
    pub(crate) new_size: u32,
    pub(crate) old_size: u32,
    pub(crate) version: u8,
    expect: [u8; 32],
}

impl FuncRecord {
    pub(crate) fn read(record: &[u8]) -> Option<Self> {
        let bytes = Bytes(record);
        Some(Self {
            name: bytes.u64(0)?,
            new_addr: bytes.u64(8)?,
            old_addr: bytes.u64(16)?,
            new_size: bytes.u32(24)?,
            old_size: bytes.u32(28)?,
            version: bytes.u8(32)?,
            expect: bytes.chunk(72)?,
        })
    }

    /// Whether the old function's bytes are to be compared before applying.
    pub(crate) fn expects(&self) -> bool {
        let [flags, ..] = self.expect;
        flags & 1 != 0
    }

    /// How many bytes are to be compared.
    pub(crate) fn expect_len(&self) -> u8 {
        let [flags, ..] = self.expect;
        flags >> 1 & 0x1f
    }

    /// Reserved bits, which are zero in this version.
    pub(crate) fn expect_reserved(&self) -> u8 {
        let [flags, ..] = self.expect;
        flags >> 6
    }

    /// The bytes that the old function must have.
    pub(crate) fn expected(&self) -> &[u8] {
        let [_, data @ ..] = &self.expect;
        data.get(..usize::from(self.expect_len())).unwrap_or(data)
    }
}

#[cfg(test)]
mod tests {
    use super::note_build_id;
    use alloc::vec::Vec;

    fn note(name_size: u32, desc_size: u32, kind: u32, rest: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for word in [name_size, desc_size, kind] {
            note.extend_from_slice(&word.to_le_bytes());
        }
        note.extend_from_slice(rest);
        note
    }

    #[test]
    fn build_id_notes() {
        let good = note(4, 3, 3, b"GNU\0abc");
        assert_eq!(note_build_id(&good), Ok(&b"abc"[..]));
        for length in 0..good.len() {
            assert!(note_build_id(good.get(..length).unwrap()).is_err());
        }
        assert!(note_build_id(&note(4, 3, 1, b"GNU\0abc")).is_err());
        assert!(note_build_id(&note(4, 0, 3, b"GNU\0")).is_err());
        assert!(note_build_id(&note(3, 3, 3, b"GNUabc")).is_err());
        assert!(note_build_id(&note(4, 3, 3, b"XEN\0abc")).is_err());
        assert!(note_build_id(&note(u32::MAX, 3, 3, b"GNU\0abc")).is_err());
        assert!(note_build_id(&note(4, u32::MAX, 3, b"GNU\0abc")).is_err());
    }
}

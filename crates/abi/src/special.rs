// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's special sections: tables about code elsewhere. Sizes and forms are those on
//! x86-64; [`arm`] has what differs there.
//!
//! Every entry starts with the displacement of the code that it describes. A table
//! has the same form in an object, in a payload and in a linked hypervisor, and in
//! all of Xen 4.14 to 4.22; exceptions are documented.
//!
//! Sources: Xen's `arch/x86/include/asm/{alternative,bug,uaccess}.h`.

pub mod arm;

/// Size in bytes of a displacement; the first one of an entry leads to the code that
/// it describes.
pub const FIELD_SIZE: u64 = 4;
/// Size in bytes of an indirect call or jump at a call site, and of what replaces it.
pub const CALL_SITE_SIZE: u32 = 6;
/// Replacement code of alternatives.
pub const REPLACEMENTS: &str = ".altinstr_replacement";

/// One of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// [`BugFrame`]s of one kind.
    BugFrames(BugKind),
    /// [`Exception`]s.
    Exceptions,
    /// [`Exception`]s during boot. The hypervisor does not read this table from
    /// payloads.
    EarlyExceptions,
    /// [`Alternative`]s.
    Alternatives,
    /// Indirect calls that become direct at boot or load; from Xen 4.21 on.
    CallSites,
}

/// The action at a bug frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BugKind {
    /// It calls a function.
    Call,
    /// It warns and continues.
    Warn,
    /// It stops.
    Bug,
    /// It stops with a message.
    Assert,
}

impl BugKind {
    /// In the order of their numbers, which are at the end of their section names.
    pub const ALL: [Self; 4] = [Self::Call, Self::Warn, Self::Bug, Self::Assert];

    /// Whether execution continues after the frame's instruction.
    #[must_use]
    pub const fn goes_on(self) -> bool {
        match self {
            Self::Call | Self::Warn => true,
            Self::Bug | Self::Assert => false,
        }
    }
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::BugFrames(BugKind::Call),
        Self::BugFrames(BugKind::Warn),
        Self::BugFrames(BugKind::Bug),
        Self::BugFrames(BugKind::Assert),
        Self::Exceptions,
        Self::EarlyExceptions,
        Self::Alternatives,
        Self::CallSites,
    ];

    /// Its section in an object or a payload.
    #[must_use]
    pub const fn section(self) -> &'static str {
        match self {
            Self::BugFrames(BugKind::Call) => ".bug_frames.0",
            Self::BugFrames(BugKind::Warn) => ".bug_frames.1",
            Self::BugFrames(BugKind::Bug) => ".bug_frames.2",
            Self::BugFrames(BugKind::Assert) => ".bug_frames.3",
            Self::Exceptions => ".ex_table",
            Self::EarlyExceptions => ".ex_table.pre",
            Self::Alternatives => ".altinstructions",
            Self::CallSites => ".alt_call_sites",
        }
    }

    /// The symbols at its start in a linked hypervisor: a version of Xen has the first,
    /// or else the second.
    #[must_use]
    pub const fn starts(self) -> &'static [&'static str] {
        match self {
            // Until 4.18 the tables of bug frames had one start and four ends.
            Self::BugFrames(BugKind::Call) => &["__start_bug_frames_0", "__start_bug_frames"],
            Self::BugFrames(BugKind::Warn) => &["__start_bug_frames_1", "__stop_bug_frames_0"],
            Self::BugFrames(BugKind::Bug) => &["__start_bug_frames_2", "__stop_bug_frames_1"],
            Self::BugFrames(BugKind::Assert) => &["__start_bug_frames_3", "__stop_bug_frames_2"],
            Self::Exceptions => &["__start___ex_table"],
            Self::EarlyExceptions => &["__start___pre_ex_table"],
            Self::Alternatives => &["__alt_instructions"],
            Self::CallSites => &["__alt_call_sites_start"],
        }
    }

    /// The symbol at its end in a linked hypervisor.
    #[must_use]
    pub const fn end(self) -> &'static str {
        match self {
            Self::BugFrames(BugKind::Call) => "__stop_bug_frames_0",
            Self::BugFrames(BugKind::Warn) => "__stop_bug_frames_1",
            Self::BugFrames(BugKind::Bug) => "__stop_bug_frames_2",
            Self::BugFrames(BugKind::Assert) => "__stop_bug_frames_3",
            Self::Exceptions => "__stop___ex_table",
            Self::EarlyExceptions => "__stop___pre_ex_table",
            Self::Alternatives => "__alt_instructions_end",
            Self::CallSites => "__alt_call_sites_end",
        }
    }

    /// Size of an entry in bytes.
    #[must_use]
    pub const fn entry_size(self) -> u64 {
        match self {
            // The hypervisor treats the second half as a frame without code.
            Self::BugFrames(BugKind::Assert) => 2 * BugFrame::SIZE,
            Self::BugFrames(BugKind::Call | BugKind::Warn | BugKind::Bug) => BugFrame::SIZE,
            Self::Exceptions | Self::EarlyExceptions => Exception::SIZE,
            Self::Alternatives => Alternative::SIZE,
            Self::CallSites => FIELD_SIZE,
        }
    }

    /// Whether the hypervisor reads it from payloads.
    #[must_use]
    pub const fn is_loaded(self) -> bool {
        match self {
            Self::BugFrames(_) | Self::Exceptions | Self::Alternatives | Self::CallSites => true,
            Self::EarlyExceptions => false,
        }
    }

    /// Whether the hypervisor changes the code that its entries describe.
    #[must_use]
    pub const fn changes_code(self) -> bool {
        match self {
            Self::Alternatives | Self::CallSites => true,
            Self::BugFrames(_) | Self::Exceptions | Self::EarlyExceptions => false,
        }
    }

    /// Reads the entry at `at`; `None` if it is truncated.
    #[must_use]
    pub fn read(self, entry: &[u8], at: u64) -> Option<Entry> {
        Some(match self {
            Self::BugFrames(kind) => Entry::BugFrame {
                kind,
                frame: BugFrame::read(entry, at)?,
                message: match kind {
                    BugKind::Assert => Some(BugFrame::message(entry, at)?),
                    BugKind::Call | BugKind::Warn | BugKind::Bug => None,
                },
            },
            Self::Exceptions | Self::EarlyExceptions => {
                Entry::Exception(Exception::read(entry, at)?)
            }
            Self::Alternatives => Entry::Alternative(Alternative::read(entry, at)?),
            Self::CallSites => Entry::CallSite(leads_to(entry, at, 0)?),
        })
    }
}

/// The kind of a section whose name starts like a special one's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A table.
    Table(Table),
    /// [`REPLACEMENTS`].
    Replacements,
    /// Probably a table, but unknown to this module.
    Unknown,
}

impl Special {
    /// The kind of the section `name`; `None` for sections that are not special.
    #[must_use]
    pub fn of(name: impl AsRef<[u8]>) -> Option<Self> {
        const FAMILIES: [&[u8]; 3] = [b".alt", b".bug_frames", b".ex_table"];
        let name = name.as_ref();
        if !FAMILIES.iter().any(|family| name.starts_with(family)) {
            return None;
        }
        if name == REPLACEMENTS.as_bytes() {
            return Some(Self::Replacements);
        }
        let mut tables = Table::ALL.into_iter();
        let table = tables.find(|table| table.section().as_bytes() == name);
        Some(table.map_or(Self::Unknown, Self::Table))
    }
}

/// The table that the section `name` holds.
#[must_use]
pub fn table(name: &str) -> Option<Table> {
    match Special::of(name)? {
        Special::Table(table) => Some(table),
        Special::Replacements | Special::Unknown => None,
    }
}

/// One entry of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Of [`Table::BugFrames`].
    BugFrame {
        /// The action.
        kind: BugKind,
        /// The fields of all kinds.
        frame: BugFrame,
        /// The text of a failed assertion.
        message: Option<u64>,
    },
    /// Of [`Table::Exceptions`] and [`Table::EarlyExceptions`].
    Exception(Exception),
    /// Of [`Table::Alternatives`].
    Alternative(Alternative),
    /// Of [`Table::CallSites`]: the address of the call.
    CallSite(u64),
}

impl Entry {
    /// The code that it describes.
    #[must_use]
    pub const fn place(&self) -> u64 {
        match self {
            Self::BugFrame { frame, .. } => frame.place,
            Self::Exception(exception) => exception.place,
            Self::Alternative(alternative) => alternative.place,
            Self::CallSite(place) => *place,
        }
    }

    /// How many bytes of that code the hypervisor changes while booting or loading;
    /// `None` if it only reads about them.
    #[must_use]
    pub const fn patched_len(&self) -> Option<u32> {
        match self {
            Self::Alternative(alternative) => Some(alternative.total_len()),
            Self::CallSite(_) => Some(CALL_SITE_SIZE),
            Self::BugFrame { .. } | Self::Exception(_) => None,
        }
    }
}

/// `struct bug_frame`: two displacements of 24 bits from its start, each with a
/// part of a line number above it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BugFrame {
    /// The instruction that traps.
    pub place: u64,
    /// The name of a source file; of [`BugKind::Call`] a function.
    pub pointer: u64,
    /// A line of the source file.
    pub line: u32,
}

impl BugFrame {
    /// Size in bytes; for [`BugKind::Assert`], a message follows, and the entry has
    /// twice this size.
    pub const SIZE: u64 = 8;
    /// Bit position of the line number in a field.
    pub const LINE_SHIFT: u32 = 24;

    /// Reads the frame at `at`.
    #[must_use]
    pub fn read(frame: &[u8], at: u64) -> Option<Self> {
        let field = |offset| {
            let word = word(frame, offset)?;
            let displacement = displacement(word.into());
            let line = (i64::from(word) - displacement) >> Self::LINE_SHIFT;
            let line = u32::try_from(line & 0xff).ok()?;
            Some((at.wrapping_add_signed(displacement), line))
        };
        let ((place, high), (pointer, low)) = (field(0)?, field(4)?);
        let line = high << 7 | low;
        Some(Self {
            place,
            pointer,
            line,
        })
    }

    /// The address of the message of the assertion whose frame is at `at`.
    #[must_use]
    pub fn message(frame: &[u8], at: u64) -> Option<u64> {
        let displacement = word(frame, 12)?;
        Some(at.wrapping_add_signed(displacement.into()))
    }
}

/// The displacement in a field of a bug frame, without the line number.
#[must_use]
pub const fn displacement(field: i64) -> i64 {
    const UNUSED: u32 = i64::BITS - BugFrame::LINE_SHIFT;
    field << UNUSED >> UNUSED
}

/// `struct exception_table_entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// The instruction that may fault.
    pub place: u64,
    /// Where execution continues after a fault.
    pub continues: u64,
}

impl Exception {
    /// Size in bytes.
    pub const SIZE: u64 = 8;

    /// Reads the entry that is at `at`.
    #[must_use]
    pub fn read(entry: &[u8], at: u64) -> Option<Self> {
        Some(Self {
            place: leads_to(entry, at, 0)?,
            continues: leads_to(entry, at, 4)?,
        })
    }
}

/// `struct alt_instr`: instructions that are replaced at boot or load if the
/// processor has a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alternative {
    /// The instructions.
    pub place: u64,
    /// Their replacement.
    pub replacement: u64,
    /// Feature number; the highest bit says that it must be absent.
    pub condition: u16,
    /// Number of bytes to replace, without the padding.
    pub original_len: u8,
    /// Number of bytes in the replacement.
    pub replacement_len: u8,
    /// Number of padding bytes after the instructions.
    pub padding: u8,
    /// For the hypervisor: whether it was applied.
    pub used: u8,
}

impl Alternative {
    /// Size in bytes.
    pub const SIZE: u64 = 14;

    /// Reads the entry that is at `at`.
    #[must_use]
    pub fn read(entry: &[u8], at: u64) -> Option<Self> {
        let [low, high, original_len, replacement_len, padding, used] =
            *entry.get(8..)?.first_chunk()?;
        Some(Self {
            place: leads_to(entry, at, 0)?,
            replacement: leads_to(entry, at, 4)?,
            condition: u16::from_le_bytes([low, high]),
            original_len,
            replacement_len,
            padding,
            used,
        })
    }

    /// Feature number: 32 per word.
    #[must_use]
    pub const fn feature(&self) -> u16 {
        self.condition & 0x7fff
    }

    /// Number of bytes to replace, with the padding.
    #[must_use]
    pub const fn total_len(&self) -> u32 {
        self.original_len as u32 + self.padding as u32
    }
}

fn word(entry: &[u8], offset: usize) -> Option<i32> {
    let bytes = entry.get(offset..)?.first_chunk()?;
    Some(i32::from_le_bytes(*bytes))
}

/// The target of the field at `offset` of an entry at `at`; its displacement is
/// relative to the field.
fn leads_to(entry: &[u8], at: u64, offset: usize) -> Option<u64> {
    let displacement = word(entry, offset)?;
    let field = at.wrapping_add(offset as u64);
    Some(field.wrapping_add_signed(displacement.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_known_by_their_whole_names_and_others_of_a_family_are_unknown() {
        for table in Table::ALL {
            assert_eq!(Special::of(table.section()), Some(Special::Table(table)));
            assert_eq!(super::table(table.section()), Some(table));
        }
        assert_eq!(Special::of(REPLACEMENTS), Some(Special::Replacements));
        for name in [
            ".bug_frames.4",
            ".altinstructions.f",
            ".alt_x",
            ".ex_table.f",
        ] {
            assert_eq!(Special::of(name), Some(Special::Unknown), "{name}");
        }
        for name in ["", ".text", ".fixup", "bug_frames.0"] {
            assert_eq!(Special::of(name), None, "{name}");
        }
    }

    /// `.long place - here + (line >> 7 << 24), file - here + (line & 127) << 24`,
    /// and of an assertion `.long 0, message - here`.
    #[test]
    fn bug_frames_lead_from_their_start_and_have_a_line() {
        let field = |displacement: i32, line: i32| displacement.wrapping_add(line << 24);
        let words = [
            field(-0x20, 1203 >> 7),
            field(0x1234, 1203 & 127),
            0,
            -0x4000,
        ];
        let bytes = words.map(i32::to_le_bytes).concat();
        let frame = BugFrame {
            place: 0x7fe0,
            pointer: 0x9234,
            line: 1203,
        };
        let read = |kind, bytes| Table::BugFrames(kind).read(bytes, 0x8000);
        let without = Entry::BugFrame {
            kind: BugKind::Warn,
            frame,
            message: None,
        };
        let with = Entry::BugFrame {
            kind: BugKind::Assert,
            frame,
            message: Some(0x4000),
        };
        assert_eq!(read(BugKind::Warn, &bytes[..8]), Some(without));
        assert_eq!(read(BugKind::Assert, &bytes), Some(with));
        assert_eq!(read(BugKind::Assert, &bytes[..12]), None);
        assert_eq!(read(BugKind::Bug, &bytes[..7]), None);
        assert_eq!(with.place(), 0x7fe0);
    }

    #[test]
    fn other_entries_lead_from_their_fields() {
        let mut bytes = [-0x10_i32, 0x20].map(i32::to_le_bytes).concat();
        assert_eq!(
            Table::Exceptions.read(&bytes, 0x1000),
            Some(Entry::Exception(Exception {
                place: 0xff0,
                continues: 0x1024,
            }))
        );
        assert_eq!(
            Table::CallSites.read(&bytes, 0x1000),
            Some(Entry::CallSite(0xff0))
        );
        assert_eq!(Entry::CallSite(0xff0).patched_len(), Some(6));
        assert_eq!(Table::Alternatives.read(&bytes, 0x1000), None);
        bytes.extend([0x22, 0x80, 5, 3, 2, 0]);
        let Some(Entry::Alternative(alternative)) = Table::Alternatives.read(&bytes, 0x1000) else {
            panic!("the entry is whole");
        };
        assert_eq!(bytes.len() as u64, Table::Alternatives.entry_size());
        assert_eq!(
            (alternative.place, alternative.replacement),
            (0xff0, 0x1024)
        );
        assert_eq!(
            (alternative.condition, alternative.feature()),
            (0x8022, 0x22)
        );
        assert_eq!(
            (alternative.total_len(), alternative.replacement_len),
            (7, 3)
        );
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! What can be wrong with a payload.

mod signature;

pub use signature::SignatureFault;

use crate::elf::Section;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use thiserror::Error;
use xsplice_abi::errno::Errno;
use xsplice_fallible::{self as fallible, NoMemory};
use xsplice_reloc::reloc::Overflow;

/// A section of a payload, as errors name it.
#[derive(Debug, PartialEq, Eq)]
pub struct SectionId {
    /// Index in the section header table.
    pub index: usize,
    /// Name, made printable.
    pub name: String,
}

impl fmt::Display for SectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "section [{}] {}", self.index, self.name)
    }
}

impl From<&Section<'_>> for SectionId {
    fn from(section: &Section<'_>) -> Self {
        Self {
            index: section.index,
            name: text(section.name),
        }
    }
}

/// Bytes of an untrusted name, made printable.
#[inline(never)]
pub(crate) fn printable(name: &[u8]) -> Result<String, NoMemory> {
    const LIMIT: usize = 256;
    let mut text = fallible::with_room(LIMIT.min(name.len()))?;
    for byte in name.escape_ascii().take(LIMIT) {
        fallible::push(&mut text, byte)?;
    }
    // What is escaped is ASCII.
    Ok(String::from_utf8(text).unwrap_or_default())
}

/// A copy of a name.
#[inline(never)]
pub(crate) fn copied(name: &str) -> Result<String, NoMemory> {
    // It is a text already.
    fallible::copy(name.as_bytes()).map(|bytes| String::from_utf8(bytes).unwrap_or_default())
}

// A message is worth having without the names in it: what follows is for
// messages only, and gives nothing when there is no memory.

/// Bytes of an untrusted name, made printable.
pub(crate) fn text(name: &[u8]) -> String {
    printable(name).unwrap_or_default()
}

/// A copy of a name.
pub(crate) fn same(name: &str) -> String {
    copied(name).unwrap_or_default()
}

/// A copy of bytes.
#[inline(never)]
pub(crate) fn bytes(bytes: &[u8]) -> Vec<u8> {
    fallible::copy(bytes).unwrap_or_default()
}

/// Bytes as hexadecimal digits; of more than 64, the first.
#[derive(Clone, Copy, Debug)]
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .take(64)
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn hex(bytes: &[u8]) -> Hex<'_> {
    Hex(bytes)
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The payload works, but somebody should know.
    Warning,
    /// The payload loads, but applying it is refused.
    NotApplied,
    /// The payload is refused when it is uploaded.
    NotLoaded,
}

/// One thing that is wrong with a payload: what, where, and what to do.
///
/// Variants marked *stricter* are refused here although Xen's own loader does
/// not check them: it would crash or corrupt the hypervisor, now or later.
///
/// Names in it are empty when there was no memory for them.
#[derive(Debug, PartialEq, Eq, Error)]
#[expect(
    missing_docs,
    reason = "fields are named after what they hold; the message uses each"
)]
pub enum Problem {
    // The name.
    /// A name that the interface cannot carry.
    #[error("a payload's name has 1 to {limit} bytes; this one has {length}")]
    Name { length: usize, limit: usize },
    /// A payload of that name is there.
    #[error("a payload of this name is loaded already; unload it first or take another name")]
    NameTaken,
    /// It is not signed as it has to be, or as it should be.
    #[error("{fault}{}", if *.enforced { "" } else { " (signatures are not enforced)" })]
    Signature {
        fault: SignatureFault,
        enforced: bool,
    },

    // The file.
    /// No bytes at all, or too many.
    #[error("the payload has {size} bytes; 1 to {limit} are allowed")]
    FileSize { size: u64, limit: u64 },
    /// Not an ELF file.
    #[error("this is not an ELF file; pass the .livepatch file that the build made")]
    NotElf,
    /// Shorter than its own header.
    #[error("the ELF header is cut off: {size} of 64 bytes are there")]
    HeaderCutOff { size: usize },
    /// An ELF file, but not a payload.
    #[error("ELF header: {field} is {value:#x}, expected {expected}")]
    Header {
        field: &'static str,
        value: u64,
        expected: &'static str,
    },
    /// For another machine.
    #[error("the payload is for another machine ({field} {value:#x}); this engine takes x86-64")]
    Machine { field: &'static str, value: u64 },
    /// Too many sections.
    #[error("the payload has {count} sections; fewer than {limit} are supported")]
    TooManySections { count: u16, limit: u16 },
    /// The section header table does not fit the file or makes no sense.
    #[error("section header table: {what} ({value:#x})")]
    SectionTable { what: &'static str, value: u64 },
    /// A section lies outside the file, or over its header.
    #[error("{section} is outside the file: offset {offset:#x}, size {size:#x}, file {file:#x}")]
    SectionBounds {
        section: SectionId,
        offset: u64,
        size: u64,
        file: usize,
    },
    /// Sections share bytes of the file (*stricter*: each is gone through).
    #[error("the sections have {size:#x} bytes in the file, which has {file:#x}: they overlap")]
    SectionsOverlap { size: u64, file: u64 },
    /// An alignment that is no power of two.
    #[error("{section}: alignment {align:#x} is not a power of two")]
    SectionAlignment { section: SectionId, align: u64 },
    /// An address that does not have the section's alignment.
    #[error("{section}: address {addr:#x} is not a multiple of its alignment {align:#x}")]
    SectionAddress {
        section: SectionId,
        addr: u64,
        align: u64,
    },
    /// A section without contents that is too large.
    #[error("{section} has {size} bytes without contents in the file; {limit} are allowed")]
    SectionTooLarge {
        section: SectionId,
        size: u64,
        limit: u64,
    },
    /// A section's name is not in the table of names.
    #[error("section [{index}]: its name, at {offset:#x}, is not in the table of section names")]
    SectionName { index: usize, offset: u32 },
    /// A table of strings that is none.
    #[error("{section} should hold strings, but {what}")]
    StringTable {
        section: SectionId,
        what: &'static str,
    },
    /// No symbol table.
    #[error("the payload has no symbol table; it must not be stripped")]
    NoSymbolTable,
    /// More than one symbol table.
    #[error("{second} is a second symbol table; only one is supported")]
    SymbolTables { second: SectionId },
    /// A symbol table with impossible sizes.
    #[error("{section}: symbols of {entry} bytes do not fill {size} bytes")]
    SymbolTable {
        section: SectionId,
        entry: u64,
        size: u64,
    },
    /// A symbol's name is not in the table of strings.
    #[error("symbol [{index}]: its name, at {offset:#x}, is not in the table of strings")]
    SymbolName { index: usize, offset: u32 },

    // Dependencies.
    /// A section that every payload must have is not there.
    #[error("{name} is missing; every payload needs it")]
    Missing { name: &'static str },
    /// A section that must have contents has none.
    #[error("{section} is empty")]
    Empty { section: SectionId },
    /// A section that must be there once is there again (*stricter*: Xen takes
    /// the first).
    #[error("{second} is there already as section [{first}]; it must be unique")]
    Duplicate { first: usize, second: SectionId },
    /// A note that holds no build-id.
    #[error("{section} is no build-id note (owner GNU, type 3), or is cut off")]
    Note { section: SectionId },
    /// Built for another hypervisor.
    #[error(
        "the payload is for the hypervisor with build-id {}, but this one has {}; \
         build it again for this hypervisor", hex(.wants), hex(.has)
    )]
    OtherHypervisor { wants: Vec<u8>, has: Vec<u8> },
    /// A payload with this build-id is loaded already.
    #[error("a payload with build-id {} is loaded already, as {as_name}", hex(.id))]
    BuildIdLoaded { id: Vec<u8>, as_name: String },
    /// The payload is made for another state of the stack.
    #[error(
        "the payload applies on top of build-id {}, but the top is {} ({top_name}); \
         apply what it depends on first{}", hex(.wants), hex(.top),
        if *.replaces { ", or use replace" } else { "" }
    )]
    Depends {
        wants: Vec<u8>,
        top: Vec<u8>,
        top_name: String,
        replaces: bool,
    },

    // Layout.
    /// A section that is writable and executable.
    #[error("{section} is writable and executable, which is not supported")]
    WritableText { section: SectionId },
    /// A section to be loaded has alignment 0 (*stricter*: Xen places it over
    /// the sections before it).
    #[error("{section} has alignment 0, which Xen's loader mishandles; use 1")]
    ZeroAlignment { section: SectionId },
    /// An alignment that the loader cannot give.
    #[error("{section}: alignment {align:#x} is more than a page; only a page is guaranteed")]
    LargeAlignment { section: SectionId, align: u64 },
    /// A section that is used is not marked as one to be loaded (*stricter*:
    /// Xen reads from address 0).
    #[error("{section} is needed at run time, but is not marked as loaded (SHF_ALLOC)")]
    NotAllocated { section: SectionId },
    /// More memory than any payload gets.
    #[error("the payload needs {size:#x} bytes of memory; {limit:#x} are allowed")]
    TooLarge { size: u64, limit: u64 },
    /// No room.
    #[error("the hypervisor has no {size:#x} bytes of memory for the payload")]
    NoMemory { size: u64 },
    /// The hypervisor did not take the payload.
    #[error("the hypervisor failed to {what} ({})", .errno.name().unwrap_or("?"))]
    Hypervisor { what: &'static str, errno: Errno },

    // Symbols.
    /// A common symbol.
    #[error("symbol [{index}] {symbol} is a common symbol; compile with -fno-common")]
    CommonSymbol { index: usize, symbol: String },
    /// Neither the hypervisor nor a loaded payload has it.
    #[error(
        "symbol [{index}] {symbol} is neither in the hypervisor nor in a loaded payload; \
         a local function or variable is called file.c#name"
    )]
    UnknownSymbol { index: usize, symbol: String },
    /// A symbol in a section that does not exist.
    #[error("symbol [{index}] {symbol} is in section {section:#x}, which does not exist")]
    SymbolSection {
        index: usize,
        symbol: String,
        section: u16,
    },
    /// A symbol with a reserved section index that is not supported.
    #[error("symbol [{index}] {symbol} has the special section index {section:#x}")]
    SpecialSection {
        index: usize,
        symbol: String,
        section: u16,
    },
    /// A new symbol has a name that exists.
    #[error(
        "symbol [{index}] {symbol} is new in this payload, but {owner} has one of that name; \
         rename it"
    )]
    DuplicateSymbol {
        index: usize,
        symbol: String,
        owner: String,
    },
    /// A new symbol has a name that the hypervisor cannot hold (*stricter*: Xen
    /// cuts it off).
    #[error("symbol [{index}] {symbol}: its name has {length} characters; {limit} are allowed")]
    LongSymbol {
        index: usize,
        symbol: String,
        length: usize,
        limit: usize,
    },

    // Relocations.
    /// A section with relocations that is none, or that changes notes or metadata
    /// (*stricter*: Xen reads what comes of it, and people what is in the file).
    #[error("{section}: {what}")]
    RelocationSection {
        section: SectionId,
        what: &'static str,
    },
    /// Relocations without addend.
    #[error("{section} has relocations without addends (SHT_REL), which are not supported")]
    RelNotSupported { section: SectionId },
    /// A relocation that names no symbol.
    #[error("{section}, relocation {index}: it names no symbol, which is not supported")]
    NoSymbol { section: SectionId, index: usize },
    /// A relocation whose symbol does not exist.
    #[error("{section}, relocation {index}: symbol [{symbol}] does not exist; there are {count}")]
    SymbolIndex {
        section: SectionId,
        index: usize,
        symbol: usize,
        count: usize,
    },
    /// A relocation whose symbol is in a section that is not loaded.
    #[error("{section}, relocation {index}: {symbol} is in a section that is not loaded")]
    IgnoredSymbol {
        section: SectionId,
        index: usize,
        symbol: String,
    },
    /// A relocation outside its section.
    #[error(
        "{section}, relocation {index}: {name} at {offset:#x} is past the end of {target} \
         ({size:#x} bytes)"
    )]
    RelocationOffset {
        section: SectionId,
        index: usize,
        name: &'static str,
        offset: u64,
        target: SectionId,
        size: u64,
    },
    /// A type that nobody performs.
    #[error("{section}, relocation {index}: type {r_type} is unknown")]
    UnknownRelocation {
        section: SectionId,
        index: usize,
        r_type: u32,
    },
    /// A type that this engine performs, but Xen's own loader does not.
    #[error(
        "{section}, relocation {index}: Xen's loader does not perform {name} (for {symbol}); \
         only R_X86_64_64, PC32 and PLT32"
    )]
    StockRelocation {
        section: SectionId,
        index: usize,
        name: &'static str,
        symbol: String,
    },
    /// A value that does not fit.
    #[error("{section}, relocation {index} at {offset:#x}, for {symbol}: {overflow}")]
    Overflow {
        section: SectionId,
        index: usize,
        offset: u64,
        symbol: String,
        overflow: Overflow,
    },
    /// A reference to what is freed after boot, and no code that the payload
    /// replaces leads there (*stricter*).
    #[error(
        "{section}, relocation {index}: {symbol} ({addr:#x}) is in an init section, which is \
         freed after boot, and no function that the payload replaces refers to it"
    )]
    InitReference {
        section: SectionId,
        index: usize,
        symbol: String,
        addr: u64,
    },

    // What is to be patched.
    /// Neither functions nor hooks.
    #[error("there is nothing to apply: neither .livepatch.funcs nor a hook is there")]
    NothingToDo,
    /// A section that is not a whole number of entries.
    #[error("{section} has {size} bytes, which is not {expected}")]
    EntrySize {
        section: SectionId,
        size: u64,
        expected: &'static str,
    },
    /// A version of the function record that is not known.
    #[error("function {index} ({function}): version {version} of the record; {expected} is known")]
    FuncVersion {
        index: usize,
        function: String,
        version: u8,
        expected: u8,
    },
    /// A function of no size.
    #[error("function {index} ({function}): its old size is 0")]
    NoOldSize { index: usize, function: String },
    /// A function that is not there.
    #[error(
        "function {index} ({function}) is neither in the hypervisor nor in a loaded payload; \
         a local function is called file.c#name"
    )]
    UnknownFunction { index: usize, function: String },
    /// Neither an address nor a name that can be read (*stricter*).
    #[error("function {index}: its name, at {addr:#x}, cannot be read, and it has no old address")]
    FuncName { index: usize, addr: u64 },
    /// The old function is not code of the hypervisor or of a payload (*stricter*).
    #[error("function {index} ({function}): {addr:#x}, {size} bytes, is not in hypervisor text")]
    OldAddress {
        index: usize,
        function: String,
        addr: u64,
        size: u32,
    },
    /// The old function is freed after boot (*stricter*).
    #[error("function {index} ({function}): {addr:#x} is in init text, which is freed after boot")]
    OldInit {
        index: usize,
        function: String,
        addr: u64,
    },
    /// The new function is no code, the old one, or the middle of one (*stricter*).
    #[error("function {index} ({function}): its new address {addr:#x}: {what}")]
    NewFunction {
        index: usize,
        function: String,
        addr: u64,
        what: &'static str,
    },
    /// No room for the trampoline.
    #[error(
        "function {index} ({function}): its {old_size} bytes are too few for a trampoline, \
         which takes {needed}"
    )]
    TooSmall {
        index: usize,
        function: String,
        old_size: u32,
        needed: u32,
    },
    /// More bytes than can be made no-ops.
    #[error("function {index} ({function}): {new_size} bytes to make no-ops; {limit} are allowed")]
    NopTooLong {
        index: usize,
        function: String,
        new_size: u32,
        limit: u32,
    },
    /// More bytes to be made no-ops than the function has.
    #[error(
        "function {index} ({function}): {new_size} bytes to make no-ops, but it has {old_size}"
    )]
    NopPastEnd {
        index: usize,
        function: String,
        new_size: u32,
        old_size: u32,
    },
    /// Fewer bytes to be made no-ops than the landing pad takes (*stricter*: Xen
    /// computes a negative length).
    #[error(
        "function {index} ({function}): {new_size} bytes to make no-ops, but it starts with a \
         {endbr}-byte endbr64, which must be kept"
    )]
    NopInEndbr {
        index: usize,
        function: String,
        new_size: u32,
        endbr: u32,
    },
    /// The new function is out of reach.
    #[error("function {index} ({function}): new code at {new:#x} is out of reach from {old:#x}")]
    Distance {
        index: usize,
        function: String,
        old: u64,
        new: u64,
    },
    /// What is patched is code that runs while the hypervisor is patched, or
    /// what the host keeps for another reason (*stricter*).
    #[error("function {index} ({function}) at {addr:#x} must not be patched: {reason}")]
    Denied {
        index: usize,
        function: String,
        addr: u64,
        reason: &'static str,
    },
    /// What is patched reaches into the next function (*stricter*).
    #[error(
        "function {index} ({function}): the bytes to be patched, {addr:#x} to {end:#x}, reach \
         into the function at {next:#x}; only one function's bytes may be patched by a record"
    )]
    NextFunction {
        index: usize,
        function: String,
        addr: u64,
        end: u64,
        next: u64,
    },
    /// What is patched begins or ends inside of an instruction (*stricter*: Xen
    /// patches it, and the processor runs what is left of the instruction).
    #[error(
        "function {index} ({function}): the {size} bytes to be patched at {addr:#x} {what} inside \
         of the instruction at {begin:#x}, which has {length}; \
         the payload is for a hypervisor that was built differently"
    )]
    Boundary {
        index: usize,
        function: String,
        addr: u64,
        size: u32,
        what: &'static str,
        begin: u64,
        length: u64,
    },
    /// What is patched cannot be told to be whole instructions (*stricter*).
    #[error(
        "function {index} ({function}): the code at {addr:#x} cannot be decoded, so that nothing \
         tells whether whole instructions are patched"
    )]
    Undecodable {
        index: usize,
        function: String,
        addr: u64,
    },
    /// Two records patch the same bytes (*stricter*).
    #[error("functions {first} ({first_name}) and {second} ({second_name}) overlap at {addr:#x}")]
    FuncOverlap {
        first: usize,
        first_name: String,
        second: usize,
        second_name: String,
        addr: u64,
    },
    /// The preimage notes cannot be read.
    #[error("{section}: the preimage notes are damaged")]
    PreimageDamaged { section: SectionId },
    /// Two preimage notes are about the same bytes.
    #[error("{section}: two preimage notes are about the bytes at {addr:#x}")]
    PreimageOverlap { section: SectionId, addr: u64 },
    /// The preimage notes speak of more than there can be.
    #[error("{section}: the preimage notes cover {size:#x} bytes; {limit:#x} are allowed")]
    PreimageSize {
        section: SectionId,
        size: u64,
        limit: u64,
    },
    /// An old function is not what it was when the payload was made.
    #[error(
        "the {size} bytes at {addr:#x} are not the function that the payload was made for: another \
         payload or something else changed it"
    )]
    Preimage { addr: u64, size: u32 },
    /// A function without a preimage note, where the guard is the old code.
    #[error(
        "function {index} ({function}): it has no preimage note, and this hypervisor requires one for \
         every function"
    )]
    NoPreimage { index: usize, function: String },
    /// A function shares bytes with one that an applied payload patches
    /// (*stricter*).
    #[error(
        "function {index} ({function}) overlaps at {addr:#x} with {theirs}, which {other} patches"
    )]
    AppliedOverlap {
        index: usize,
        function: String,
        other: String,
        theirs: String,
        addr: u64,
    },
    /// A new symbol is one of an applied payload as well (*stricter*).
    #[error("{other} is applied and has the symbol {symbol} too; only a replace can follow")]
    AppliedSymbol { symbol: String, other: String },
    /// The expectation of a function makes no sense.
    #[error("function {index} ({function}): expectation with {what}")]
    ExpectationInvalid {
        index: usize,
        function: String,
        what: &'static str,
        errno: Errno,
    },
    /// The old function is not what the payload was made for.
    #[error(
        "function {index} ({function}): {addr:#x} should hold {}, but holds {}; \
         the payload is for another build or another state of the stack",
        hex(.expected), hex(.actual)
    )]
    Expectation {
        index: usize,
        function: String,
        addr: u64,
        expected: Vec<u8>,
        actual: Vec<u8>,
    },

    // Tables and hooks.
    /// A hook that cannot be called (*stricter*).
    #[error("{section}: hook {index} at {addr:#x}: {what}")]
    HookAddress {
        section: SectionId,
        index: usize,
        addr: u64,
        what: &'static str,
    },
    /// A function that is called through a pointer has no landing pad: where the
    /// processor checks that there is one, the call ends the hypervisor
    /// (*stricter*).
    #[error(
        "{section}, entry {index}: the function at {addr:#x} is called through a pointer and has \
         no landing pad (endbr64){}; declare it cf_check",
        if *.checked { "" } else { ", which hosts refuse whose processor checks for it (CET-IBT)" }
    )]
    NoLandingPad {
        section: SectionId,
        index: usize,
        addr: u64,
        checked: bool,
    },
    /// Strings that do not end.
    #[error("{section} must be strings that each end with a zero byte")]
    Metadata { section: SectionId },
    /// Alternatives, but nothing to alter or to replace it with.
    #[error("{section} is there, but {missing} is not")]
    AlternativesAlone {
        section: SectionId,
        missing: &'static str,
    },
    /// An entry of a table that the hypervisor uses without a check (*stricter*).
    #[error("{section}, entry {index}: {what} ({addr:#x})")]
    Entry {
        section: SectionId,
        index: usize,
        what: &'static str,
        addr: u64,
    },
    /// A table that this hypervisor has no use for (*stricter*: it passes it over,
    /// and the calls go through pointers to functions without landing pads).
    #[error("{section} is there, but this hypervisor does not make such calls direct")]
    CallSites { section: SectionId },
    /// A table about code, or hooks, of a kind that is not known (*stricter*: Xen
    /// passes it over, and what it says never happens).
    #[error("{section} is a table of a kind that is not known, and would have no effect")]
    UnknownTable { section: SectionId },
    /// An exception table entry for code outside the payload (*stricter*).
    #[error("{section}, entry {index}: {what} {addr:#x} is not in the payload's text")]
    ExTable {
        section: SectionId,
        index: usize,
        what: &'static str,
        addr: u64,
    },
}

impl Problem {
    /// How bad it is.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::LargeAlignment { .. }
            | Self::NoLandingPad { checked: false, .. }
            | Self::Signature {
                enforced: false, ..
            } => Severity::Warning,
            Self::Depends { .. }
            | Self::ExpectationInvalid { .. }
            | Self::Expectation { .. }
            | Self::Preimage { .. }
            | Self::NoPreimage { .. }
            | Self::AppliedOverlap { .. }
            | Self::AppliedSymbol { .. } => Severity::NotApplied,
            _ => Severity::NotLoaded,
        }
    }

    /// The result code that Xen's interface gives for it.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self {
            Self::Header { .. }
            | Self::Machine { .. }
            | Self::TooManySections { .. }
            | Self::SectionAlignment { .. }
            | Self::SymbolTables { .. }
            | Self::WritableText { .. }
            | Self::ZeroAlignment { .. }
            | Self::LargeAlignment { .. }
            | Self::SpecialSection { .. }
            | Self::UnknownTable { .. }
            | Self::RelNotSupported { .. }
            | Self::NoSymbol { .. }
            | Self::UnknownRelocation { .. }
            | Self::StockRelocation { .. }
            | Self::FuncVersion { .. }
            | Self::NopTooLong { .. } => Errno::EOPNOTSUPP,
            Self::Denied { .. } => Errno::EPERM,
            Self::UnknownSymbol { .. } | Self::UnknownFunction { .. } => Errno::ENOENT,
            Self::Signature { fault, .. } => fault.errno(),
            Self::NameTaken
            | Self::BuildIdLoaded { .. }
            | Self::DuplicateSymbol { .. }
            | Self::AppliedSymbol { .. } => Errno::EEXIST,
            Self::Overflow { .. } | Self::Distance { .. } => Errno::EOVERFLOW,
            Self::NoMemory { .. } | Self::TooLarge { .. } => Errno::ENOMEM,
            Self::ExpectationInvalid { errno, .. } | Self::Hypervisor { errno, .. } => *errno,
            _ => Errno::EINVAL,
        }
    }
}

/// Problems as they are found; more than [`Problems::LIMIT`], and those that
/// there is no memory for, are only counted.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    pub(crate) list: Vec<Problem>,
    pub(crate) more: usize,
    pub(crate) no_memory: bool,
}

impl Problems {
    const LIMIT: usize = 200;

    #[inline(never)]
    pub(crate) fn push(&mut self, problem: Problem) {
        if self.list.len() < Self::LIMIT {
            if fallible::push(&mut self.list, problem).is_ok() {
                return;
            }
            self.no_memory = true;
        }
        self.more += 1;
    }

    /// What there was memory for; otherwise the payload is refused.
    pub(crate) fn noted<T>(&mut self, result: Result<T, NoMemory>) -> Option<T> {
        self.no_memory |= result.is_err();
        result.ok()
    }

    // Problems are large, and these are found where the stack is deep.

    #[inline(never)]
    pub(crate) fn push_nothing_to_do(&mut self) {
        self.push(Problem::NothingToDo);
    }

    /// A hook cannot be called.
    #[inline(never)]
    pub(crate) fn push_hook(
        &mut self,
        section: &Section<'_>,
        index: usize,
        addr: u64,
        what: &'static str,
    ) {
        self.push(Problem::HookAddress {
            section: section.into(),
            index,
            addr,
            what,
        });
    }

    /// A function is not what its preimage note says.
    #[inline(never)]
    pub(crate) fn push_preimage(&mut self, addr: u64, size: u32) {
        self.push(Problem::Preimage { addr, size });
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list.len() + self.more
    }

    /// A section that must have contents has none.
    #[inline(never)]
    pub(crate) fn push_empty(&mut self, section: &Section<'_>) {
        self.push(Problem::Empty {
            section: section.into(),
        });
    }

    /// A section is not what its entries make up.
    #[inline(never)]
    pub(crate) fn push_entry_size(&mut self, section: &Section<'_>, expected: &'static str) {
        self.push(Problem::EntrySize {
            section: section.into(),
            size: section.size,
            expected,
        });
    }

    /// Whether the payload is refused already.
    pub(crate) fn refused(&self) -> bool {
        self.more != 0
            || self.no_memory
            || self
                .list
                .iter()
                .any(|problem| problem.severity() == Severity::NotLoaded)
    }
}

/// Why a payload was not loaded.
#[derive(Debug, Error)]
pub struct Refusal {
    /// Name under which the payload was to be loaded; empty when there was no
    /// memory for it.
    pub payload: String,
    /// Everything that was found, in the order of the checks.
    pub problems: Vec<Problem>,
    /// How many further problems were found and not recorded.
    pub more: usize,
    /// Whether the engine found no memory for its own lists.
    pub no_memory: bool,
}

impl From<NoMemory> for Refusal {
    fn from(_: NoMemory) -> Self {
        Self {
            payload: String::new(),
            problems: Vec::new(),
            more: 0,
            no_memory: true,
        }
    }
}

impl Refusal {
    #[inline(never)]
    pub(crate) fn new(payload: &str, problem: Problem) -> Self {
        let mut problems = Problems::default();
        problems.push(problem);
        Self {
            payload: same(payload),
            problems: problems.list,
            more: problems.more,
            no_memory: problems.no_memory,
        }
    }

    /// The result code: that of the first problem that keeps the payload out.
    #[must_use]
    pub fn errno(&self) -> Errno {
        if self.no_memory {
            return Errno::ENOMEM;
        }
        self.problems
            .iter()
            .find(|problem| problem.severity() == Severity::NotLoaded)
            .map_or(Errno::EINVAL, Problem::errno)
    }
}

impl Refusal {
    /// The refusal with its first problems, for a console: it keeps few lines, and
    /// those before them are wanted too.
    #[must_use]
    pub fn brief(&self) -> Brief<'_> {
        Brief(self)
    }

    fn write(&self, f: &mut fmt::Formatter<'_>, most: usize, all_where: &str) -> fmt::Result {
        write!(
            f,
            "{} was not loaded ({})",
            self.payload.as_bytes().escape_ascii(),
            self.errno().name().unwrap_or("?")
        )?;
        let shown = self.problems.iter().take(most);
        shown
            .clone()
            .try_for_each(|problem| write!(f, "\n  {problem}"))?;
        let more = self.problems.len() - shown.len() + self.more;
        if more != 0 {
            write!(f, "\n  and {more} more{all_where}")?;
        }
        if self.no_memory {
            write!(f, "\n  {NoMemory}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, usize::MAX, "")
    }
}

/// A [`Refusal`] with its first problems only.
#[derive(Clone, Copy, Debug)]
pub struct Brief<'a>(&'a Refusal);

impl Brief<'_> {
    /// How many problems are shown.
    pub const PROBLEMS: usize = 10;
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .write(f, Self::PROBLEMS, "; `xsplice check` shows all")
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! Where each limit of a file's format is: the last value that is taken, and the first
//! one that is refused.

use object::SectionKind;
use xsplice_engine::{FileFault, MAX_SIZE, Problem};
use xsplice_test_host::payloads::everything;
use xsplice_test_host::{Payload, func, is, load};

const HEADER: usize = 64;
const SECTION: usize = 64;
/// In the header of the file: where the table of sections is, and the size of its
/// entries, their number, and which is for the names.
const TABLE: usize = 40;
const ENTRY_SIZE: usize = 58;
const COUNT: usize = 60;
const NAMES: usize = 62;
/// In the header of a section.
const TYPE: usize = 4;
const FLAGS: usize = 8;
const ADDR: usize = 16;
const OFFSET: usize = 24;
const SIZE: usize = 32;
const LINK: usize = 40;
const ALIGN: usize = 48;
const SYMBOL_ENTRY: usize = 56;

fn set<const N: usize>(file: &mut [u8], at: usize, value: [u8; N]) {
    file[at..at + N].copy_from_slice(&value);
}

fn u16_at(file: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*file[at..].first_chunk().unwrap())
}

fn u64_at(file: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*file[at..].first_chunk().unwrap())
}

/// Where the table of sections is.
fn table(file: &[u8]) -> usize {
    usize::try_from(u64_at(file, TABLE)).unwrap()
}

/// Where the header of a section is that is of this type, or of this name.
fn section_of_type(file: &[u8], kind: u32) -> usize {
    let count = usize::from(u16_at(file, COUNT));
    let mut headers = (0..count).map(|index| table(file) + index * SECTION);
    let is = |at: &usize| file[at + TYPE..].first_chunk() == Some(&kind.to_le_bytes());
    headers.find(is).unwrap()
}

fn section(file: &[u8], name: &str) -> usize {
    let headers = table(file);
    let names = headers + usize::from(u16_at(file, NAMES)) * SECTION;
    let names = usize::try_from(u64_at(file, names + OFFSET)).unwrap();
    let wanted = [name.as_bytes(), b"\0"].concat();
    let mut all = (0..usize::from(u16_at(file, COUNT))).map(|index| headers + index * SECTION);
    let is = |at: &usize| {
        let name = u32::from_le_bytes(*file[*at..].first_chunk().unwrap());
        file[names + usize::try_from(name).unwrap()..].starts_with(&wanted)
    };
    all.find(is).unwrap()
}

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const NOBITS: u32 = 8;

#[track_caller]
fn loads(file: &[u8]) {
    if let Err(refusal) = load(file) {
        panic!("{refusal}");
    }
}

/// Asserts that the file is refused for one reason, this one.
#[track_caller]
fn refused(file: &[u8], reason: impl Fn(&Problem) -> bool) {
    let refusal = load(file).expect_err("this file should be refused");
    let right = refusal.problems.len() == 1 && reason(&refusal.problems[0]);
    assert!(right, "another reason: {refusal}");
}

/// The last bytes are of nothing.
fn long(size: u64) -> Vec<u8> {
    let mut file = everything();
    file.resize(usize::try_from(size).unwrap(), 0);
    file
}

#[test]
fn the_size_of_a_file() {
    loads(&long(MAX_SIZE));
    refused(&long(MAX_SIZE + 1), is!(file: Size { .. }));
}

#[test]
fn fields_of_the_header_with_few_values() {
    for (at, good, bad) in [
        (4, &[2][..], &[0, 1, 3][..]),
        (5, &[1], &[0, 2]),
        (6, &[1], &[0, 2]),
        // Linux's and FreeBSD's.
        (7, &[0], &[1, 3, 8, 10]),
        (8, &[0], &[1]),
        (16, &[1], &[0, 2, 3]),
        (17, &[0], &[1]),
        (18, &[62], &[3, 183]),
        (19, &[0], &[1]),
        (20, &[1], &[0, 2]),
        (23, &[0], &[1]),
        (56, &[0], &[1]),
        (57, &[0], &[1]),
    ] {
        for value in good {
            let mut file = everything();
            file[at] = *value;
            loads(&file);
        }
        for value in bad {
            let mut file = everything();
            file[at] = *value;
            refused(
                &file,
                is!(file: Header { .. } | FileFault::Machine { .. } | FileFault::OtherMachine { .. }),
            );
        }
    }
    let mut file = everything();
    file[7] = 9;
    loads(&file);
}

#[test]
fn where_the_table_of_sections_is() {
    let good = everything();
    let size = good.len() as u64;
    let with = |at: usize, value: u64| {
        let mut file = good.clone();
        set(&mut file, at, value.to_le_bytes());
        file
    };
    let words = |what: &'static str| {
        move |problem: &Problem| is!(file: SectionTable { what: w, .. } if *w == what)(problem)
    };
    for at in [size, size + 1, u64::MAX] {
        refused(
            &with(TABLE, at),
            words("it begins past the end of the file"),
        );
    }
    for at in [size - 1, u64_at(&good, TABLE) + 1] {
        refused(&with(TABLE, at), words("it ends past the end of the file"));
    }
    // It is the last in the file.
    let count = u64::from(u16_at(&good, COUNT));
    assert_eq!(size, u64_at(&good, TABLE) + count * SECTION as u64);
    let mut file = good.clone();
    file.pop();
    refused(&file, words("it ends past the end of the file"));

    let mut file = good.clone();
    set(&mut file, NAMES, 0_u16.to_le_bytes());
    refused(
        &file,
        words("the index of the section of names is undefined"),
    );
    let mut file = good.clone();
    set(&mut file, NAMES, u16_at(&good, COUNT).to_le_bytes());
    refused(&file, words("the section of names does not exist"));
}

#[test]
fn entries_of_the_table_of_sections_may_be_larger() {
    let good = everything();
    let (begin, count) = (table(&good), usize::from(u16_at(&good, COUNT)));
    let with = |entry: usize| {
        let mut file = good[..begin].to_vec();
        for index in 0..count {
            let from = begin + index * SECTION;
            file.extend_from_slice(&good[from..from + SECTION]);
            file.resize(begin + (index + 1) * entry, 0xff);
        }
        set(
            &mut file,
            ENTRY_SIZE,
            u16::try_from(entry).unwrap().to_le_bytes(),
        );
        file
    };
    for entry in [SECTION, SECTION + 1, 100] {
        loads(&with(entry));
    }
    let mut small = good.clone();
    set(&mut small, ENTRY_SIZE, 63_u16.to_le_bytes());
    let words = |what: &str| what == "its entries are too small";
    refused(&small, is!(file: SectionTable { what, .. } if words(what)));
}

#[test]
fn where_a_section_is() {
    let good = everything();
    let size = good.len() as u64;
    let at = section(&good, ".bss");
    let with = |offset: u64, length: u64| {
        let mut file = good.clone();
        set(&mut file, at + TYPE, PROGBITS.to_le_bytes());
        set(&mut file, at + OFFSET, offset.to_le_bytes());
        set(&mut file, at + SIZE, length.to_le_bytes());
        file
    };
    for (offset, length) in [(HEADER as u64, 0), (size, 0), (HEADER as u64, 1)] {
        loads(&with(offset, length));
    }
    for (offset, length) in [
        (HEADER as u64 - 1, 0),
        (0, 1),
        (size + 1, 0),
        (size - 1, 2),
        (u64::MAX, 1),
        (HEADER as u64, u64::MAX),
    ] {
        refused(&with(offset, length), is!(section: Bounds { .. }));
    }
    // What has no bytes in the file has its place there, too.
    let mut file = good.clone();
    let bss = section_of_type(&file, NOBITS);
    set(&mut file, bss + OFFSET, u64::MAX.to_le_bytes());
    loads(&file);
    set(&mut file, bss + OFFSET, 63_u64.to_le_bytes());
    refused(&file, is!(section: Bounds { .. }));
}

#[test]
fn sections_may_have_all_bytes_of_the_file_and_no_more() {
    // Nothing but bytes that no section has: as many of them are left over as there
    // are in the headers.
    let good = everything();
    let count = usize::from(u16_at(&good, COUNT));
    let headers: Vec<usize> = (1..count)
        .map(|index| table(&good) + index * SECTION)
        .collect();
    let in_file = |at: &&usize| good[*at + TYPE..].first_chunk() != Some(&NOBITS.to_le_bytes());
    let used = headers.iter().filter(in_file);
    let used: u64 = used.map(|at| u64_at(&good, at + SIZE)).sum();
    let free = good.len() as u64 - used;
    let at = section(&good, ".modinfo");
    let length = u64_at(&good, at + SIZE);
    let with = |length: u64| {
        let mut file = good.clone();
        set(&mut file, at + OFFSET, (HEADER as u64).to_le_bytes());
        set(&mut file, at + SIZE, length.to_le_bytes());
        file
    };
    loads(&with(length + free));
    refused(&with(length + free + 1), is!(file: SectionsOverlap { .. }));
}

#[test]
fn alignments() {
    let good = everything();
    let at = section(&good, ".modinfo");
    let with = |align: u64, addr: u64| {
        let mut file = good.clone();
        set(&mut file, at + ALIGN, align.to_le_bytes());
        set(&mut file, at + ADDR, addr.to_le_bytes());
        file
    };
    for (align, addr) in [(1, 3), (8, 16), (4096, 0)] {
        loads(&with(align, addr));
    }
    // Without an alignment any address is good; that of zero Xen has a fault with.
    refused(&with(0, 3), is!(section: ZeroAlignment));
    for align in [3, 6, u64::MAX] {
        refused(&with(align, 0), is!(section: Alignment { .. }));
    }
    // No more than a page is promised; what wants more is loaded all the same.
    for (align, promised) in [(4096, true), (8192, false), (1 << 14, false)] {
        let file = with(align, 0);
        let loaded = load(&file).unwrap();
        let problems = loaded.problems();
        assert_eq!(problems.is_empty(), promised, "{problems:?}");
        assert!(problems.iter().all(is!(section: LargeAlignment { .. })));
    }
    for (align, addr) in [(2, 1), (8, 4), (8, 1), (16, 24)] {
        refused(&with(align, addr), is!(section: Address { .. }));
    }
}

#[test]
fn what_has_no_bytes_in_the_file_has_a_limit_where_it_is_loaded() {
    let good = everything();
    let at = section_of_type(&good, NOBITS);
    let with = |flags: u64, size: u64| {
        let mut file = good.clone();
        set(&mut file, at + FLAGS, flags.to_le_bytes());
        set(&mut file, at + SIZE, size.to_le_bytes());
        file
    };
    loads(&with(3, MAX_SIZE));
    loads(&with(0, MAX_SIZE + 1));
    loads(&with(0, u64::MAX));
    for flags in [1, 2, 3] {
        for size in [MAX_SIZE + 1, u64::MAX] {
            refused(&with(flags, size), is!(section: TooLarge { .. }));
        }
    }
}

#[test]
fn the_table_of_symbols() {
    let good = everything();
    let at = section_of_type(&good, SYMTAB);
    let size = u64_at(&good, at + SIZE);
    let with = |entry: u64, size: u64| {
        let mut file = good.clone();
        set(&mut file, at + SYMBOL_ENTRY, entry.to_le_bytes());
        set(&mut file, at + SIZE, size.to_le_bytes());
        file
    };
    loads(&with(24, size));
    for (entry, size) in [(23, 23 * 24), (0, size), (24, 0), (24, size - 1), (25, 24)] {
        refused(&with(entry, size), is!(section: SymbolTable { .. }));
    }
    let mut none = good.clone();
    set(&mut none, at + TYPE, PROGBITS.to_le_bytes());
    refused(&none, is!(file: NoSymbolTable));
    let mut second = good.clone();
    let other = section(&good, ".modinfo");
    set(&mut second, other + TYPE, SYMTAB.to_le_bytes());
    let problems = load(&second).unwrap_err().problems;
    let found = problems.iter().any(is!(section: SecondSymbolTable));
    assert!(found, "{problems:?}");
}

/// Entries may be larger than they need to be; what follows in each is not read.
#[test]
fn entries_of_the_table_of_symbols_may_be_larger() {
    let good = everything();
    let at = section_of_type(&good, SYMTAB);
    let begin = usize::try_from(u64_at(&good, at + OFFSET)).unwrap();
    let count = usize::try_from(u64_at(&good, at + SIZE)).unwrap() / 24;
    let mut file = good.clone();
    let moved = file.len() as u64;
    for index in 0..count {
        let from = begin + index * 24;
        file.extend_from_slice(&good[from..from + 24]);
        file.extend_from_slice(&[0xff; 8]);
    }
    set(&mut file, at + OFFSET, moved.to_le_bytes());
    set(&mut file, at + SIZE, (count as u64 * 32).to_le_bytes());
    set(&mut file, at + SYMBOL_ENTRY, 32_u64.to_le_bytes());
    loads(&file);
}

#[test]
fn tables_of_strings() {
    let good = everything();
    let symbols = section_of_type(&good, SYMTAB);
    let names = usize::from(u16_at(&good, NAMES));
    let with_link = |index: u32| {
        let mut file = good.clone();
        set(&mut file, symbols + LINK, index.to_le_bytes());
        file
    };
    let count = u16_at(&good, COUNT);
    refused(
        &with_link(count.into()),
        is!(file: SectionTable {
            what: "a table of strings does not exist",
            ..
        }),
    );
    let header = table(&good) + names * SECTION;
    let begin = usize::try_from(u64_at(&good, header + OFFSET)).unwrap();
    let end = begin + usize::try_from(u64_at(&good, header + SIZE)).unwrap();
    for (at, value, words) in [
        (header + TYPE, 1, "it has another type"),
        (begin, b'x', "it does not begin with the empty string"),
        (end - 1, b'x', "its last string does not end"),
    ] {
        let mut file = good.clone();
        file[at] = value;
        refused(&file, is!(section: Strings { what } if *what == words));
    }
    // A name that begins with the last byte, and one behind it.
    let at = section(&good, ".bss");
    let size = u32::try_from(u64_at(&good, header + SIZE)).unwrap();
    let mut file = good.clone();
    set(&mut file, at, (size - 1).to_le_bytes());
    loads(&file);
    set(&mut file, at, size.to_le_bytes());
    refused(&file, is!(section: Name { .. }));
}

#[test]
fn names_of_symbols() {
    let good = everything();
    let symbols = section_of_type(&good, SYMTAB);
    let begin = usize::try_from(u64_at(&good, symbols + OFFSET)).unwrap();
    let last = begin + usize::try_from(u64_at(&good, symbols + SIZE)).unwrap() - 24;
    let link = u32::from_le_bytes(*good[symbols + LINK..].first_chunk().unwrap());
    let strings = table(&good) + usize::try_from(link).unwrap() * SECTION;
    let size = u32::try_from(u64_at(&good, strings + SIZE)).unwrap();
    let with = |at: usize, name: u32| {
        let mut file = good.clone();
        set(&mut file, at, name.to_le_bytes());
        file
    };
    for name in [size, u32::MAX] {
        refused(&with(last, name), is!(symbol: Name { .. }));
        // The first one is none.
        loads(&with(begin, name));
    }
}

#[test]
fn an_empty_section_needs_no_alignment() {
    let mut file = everything();
    let at = section_of_type(&file, NOBITS);
    set(&mut file, at + ALIGN, 0_u64.to_le_bytes());
    refused(&file, is!(section: ZeroAlignment));
    set(&mut file, at + SIZE, 0_u64.to_le_bytes());
    loads(&file);
}

/// Entries may be larger than they need to be; what follows in each is not read.
#[test]
fn entries_of_relocations_may_be_larger() {
    let good = everything();
    let at = section(&good, ".rela.livepatch.funcs");
    let begin = usize::try_from(u64_at(&good, at + OFFSET)).unwrap();
    let size = u64_at(&good, at + SIZE);
    let count = usize::try_from(size).unwrap() / 24;
    let with = |entry: u64, size: u64| {
        let mut file = good.clone();
        set(&mut file, at + SYMBOL_ENTRY, entry.to_le_bytes());
        set(&mut file, at + SIZE, size.to_le_bytes());
        file
    };
    let mut large = with(32, count as u64 * 32);
    let moved = large.len() as u64;
    set(&mut large, at + OFFSET, moved.to_le_bytes());
    for index in 0..count {
        let from = begin + index * 24;
        large.extend_from_slice(&good[from..from + 24]);
        large.extend_from_slice(&[0xff; 8]);
    }
    loads(&large);
    for (entry, size) in [(23, 23 * 2), (0, size), (24, size - 1), (32, size)] {
        let problems = load(&with(entry, size)).unwrap_err().problems;
        let found = problems.iter().any(is!(section: Relocations { .. }));
        assert!(found, "{entry} {size}: {problems:?}");
    }
}

#[test]
fn sections_of_symbols() {
    let good = everything();
    let symbols = section_of_type(&good, SYMTAB);
    let begin = usize::try_from(u64_at(&good, symbols + OFFSET)).unwrap();
    let last = begin + usize::try_from(u64_at(&good, symbols + SIZE)).unwrap() - 24;
    let with = |section: u16| {
        let mut file = good.clone();
        set(&mut file, last + 6, section.to_le_bytes());
        let problems = load(&file).map(drop).unwrap_err().problems;
        move |reason: fn(&Problem) -> bool| problems.iter().any(reason)
    };
    let count = u16_at(&good, COUNT);
    for section in [count, 0xfeff] {
        assert!(with(section)(is!(symbol: Section { .. })), "{section:#x}");
    }
    for section in [0xff00, 0xff01, 0xfff0, 0xfff3, 0xffff] {
        assert!(
            with(section)(is!(symbol: SpecialSection { .. })),
            "{section:#x}"
        );
    }
    assert!(with(0xfff2)(is!(symbol: Common)));
}

#[test]
fn the_most_memory() {
    // All but the pages of the text and of what is only read.
    let room = 16 * MAX_SIZE - 0x2000;
    let with = |more: u64| {
        let mut payload = Payload::new(&[func("target")]);
        let mut left = room - 128 + more;
        while left > 0 {
            let size = left.min(MAX_SIZE);
            payload.zeros(size);
            left -= size;
        }
        load(&payload.bytes()).map(drop).unwrap_err().problems
    };
    // The made-up hypervisor does not have it.
    let most = with(0);
    let most_of_all = 16 * MAX_SIZE;
    assert!(
        matches!(most[..], [Problem::NoMemory { size, .. }] if size == most_of_all),
        "{most:?}"
    );
    let more = with(1);
    assert!(matches!(more[..], [Problem::TooLarge { .. }]), "{more:?}");
}

/// Nobody knows what those are that are not kept.
#[test]
fn more_problems_than_are_kept_are_a_refusal() {
    let with = |odd: usize| {
        let mut payload = Payload::new(&[func("target")]);
        for number in 0..odd {
            let name = format!(".data.{number}");
            payload.section(&name, SectionKind::Data, &[1], 8192);
        }
        load(&payload.bytes())
            .map(|verified| verified.problems().len())
            .map_err(|refusal| (refusal.problems.len(), refusal.more))
    };
    assert_eq!(with(200), Ok(200));
    assert_eq!(with(201), Err((200, 1)));
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Xen's own test payloads, also for ARM64, damaged in every way: there is never a panic,
//! and every accepted one can be applied, reverted and unloaded.

use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use xsplice_e2e::{Base, arm64_base, base, exhaustive, own_payloads};
use xsplice_engine::{Action, Engine, Guard, Options, Policy};
use xsplice_host_image::{Image, Machine, check};

/// Payloads whose section tables are always tried with all values; the others have
/// the same form and are left to exhaustive runs.
const TABLES: [&str; 2] = ["xen_bye_world", "xen_nop"];

/// The payload for ARM64 that is always tried: it replaces a function and has alternatives.
const ARM64: &str = "xen_hello_world";

/// The full life cycle of a possible payload; returns whether it was loaded.
fn live(image: &Image, file: &[u8]) -> bool {
    let mut engine = Engine::new(Machine::new(image), Policy::Stock).with_guard(Guard::Both);
    if engine.upload("damaged", file).is_err() {
        return false;
    }
    let mut act = |action| engine.act("damaged", action, Options::default());
    if act(Action::Apply).is_ok() {
        act(Action::Revert).expect("what was applied can be reverted");
    }
    act(Action::Unload).expect("what is not applied can be unloaded");
    true
}

/// The ranges of the file header and of what describes the payload, the function
/// records and the notes; then the ranges of the section table.
fn headers(file: &[u8]) -> object::Result<(Vec<Range<usize>>, Range<usize>)> {
    let header = FileHeader64::<object::LittleEndian>::parse(file)?;
    let endian = header.endian()?;
    let place = |(offset, size): (u64, u64)| {
        let start = usize::try_from(offset).unwrap();
        start..start + usize::try_from(size).unwrap()
    };
    let sections = header.sections(endian, file)?;
    let mut places = Vec::new();
    places.push(0..size_of_val(header));
    for section in sections.iter() {
        let name = sections.section_name(endian, section)?;
        let describes = [".livepatch.", ".note."]
            .iter()
            .any(|s| name.starts_with(s.as_bytes()));
        places.extend(section.file_range(endian).filter(|_| describes).map(place));
    }
    let count = u64::from(header.e_shnum(endian)) * u64::from(header.e_shentsize(endian));
    Ok((places, place((header.e_shoff(endian), count))))
}

/// Counts the tries of a test.
#[derive(Default)]
struct Count {
    tried: AtomicUsize,
    loaded: AtomicUsize,
}

impl Count {
    fn add(&self, loaded: bool) {
        self.tried.fetch_add(1, Ordering::Relaxed);
        self.loaded
            .fetch_add(usize::from(loaded), Ordering::Relaxed);
    }

    /// Prints past the test harness, which hides the output of passing tests.
    fn report(self, what: &str, least: usize) -> anyhow::Result<()> {
        let (tried, loaded) = (self.tried.into_inner(), self.loaded.into_inner());
        let line = format!("Xen's own payloads, {what}: {tried} files tried, {loaded} loaded\n");
        std::io::stderr().write_all(line.as_bytes())?;
        anyhow::ensure!(tried > least && loaded > 0, "{line}");
        Ok(())
    }
}

fn stem(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default();
    stem.to_string_lossy().into_owned()
}

/// Runs `damage` on every payload for x86-64.
fn with_all(
    what: &str,
    least: usize,
    damage: impl Fn(&str, Vec<u8>, &dyn Fn(&[u8])) + Sync,
) -> anyhow::Result<()> {
    let base = base()?;
    with_each(&base, own_payloads(&base)?, (what, least), damage)
}

/// The same for ARM64, with a sample of the payloads.
fn with_arm64(
    what: &str,
    least: usize,
    damage: impl Fn(&str, Vec<u8>, &dyn Fn(&[u8])) + Sync,
) -> anyhow::Result<()> {
    let base = arm64_base()?;
    let mut paths = own_payloads(&base)?;
    paths.retain(|path| exhaustive() || stem(path) == ARM64);
    with_each(&base, paths, (what, least), damage)
}

/// Runs `damage` on each of the payloads, on all processors.
fn with_each(
    base: &Base,
    paths: Vec<PathBuf>,
    (what, least): (&str, usize),
    damage: impl Fn(&str, Vec<u8>, &dyn Fn(&[u8])) + Sync,
) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let paths = Mutex::new(paths);
    let count = Count::default();
    let work = || {
        while let Some(path) = { paths.lock().unwrap().pop() } {
            damage(&stem(&path), std::fs::read(&path).unwrap(), &|file| {
                count.add(live(&image, file))
            });
        }
    };
    std::thread::scope(|scope| {
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .for_each(|worker| worker.join().unwrap());
    });
    count.report(what, least)
}

/// `xsplice check` gets them too.
#[test]
fn cut_off_at_every_length() -> anyhow::Result<()> {
    let base = base()?;
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let mut tried = 0;
    for path in own_payloads(&base)? {
        let file = std::fs::read(&path)?;
        for length in 0..file.len() {
            let reports = check(&image, &[("damaged", &file[..length])]);
            assert!(
                reports.iter().all(|report| !report.loads),
                "{path:?}, {length} bytes"
            );
        }
        tried += file.len();
    }
    std::io::stderr().write_all(
        format!("Xen's own payloads, cut off: {tried} files tried, none loaded\n").as_bytes(),
    )?;
    anyhow::ensure!(tried > 50_000);
    Ok(())
}

#[test]
fn every_bit_flipped() -> anyhow::Result<()> {
    with_all("flipped", 500_000, |_, file, run| flip(file, run))
}

#[test]
fn every_bit_flipped_on_arm64() -> anyhow::Result<()> {
    with_arm64("ARM64, flipped", 20_000, |_, file, run| flip(file, run))
}

fn flip(mut file: Vec<u8>, run: &dyn Fn(&[u8])) {
    for at in 0..file.len() {
        let byte = file[at];
        for bit in 0..8 {
            file[at] = byte ^ (1 << bit);
            run(&file);
        }
        file[at] = byte;
    }
}

#[test]
fn every_value_of_every_header_byte() -> anyhow::Result<()> {
    let all = exhaustive();
    with_all("headers", 1_000_000, |name, file, run| {
        change_headers(all || TABLES.contains(&name), file, run);
    })
}

#[test]
fn every_value_of_every_header_byte_on_arm64() -> anyhow::Result<()> {
    with_arm64("ARM64, headers", 20_000, |_, file, run| {
        change_headers(exhaustive(), file, run);
    })
}

/// Gives each byte of the headers every value; with `tables`, also of the section table.
fn change_headers(tables: bool, mut file: Vec<u8>, run: &dyn Fn(&[u8])) {
    let (mut places, table) = headers(&file).unwrap();
    if tables {
        places.push(table);
    }
    for at in places.into_iter().flatten() {
        let byte = file[at];
        // Single-bit changes are tried elsewhere.
        for value in (0..=u8::MAX).filter(|value| (value ^ byte).count_ones() > 1) {
            file[at] = value;
            run(&file);
        }
        file[at] = byte;
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hundreds of wrong payloads for one running hypervisor: with our core, each
//! is refused with an error number and a reason, nothing is left behind, and
//! the hypervisor goes on. What Xen's own core says to the same ones is written
//! beside it, into `target/hostile-payloads.tsv`.

mod mutants;

use anyhow::{Context as _, anyhow, ensure};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use xsplice_abi::errno::Errno;
use xsplice_e2e::{Base, base, build, config, memory, repository, rust_base, settled};
use xsplice_lab::{Error, Host};
use xsplice_offline::{Image, Severity, check};

/// The payloads that are made wrong: of Xen's own, and of our generator.
const THEIRS: [&str; 5] = [
    "xen_hello_world",
    "xen_replace_world",
    "xen_expectations",
    "xen_prepost_hooks",
    "xen_action_hooks_marker",
];
const OURS: [&str; 3] = ["extra-version", "two-files", "bug-and-alternative"];
/// How many are taken for each field of each payload.
const MOST: usize = 2;
/// How many are uploaded by one process.
const AT_A_TIME: usize = 40;
/// How many hosts with Xen's own core there are at a time, of one CPU each.
const HOSTS: usize = 2;
/// How often a hypervisor that crashes is booted again; each crash is one more
/// verdict.
const BOOTS: usize = 40;
/// What is no payload at all, by its size.
const EMPTY: &str = "empty";
const LARGE: &str = "large";
/// The most bytes that Xen takes.
const LARGEST: usize = 2 << 20;
/// How many must be refused for the test to say something.
const ENOUGH: usize = 200;

/// A wrong payload, and what the engine says to it on the hypervisor's image.
#[derive(Clone)]
struct Hostile {
    name: String,
    what: String,
    data: Vec<u8>,
    code: i32,
    reason: String,
}

/// The good payloads for the hypervisor of `base`.
fn payloads(base: &Base) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let directory = tempfile::tempdir()?;
    let mut payloads = Vec::new();
    for name in THEIRS {
        let path = base.test_payloads.join(format!("{name}.livepatch"));
        payloads.push((name.to_owned(), std::fs::read(path)?));
    }
    for name in OURS {
        let patch = repository().join(format!("examples/xen-4.17/{name}.patch"));
        let output = directory.path().join(name);
        build(base, &patch, &output)?;
        payloads.push((name.to_owned(), std::fs::read(output)?));
    }
    Ok(payloads)
}

/// A text without what depends on addresses.
fn without_numbers(text: &str) -> String {
    let mut words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric());
    words.by_ref().fold(String::new(), |mut text, word| {
        let number = word.starts_with(|c: char| c.is_ascii_digit());
        text.push_str(if number { "#" } else { word });
        text
    })
}

/// Of all that can be wrong, what is refused: a few for each field of a payload,
/// each with something else to be said about it.
fn hostile(base: &Base) -> anyhow::Result<Vec<Hostile>> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let mut chosen = Vec::new();
    let mut seen = BTreeSet::new();
    for (payload, data) in payloads(base)? {
        let mut of_field = BTreeMap::new();
        for mutant in mutants::of(&data)? {
            let taken: &mut usize = of_field.entry(mutant.field).or_default();
            if *taken == MOST {
                continue;
            }
            let report = check(&image, &[("hostile", &mutant.data)]).pop();
            let report = report.context("no report")?;
            let mut problems = report.problems.into_iter();
            let Some(first) = problems.find(|p| p.severity == Severity::NotLoaded) else {
                continue;
            };
            if !seen.insert((mutant.field, without_numbers(&first.message))) {
                continue;
            }
            *taken += 1;
            chosen.push(Hostile {
                name: format!("hostile-{}", chosen.len()),
                what: format!("{payload}: {}", mutant.what),
                data: mutant.data,
                code: first.code,
                reason: first.message,
            });
        }
    }
    Ok(chosen)
}

/// The same of the payloads for another hypervisor.
fn same(all: &[Hostile], base: &Base) -> anyhow::Result<Vec<Hostile>> {
    let mut made = HashMap::new();
    for (payload, data) in payloads(base)? {
        for mutant in mutants::of(&data)? {
            made.insert(format!("{payload}: {}", mutant.what), mutant.data);
        }
    }
    let same = all.iter().map(|hostile| {
        let data = made.get(&hostile.what).cloned();
        Ok(Hostile {
            data: data.with_context(|| format!("{} cannot be made", hostile.what))?,
            ..hostile.clone()
        })
    });
    same.collect()
}

/// What a hypervisor did with one of them.
enum Verdict {
    Accepted,
    Refused(Errno),
    Lost(String),
    NotTried,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            Self::Refused(errno) => f.write_str(errno.name().unwrap_or("?")),
            Self::Lost(why) => write!(f, "lost: {why}"),
            Self::NotTried => f.write_str("not tried"),
        }
    }
}

/// A host whose dom0 has the files of `directory`. With one CPU it boots faster.
fn boot(base: &Base, directory: &Path, cpus: u32) -> anyhow::Result<Host> {
    let mut config = config(base)?;
    config.cpus = cpus;
    let driver = PathBuf::from(env!("CARGO_BIN_EXE_in-dom0"));
    config.programs.push(("bin/in-dom0".to_owned(), driver));
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let place = place(&entry.file_name().to_string_lossy());
        config.files.push((place, entry.path()));
    }
    Ok(Host::boot(&config)?)
}

fn place(name: &str) -> String {
    format!("/lab/{name}")
}

/// Uploads them, one after the other; says what the driver printed.
fn upload(host: &mut Host, names: &[&str]) -> Result<String, Error> {
    let mut printed = String::new();
    for names in names.chunks(AT_A_TIME) {
        let mut argv = vec!["in-dom0".to_owned(), "upload-each".to_owned()];
        argv.extend(names.iter().map(|name| place(name)));
        let output = host.run(&argv)?;
        if output.code != Some(0) {
            return Err(Error::Dom0(format!("{output:?}")));
        }
        printed.push_str(&output.stdout);
    }
    Ok(printed)
}

/// The verdicts in what the driver printed, by name.
fn verdicts(text: &str) -> impl Iterator<Item = (String, Verdict)> {
    text.lines().filter_map(|line| {
        let (name, code) = line.split_once(' ')?;
        let verdict = match code.parse().ok()? {
            0 => Verdict::Accepted,
            code => Verdict::Refused(Errno(code)),
        };
        Some((name.to_owned(), verdict))
    })
}

/// Where the hypervisor crashed, or how else it was lost.
fn place_of(console: &str, error: &Error) -> String {
    let place = console.lines().find_map(|line| line.split_once("RIP:"));
    let place = place.map(|(_, place)| place.trim().to_owned());
    place.unwrap_or_else(|| {
        error
            .to_string()
            .lines()
            .next()
            .unwrap_or_default()
            .to_owned()
    })
}

/// What Xen's own core says, on several hosts: most of the time one of them boots.
fn theirs(
    base: &Base,
    directory: &Path,
    names: &[&str],
) -> anyhow::Result<HashMap<String, Verdict>> {
    let parts = names.chunks(names.len().div_ceil(HOSTS));
    std::thread::scope(|scope| {
        let part = |names| scope.spawn(move || theirs_on_a_host(base, directory, names));
        let hosts: Vec<_> = parts.map(part).collect();
        let mut known = HashMap::new();
        for host in hosts {
            let part = host.join().map_err(|_| anyhow!("it panicked"))??;
            known.extend(part);
        }
        Ok(known)
    })
}

/// As [`theirs`], on one that may well crash and is booted again then.
fn theirs_on_a_host(
    base: &Base,
    directory: &Path,
    names: &[&str],
) -> anyhow::Result<HashMap<String, Verdict>> {
    let mut known = HashMap::new();
    for _ in 0..BOOTS {
        let left: Vec<&str> = names
            .iter()
            .copied()
            .filter(|name| !known.contains_key(*name))
            .collect();
        if left.is_empty() {
            break;
        }
        let mut host = boot(base, directory, 1)?;
        match upload(&mut host, &left) {
            Ok(text) => known.extend(verdicts(&text)),
            Err(error) => {
                let console = host.console();
                known.extend(verdicts(&console));
                let over = left.iter().find(|name| !known.contains_key(**name));
                let over = over.context("it was lost over nothing")?;
                known.insert(
                    (*over).to_owned(),
                    Verdict::Lost(place_of(&console, &error)),
                );
            }
        }
    }
    Ok(known)
}

/// The lines with which a hypervisor refused `name`.
fn reasons<'c>(console: &'c str, name: &str) -> Vec<&'c str> {
    let title = format!("livepatch: {name} was not loaded (");
    let mut lines = console.lines().skip_while(|line| !line.contains(&title));
    let title = lines.next();
    let reasons = lines.take_while(|line| line.contains("livepatch:   "));
    title.into_iter().chain(reasons).collect()
}

/// The files of `hostile`, in `directory`.
fn write(directory: &Path, all: &[Hostile]) -> anyhow::Result<()> {
    for hostile in all {
        std::fs::write(directory.join(&hostile.name), &hostile.data)?;
    }
    Ok(())
}

/// What the engine does not get to see has a reason as well, and the error
/// number that Xen's own core has for it. It takes names that are no text; ours
/// does not, so that nothing has one.
fn what_is_not_read_is_refused_too(host: &mut Host, any: &str) -> anyhow::Result<()> {
    let printed = upload(host, &[EMPTY, LARGE])?;
    let size = "its size is 0 or more than 2 MiB";
    for name in [EMPTY, LARGE] {
        let line = format!("{name} {}", Errno::EINVAL.0);
        ensure!(printed.lines().any(|printed| printed == line), "{printed}");
    }
    let output = host.run(&["in-dom0", "nameless", &place(any)])?;
    let lines: Vec<&str> = output.stdout.lines().collect();
    let expected = [
        "upload Error 22: Invalid argument",
        "revert Error 2: No such file or directory",
    ];
    ensure!(lines == expected, "{output:?}");
    let console = host.console();
    for (name, reason) in [
        (EMPTY, size),
        (LARGE, size),
        ("a payload", "its name is not UTF-8"),
    ] {
        let reasons = reasons(&console, name);
        let said = reasons.get(1).is_some_and(|line| line.ends_with(reason));
        ensure!(said, "{name}: {reasons:?} without {reason:?}");
    }
    Ok(())
}

#[test]
fn everything_is_refused_with_a_reason_and_nothing_is_left() -> anyhow::Result<()> {
    let (rust, c) = (rust_base()?, base()?);
    let all = hostile(&rust)?;
    ensure!(all.len() >= ENOUGH, "only {} are refused", all.len());
    let names: Vec<&str> = all.iter().map(|hostile| hostile.name.as_str()).collect();

    let directory = tempfile::tempdir()?;
    write(directory.path(), &all)?;
    std::fs::write(directory.path().join(EMPTY), "")?;
    std::fs::write(directory.path().join(LARGE), vec![0; LARGEST + 1])?;
    let mut host = boot(&rust, directory.path(), 4)?;
    // What the first upload allocates for good.
    upload(&mut host, &names[..1])?;
    let before = memory(&mut host)?;
    let ours: HashMap<_, _> = verdicts(&upload(&mut host, &names)?).collect();
    what_is_not_read_is_refused_too(&mut host, names[0])?;
    let after = memory(&mut host)?;
    let console = host.console();
    // It goes on.
    let argv = ["xsplice", "load", "/lab/xen_hello_world.livepatch"];
    let good = settled(&mut host, &argv)?;
    ensure!(good.code == Some(0), "{good:?}");
    host.shut_down()?;

    let directory = tempfile::tempdir()?;
    write(directory.path(), &same(&all, &c)?)?;
    let theirs = theirs(&c, directory.path(), &names)?;

    let mut table = "what\tour core\tits first reason\tXen's own core\n".to_owned();
    let mut wrong = Vec::new();
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for hostile in &all {
        let reasons = reasons(&console, &hostile.name);
        let verdict = ours.get(&hostile.name).unwrap_or(&Verdict::NotTried);
        let reason = reasons.get(1).copied().unwrap_or_default();
        let refused = matches!(verdict, Verdict::Refused(Errno(code)) if *code == hostile.code);
        let said = without_numbers(reason).contains(&without_numbers(&hostile.reason));
        if !refused || !said {
            let (name, code, expected) = (&hostile.name, hostile.code, &hostile.reason);
            wrong.push(format!(
                "{name}: {verdict}, {reasons:?}; not {code}, {expected}"
            ));
        }
        let (_, reason) = reason.split_once("livepatch:").unwrap_or_default();
        let theirs = theirs.get(&hostile.name).unwrap_or(&Verdict::NotTried);
        writeln!(
            table,
            "{}\t{verdict}\t{}\t{theirs}",
            hostile.what,
            reason.trim()
        )?;
        let kind = theirs.to_string();
        let kind = kind.split(':').next().unwrap_or_default().to_owned();
        *counts.entry(kind).or_default() += 1;
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("hostile-payloads.tsv");
    std::fs::write(&path, table)?;
    let line = format!(
        "{} wrong payloads, {} not refused as expected, {after:?}; Xen's own core: {counts:?}; {}\n",
        all.len(),
        wrong.len(),
        path.display()
    );
    std::io::stderr().write_all(line.as_bytes())?;
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(
        theirs.len() == all.len(),
        "a host with Xen's own core crashed more than {BOOTS} times"
    );
    ensure!(after == before, "{after:?}, before {before:?}");
    Ok(())
}

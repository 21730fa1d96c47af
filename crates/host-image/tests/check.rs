// SPDX-License-Identifier: MIT OR Apache-2.0

//! The checker on an image and payloads compiled for the test.

use std::path::{Path, PathBuf};
use std::process::Command;
use xsplice_engine::Region;
use xsplice_host_image::{Checker, Error, Guard, Image, Report, Severity, check};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixture")
        .join(name)
}

fn gcc(output: &str, arguments: &[&str], sources: &[&str]) -> Vec<u8> {
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(output);
    let mut command = Command::new("gcc");
    command
        .args(arguments)
        .arg("-o")
        .arg(&output)
        .args(sources.iter().map(|source| fixture(source)));
    let status = command.status().expect("gcc is needed for this test");
    assert!(status.success(), "{command:?}");
    std::fs::read(&output).unwrap()
}

fn image(name: &str) -> Vec<u8> {
    image_with(name, &[])
}

fn image_with(name: &str, options: &[&str]) -> Vec<u8> {
    let arguments = [
        "-O2",
        "-ffreestanding",
        "-fno-pie",
        "-mcmodel=kernel",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--build-id=sha1,-e,target,-Ttext=0xffff82d040200000",
        "-Wl,--section-start=.init.text=0xffff82d040300000",
        "-Wl,--section-start=.init.data=0xffff82d040310000",
        "-Wl,-Tbss=0xffff82d040400000",
        "-Wl,--defsym=__init_begin=0xffff82d040300000,--defsym=__init_end=0xffff82d040320000",
    ];
    gcc(name, &[&arguments, options].concat(), &["hypervisor.c"])
}

/// A payload with build-id `own`, which calls `callee`.
fn payload(file: &str, own: u8, callee: &str, depends: &[u8], xen: &[u8]) -> Vec<u8> {
    let identity = identity(own, callee, depends, xen);
    let identity: Vec<_> = identity.iter().map(String::as_str).collect();
    gcc(
        file,
        &[&["-c"], identity.as_slice()].concat(),
        &["payload.S"],
    )
}

/// The build-ids of `payload.S`, and what it calls.
fn identity(own: u8, callee: &str, depends: &[u8], xen: &[u8]) -> [String; 4] {
    let list = |id: &[u8]| id.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
    [
        format!("-DOWN_BYTE={own}"),
        format!("-DCALLEE={callee}"),
        format!("-DDEPENDS_ID={}", list(depends)),
        format!("-DXEN_ID={}", list(xen)),
    ]
}

/// Indirect calls as Xen 4.21 compiles them: they become direct if the hypervisor has
/// a table for them and the pointer points to code.
#[test]
fn indirect_calls_through_the_hypervisors_pointers() {
    let with = Image::parse(&image_with("call-sites", &["-DCALL_SITES"])).unwrap();
    let without = Image::parse(&image("no-call-sites")).unwrap();
    let report = |image: &Image, slot: &str, site: &str| {
        let xen = image.build_id();
        let identity = identity(1, "target", xen, xen);
        let mut options: Vec<_> = identity.iter().map(String::as_str).collect();
        let (slot, site) = (format!("-DSLOT={slot}"), format!("-DSITE=\"{site}\""));
        options.extend([slot.as_str(), site.as_str(), "-DNEW_ADDR=new_target"]);
        options.extend(["-O2", "-ffreestanding", "-fno-pie", "-mcmodel=kernel"]);
        options.extend(["-fcf-protection=branch", "-r", "-nostdlib"]);
        let file = gcc("call-site.o", &options, &["payload.S", "call-site.c"]);
        let [report] = check(image, &[("payload", &file)]).try_into().unwrap();
        report
    };
    for slot in ["good_slot", "empty_slot"] {
        let report = report(&with, slot, "1b");
        assert!(report.loads && report.applies, "{slot}: {report:#?}");
    }
    for (image, slot, site, words) in [
        (&with, "boot_slot", "1b", "leads to no code"),
        (&with, "data_slot", "1b", "leads to no code"),
        (&with, "good_slot", "1b + 1", "there is none"),
        (
            &with,
            "good_slot",
            "1b + 0x1000",
            "outside the payload's text",
        ),
        (
            &without,
            "good_slot",
            "1b",
            "does not make such calls direct",
        ),
    ] {
        let report = report(image, slot, site);
        let [problem] = report.problems.as_slice() else {
            panic!("{slot} {site}: {report:#?}");
        };
        assert!(
            !report.loads && problem.message.contains(words),
            "{report:#?}"
        );
        assert!(problem.message.contains(".alt_call_sites"), "{report:#?}");
    }
}

#[test]
fn the_image_has_the_names_of_the_running_hypervisor() {
    let image = Image::parse(&image("names")).unwrap();
    assert_eq!(image.build_id().len(), 20);
    let addr = |name: &str| image.lookup_symbol(name.as_bytes());
    let target = addr("target").expect("a global function has its plain name");
    let local = addr("hypervisor.c#local").expect("a local one is qualified by its file");
    assert_eq!(addr("local"), None);
    assert_eq!(
        (image.region(target), image.region(local)),
        (Region::Text, Region::Text)
    );
    assert_eq!(image.region(addr("at_boot").unwrap()), Region::Init);
    assert_eq!(
        image.region(addr("hypervisor.c#value").unwrap()),
        Region::Data
    );
    assert_eq!(image.region(0x1000), Region::Outside);
    let mut bytes = [0; 4];
    assert!(image.read(target, &mut bytes) && bytes != [0; 4]);
    assert!(!image.read(u64::MAX, &mut bytes) && !image.read(0, &mut bytes));
}

#[test]
fn payloads_are_checked_in_order() {
    let image = Image::parse(&image("order")).unwrap();
    let xen = image.build_id();
    let first = payload("first.o", 1, "target", xen, xen);
    let second = payload("second.o", 2, "target", &[1; 20], xen);
    let reports = check(&image, &[("first", &first), ("second", &second)]);
    assert!(
        reports.iter().all(|report| report.loads && report.applies),
        "{reports:#?}"
    );
    let [report, _] = reports.as_slice() else {
        panic!("two reports")
    };
    assert_eq!(report.metadata, ["author=somebody"]);
    let [function] = report.functions.as_slice() else {
        panic!("one function")
    };
    assert_eq!(
        (function.name.as_str(), function.old_size, function.new_size),
        ("target", 16, 6)
    );
    assert_eq!(function.old_addr, image.lookup_symbol(b"target").unwrap());

    let [report] = check(&image, &[("second", &second)]).try_into().unwrap();
    assert!(report.loads && !report.applies);
    assert_eq!(report.problems[0].severity, Severity::NotApplied);
    assert!(
        report.problems[0].message.contains(&"01".repeat(20)),
        "{report:#?}"
    );
}

#[test]
fn replacing_is_checked_too() {
    let image = Image::parse(&image("replace")).unwrap();
    let xen = image.build_id();
    let stacked = [
        ("first", payload("one.o", 1, "target", xen, xen)),
        ("second", payload("two.o", 2, "target", &[1; 20], xen)),
        ("all", payload("all.o", 3, "target", xen, xen)),
        ("fourth", payload("four.o", 4, "target", &[3; 20], xen)),
    ];
    let reports = check(&image, &stacked);
    let verdicts: Vec<_> = reports
        .iter()
        .map(|report| (report.applies, report.replaces, report.below.join(" ")))
        .collect();
    let expected = [
        (true, true, ""),
        (true, false, "first"),
        (false, true, "first second"),
        (true, false, "all"),
    ]
    .map(|(applies, replaces, below)| (applies, replaces, below.to_owned()));
    assert_eq!(verdicts, expected, "{reports:#?}");
    let writes = |report: &Report| (report.apply_writes, report.replace_writes);
    assert_eq!(
        reports.iter().map(writes).collect::<Vec<_>>(),
        [(5, 5), (5, 10), (5, 15), (5, 10)]
    );
    assert!(
        reports[1].replace_problems[0]
            .message
            .contains(&"01".repeat(20))
    );
}

#[test]
fn guards() {
    let image = Image::parse(&image("guards")).unwrap();
    let xen = image.build_id();
    let foreign = payload("foreign.o", 1, "target", &[9; 20], xen);
    for (guard, words) in [
        (Guard::Stack, "applies on top of build-id"),
        (Guard::Both, "applies on top of build-id"),
        (Guard::OldCode, "no preimage note"),
    ] {
        let reports = Checker::new(&image)
            .with_guard(guard)
            .check(&[("p", &foreign)]);
        let [report] = reports.try_into().unwrap();
        assert!(report.loads && !report.applies && !report.replaces);
        assert!(report.problems[0].message.contains(words), "{report:#?}");
    }
}

#[test]
fn the_hypervisors_uses_of_a_function_are_reported() {
    let image = Image::parse(&image("surroundings")).unwrap();
    let xen = image.build_id();
    let file = payload("about.o", 1, "target", xen, xen);
    let [report] = check(&image, &[("payload", &file)]).try_into().unwrap();
    let at = |name: &str| image.lookup_symbol(name.as_bytes()).unwrap();
    let [function] = report.functions.try_into().unwrap();
    assert_eq!(function.boot_time_sites, [at("target") + 2]);
    let mut taken = function.address_taken.clone();
    taken.sort_unstable();
    let mut expected = [at("find"), at("calls") + 8];
    expected.sort_unstable();
    assert_eq!(taken, expected);
    assert_eq!(function.denied, None);
}

/// Payloads are not mapped in a guest's page tables. Entry code runs on them, with
/// its callees before the switch and theirs; nothing else.
#[test]
fn code_before_the_switch_of_page_tables_is_refused() {
    const CALL: &str = "call before";
    const NOTHING: &str = "nopl 0(%rax, %rax)";
    for (name, entry, alternative, denied) in [
        ("entry", NOTHING, NOTHING, &[][..]),
        ("entry-call", CALL, NOTHING, &["before", "deeper"]),
        ("entry-alternative", NOTHING, CALL, &["before", "deeper"]),
    ] {
        let entry = format!("-DENTRY=\"{entry}\"");
        let alternative = format!("-DENTRY_ALTERNATIVE=\"{alternative}\"");
        let image = Image::parse(&image_with(name, &[&entry, &alternative])).unwrap();
        let xen = image.build_id();
        for callee in ["before", "deeper", "behind", "leaving"] {
            let addr = image.lookup_symbol(callee.as_bytes()).unwrap();
            let identity = identity(1, "target", xen, xen);
            let old_addr = format!("-DOLD_ADDR={addr:#x}");
            let mut options = vec!["-c", &old_addr, "-DOLD_SIZE=8"];
            options.extend(identity.iter().map(String::as_str));
            let file = gcc(&format!("{name}-{callee}.o"), &options, &["payload.S"]);
            let [report] = check(&image, &[("p", &file)]).try_into().unwrap();
            let refused = report.problems.iter().any(|problem| {
                problem.errno == "EPERM" && problem.message.contains("into or out of")
            });
            let wanted = denied.contains(&callee);
            assert_eq!((refused, report.loads), (wanted, !wanted), "{report:#?}");
        }
    }
}

#[test]
fn refusals_say_why() {
    let image = Image::parse(&image("refusals")).unwrap();
    let xen = image.build_id();
    for (callee, depends, result, words) in [
        (
            "nowhere",
            xen,
            "ENOENT",
            "nowhere is neither in the hypervisor nor",
        ),
        ("at_boot", xen, "EINVAL", "freed after boot"),
        (
            "target",
            &[7; 20][..],
            "EINVAL",
            "build it again for this hypervisor",
        ),
    ] {
        let file = payload("refused.o", 3, callee, depends, depends);
        let [report] = check(&image, &[("payload", &file)]).try_into().unwrap();
        assert!(!report.loads && !report.applies && report.functions.is_empty());
        assert_eq!(report.problems.len(), 1, "{report:#?}");
        assert_eq!(report.problems[0].errno, result);
        assert!(report.problems[0].message.contains(words), "{report:#?}");
    }
}

#[test]
fn files_that_are_no_image() {
    assert!(matches!(Image::parse(b"not ELF"), Err(Error::Elf(_))));
    let relocatable = gcc("relocatable.o", &["-c"], &["hypervisor.c"]);
    assert!(matches!(Image::parse(&relocatable), Err(Error::NotAnImage)));
    let whole = image("damaged");
    // Truncated within every header, then in steps.
    for length in (0..whole.len()).filter(|length| *length < 256 || length % 61 == 0) {
        assert!(
            Image::parse(&whole[..length]).is_err(),
            "{length} of {} bytes",
            whole.len()
        );
    }
    let mut damaged = whole.clone();
    for at in (0..64).chain(whole.len().saturating_sub(1024)..whole.len()) {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            damaged[at] = value;
            let _ = Image::parse(&damaged);
        }
        damaged[at] = whole[at];
    }
}

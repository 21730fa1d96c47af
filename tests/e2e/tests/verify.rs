// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second opinion on payloads: it agrees with a good one, and gives the true
//! reason for each corrupted one.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use xsplice_e2e::corrupted::{Case, Good};
use xsplice_e2e::{
    Base, arm32_base, arm32_rust_base, arm64_base, arm64_rust_base, base, build, local, repository,
    rust_base, told,
};
use xsplice_verify::{Accepted, Kind};

const PATCH: &str = "examples/xen-4.17/two-files.patch";

const TWO_FILES: [Case; 14] = [
    Case {
        name: "a call leads to another function",
        spoil: |payload| payload.retarget(".rela.text", ("xen_build_id", 0), "strlcpy"),
        kind: Kind::NotReplaced,
        named: "xen_build_id",
    },
    Case {
        name: "a variable is taken for another",
        spoil: |payload| payload.retarget(".rela.text", ("hardware_domain", 0), "saved_cmdline"),
        kind: Kind::Reference,
        named: "hardware_domain",
    },
    Case {
        name: "a reference leads a few bytes too far",
        spoil: |payload| payload.shift(".rela.text", "saved_cmdline", 8),
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "an alternative is missing",
        spoil: |payload| payload.shorten(".altinstructions", 14),
        kind: Kind::Code,
        named: "alternative is missing",
    },
    Case {
        name: "an exception table entry is missing",
        spoil: |payload| payload.shorten(".ex_table", 8),
        kind: Kind::Code,
        named: "exception table entry is missing",
    },
    Case {
        name: "a function is not replaced",
        spoil: |payload| payload.shorten(".livepatch.funcs", 104),
        kind: Kind::Constant,
        named: "xen_changeset",
    },
    Case {
        name: "the wrong function is replaced",
        spoil: |payload| {
            let (old, other) = (payload.old_address(0)?, payload.symbol("strlcpy")?);
            ensure!(old != other, "it is another");
            payload.set_old_address(0, other)
        },
        kind: Kind::Code,
        named: "strlcpy",
    },
    Case {
        name: "code is replaced that runs where payloads are not mapped",
        spoil: |payload| {
            let entry = payload.symbol("clear_bhb_loops")?;
            payload.set_old_address(0, entry)
        },
        kind: Kind::Reference,
        named: "clear_bhb_loops: it is the payload's code and not entry code",
    },
    Case {
        name: "an instruction differs",
        spoil: |payload| {
            let code = payload.section(".text")?;
            payload.bytes[code.start] ^= 1;
            Ok(())
        },
        kind: Kind::Code,
        named: "the payload's code differs",
    },
    Case {
        name: "a string differs",
        spoil: |payload| {
            let text = payload.section(".rodata.str")?;
            payload.bytes[text.start] ^= 1;
            Ok(())
        },
        kind: Kind::Constant,
        named: "and not",
    },
    Case {
        name: "an alternative is for another feature",
        spoil: |payload| {
            let table = payload.section(".altinstructions")?;
            payload.bytes[table.start + 8] ^= 1;
            Ok(())
        },
        kind: Kind::Code,
        named: "alternative of",
    },
    Case {
        name: "a variable is read-only",
        spoil: |payload| payload.make_read_only(".bss"),
        kind: Kind::Class,
        named: "the payload's read-only data",
    },
    Case {
        name: "what replaces a function is longer than it says",
        spoil: |payload| {
            let table = payload.section(".livepatch.funcs")?;
            payload.bytes[table.start + 24] ^= 1;
            Ok(())
        },
        kind: Kind::LeftOver,
        named: "sizes",
    },
    Case {
        name: "an exception is continued elsewhere",
        spoil: |payload| payload.add(".rela.ex_table", 1, 1),
        kind: Kind::Code,
        named: "compat_xen_version: 0x",
    },
];

/// Cases for ARM64, where an address comes in two halves.
const ARM64: [Case; 9] = [
    Case {
        name: "a call leads to another function",
        spoil: |payload| payload.retarget(".rela.text", ("xen_build_id", 0), "strlcpy"),
        kind: Kind::NotReplaced,
        named: "xen_build_id",
    },
    Case {
        name: "both halves of an address lead a few bytes too far",
        spoil: |payload| {
            payload.shift(".rela.text", "saved_cmdline", 8)?;
            payload.shift_next(".rela.text", "saved_cmdline", 8)
        },
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "the page of an address is another",
        spoil: |payload| payload.shift(".rela.text", "saved_cmdline", 0x1000),
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "the rest of an address is another",
        spoil: |payload| payload.shift_next(".rela.text", "saved_cmdline", 8),
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "a function is not replaced",
        spoil: |payload| payload.shorten(".livepatch.funcs", 104),
        kind: Kind::Constant,
        named: "xen_changeset",
    },
    Case {
        name: "an instruction differs",
        spoil: |payload| payload.flip(".text", 0),
        kind: Kind::Code,
        named: "the payload's code differs",
    },
    Case {
        name: "a string differs",
        spoil: |payload| payload.flip(".rodata.str", 0),
        kind: Kind::Constant,
        named: "and not",
    },
    Case {
        name: "a variable is read-only",
        spoil: |payload| payload.make_read_only(".bss"),
        kind: Kind::Class,
        named: "the payload's read-only data",
    },
    Case {
        name: "what replaces a function is longer than it says",
        spoil: |payload| {
            let table = payload.section(".livepatch.funcs")?;
            payload.bytes[table.start + 24] ^= 4;
            Ok(())
        },
        kind: Kind::LeftOver,
        named: "sizes",
    },
];

/// Cases for ARM32, where addends are in instructions, and tables between them.
const ARM32: [Case; 12] = [
    Case {
        name: "a call leads to another function",
        spoil: |payload| payload.retarget(".rel.text", ("xen_build_id", 0), "strlcpy"),
        kind: Kind::NotReplaced,
        named: "xen_build_id",
    },
    Case {
        name: "a veneer leads to another function",
        spoil: |payload| payload.retarget(".rel.text", ("xen_major_version", 0), "xen_deny"),
        kind: Kind::NotReplaced,
        named: "xen_major_version",
    },
    Case {
        name: "both halves of an address lead a few bytes too far",
        spoil: |payload| {
            for half in 0..2 {
                let at = payload.place(".text", "saved_cmdline", half)?;
                payload.add_to_word(at, 8)?;
            }
            Ok(())
        },
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "the lower half of an address is another",
        spoil: |payload| {
            let at = payload.place(".text", "saved_cmdline", 0)?;
            payload.add_to_word(at, 8)
        },
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "the upper half of an address is that of code",
        spoil: |payload| payload.retarget(".rel.text", ("saved_cmdline", 1), "do_xen_version"),
        kind: Kind::Reference,
        named: "saved_cmdline",
    },
    Case {
        name: "an entry of a table of jumps is the next one's",
        spoil: |payload| {
            let at = payload.section(".text")?.start + 0x3c;
            payload.add_to_word(at, 4)
        },
        kind: Kind::Code,
        named: "do_xen_version",
    },
    Case {
        name: "a function is not replaced",
        spoil: |payload| payload.shorten(".livepatch.funcs", 92),
        kind: Kind::Constant,
        named: "xen_changeset",
    },
    Case {
        name: "an instruction differs",
        spoil: |payload| payload.flip(".text", 4),
        kind: Kind::Code,
        named: "the payload's code differs",
    },
    Case {
        name: "a jump within a function leads to the next instruction",
        spoil: |payload| payload.flip(".text", 0x70),
        kind: Kind::Code,
        named: "the payload's code differs",
    },
    Case {
        name: "a string differs",
        spoil: |payload| payload.flip(".rodata.str", 0),
        kind: Kind::Constant,
        named: "and not",
    },
    Case {
        name: "a variable is read-only",
        spoil: |payload| payload.make_read_only(".bss"),
        kind: Kind::Class,
        named: "the payload's read-only data",
    },
    Case {
        name: "what replaces a function is longer than it says",
        spoil: |payload| payload.flip(".livepatch.funcs", 12),
        kind: Kind::LeftOver,
        named: "sizes",
    },
];

/// Cases for `second-opinion.patch`, which has more kinds of symbols.
const EVERY_KIND: [Case; 12] = [
    Case {
        name: "an initial value is stale",
        spoil: |payload| payload.flip(".data", 16),
        kind: Kind::InitialValue,
        named: "live_calls",
    },
    Case {
        name: "an array's contents differ",
        spoil: |payload| payload.flip(".data", 0),
        kind: Kind::InitialValue,
        named: "live_table",
    },
    Case {
        name: "another function is the hook",
        spoil: |payload| payload.add(".rela.livepatch.hooks.load", 0, -0x50),
        kind: Kind::Hook,
        named: "the patched source has it as load hook",
    },
    Case {
        name: "the hook is missing",
        spoil: |payload| payload.shorten(".livepatch.hooks.load", 8),
        kind: Kind::Hook,
        named: "live_hook",
    },
    Case {
        name: "code loses its alignment",
        spoil: |payload| payload.set_alignment(".text", 1),
        kind: Kind::Class,
        named: "the payload does not align it to 16 bytes",
    },
    Case {
        name: "data lose their alignment",
        spoil: |payload| payload.set_alignment(".data", 1),
        kind: Kind::Class,
        named: "is not aligned to",
    },
    Case {
        name: "a bug frame has another line",
        spoil: |payload| payload.add(".rela.bug_frames.1", 1, 1 << 24),
        kind: Kind::Code,
        named: "bug frame of",
    },
    Case {
        name: "a bug frame is missing",
        spoil: |payload| payload.shorten(".bug_frames.1", 8),
        kind: Kind::Code,
        named: "bug frame is missing",
    },
    Case {
        name: "the end of an array is taken too far",
        spoil: |payload| payload.add(".rela.text", 0, 4),
        kind: Kind::Reference,
        named: "live_table: no object begins at",
    },
    Case {
        name: "the end of an array is the start of what the hypervisor has there",
        spoil: |payload| payload.turn(".rela.text", 0, "__x86_return_thunk"),
        kind: Kind::Reference,
        named: "xen_changeset: +0x",
    },
    Case {
        name: "a call leads to boot-only code",
        spoil: |payload| {
            let freed = payload.symbol("__start_xen")?;
            payload.make_absolute("__x86_return_thunk", freed)
        },
        kind: Kind::Freed,
        named: "is freed after boot",
    },
    Case {
        name: "it depends on another payload",
        spoil: |payload| payload.flip(".livepatch.depends", 20),
        kind: Kind::LeftOver,
        named: "which is not given",
    },
];

#[test]
fn each_corrupted_payload_is_caught_with_the_true_reason() -> anyhow::Result<()> {
    let base = base()?;
    let more = repository().join("tests/e2e/patches/second-opinion.patch");
    let good = Good::build(&base, &[repository().join(PATCH)])?;
    let verdict = good.proved()?;
    ensure!(verdict.from_payload == 5, "{verdict:?}");
    ensure!(
        verdict.functions > 4000 && verdict.objects > 2000 && verdict.types > 0,
        "{verdict:?}"
    );
    let none = good.opinion(&[])?;
    for name in ["compat_xen_version", "do_xen_version", "xen_changeset"] {
        let mut differences = none.differences.iter();
        ensure!(differences.any(|d| d.name == name), "{none:#?}");
    }
    good.caught(0, &TWO_FILES)?;
    let good = Good::build(&base, &[more])?;
    let notes = good.proved()?.notes.join("\n");
    for words in [
        "live_hook is a load hook",
        "live_other is new, and nothing uses it after boot",
    ] {
        ensure!(notes.contains(words), "{notes}");
    }
    good.caught(0, &EVERY_KIND)
}

#[test]
fn so_is_each_for_arm64() -> anyhow::Result<()> {
    is_caught_on_arm(&arm64_base()?, &ARM64)
}

#[test]
fn so_is_each_for_arm32() -> anyhow::Result<()> {
    is_caught_on_arm(&arm32_base()?, &ARM32)
}

fn is_caught_on_arm(base: &Base, cases: &[Case]) -> anyhow::Result<()> {
    let good = Good::build(base, &[repository().join(PATCH)])?;
    let verdict = good.proved()?;
    ensure!(
        verdict.functions > 2000 && verdict.objects > 500 && verdict.types > 0,
        "{verdict:?}"
    );
    let none = good.opinion(&[])?;
    for name in ["do_xen_version", "xen_changeset"] {
        let mut differences = none.differences.iter();
        ensure!(differences.any(|d| d.name == name), "{none:#?}");
    }
    good.caught(0, cases)
}

/// Our core's object has one name for most of its code, and none for its constants. These
/// are compared all the same: also where only constants lead to them.
fn our_core_is_compared(base: &Base) -> anyhow::Result<()> {
    const FILE: &[u8] = b"crates/engine/src/stack/mod.rs";
    let good = Good::build(base, &[repository().join(PATCH)])?;
    good.proved()?;
    let caught = |what: &str, spoil: fn(&mut Vec<u8>) -> anyhow::Result<()>| {
        let verdict = good.on_corrupted(spoil).context(what.to_owned())?;
        let mut differences = verdict.differences.iter();
        // What refers to it, or, on ARM32, what is left of its own name.
        let names = ["xsplice_", "livepatch-core.o#$L"];
        let found = differences.any(|d| names.iter().any(|name| d.name.starts_with(name)));
        ensure!(found, "{what}: {:#?}", verdict.differences);
        anyhow::Ok(())
    };
    caught("a text differs", |syms| {
        let at = only(syms, FILE)?;
        syms[at] ^= 1;
        Ok(())
    })?;
    caught("a pointer in a table differs", |syms| {
        let address = address_of(syms, only(syms, FILE)?)?.to_le_bytes();
        let narrow = !object::File::parse(syms.as_slice())?.is_64();
        let at = only(syms, if narrow { &address[..4] } else { &address })?;
        syms[at] ^= 1;
        Ok(())
    })?;
    caught("code differs", |syms| {
        let elf = object::File::parse(syms.as_slice())?;
        let core = elf.symbol_by_name("xsplice_core").context("xsplice_core")?;
        let section = core.section_index().context("its section")?;
        let section = elf.section_by_index(section)?;
        let start = section.file_range().context("its contents")?.0;
        let at = start + core.address() - section.address() + 0x1000;
        syms[usize::try_from(at)?] ^= 1;
        Ok(())
    })
}

/// Where `bytes` are, which are there once.
fn only(all: &[u8], bytes: &[u8]) -> anyhow::Result<usize> {
    let mut places = memchr::memmem::find_iter(all, bytes);
    let first = places.next().context("they are not there")?;
    ensure!(places.next().is_none(), "they are there twice");
    Ok(first)
}

/// The address of what is at `offset` in the file.
fn address_of(syms: &[u8], offset: usize) -> anyhow::Result<u64> {
    let elf = object::File::parse(syms)?;
    let offset = offset as u64;
    let mut sections = elf.sections().filter_map(|section| {
        let (start, size) = section.file_range()?;
        let inside = (start..start + size).contains(&offset) && section.address() != 0;
        inside.then(|| section.address() + offset - start)
    });
    sections.next().context("no section has it")
}

#[test]
fn our_core_is_compared_on_x86() -> anyhow::Result<()> {
    our_core_is_compared(&rust_base()?)
}

#[test]
fn our_core_is_compared_on_arm64() -> anyhow::Result<()> {
    our_core_is_compared(&arm64_rust_base()?)
}

#[test]
fn our_core_is_compared_on_arm32() -> anyhow::Result<()> {
    our_core_is_compared(&arm32_rust_base()?)
}

/// A function's exception fixups belong to it wherever they are: those of a replaced
/// function's old code are not compared, those of the new code are. The labels of a table
/// are the new function's own. Four payloads share a build here.
#[test]
fn fixups_and_labels_belong_to_their_functions() -> anyhow::Result<()> {
    const FIXUPS: [Case; 2] = [
        Case {
            name: "a fixup returns to another instruction",
            spoil: |payload| payload.add(".rela.fixup", 0, 16),
            kind: Kind::Code,
            named: "physdev_op",
        },
        Case {
            name: "a fixup does something else",
            spoil: |payload| payload.flip(".fixup", 1),
            kind: Kind::Code,
            named: "physdev_op",
        },
    ];
    const TRAP: [Case; 1] = [Case {
        name: "a trap stands for what was boot-only",
        spoil: |payload| payload.trap("_domain_struct_bits"),
        kind: Kind::Freed,
        named: "which is a trap, and not to arch/x86/domain.c#_domain_struct_bits",
    }];
    const LABELS: [Case; 3] = [
        Case {
            name: "a label is that of the old function",
            spoil: |payload| {
                let old = payload.old_address(0)?;
                payload.aim(
                    ".rela.rodata",
                    0,
                    "common/version.c#build_id_len",
                    old + 0x30,
                )
            },
            kind: Kind::NotReplaced,
            named: "xen_build_id: the code that was replaced is still reached",
        },
        Case {
            name: "a label is another one",
            spoil: |payload| payload.add(".rela.rodata", 0, 0x10),
            kind: Kind::Code,
            named: "no function begins at",
        },
        Case {
            name: "a label is the start of its function",
            spoil: |payload| payload.add(".rela.rodata", 0, -0x30),
            kind: Kind::Reference,
            named: "labels.0: +0x0: it leads to xen_build_id and not to",
        },
    ];
    let base = base()?;
    let patches = [
        "replaced-fixups",
        "init-lost-function",
        "label-table",
        "once-flags-anew",
    ]
    .map(|name| repository().join(format!("tests/e2e/patches/{name}.patch")));
    let flags = ["once_.0", "once_.1"];
    let good = Good::build(&base, &patches)?.accepting(Accepted {
        renewed: flags
            .map(|flag| format!("arch/x86/mpparse.c:{flag}"))
            .into(),
        ..Accepted::default()
    });
    good.proved()?;
    good.caught(0, &FIXUPS)?;
    good.caught(1, &TRAP)?;
    good.caught(2, &LABELS)?;
    what_is_accepted_is_elsewhere(good, flags.map(str::to_owned).into())
}

/// That a variable starts again, or keeps its value, is no reason to take another one for
/// it, whoever accepts it.
fn what_is_accepted_is_elsewhere(good: Good, flags: Vec<String>) -> anyhow::Result<()> {
    const FLAGS: [Case; 3] = [
        Case {
            name: "a variable of the hypervisor stands for a flag",
            spoil: |payload| {
                payload.turn_all(".rela.text", (".data", -5), ("unaccounted_cpus", -5))
            },
            kind: Kind::Reference,
            named: "unaccounted_cpus",
        },
        Case {
            name: "a flag stands for two",
            spoil: |payload| payload.turn_all(".rela.text", (".data", -4), (".data", -5)),
            kind: Kind::Reference,
            named: "stands for it and for",
        },
        Case {
            name: "something else stands for a flag",
            spoil: |payload| {
                let genapic = ("genapic", 8 - 5);
                payload.turn_all(".rela.text", (".data", -5), genapic)
            },
            kind: Kind::Reference,
            named: "once_.0",
        },
    ];
    let good = good.accepting(Accepted {
        renewed: flags
            .iter()
            .map(|flag| format!("arch/x86/mpparse.c:{flag}"))
            .collect(),
        allow: flags.clone(),
        leave_out: flags,
        ..Accepted::default()
    });
    good.caught(3, &FLAGS)
}

#[test]
fn only_the_builds_options_are_accepted() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("out.livepatch");
    let patch = |name: &str| repository().join("tests/e2e/patches").join(name);
    let run = |name: &str, more: &[&str]| {
        let text = |path: &std::path::Path| path.display().to_string();
        let (tree, patch) = (text(&base.tree), text(&patch(name)));
        let (syms, to) = (text(&base.xen_syms), text(&output));
        let all = [
            "build",
            "-s",
            &tree,
            "-p",
            &patch,
            "--xen-syms",
            &syms,
            "-o",
            &to,
        ];
        local(&[&all[..], more].concat())
    };
    let told = ["--allow", "priv_op_ctxt"];
    let result = run("layout-allowed.patch", &[&told[..], &["--verify"]].concat())?;
    let stdout = String::from_utf8_lossy(&result.stdout);
    ensure!(result.status.success() && output.is_file(), "{result:?}");
    ensure!(
        stdout.contains("left out: struct priv_op_ctxt") && stdout.contains("\nproved: "),
        "{stdout}"
    );
    let result = verify(&base, &output, &[&patch("layout-allowed.patch")])?;
    let verdict = xsplice_e2e::result("verify", &result.stdout)?;
    let differences = verdict["differences"].as_array().context("differences")?;
    ensure!(
        result.status.code() == Some(1)
            && differences.len() == 1
            && differences[0]["kind"] == "layout"
            && differences[0]["name"] == "struct priv_op_ctxt",
        "{verdict:#}"
    );
    Ok(())
}

/// A patched hypervisor that is given was built without the hooks that the generator made:
/// what they do is not known.
#[test]
fn generated_hooks_are_not_proved_with_a_built_hypervisor() -> anyhow::Result<()> {
    let base = base()?;
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("constants.livepatch");
    build(
        &base,
        &repository().join("tests/e2e/data/constants.patch"),
        &output,
    )?;
    let text = |path: &std::path::Path| path.display().to_string();
    let result = local(&[
        "verify",
        &text(&output),
        "--json",
        "-s",
        &text(&base.tree),
        "--xen-syms",
        &text(&base.xen_syms),
        "--patched-syms",
        &text(&base.tree.join("xen/xen-syms")),
    ])?;
    let verdict = xsplice_e2e::result("verify", &result.stdout)?;
    let differences = verdict["differences"].as_array().context("differences")?;
    let said = differences.iter().map(|difference| {
        let field = |name: &str| difference[name].as_str().unwrap_or_default().to_owned();
        (field("kind"), field("name"), field("message"))
    });
    let said: Vec<_> = said.collect();
    let reason = "the generator made this hook: it is proved where the patched hypervisor is \
                  built with it, from the source and the patches";
    ensure!(
        result.status.code() == Some(1)
            && said.iter().any(|(kind, name, message)| {
                kind == "hook" && name == "put_new_data" && message == reason
            })
            && said.iter().all(|(kind, _, _)| kind == "hook"),
        "{said:#?}"
    );
    Ok(())
}

#[test]
fn the_command_builds_the_patched_hypervisor_and_reports_differences() -> anyhow::Result<()> {
    let base = base()?;
    let patch = repository().join(PATCH);
    let directory = tempfile::tempdir()?;
    let output = directory.path().join("good.livepatch");
    build(&base, &patch, &output)?;
    let other = repository().join("examples/xen-4.17/extra-version.patch");
    let good = verify(&base, &output, &[&patch])?;
    ensure!(good.status.success(), "{good:?}");
    // More was patched than the payload has. It was not built from all patches: no
    // build is needed to see that.
    let bad = verify(&base, &output, &[&patch, &other])?;
    let said = told("verify", &bad.stdout)?;
    let said = said["error"]["message"].as_str();
    ensure!(
        bad.status.code() == Some(1)
            && said.is_some_and(|said| said.contains("no payload that is given was built from it")),
        "{bad:?}"
    );
    Ok(())
}

fn verify(
    base: &Base,
    payload: &std::path::Path,
    patches: &[&std::path::Path],
) -> anyhow::Result<std::process::Output> {
    let text = |path: &std::path::Path| path.display().to_string();
    let (payload, tree, syms) = (text(payload), text(&base.tree), text(&base.xen_syms));
    let mut arguments = vec![
        "verify",
        &payload,
        "--json",
        "-s",
        &tree,
        "--xen-syms",
        &syms,
    ];
    let patches: Vec<_> = patches.iter().map(|patch| text(patch)).collect();
    for patch in &patches {
        arguments.extend(["-p", patch]);
    }
    local(&arguments)
}

/// `xen.efi` keeps boot-only code and data in one section, and its data elsewhere.
#[test]
fn payloads_for_xen_efi_are_proved_and_corrupted_ones_are_not() -> anyhow::Result<()> {
    let gz = base()?;
    let directory = tempfile::tempdir()?;
    let at = |name: &str| directory.path().join(name);
    let efi = Base {
        xen: gz.tree.join("xen/xen.efi"),
        xen_syms: at("xen-efi-syms"),
        ..base()?
    };
    let text = |path: &std::path::Path| path.display().to_string();
    let (syms, program, made) = (text(&gz.xen_syms), text(&efi.xen), text(&efi.xen_syms));
    let argv = [
        "efi-syms",
        "--xen-syms",
        &syms,
        "--xen-efi",
        &program,
        "-o",
        &made,
    ];
    let output = local(&argv)?;
    ensure!(output.status.success(), "{output:?}");

    let patch = repository().join(PATCH);
    let good = Good::build(&efi, &[patch])?;
    ensure!(good.proved()?.from_payload == 5);
    good.caught(0, &TWO_FILES)
}

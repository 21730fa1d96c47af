// SPDX-License-Identifier: MIT OR Apache-2.0
//! The second opinion on payloads that change data in place or bring per-CPU variables:
//! it agrees with what the generator makes, and gives the true reason where a table, or
//! the code that reads it, is corrupted.

use anyhow::ensure;
use std::path::PathBuf;
use xsplice_e2e::corrupted::{Case, Good};
use xsplice_e2e::{base, repository};
use xsplice_verify::Kind;

/// Where the pieces of a payload are in its `.rodata`, as a field of an instruction that
/// leads there has it: four bytes before.
const FIELD: u64 = 4;

/// Patches of which each has a payload, and the order of these.
const PATCHES: [&str; 4] = ["constants", "handlers", "integer", "per-cpu-other"];
const CONSTANTS: usize = 0;
const HANDLERS: usize = 1;
const INTEGER: usize = 2;
const PER_CPU: usize = 3;

/// The old contents, the new ones, then the table of one row.
const OF_CONSTANTS: [Case; 5] = [
    Case {
        name: "other contents are written",
        spoil: |payload| payload.flip(".rodata", 0x1a),
        kind: Kind::Constant,
        named: "_ctype: the constant differs: +0x2a",
    },
    Case {
        name: "other contents are expected",
        spoil: |payload| payload.flip(".rodata", 0x3),
        kind: Kind::Hook,
        named: "_ctype+0x23: the hooks write to it where they find other contents than it has",
    },
    Case {
        name: "not all that differs is written",
        spoil: |payload| {
            let row = payload.row("_ctype")?;
            payload.bytes[row + 32] = 7;
            Ok(())
        },
        kind: Kind::Constant,
        named: "_ctype: the constant differs: +0x2a",
    },
    Case {
        name: "what is written goes beyond the constant",
        spoil: |payload| payload.shift(".rela.rodata", "_ctype", 256 - 0x28),
        kind: Kind::Hook,
        named: "_ctype+0xfb: the hooks write to it, but not within one variable or constant",
    },
    Case {
        name: "the hooks have another name for it than a text",
        spoil: |payload| {
            let relocation = payload.against(".rela.rodata", ".rodata.str", 0)?[0];
            let code = payload.index("memcpy")?;
            payload.bytes[relocation + 12..relocation + 16].copy_from_slice(&code.to_le_bytes());
            Ok(())
        },
        kind: Kind::Hook,
        named: "_ctype+0x23: the hooks have no name for it",
    },
];

/// Many rows, of which the last has two pointers.
const OF_HANDLERS: [Case; 3] = [
    Case {
        name: "a pointer among the new contents leads elsewhere",
        spoil: |payload| payload.add(".rela.rodata", 6, 0x90),
        kind: Kind::Code,
        named: "show_patched_handlers: ",
    },
    Case {
        name: "a text among the new contents is another",
        spoil: |payload| payload.add(".rela.rodata", 7, 1),
        kind: Kind::Constant,
        named: "key_table: +0x9c8: it has \"how this message, patched\"",
    },
    Case {
        name: "two rows write to the same place",
        spoil: |payload| {
            let relocation = payload.relocation(".rela.rodata", "common/keyhandler.c#key_table")?;
            // A row has four pointers.
            let (first, second) = (relocation + 16, relocation + 4 * 24 + 16);
            payload.bytes.copy_within(first..first + 8, second);
            Ok(())
        },
        kind: Kind::Hook,
        named: "key_table+0x380: two rows of the table write to it",
    },
];

/// One row, for a variable: `check` reads its table first.
const OF_INTEGER: [Case; 10] = [
    Case {
        name: "another initial value is written",
        spoil: |payload| payload.flip(".rodata", 8),
        kind: Kind::InitialValue,
        named: "sched_smt_power_savings: its initial value differs",
    },
    Case {
        name: "the variable beside it is written to",
        spoil: |payload| payload.shift(".rela.rodata", "sched_smt_power_savings", 1),
        kind: Kind::InitialValue,
        named: "sched_smt_power_savings: its initial value differs",
    },
    Case {
        name: "code is written to",
        spoil: |payload| payload.retarget(".rela.rodata", ("sched_smt_power_savings", 0), "memcpy"),
        kind: Kind::Hook,
        named: "memcpy: the hooks write to it, but it is code",
    },
    Case {
        name: "the table is empty",
        spoil: |payload| payload.move_all(".rela.text", ".rodata", (0x38 - FIELD, 0x10 - FIELD)),
        kind: Kind::InitialValue,
        named: "sched_smt_power_savings: its initial value differs",
    },
    Case {
        name: "one hook reads another table than the others",
        spoil: |payload| {
            let last = payload
                .against(".rela.text", ".rodata", 0x38 - FIELD)?
                .pop();
            payload.put(last.unwrap_or_default() + 16, 0x10 - FIELD);
            Ok(())
        },
        kind: Kind::Reference,
        named: "put_new_data",
    },
    Case {
        name: "it is not asked whether it has its initial value",
        spoil: |payload| {
            let row = payload.row("sched_smt_power_savings")?;
            payload.bytes[row + 36] = 0;
            Ok(())
        },
        kind: Kind::Hook,
        named: "sched_smt_power_savings: the hooks change it without asking",
    },
    Case {
        name: "the hook that asks for the initial value is not called",
        spoil: |payload| payload.shorten(".livepatch.hooks.preapply", 8),
        kind: Kind::Hook,
        named: "check: the patched source has it as preapply hook",
    },
    Case {
        name: "no hook asks for the initial value",
        spoil: |payload| {
            payload.rename("#check@", "#chuck@")?;
            payload.shorten(".livepatch.hooks.preapply", 8)
        },
        kind: Kind::Hook,
        named: "sched_smt_power_savings: no pre-apply hook asks",
    },
    Case {
        name: "the code of a hook differs",
        spoil: |payload| payload.flip(".text", 0x140 + 0x20),
        kind: Kind::Code,
        named: "put_new_data: the payload's code differs",
    },
    Case {
        name: "the hook that brings the old value back is missing",
        spoil: |payload| payload.shorten(".livepatch.hooks.unload", 8),
        kind: Kind::Hook,
        named: "put_old_data: the patched source has it as unload hook",
    },
];

/// One row, then the words of the bit map.
const OF_PER_CPU: [Case; 8] = [
    Case {
        name: "a variable of the hypervisor has the place",
        spoil: |payload| {
            let timers = payload.symbol("per_cpu__timers")?;
            payload.make_absolute("per_cpu__extra_asked", timers)
        },
        kind: Kind::Hook,
        named: "is not in padding of the per-CPU areas",
    },
    Case {
        name: "the place is behind the per-CPU areas",
        spoil: |payload| {
            let end = payload.symbol("__per_cpu_data_end")?;
            payload.make_absolute("per_cpu__extra_asked", end)
        },
        kind: Kind::Hook,
        named: "is not in padding of the per-CPU areas",
    },
    Case {
        name: "the place is in the bit map",
        spoil: |payload| {
            let map = payload.value("xsplice_per_cpu_claims")?;
            payload.make_absolute("per_cpu__extra_asked", map)
        },
        kind: Kind::Hook,
        named: "is not in padding of the per-CPU areas",
    },
    Case {
        name: "not all of it is cleared",
        spoil: |payload| {
            let row = payload.row("per_cpu__extra_asked")?;
            payload.bytes[row + 8] = 4;
            Ok(())
        },
        kind: Kind::Reference,
        named: "extra_asked: padding of the per-CPU areas",
    },
    Case {
        name: "the table is empty",
        spoil: |payload| {
            let row = FIELD.wrapping_neg();
            payload.move_all(".rela.text", ".rodata", (row, 0x10 - FIELD))
        },
        kind: Kind::Hook,
        named: "it claims other padding than the payload's per-CPU variables are in",
    },
    Case {
        name: "the claim is for other padding",
        spoil: |payload| payload.flip(".rodata", 0x11),
        kind: Kind::Hook,
        named: "it claims other padding than the payload's per-CPU variables are in",
    },
    Case {
        name: "the claim is made elsewhere",
        spoil: |payload| {
            let map = payload.value("xsplice_per_cpu_claims")?;
            payload.make_absolute("xsplice_per_cpu_claims", map - 8)
        },
        kind: Kind::Hook,
        named: "it claims padding elsewhere than all payloads for this hypervisor do",
    },
    Case {
        name: "nothing asks whether the padding is free",
        spoil: |payload| payload.shorten(".livepatch.hooks.preapply", 8),
        kind: Kind::Hook,
        named: "check: the patched source has it as preapply hook",
    },
];

fn patch(name: &&str) -> PathBuf {
    repository().join(format!("tests/e2e/data/{name}.patch"))
}

#[test]
fn what_hooks_do_is_proved_and_corrupted_tables_are_caught() -> anyhow::Result<()> {
    let patches: Vec<PathBuf> = PATCHES.iter().map(patch).collect();
    let good = Good::build(&base()?, &patches)?;
    let notes = good.proved()?.notes.join("\n");
    for name in [
        "_ctype",
        "common/keyhandler.c#key_table",
        "sched_smt_power_savings",
    ] {
        let note = format!("{name} is changed in place by a hook");
        ensure!(notes.contains(&note), "{notes}");
    }
    good.caught(CONSTANTS, &OF_CONSTANTS)?;
    good.caught(HANDLERS, &OF_HANDLERS)?;
    good.caught(INTEGER, &OF_INTEGER)?;
    good.caught(PER_CPU, &OF_PER_CPU)
}

/// Both are good alone, and refuse each other on the host.
#[test]
fn two_payloads_do_not_have_the_same_padding() -> anyhow::Result<()> {
    let patches: Vec<PathBuf> = ["per-cpu", "per-cpu-other"].iter().map(patch).collect();
    let good = Good::build(&base()?, &patches)?;
    let verdict = good.opinion(good.payloads())?;
    let same = "two new per-CPU variables have the same place";
    ensure!(
        verdict.differences.iter().any(|d| d.message == same),
        "{:#?}",
        verdict.differences
    );
    Ok(())
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The Xen project's regression run on a live host, with Xen's own test payloads: on
//! Xen with the stock core and with ours, with the C tool and with ours. All behave
//! the same.

mod arm32;
mod arm64;
mod changed;
mod denied;
mod faults;
mod shown;
mod told;

use anyhow::{Context as _, ensure};
use std::io::Write as _;
use std::path::Path;
use xsplice_e2e::{Base, base, c_tool_fits, config, rust_base};
use xsplice_lab::{Host, Output};

/// The hypervisor's version string after a step.
#[derive(Clone, Copy)]
enum Version {
    /// The original one.
    Original,
    /// One that contains this text.
    Says(&'static str),
    /// A different one, which depends on the contents of a register.
    Other,
}
use Version::{Original, Other, Says};

/// Step numbers of the regression run, arguments of the tool, its exit code, its
/// output, and the version after it. A list without an expected output must contain
/// none of Xen's payloads.
type Step = (
    &'static str,
    &'static [&'static str],
    i32,
    &'static str,
    Version,
);

/// The 37 steps, and further payloads; each includes a version query.
const STEPS: &[Step] = &[
    ("1 to 4", &["list"], 0, "", Original),
    (
        "5",
        &["revert", "xen_hello_world"],
        1,
        "Error 2: ",
        Original,
    ),
    (
        "6",
        &["load", "/lab/xen_hello_world.livepatch"],
        0,
        "completed",
        Says("Hello World"),
    ),
    (
        "7",
        &["load", "/lab/xen_hello_world.livepatch"],
        1,
        "Error 17: ",
        Says("Hello World"),
    ),
    (
        "8 and 9",
        &["list"],
        0,
        "xen_hello_world                         | APPLIED",
        Says("Hello World"),
    ),
    (
        "10 and 11",
        &["revert", "xen_hello_world"],
        0,
        "completed",
        Original,
    ),
    (
        "12",
        &["unload", "xen_hello_world"],
        0,
        "completed",
        Original,
    ),
    (
        "13 and 14",
        &["unload", "xen_hello_world"],
        1,
        "Error 2: ",
        Original,
    ),
    (
        "15 and 16",
        &["load", "/lab/xen_hello_world.livepatch"],
        0,
        "completed",
        Says("Hello World"),
    ),
    (
        "17 and 18",
        &["load", "/lab/xen_bye_world.livepatch"],
        0,
        "completed",
        Says("Bye World!"),
    ),
    (
        "19",
        &[
            "upload",
            "xen_replace_world",
            "/lab/xen_replace_world.livepatch",
        ],
        0,
        "completed",
        Says("Bye World!"),
    ),
    (
        "20 and 21",
        &["replace", "xen_replace_world"],
        0,
        "completed",
        Says("Hello Again Wor"),
    ),
    (
        "",
        &["list"],
        0,
        "xen_replace_world                       | APPLIED",
        Says("Hello Again Wor"),
    ),
    (
        "22",
        &["apply", "xen_hello_world"],
        1,
        "Error 22: ",
        Says("Hello Again Wor"),
    ),
    (
        "23",
        &["apply", "xen_bye_world"],
        1,
        "Error 22: ",
        Says("Hello Again Wor"),
    ),
    (
        "24",
        &["apply", "xen_replace_world"],
        0,
        "No action needed",
        Says("Hello Again Wor"),
    ),
    (
        "25",
        &["revert", "xen_replace_world"],
        0,
        "completed",
        Original,
    ),
    (
        "26",
        &["unload", "xen_replace_world"],
        0,
        "completed",
        Original,
    ),
    (
        "27",
        &["unload", "xen_hello_world"],
        0,
        "completed",
        Original,
    ),
    ("28", &["unload", "xen_bye_world"], 0, "completed", Original),
    ("29 and 30", &["list"], 0, "", Original),
    ("31", &["load", "/lab/nop.livepatch"], 0, "completed", Other),
    ("32", &["revert", "nop"], 0, "completed", Original),
    ("33 and 34", &["apply", "nop"], 0, "completed", Other),
    ("35", &["unload", "nop"], 1, "wrong state", Other),
    ("36", &["revert", "nop"], 0, "completed", Original),
    ("37", &["unload", "nop"], 0, "completed", Original),
    (
        "",
        &["load", "/lab/xen_no_xen_buildid.livepatch"],
        1,
        "Error 22: ",
        Original,
    ),
    (
        "",
        &["load", "/lab/xen_expectations.livepatch"],
        0,
        "completed",
        Says("Hello World"),
    ),
    (
        "",
        &["revert", "xen_expectations"],
        0,
        "completed",
        Original,
    ),
    (
        "",
        &["unload", "xen_expectations"],
        0,
        "completed",
        Original,
    ),
    (
        "",
        &["load", "/lab/xen_expectations_fail.livepatch"],
        1,
        "Error 22: ",
        Original,
    ),
    (
        "",
        &["load", "/lab/xen_prepost_hooks_fail.livepatch"],
        1,
        "failed",
        Original,
    ),
    ("", &["list"], 0, "", Original),
];

/// Payloads whose hooks count their calls and stop the hypervisor if the number is
/// wrong: the CPUs get enough time to rendezvous at the first try.
const HOOKED: &[Step] = &[
    (
        "",
        &["upload", "hooks", "/lab/xen_prepost_hooks.livepatch"],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 0, "", Says("Hello World")),
    ("", &["revert", "hooks"], 1, "", Says("Hello World")),
    ("", &["revert", "hooks"], 0, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    (
        "",
        &["upload", "hooks", "/lab/xen_action_hooks.livepatch"],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 0, "", Original),
    ("", &["revert", "hooks"], 0, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    (
        "",
        &["upload", "hooks", "/lab/xen_action_hooks_nofunc.livepatch"],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 0, "", Original),
    ("", &["revert", "hooks"], 0, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    (
        "",
        &["upload", "hooks", "/lab/xen_action_hooks_marker.livepatch"],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 0, "", Says("Hello World")),
    ("", &["revert", "hooks"], 0, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    (
        "",
        &["upload", "hooks", "/lab/xen_action_hooks_noapply.livepatch"],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 1, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    (
        "",
        &[
            "upload",
            "hooks",
            "/lab/xen_action_hooks_norevert.livepatch",
        ],
        0,
        "",
        Original,
    ),
    ("", &["apply", "hooks"], 0, "", Says("Hello World")),
    ("", &["revert", "hooks"], 1, "", Original),
    ("", &["unload", "hooks"], 0, "", Original),
    ("", &["list"], 0, "", Original),
];

fn version(host: &mut Host) -> anyhow::Result<String> {
    let info = host.run(&["xsplice", "info"])?.stdout;
    let line = info.lines().find(|line| line.starts_with("version "));
    Ok(line.with_context(|| info.clone())?.to_owned())
}

/// The rendezvous timed out, which can happen in emulation.
fn late(output: &Output) -> bool {
    output.code == Some(2) || output.stderr.contains("resource busy")
}

/// Tries for an action whose rendezvous times out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tries {
    Many,
    /// With a long timeout.
    One,
}

/// Runs the steps; returns the tool's output.
fn make(host: &mut Host, tool: &str, steps: &[Step], tries: Tries) -> anyhow::Result<Vec<Output>> {
    let original = version(host)?;
    let mut outputs = Vec::new();
    for (_, arguments, code, words, wanted) in steps {
        let mut argv = [&[tool], *arguments].concat();
        if tries == Tries::One && matches!(arguments, ["apply" | "revert", ..]) {
            argv.extend(["--timeout", "4000", "--retries", "0"]);
        }
        let mut output = host.run(&argv)?;
        for _ in 1..60 {
            if tries == Tries::One || !late(&output) {
                break;
            }
            output = host.run(&argv)?;
        }
        ensure!(output.code == Some(*code), "{argv:?}: {output:?}");
        let said = format!("{}{}", output.stdout, output.stderr);
        ensure!(
            said.contains(words),
            "{argv:?} without {words:?}: {output:?}"
        );
        let empty = *arguments != ["list"] || !words.is_empty() || !said.contains("xen_");
        ensure!(empty, "{argv:?}: {output:?}");
        let version = version(host)?;
        let right = match wanted {
            Original => version == original,
            Says(text) => version.contains(text),
            Other => version != original,
        };
        ensure!(right, "{argv:?}: {version}, at first {original}");
        // libxenctrl logs failures in separate lines before the tool's.
        let words = output
            .stderr
            .lines()
            .filter(|line| !line.starts_with("xc: "));
        output.stderr = words.map(|line| format!("{line}\n")).collect();
        outputs.push(output);
    }
    Ok(outputs)
}

/// Xen's `xen_nop`, corrected for this compiler: it keeps the complete jump to the
/// return thunk, not only its last byte.
fn nop(payloads: &Path) -> anyhow::Result<Vec<u8>> {
    /// xen_minor_version: `mov` and `jmp` of 5 bytes each.
    const OLD_SIZE: u32 = 10;
    let mut data = std::fs::read(payloads.join("xen_nop.livepatch"))?;
    let mut record = Vec::new();
    record.extend((OLD_SIZE - 1).to_le_bytes());
    record.extend(OLD_SIZE.to_le_bytes());
    record.push(2);
    let mut places = data.windows(record.len()).enumerate();
    let at = places.find(|(_, bytes)| *bytes == record).map(|(at, _)| at);
    let at = at.context("xen_minor_version has another size than expected")?;
    data[at..at + 4].copy_from_slice(&(OLD_SIZE / 2).to_le_bytes());
    Ok(data)
}

/// Our tool under the C tool's name.
const OURS: &str = "/bin/xen-livepatch";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Core {
    C,
    Rust,
}

/// The output of both tools on one hypervisor.
struct Run {
    theirs: Vec<Output>,
    ours: Vec<Output>,
    /// Deviations in its answers to invalid requests and files.
    faults: Vec<String>,
}

/// The steps with both tools, and those with hooks, on a host that has been booted.
fn make_all(host: &mut Host, base: &Base, nop: &[u8]) -> anyhow::Result<[Vec<Output>; 2]> {
    let both = make_both(host, base, nop)?;
    make(host, "xsplice", HOOKED, Tries::One)?;
    Ok(both)
}

/// The steps with both tools.
fn make_both(host: &mut Host, base: &Base, nop: &[u8]) -> anyhow::Result<[Vec<Output>; 2]> {
    host.put("/lab/nop.livepatch", nop)?;
    // Where the C tool cannot be used, ours takes the same steps twice.
    let c_tool = match c_tool_fits(base)? {
        true => "/c/xen-livepatch",
        false => OURS,
    };
    let theirs = make(host, c_tool, STEPS, Tries::Many)?;
    let ours = make(host, OURS, STEPS, Tries::Many)?;
    Ok([theirs, ours])
}

fn run(base: &Base, core: Core) -> anyhow::Result<Run> {
    let directory = tempfile::tempdir()?;
    let mut config = config(base)?;
    faults::add_to(&mut config, base, directory.path())?;
    let mut host = Host::boot(&config)?;
    let nop = nop(&base.test_payloads)?;
    let [theirs, ours] = make_all(&mut host, base, &nop)?;
    let faults = faults::wrong(&faults::make(&mut host)?, base, core)?;
    if core == Core::Rust {
        half_an_instruction_is_refused(&mut host)?;
        denied::functions_on_the_deny_list_are_refused(&mut host, base, denied::ON_X86_64)?;
        told::metadata_is_printed(&mut host, base)?;
        told::a_refusal_is_short(&mut host, base)?;
    }
    shown::no_list_is_forged(&mut host, base)?;
    shown::a_replace_names_what_is_lost(&mut host, base)?;
    host.shut_down()?;
    Ok(Run {
        theirs,
        ours,
        faults,
    })
}

#[test]
fn both_cores_behave_the_same_with_both_tools() -> anyhow::Result<()> {
    let rust = run(&rust_base()?, Core::Rust).context("our core")?;
    let c = run(&base()?, Core::C).context("Xen's own core")?;
    let faults = [("our core", &rust.faults), ("Xen's own core", &c.faults)];
    let mut differences: Vec<_> = faults
        .iter()
        .flat_map(|(core, faults)| faults.iter().map(move |fault| format!("{core}: {fault}")))
        .collect();
    let four = [&c.theirs, &c.ours, &rust.theirs, &rust.ours];
    differences.extend(compare(four, "regression.tsv")?);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    Ok(())
}

/// Writes the results of all four runs to the table `name`; returns the rows in which
/// they differ.
fn compare(four: [&Vec<Output>; 4], name: &str) -> anyhow::Result<Vec<String>> {
    let mut table =
        "steps\tcommand\tC core, C tool\tC core, ours\tour core, C tool\tour core, ours\n"
            .to_owned();
    let mut differences = Vec::new();
    for (index, (number, arguments, ..)) in STEPS.iter().enumerate() {
        let four = four.map(|run| &run[index]);
        let results = four.map(result).join("\t");
        let row = format!("{number}\t{}\t{results}\n", arguments.join(" "));
        if four.iter().any(|output| *output != four[0]) {
            differences.push(format!("{row}{four:#?}"));
        }
        table.push_str(&row);
    }
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, table)?;
    let line = format!(
        "{} rows with 37 steps, four times, {} different: {}\n",
        STEPS.len(),
        differences.len(),
        path.display()
    );
    std::io::stderr().write_all(line.as_bytes())?;
    Ok(differences)
}

/// The exit code, and the last line of output.
fn result(output: &Output) -> String {
    let code = output
        .code
        .map_or("killed".to_owned(), |code| code.to_string());
    let said = format!("{}{}", output.stdout, output.stderr);
    format!("{code}: {}", said.lines().last().unwrap_or_default().trim())
}

/// The stock core loads and applies `xen_nop`, and the hypervisor crashes.
fn half_an_instruction_is_refused(host: &mut Host) -> anyhow::Result<()> {
    let output = host.run(&["xsplice", "upload", "nop", "/lab/xen_nop.livepatch"])?;
    ensure!(output.code == Some(1), "{output:?}");
    let console = host.console();
    let reason = "end inside of the instruction";
    ensure!(console.contains(reason), "{console}");
    Ok(())
}

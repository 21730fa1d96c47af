// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice inspect`.

use crate::output::{Ended, failure, shown};
use crate::signature::{Certs, State};
use anyhow::Context as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_review::payload::{Function, Section};
use xsplice_review::{Image, Line, Listing, Payload, Record};
use xsplice_system::file;
use xsplice_system::lines;

const EXAMPLES: &str = "\
Examples:
  xsplice inspect fix.livepatch
  xsplice inspect fix.livepatch --xen-syms xen-syms | less
  xsplice inspect fix.livepatch --relocations
  xsplice inspect fix.livepatch --json | jq .result.functions

Side by side, | marks instructions that differ, < and > those that are only in
the old or the new code.";

/// Arguments of `xsplice inspect`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The payload, made by xsplice or another tool.
    payload: PathBuf,
    /// The hypervisor's image with symbols: shows old and new code side by side.
    #[arg(long, value_name = "FILE")]
    xen_syms: Option<PathBuf>,
    /// List every relocation, not only their number (JSON always lists them).
    #[arg(long)]
    relocations: bool,
    #[command(flatten)]
    certs: Certs,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match read_all(args) {
        Ok(inspected) => {
            if !json {
                lines::print(format_args!("{}", text(&inspected, args.relocations)));
            }
            Ended::well(inspected).tell(json)
        }
        Err(error) => failure(&error, json),
    }
}

/// What is in a payload.
#[derive(serde::Serialize, schemars::JsonSchema)]
pub(crate) struct Inspected {
    #[serde(flatten)]
    payload: Payload,
    /// Who has signed it.
    signature: State,
    /// Old and new code side by side, if the hypervisor's image was given.
    listings: Option<Vec<Listing>>,
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    file::read(path).with_context(|| format!("cannot read {}", shown(path)))
}

pub(crate) fn read_image(path: &Path) -> anyhow::Result<Image> {
    Image::parse(&read(path)?).with_context(|| shown(path))
}

fn read_all(args: &Args) -> anyhow::Result<Inspected> {
    let name = || shown(&args.payload);
    let data = read(&args.payload)?;
    let image = args.xen_syms.as_deref().map(read_image).transpose()?;
    let payload = Payload::read(&data, image.as_ref()).with_context(name)?;
    let signature = args.certs.read()?.state(&data);
    let listings = image.map(|image| xsplice_review::compare(&data, &image));
    let listings = listings.transpose().with_context(name)?;
    Ok(Inspected {
        payload,
        signature,
        listings,
    })
}

fn text(inspected: &Inspected, relocations: bool) -> String {
    let mut text = Text(String::new());
    describe(
        &mut text,
        &inspected.payload,
        &inspected.signature,
        relocations,
    );
    let colour = std::io::stdout().is_terminal();
    for listing in inspected.listings.iter().flatten() {
        side_by_side(&mut text, listing, colour);
    }
    text.0
}

/// Lines about a payload. Text from the payload can neither start a line nor hide in
/// one.
struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments) {
        self.coloured(line, "");
    }

    /// The heading of a part.
    fn title(&mut self, line: std::fmt::Arguments) {
        self.0.push('\n');
        self.line(line);
    }

    fn coloured(&mut self, line: std::fmt::Arguments, code: &str) {
        let line = line.to_string();
        let line = escaped(line.trim_end_matches(' '));
        self.0 += &match code {
            "" => format!("{line}\n"),
            code => format!("\x1b[{code}m{line}\x1b[0m\n"),
        };
    }
}

fn describe(text: &mut Text, payload: &Payload, signature: &State, relocations: bool) {
    for (what, id) in [
        ("build-id", &payload.build_id),
        ("depends on", &payload.depends),
        ("for hypervisor", &payload.xen_depends),
    ] {
        text.line(format_args!(
            "{what:<16}{}",
            id.as_deref().unwrap_or("none")
        ));
    }
    text.line(format_args!("{:<16}{signature}", "signature"));
    for line in &payload.metadata {
        text.line(format_args!("{:<16}{line}", "metadata"));
    }
    if let Some(record) = &payload.record {
        describe_record(text, record);
    }
    text.title(format_args!("Functions: {}", payload.functions.len()));
    for function in &payload.functions {
        describe_function(text, function);
    }
    describe_hooks(text, payload);
    describe_tables(text, payload);
    describe_symbols(text, payload);
    text.title(format_args!("Sections:"));
    for section in &payload.sections {
        describe_section(text, section, relocations);
    }
}

fn describe_hooks(text: &mut Text, payload: &Payload) {
    if !payload.hooks.is_empty() {
        text.title(format_args!("Hooks:"));
    }
    for hook in &payload.hooks {
        text.line(format_args!(
            "  {:<12} {}",
            hook.stage,
            hook.functions.join(", ")
        ));
    }
}

fn describe_tables(text: &mut Text, payload: &Payload) {
    for table in &payload.tables {
        text.title(format_args!("{}:", table.name));
        for entry in &table.entries {
            text.line(format_args!("  {}: {}", entry.place, entry.meaning));
        }
    }
}

/// The symbols that the payload brings, and those that it takes from the hypervisor.
fn describe_symbols(text: &mut Text, payload: &Payload) {
    if !payload.carried.is_empty() {
        text.title(format_args!("New in the payload:"));
    }
    for symbol in &payload.carried {
        text.line(format_args!(
            "  {:<48} {:>6} bytes  {:<8}  {}",
            symbol.name,
            symbol.size,
            if symbol.function { "function" } else { "data" },
            symbol.section
        ));
    }
    if !payload.needed.is_empty() || !payload.absolute.is_empty() {
        text.title(format_args!("Refers to:"));
    }
    for name in &payload.needed {
        text.line(format_args!("  {name:<48} by name"));
    }
    for symbol in &payload.absolute {
        text.line(format_args!(
            "  {:<48} at {:#x}",
            symbol.name, symbol.address
        ));
    }
}

fn describe_section(text: &mut Text, section: &Section, relocations: bool) {
    let relocated = match section.relocations.len() {
        0 => String::new(),
        1 => "1 relocation".to_owned(),
        many => format!("{many} relocations"),
    };
    text.line(format_args!(
        "  {:<34} {:>7} bytes  {:<3}  {relocated}",
        section.name, section.size, section.flags
    ));
    for field in section.relocations.iter().filter(|_| relocations) {
        text.line(format_args!(
            "    +{:#06x}  {:<15} {}{:+#x}",
            field.offset, field.kind, field.symbol, field.addend
        ));
    }
}

/// The build record.
fn describe_record(text: &mut Text, record: &Record) {
    let options = &record.options;
    if let Some(reservation) = record.reservation() {
        text.line(format_args!("{:<16}{reservation}", "note"));
    }
    let lone = |value: &Option<String>| value.iter().cloned().collect::<Vec<_>>();
    for (option, values) in [
        ("--allow", options.allow.clone()),
        ("--config", lone(&options.config)),
        ("--depends", lone(&options.depends)),
        ("--hooks", options.hooks.clone()),
        ("--leave-out", options.leave_out.clone()),
        ("--patch-data", options.patch_data.clone()),
        ("--xen-depends", lone(&options.xen_depends)),
    ] {
        for name in values {
            text.line(format_args!("{:<16}{option} {name}", "built with"));
        }
    }
    for (option, given) in [
        ("--leave-out-init", options.leave_out_init),
        ("--prelink", options.prelink),
    ] {
        if given {
            text.line(format_args!("{:<16}{option}", "built with"));
        }
    }
    for data in &record.patched_data {
        let kind = if data.variable {
            "variable"
        } else {
            "constant"
        };
        text.line(format_args!(
            "{:<16}{kind} {} of {}, {} of {} bytes at {:#x}",
            "in place", data.name, data.file, data.written, data.size, data.address
        ));
    }
    for variable in &record.per_cpu {
        text.line(format_args!(
            "{:<16}{} of {}, {} bytes at {:#x} in the first CPU's area",
            "per CPU", variable.name, variable.file, variable.size, variable.address
        ));
    }
    for (what, texts) in [("warning", &record.warnings), ("note", &record.notes)] {
        for entry in texts {
            text.line(format_args!("{what:<16}{entry}"));
        }
    }
    if !record.hunks.is_empty() {
        text.title(format_args!("Hunks of the source patches:"));
    }
    for hunk in &record.hunks {
        let names = match hunk.names.as_slice() {
            [] => String::new(),
            names => format!(": {}", names.join(", ")),
        };
        let place = format!("{}:{}", hunk.file, hunk.line);
        let effect = hunk.effect_in_words();
        text.line(format_args!("  {place}  {effect}{names}"));
    }
}

fn describe_function(text: &mut Text, function: &Function) {
    let place = match (&function.old_address, &function.old_symbol) {
        (Some(address), _) => format!("{address:#x}"),
        (None, Some(symbol)) => format!("the symbol {symbol}"),
        (None, None) => "an unknown address".to_owned(),
    };
    let new = match &function.new {
        Some(new) => format!(
            "{} bytes at {}+{:#x}",
            function.new_size, new.section, new.offset
        ),
        None => format!("{} bytes of no-ops", function.new_size),
    };
    text.line(format_args!("  {}", function.name));
    text.line(format_args!(
        "    {} bytes at {place} become {new}",
        function.old_size
    ));
    if let Some(expected) = &function.expected {
        text.line(format_args!("    expects  {expected}"));
    }
    if let Some(hash) = &function.preimage {
        text.line(format_args!("    preimage sha256:{hash}"));
    }
}

/// Width of the old side.
const WIDTH: usize = 60;

fn side_by_side(text: &mut Text, listing: &Listing, colour: bool) {
    text.title(format_args!("{}:", listing.function.name));
    for line in &listing.lines {
        let side = |code: &Option<xsplice_review::compare::Code>| {
            let code = code.as_ref();
            code.map_or(String::new(), |c| format!("{:>5x}  {}", c.offset, c.text))
        };
        let (mark, code) = mark(line);
        let (mut old, new) = (side(&line.old), side(&line.new));
        if old.chars().count() > WIDTH {
            old = old.chars().take(WIDTH - 3).chain("...".chars()).collect();
        }
        let code = if colour { code } else { "" };
        text.coloured(format_args!("{old:<WIDTH$} {mark} {new}"), code);
    }
}

/// The character between the two sides, and the colour of the line.
fn mark(line: &Line) -> (char, &'static str) {
    match (&line.old, &line.new) {
        _ if line.same => (' ', ""),
        (Some(_), Some(_)) => ('|', "33"),
        (Some(_), None) => ('<', "31"),
        _ => ('>', "32"),
    }
}

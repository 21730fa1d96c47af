// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice inspect`.

use crate::output::{failure, shown};
use anyhow::Context as _;
use std::fmt::Write as _;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use xsplice_abi::text::escaped;
use xsplice_review::payload::Function;
use xsplice_review::{Image, Line, Listing, Payload, Record};
use xsplice_system::lines;

const EXAMPLES: &str = "\
Examples:
  xsplice inspect fix.livepatch
  xsplice inspect fix.livepatch --xen-syms xen-syms | less
  xsplice inspect fix.livepatch --relocations
  xsplice inspect fix.livepatch --json | jq .functions

Side by side, | stands between instructions that differ, < and > before those
that are only in the old or the new code.";

/// Arguments of `xsplice inspect`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The payload, made by xsplice or another tool.
    payload: PathBuf,
    /// The hypervisor's image with symbols: shows old and new code side by side.
    #[arg(long, value_name = "FILE")]
    xen_syms: Option<PathBuf>,
    /// List every relocation (always in JSON), not only how many there are.
    #[arg(long)]
    relocations: bool,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match show(args, json) {
        Ok(text) => {
            lines::print(format_args!("{text}"));
            ExitCode::SUCCESS
        }
        Err(error) => failure(&error, json),
    }
}

pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", shown(path)))
}

pub(crate) fn read_image(path: &Path) -> anyhow::Result<Image> {
    Image::parse(&read(path)?).with_context(|| shown(path))
}

fn show(args: &Args, json: bool) -> anyhow::Result<String> {
    let name = || shown(&args.payload);
    let data = read(&args.payload)?;
    let image = args.xen_syms.as_deref().map(read_image).transpose()?;
    let payload = Payload::read(&data, image.as_ref()).with_context(name)?;
    let listings = image.map(|image| xsplice_review::compare(&data, &image));
    let listings = listings.transpose().with_context(name)?;
    if json {
        let mut value = serde_json::to_value(&payload)?;
        if let Some(listings) = listings {
            value["listings"] = serde_json::to_value(&listings)?;
        }
        return Ok(format!("{value:#}\n"));
    }
    let mut text = String::new();
    describe(&mut text, &payload, args.relocations)?;
    let colour = std::io::stdout().is_terminal();
    for listing in listings.iter().flatten() {
        side_by_side(&mut text, listing, colour)?;
    }
    Ok(text)
}

fn describe(text: &mut String, payload: &Payload, relocations: bool) -> std::fmt::Result {
    for (what, id) in [
        ("build-id", &payload.build_id),
        ("depends on", &payload.depends),
        ("for hypervisor", &payload.xen_depends),
    ] {
        writeln!(text, "{what:<16}{}", id.as_deref().unwrap_or("none"))?;
    }
    for line in &payload.metadata {
        writeln!(text, "{:<16}{}", "metadata", escaped(line))?;
    }
    if let Some(record) = &payload.record {
        describe_record(text, record)?;
    }
    writeln!(text, "\nFunctions: {}", payload.functions.len())?;
    for function in &payload.functions {
        describe_function(text, function)?;
    }
    if !payload.hooks.is_empty() {
        writeln!(text, "\nHooks:")?;
    }
    for hook in &payload.hooks {
        writeln!(text, "  {:<12} {}", hook.stage, hook.functions.join(", "))?;
    }
    for table in &payload.tables {
        writeln!(text, "\n{}:", table.name)?;
        for entry in &table.entries {
            writeln!(text, "  {}: {}", entry.place, entry.meaning)?;
        }
    }
    if !payload.carried.is_empty() {
        writeln!(text, "\nBrings with it:")?;
    }
    for symbol in &payload.carried {
        writeln!(
            text,
            "  {:<48} {:>6} bytes  {:<8}  {}",
            escaped(&symbol.name).to_string(),
            symbol.size,
            if symbol.function { "function" } else { "data" },
            symbol.section
        )?;
    }
    if !payload.needed.is_empty() || !payload.absolute.is_empty() {
        writeln!(text, "\nRefers to:")?;
    }
    for name in &payload.needed {
        writeln!(text, "  {:<48} by name", escaped(name).to_string())?;
    }
    for symbol in &payload.absolute {
        let name = escaped(&symbol.name).to_string();
        writeln!(text, "  {name:<48} at {:#x}", symbol.address)?;
    }
    writeln!(text, "\nSections:")?;
    for section in &payload.sections {
        let relocated = match section.relocations.len() {
            0 => String::new(),
            1 => "1 relocation".to_owned(),
            many => format!("{many} relocations"),
        };
        let line = format!(
            "  {:<34} {:>7} bytes  {:<3}  {relocated}",
            escaped(&section.name).to_string(),
            section.size,
            section.flags
        );
        writeln!(text, "{}", line.trim_end())?;
        for field in section.relocations.iter().filter(|_| relocations) {
            writeln!(
                text,
                "    +{:#06x}  {:<15} {}{:+#x}",
                field.offset,
                field.kind,
                escaped(&field.symbol),
                field.addend
            )?;
        }
    }
    Ok(())
}

/// What the generator recorded about the build.
fn describe_record(text: &mut String, record: &Record) -> std::fmt::Result {
    let options = &record.options;
    for (option, names) in [
        ("--allow", &options.allow),
        ("--leave-out", &options.leave_out),
    ] {
        for name in names {
            writeln!(text, "{:<16}{option} {}", "built with", escaped(name))?;
        }
    }
    for (option, given) in [
        ("--leave-out-init", options.leave_out_init),
        ("--prelink", options.prelink),
    ] {
        if given {
            writeln!(text, "{:<16}{option}", "built with")?;
        }
    }
    for (what, texts) in [("warning", &record.warnings), ("note", &record.notes)] {
        for entry in texts {
            writeln!(text, "{what:<16}{}", escaped(entry))?;
        }
    }
    if !record.hunks.is_empty() {
        writeln!(text, "\nHunks of the source patches:")?;
    }
    for hunk in &record.hunks {
        let names = match hunk.names.as_slice() {
            [] => String::new(),
            names => format!(": {}", names.join(", ")),
        };
        let place = format!("{}:{}", hunk.file, hunk.line);
        let effect = hunk.effect_in_words();
        writeln!(text, "  {}", escaped(&format!("{place}  {effect}{names}")))?;
    }
    Ok(())
}

fn describe_function(text: &mut String, function: &Function) -> std::fmt::Result {
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
    writeln!(
        text,
        "  {}\n    {} bytes at {place} become {new}",
        escaped(&function.name),
        function.old_size
    )?;
    if let Some(expected) = &function.expected {
        writeln!(text, "    expects  {expected}")?;
    }
    if let Some(hash) = &function.preimage {
        writeln!(text, "    preimage sha256:{hash}")?;
    }
    Ok(())
}

/// How wide the old side is.
const WIDTH: usize = 60;

fn side_by_side(text: &mut String, listing: &Listing, colour: bool) -> std::fmt::Result {
    writeln!(text, "\n{}:", listing.function.name)?;
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
        let row = format!("{old:<WIDTH$} {mark} {new}");
        match row.trim_end() {
            row if colour && !code.is_empty() => writeln!(text, "\x1b[{code}m{row}\x1b[0m")?,
            row => writeln!(text, "{row}")?,
        }
    }
    Ok(())
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

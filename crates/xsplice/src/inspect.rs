//! `xsplice inspect`.

use anyhow::Context as _;
use serde_json::json;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use xsplice_inspect::{Line, Listing, Payload};

const EXAMPLES: &str = "\
Examples:
  xsplice inspect fix.livepatch
  xsplice inspect fix.livepatch --xen-syms xen-syms
  xsplice inspect fix.livepatch --json | jq .functions";

/// Arguments of `xsplice inspect`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The payload.
    payload: PathBuf,
    /// The hypervisor's image with symbols: shows old and new code side by side.
    #[arg(long, value_name = "FILE")]
    xen_syms: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, json: bool) -> ExitCode {
    match show(args, json) {
        Ok(text) => {
            // A reader that closes the pipe has seen enough.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            if json {
                println!("{:#}", json!({ "error": format!("{error:#}") }));
            }
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(args: &Args, json: bool) -> anyhow::Result<String> {
    let name = || args.payload.display().to_string();
    let data = std::fs::read(&args.payload).with_context(name)?;
    let payload = Payload::read(&data).with_context(name)?;
    let listings = match &args.xen_syms {
        Some(path) => {
            let image = std::fs::read(path).with_context(|| path.display().to_string())?;
            xsplice_inspect::compare(&data, &image).with_context(|| path.display().to_string())?
        }
        None => Vec::new(),
    };
    if json {
        let mut value = serde_json::to_value(&payload)?;
        if args.xen_syms.is_some() {
            value["listings"] = serde_json::to_value(&listings)?;
        }
        return Ok(format!("{value:#}\n"));
    }
    let mut text = describe(&payload);
    let colour = std::io::stdout().is_terminal();
    for listing in &listings {
        text.push_str(&side_by_side(listing, colour));
    }
    Ok(text)
}

fn describe(payload: &Payload) -> String {
    let mut text = String::new();
    let mut say = |line: String| {
        text.push_str(line.trim_end());
        text.push('\n');
    };
    let id = |id: &Option<String>| id.clone().unwrap_or_else(|| "none".to_owned());
    say(format!("build-id     {}", id(&payload.build_id)));
    say(format!("depends      {}", id(&payload.depends)));
    say(format!("hypervisor   {}", id(&payload.xen_depends)));
    for line in &payload.metadata {
        say(format!("metadata     {line}"));
    }
    say(format!("functions    {}", payload.functions.len()));
    for f in &payload.functions {
        let new = f.new.as_ref();
        let new = new.map_or("no-ops".to_owned(), |(section, offset)| {
            format!("{section}+{offset:#x}")
        });
        let expected = f.expected.as_ref().map_or(String::new(), |bytes| {
            format!("  expects {} bytes", bytes.len() / 2)
        });
        say(format!(
            "  {:<40} {:#018x} {:>6} -> {:<6} {new}{expected}",
            f.name, f.old_address, f.old_size, f.new_size
        ));
    }
    if payload.preimages > 0 {
        say(format!("preimages    {}", payload.preimages));
    }
    for hook in &payload.hooks {
        let functions = hook.functions.join(", ");
        say(format!("hook         {}: {functions}", hook.stage));
    }
    for table in &payload.tables {
        say(format!(
            "table        {}: {} entries",
            table.name, table.entries
        ));
    }
    for (what, names) in [
        ("new", &payload.new_symbols),
        ("needs", &payload.needed_symbols),
    ] {
        for name in names {
            say(format!("{what:<12} {name}"));
        }
    }
    for symbol in &payload.absolute_symbols {
        say(format!(
            "at address   {:#018x} {}",
            symbol.address, symbol.name
        ));
    }
    for section in &payload.sections {
        say(format!(
            "section      {:<28} {:>8} bytes  {:<3}  {} relocations",
            section.name, section.size, section.flags, section.relocations
        ));
    }
    text
}

/// How wide the old side is.
const WIDTH: usize = 60;

fn side_by_side(listing: &Listing, colour: bool) -> String {
    let mut text = format!("\n{}\n", listing.function.name);
    let side = |side: &Option<(u64, String)>| match side {
        Some((offset, text)) => format!("{offset:>5x}  {text}"),
        None => String::new(),
    };
    for line in &listing.lines {
        let (mark, code) = mark(line);
        let (mut old, new) = (side(&line.old), side(&line.new));
        if old.chars().count() > WIDTH {
            old = old.chars().take(WIDTH - 3).chain("...".chars()).collect();
        }
        let row = format!("{old:<WIDTH$} {mark} {new}");
        let row = row.trim_end();
        if colour && !code.is_empty() {
            text.push_str(&format!("\x1b[{code}m{row}\x1b[0m\n"));
        } else {
            text.push_str(&format!("{row}\n"));
        }
    }
    text
}

/// The character between the two sides, and the colour of the line.
fn mark(line: &Line) -> (char, &'static str) {
    match (&line.old, &line.new) {
        _ if line.same() => (' ', ""),
        (Some(_), Some(_)) => ('|', "33"),
        (Some(_), None) => ('<', "31"),
        _ => ('>', "32"),
    }
}

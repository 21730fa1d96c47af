// SPDX-License-Identifier: MIT OR Apache-2.0

//! A payload with names that could mislead a list, a terminal or a browser.

use crate::{Base, repository};
use anyhow::{Context as _, ensure};
use std::path::Path;
use std::process::Command;
use xsplice_abi::record;
use xsplice_host_image::Image;

/// A forged list line, with a line break before it, a text direction mark, and a
/// terminal colour sequence.
pub const TEXT: &str = "\nlp_1-1_1-2  | APPLIED  | applied\u{202e}\u{1b}[31m\r\u{2028}";

/// The payload, for the hypervisor of `base`. With `plain`, its names are letters
/// only, with the same lengths.
///
/// # Errors
/// If it cannot be assembled.
pub fn payload(base: &Base, plain: bool) -> anyhow::Result<Vec<u8>> {
    let letters = "X".repeat(TEXT.len());
    let text = if plain { &letters } else { TEXT };
    let directory = tempfile::tempdir()?;
    let note = directory.path().join("record");
    std::fs::write(&note, record::note(&build_record(text)))?;
    let object = directory.path().join("payload.o");
    assemble(base, &letters, &note, &object)?;
    let mut data = std::fs::read(object)?;
    let mut places = Vec::new();
    for (at, bytes) in data.windows(letters.len()).enumerate() {
        let follows = places.last().is_some_and(|last| at < last + letters.len());
        if bytes == letters.as_bytes() && !follows {
            places.push(at);
        }
    }
    ensure!(places.len() > 5, "the payload has the text {places:?}");
    for at in places {
        data[at..at + text.len()].copy_from_slice(text.as_bytes());
    }
    Ok(data)
}

fn build_record(text: &str) -> String {
    let name = text.to_owned() + ".new";
    let hunk = serde_json::json!({
        "patch": text, "file": text, "line": 1, "effect": text, "names": [name],
    });
    let inside = serde_json::json!({
        "patch": text, "file": text, "line": 2, "effect": "in_payload", "names": [text],
    });
    serde_json::json!({
        "options": {
            "allow": [text], "config": text, "depends": text, "hooks": [text],
            "leave_out": [text], "leave_out_init": true, "xen_depends": text,
        },
        "hunks": [hunk, inside],
        "left_out": [{ "name": text, "file": text, "why": text }],
        "warnings": [text],
        "notes": [text],
    })
    .to_string()
}

fn assemble(base: &Base, text: &str, note: &Path, object: &Path) -> anyhow::Result<()> {
    let image = Image::parse(&std::fs::read(&base.xen_syms)?)?;
    let old = image.lookup_symbol(b"xen_extra_version");
    let id: Vec<String> = image.build_id().iter().map(u8::to_string).collect();
    let output = Command::new("gcc")
        .args(["-c", "-DOLD_SIZE=12", &format!("-DTEXT={text}")])
        .arg(format!("-DXEN_ID={}", id.join(",")))
        .arg(format!("-DRECORD=\"{}\"", note.display()))
        .arg(format!(
            "-DOLD_ADDR={:#x}",
            old.context("xen_extra_version")?
        ))
        .arg("-o")
        .arg(object)
        .arg(repository().join("tests/e2e/forged/payload.S"))
        .output()?;
    ensure!(output.status.success(), "gcc: {output:?}");
    Ok(())
}

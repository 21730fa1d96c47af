// SPDX-License-Identifier: MIT OR Apache-2.0
//! Says how builds of objects differ: `compare ORIGINAL PATCHED…`, any number of
//! pairs.
//!
//! Exit codes: 0 if nothing differs, 1 if something does, 2 if it cannot tell.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use xsplice_objdiff::{Object, compare};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (pairs, rest) = arguments.as_chunks();
    if pairs.is_empty() || !rest.is_empty() {
        eprintln!("usage: compare ORIGINAL PATCHED…");
        return ExitCode::from(2);
    }
    let mut code = 0;
    for [original, patched] in pairs {
        code = code.max(match (read(original), read(patched)) {
            (Ok(original), Ok(patched)) => tell(&original, &patched),
            (original, patched) => {
                for problem in [original.err(), patched.err()].into_iter().flatten() {
                    eprintln!("{problem}");
                }
                2
            }
        });
    }
    ExitCode::from(code)
}

fn tell(original: &Object, patched: &Object) -> u8 {
    let comparison = compare(original, patched);
    for change in &comparison.changes {
        println!("{:?} {}: {}", change.kind, change.name, change.why);
    }
    u8::from(!comparison.is_empty())
}

fn read(path: &str) -> Result<Object, String> {
    let data = std::fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    Object::read(path, &data).map_err(|error| error.to_string())
}

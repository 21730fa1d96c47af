// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload's metadata: `key=value` texts that `xsplice info` shows.

use crate::below::PATCH_KEY;
use crate::code::Code;
use crate::options::Options;
use crate::problem::{Problem, Refused};
use crate::source::SourcePatch;
use xsplice_abi::text::{escaped, is_deceptive};
use xsplice_xen_image::Image;

/// The metadata of a payload: what the generator says, and what the caller does.
///
/// # Errors
/// If the caller's cannot be in a payload.
pub(crate) fn metadata(
    options: &Options,
    patches: &[SourcePatch],
    image: &Image,
) -> Result<Vec<(String, String)>, Refused> {
    let mut metadata = vec![
        (
            "generator".to_owned(),
            concat!("xsplice ", env!("CARGO_PKG_VERSION")).to_owned(),
        ),
        ("compiler".to_owned(), image.compiler().to_owned()),
    ];
    for patch in patches {
        metadata.push((PATCH_KEY.to_owned(), patch.record()));
    }
    let problems = mistakes(&options.metadata, &metadata);
    metadata.extend(options.metadata.iter().cloned());
    if problems.is_empty() {
        Ok(metadata)
    } else {
        Err(Refused(problems))
    }
}

/// What is wrong with the metadata that was `given`, next to the generator's `own`.
fn mistakes(given: &[(String, String)], own: &[(String, String)]) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (index, (key, value)) in given.iter().enumerate() {
        let mut mistake = |message: &str| {
            let place = format!("--meta {}", escaped(key));
            problems.push(Problem::new(Code::BadOption, place, message));
        };
        let same = |(other, _): &&(String, String)| other == key;
        if given[..index].iter().filter(same).count() == 1 {
            mistake("this key is given more than once; give it one value");
        }
        if own.iter().any(|(own, _)| own == key) {
            mistake("this key is written by the generator itself; choose another");
        } else if key.is_empty() || key.contains('=') {
            mistake("a key must not be empty and must not contain `=`");
        }
        for text in [key, value] {
            if let Some(bad) = text.chars().find(|c| is_deceptive(*c)) {
                mistake(&format!(
                    "it contains {}: characters that are not seen (control characters, line \
                     breaks, marks of text direction, characters without width) can make a \
                     list of payloads look like another one",
                    bad.escape_unicode()
                ));
            }
        }
    }
    problems
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A payload's metadata: `key=value` texts that `xsplice info` shows.

use crate::below::PATCH_KEY;
use crate::code::Code;
use crate::options::Options;
use crate::problem::{Problem, Refused};
use crate::source::SourcePatch;
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
    let mut problems = Vec::new();
    for (index, (key, value)) in options.metadata.iter().enumerate() {
        let twice = |(other, _): &&(String, String)| other == key;
        if options.metadata[..index].iter().filter(twice).count() == 1 {
            let message = "this key is given more than once; give it one value";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        }
        if metadata.iter().any(|(own, _)| own == key) {
            let message = "this key is written by the generator itself; choose another";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        } else if key.is_empty() || key.contains('=') {
            let message = "a key must not be empty and must not contain `=`";
            problems.push(Problem::new(
                Code::BadOption,
                format!("--meta {key}"),
                message,
            ));
        }
        for text in [key, value] {
            if let Some(bad) = text.chars().find(|c| xsplice_abi::text::is_deceptive(*c)) {
                problems.push(Problem::new(
                    Code::BadOption,
                    format!("--meta {}", xsplice_abi::text::escaped(key)),
                    format!(
                        "it contains {}: characters that are not seen (control characters, line \
                         breaks, marks of text direction, characters without width) can make a \
                         list of payloads look like another one",
                        bad.escape_unicode()
                    ),
                ));
            }
        }
    }
    metadata.extend(options.metadata.iter().cloned());
    if problems.is_empty() {
        Ok(metadata)
    } else {
        Err(Refused(problems))
    }
}

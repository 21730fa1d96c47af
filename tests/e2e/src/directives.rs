// SPDX-License-Identifier: MIT OR Apache-2.0
//! The directives in the first lines of a test's source patch: `# KEY: VALUE`.

use std::path::Path;

/// The values of `key` in the patch `text`, in order.
pub fn directives(text: &str, key: &str) -> Vec<String> {
    let start = format!("# {key}:");
    let values = text.lines().filter_map(|line| line.strip_prefix(&start));
    values.map(|value| value.trim().to_owned()).collect()
}

/// The first value of `key` in the patch `text`, if it has one.
pub fn directive(text: &str, key: &str) -> Option<String> {
    directives(text, key).into_iter().next()
}

/// Additional options of `xsplice build` for the patch `text`; `hooks/NAME` stands
/// for a file of this package.
pub fn options(text: &str) -> Vec<String> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let words = directive(text, "options").unwrap_or_default();
    let words = words.split_whitespace().map(|word| {
        let hooks = word.strip_prefix("hooks/");
        hooks.map_or(word.to_owned(), |name| {
            here.join("hooks").join(name).display().to_string()
        })
    });
    words.collect()
}

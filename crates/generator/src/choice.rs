// SPDX-License-Identifier: MIT OR Apache-2.0
//! The names given to `--leave-out` and `--allow`.

use crate::code::Code;
use crate::problem::Problem;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Similarity above which a name is suggested for another.
const NEAR: f64 = 0.8;
/// Maximum number of names in a message.
const LISTED: usize = 6;

/// Names that the caller gave, each alone or as `FILE:NAME`, and the lookups so far:
/// a name that is never looked up is a mistake.
#[derive(Debug, Default)]
pub struct Choices {
    given: BTreeSet<String>,
    asked: Mutex<Asked>,
}

#[derive(Debug, Default)]
struct Asked {
    /// The given names that were looked up.
    used: BTreeSet<String>,
    /// All names that were looked up.
    names: BTreeSet<String>,
}

impl Choices {
    /// The names that the caller gave.
    pub fn new(given: &BTreeSet<String>) -> Self {
        Self {
            given: given.clone(),
            asked: Mutex::default(),
        }
    }

    /// Whether the caller named `name`.
    pub fn contains(&self, name: &str) -> bool {
        self.ask(name, [name.to_owned()])
    }

    /// Whether the caller named `name`, or `name` of the source `file`.
    pub fn contains_of(&self, file: &str, name: &str) -> bool {
        let forms = [
            name.to_owned(),
            format!("{file}:{name}"),
            format!("xen/{file}:{name}"),
        ];
        self.ask(name, forms)
    }

    fn ask<const N: usize>(&self, name: &str, forms: [String; N]) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.names.insert(name.to_owned());
        let named: Vec<String> = forms
            .into_iter()
            .filter(|form| self.given.contains(form))
            .collect();
        let any = !named.is_empty();
        asked.used.extend(named);
        any
    }

    /// The given names that were never looked up, as problems with `option`.
    pub(crate) fn mistakes(&self, option: &str) -> Vec<Problem> {
        let asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let unused = self.given.difference(&asked.used);
        unused
            .map(|given| {
                let name = given.rsplit(':').next().unwrap_or(given);
                let mut near: Vec<(f64, &String)> = asked
                    .names
                    .iter()
                    .map(|known| (strsim::jaro_winkler(name, known), known))
                    .filter(|&(likeness, _)| likeness >= NEAR)
                    .collect();
                near.sort_by(|a, b| b.0.total_cmp(&a.0));
                let near: Vec<&str> = near.into_iter().map(|(_, known)| known.as_str()).collect();
                let all: Vec<&str> = asked.names.iter().map(String::as_str).collect();
                let hint = match (near.as_slice(), all.as_slice()) {
                    ([], []) => "nothing in this build does".to_owned(),
                    ([], all) => format!("it takes {}", listed(all)),
                    (near, _) => format!("is {} meant?", listed(near)),
                };
                let message = format!("nothing of that name needs this option; {hint}");
                Problem::new(Code::BadOption, format!("{option} {given}"), message)
            })
            .collect()
    }
}

/// The first of `names`, and the number of the rest.
pub(crate) fn listed(names: &[&str]) -> String {
    let listed = names[..names.len().min(LISTED)].join(", ");
    match names.len().saturating_sub(LISTED) {
        0 => listed,
        more => format!("{listed} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices(given: &[&str]) -> Choices {
        Choices::new(&given.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn a_name_is_that_of_all_files_or_of_one() {
        let choices = choices(&["limit", "common/a.c:count", "xen/common/b.c:count"]);
        assert!(choices.contains("limit") && choices.contains_of("common/z.c", "limit"));
        assert!(choices.contains_of("common/a.c", "count"));
        assert!(choices.contains_of("common/b.c", "count"));
        assert!(!choices.contains_of("common/c.c", "count") && !choices.contains("count"));
        assert_eq!(choices.mistakes("--leave-out"), []);
    }

    #[test]
    fn a_name_that_nothing_has_is_a_mistake() {
        let choices = choices(&["timer_slob", "common/a.c:timer_slop", "unlike"]);
        for name in ["timer_slop", "opt_console"] {
            assert!(!choices.contains_of("common/timer.c", name));
        }
        let mistakes = choices.mistakes("--leave-out");
        let words: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        let start = "nothing of that name needs this option";
        assert_eq!(
            words,
            [
                format!("--leave-out common/a.c:timer_slop: {start}; is timer_slop meant?"),
                format!("--leave-out timer_slob: {start}; is timer_slop meant?"),
                format!("--leave-out unlike: {start}; it takes opt_console, timer_slop"),
            ]
        );
        let nothing = self::choices(&["x"]).mistakes("--allow");
        assert!(nothing[0].message.ends_with("nothing in this build does"));
    }
}

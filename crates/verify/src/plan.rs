// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the patched hypervisor is built from, and which differences are accepted.

use crate::recorded::Recorded;
use crate::verdict::{Difference, Kind, Verdict};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use xsplice_abi::suffix;
use xsplice_abi::symbol::RuntimeName;

/// The inputs of the patched hypervisor.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The built source tree of the running hypervisor.
    pub tree: &'a Path,
    /// Source patches, in order.
    pub patches: &'a [PathBuf],
    /// The inputs of each payload, from the bottom up; if the numbers of patches do
    /// not add up, each patch counts as one payload's.
    pub levels: &'a [Level],
    /// The patches recorded in the payloads, which must match.
    pub recorded: &'a [Recorded],
    /// C source of hooks.
    pub hooks: &'a [PathBuf],
    /// Source of the hooks that the generator made, for each payload that has some
    /// ([`crate::generated_hooks`]).
    pub generated: &'a [String],
    /// The directory that keeps the copy of the tree for the next run, if any.
    pub cache: Option<&'a Path>,
}

/// The inputs of a payload.
#[derive(Debug, Clone, Default)]
pub struct Level {
    /// Number of source patches; `None` if unknown.
    pub patches: Option<usize>,
    /// Files that its patches leave unchanged.
    pub leave_out: BTreeSet<String>,
}

impl<'a> Plan<'a> {
    /// The patches of each level, and the files that they leave unchanged.
    pub(crate) fn levels(&self) -> Vec<(&'a [PathBuf], BTreeSet<String>)> {
        let mut rest = self.patches;
        let counts = self.levels.iter().map(|level| level.patches);
        if counts.sum::<Option<usize>>() != Some(rest.len()) || rest.is_empty() {
            let all = self.levels.iter().flat_map(|level| &level.leave_out);
            let all: BTreeSet<String> = all.cloned().collect();
            return rest.chunks(1).map(|patch| (patch, all.clone())).collect();
        }
        let mut levels = Vec::new();
        for level in self.levels {
            let (own, above) = rest.split_at(level.patches.unwrap_or_default());
            if !own.is_empty() {
                levels.push((own, level.leave_out.clone()));
            }
            rest = above;
        }
        levels
    }
}

/// Receives progress.
pub trait Progress: Sync {
    /// A stage starts.
    fn stage(&self, name: &str);
    /// A step of the stage is done.
    fn step(&self, what: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _: &str) {}
    fn step(&self, _: &str) {}
}

/// Differences to accept, as for `xsplice build`.
#[derive(Debug, Clone, Default)]
pub struct Accepted {
    /// Changes to variables, boot-only code and table entries that the payloads left
    /// out: `NAME` or `FILE:NAME`.
    pub leave_out: Vec<String>,
    /// All changes to boot-only code and data.
    pub leave_out_init: bool,
    /// Structures and variables that may change layout or lose their state.
    pub allow: Vec<String>,
    /// Message flags that start again according to the payloads' records:
    /// `FILE:NAME`.
    pub renewed: Vec<String>,
    /// Whether payloads below the topmost may have hooks that are not in the patched
    /// source.
    pub lower_hooks: bool,
    /// Whether the names come from build records, and so may no longer differ after
    /// all levels; otherwise, unused names are noted.
    pub recorded: bool,
}

impl Accepted {
    fn accepts(&self, difference: &Difference) -> bool {
        let named = |names: &[String]| names.iter().any(|name| is_named(&difference.name, name));
        match difference.kind {
            Kind::BootOnly => self.leave_out_init || named(&self.leave_out),
            Kind::Layout => named(&self.allow),
            Kind::State => {
                let renewed = named(&self.renewed) && is_once_flag(&difference.name);
                renewed || named(&self.allow) || named(&self.leave_out)
            }
            Kind::InitialValue | Kind::Table | Kind::Class | Kind::Unreached => {
                named(&self.leave_out)
            }
            _ => false,
        }
    }

    /// Moves accepted differences to `left_out`.
    pub(crate) fn sort(&self, verdict: &mut Verdict) {
        let differences = std::mem::take(&mut verdict.differences);
        let sorted = differences.into_iter().partition(|d| self.accepts(d));
        (verdict.left_out, verdict.differences) = sorted;
        for name in self.leave_out.iter().chain(&self.allow) {
            let mut used = verdict.left_out.iter();
            // A path is a file that the patched hypervisor was built without.
            if !self.recorded && !name.contains('/') && !used.any(|d| is_named(&d.name, name)) {
                let note = format!("{name} was to be left out or allowed, but does not differ");
                verdict.notes.push(note);
            }
        }
        verdict.proved = verdict.differences.is_empty();
    }
}

/// Whether a variable is a message flag, by its name.
fn is_once_flag(listed: &str) -> bool {
    let numbered = |c: char| c == '.' || c.is_ascii_digit();
    let name = listed.trim_end_matches(numbered).trim_end_matches('_');
    ["once", "warned", "already_done"]
        .iter()
        .any(|end| name.ends_with(end))
}

/// Whether `given`, alone or as `FILE:NAME`, names what the hypervisor lists as
/// `listed`.
fn is_named(listed: &str, given: &str) -> bool {
    // Neither the kind of a type nor the compiler's number is part of the name.
    let bare = |name: &str| suffix::unnumbered(name.rsplit(' ').next().unwrap_or(name)).to_owned();
    let RuntimeName { file, name } = RuntimeName::parse(listed);
    match (given.rsplit_once(':'), file) {
        (Some((wanted, given)), Some(file)) => {
            let wanted = wanted.strip_prefix("xen/").unwrap_or(wanted);
            (given == name || given == bare(name)) && wanted.ends_with(file)
        }
        // Names of global symbols and types do not include their file.
        (Some((_, given)), None) => bare(name) == given,
        (None, _) => bare(name) == given || name == given,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_all_files_or_of_one() {
        assert!(is_named("common/a.c#count", "count"));
        assert!(is_named("common/a.c#count", "xen/common/a.c:count"));
        assert!(is_named("common/a.c#count", "common/a.c:count"));
        assert!(!is_named("common/a.c#count", "common/b.c:count"));
        assert!(is_named("common/a.c#count.1", "count"));
        assert!(is_named("common/a.c#count.1", "common/a.c:count"));
        assert!(!is_named("common/a.c#count.isra", "count"));
        assert!(is_named("struct domain", "domain"));
        assert!(is_named("opt_limit", "xen/common/a.c:opt_limit"));
        assert!(!is_named("opt_limit", "limit"));
    }

    #[test]
    fn only_flags_may_begin_anew_because_a_payload_says_so() {
        let accepted = Accepted {
            renewed: vec!["common/a.c:once_.1".into(), "common/a.c:count.2".into()],
            ..Accepted::default()
        };
        let accepts = |kind, name: &str| {
            let message = String::new();
            accepted.accepts(&Difference {
                kind,
                name: name.to_owned(),
                message,
            })
        };
        assert!(accepts(Kind::State, "common/a.c#once_.1"));
        assert!(!accepts(Kind::State, "common/a.c#once_.2"));
        assert!(!accepts(Kind::State, "common/b.c#once_.1"));
        assert!(!accepts(Kind::State, "common/a.c#count.2"));
        assert!(!accepts(Kind::InitialValue, "common/a.c#once_.1"));
    }

    #[test]
    fn levels_are_as_long_as_is_known() {
        let patches = ["a", "b", "c"].map(PathBuf::from);
        let levels = |counts: &[Option<usize>]| -> Vec<(Vec<PathBuf>, Vec<String>)> {
            let levels = counts.iter().enumerate().map(|(number, &patches)| Level {
                patches,
                leave_out: BTreeSet::from([format!("xen/{number}")]),
            });
            let plan = Plan {
                tree: Path::new("."),
                patches: &patches,
                levels: &levels.collect::<Vec<_>>(),
                recorded: &[],
                hooks: &[],
                generated: &[],
                cache: None,
            };
            let levels = plan.levels().into_iter();
            levels
                .map(|(own, left_out)| (own.to_vec(), left_out.into_iter().collect()))
                .collect()
        };
        let own = |patches: &[PathBuf], left_out: &[&str]| {
            let left_out = left_out.iter().map(|name| format!("xen/{name}"));
            (patches.to_vec(), left_out.collect::<Vec<_>>())
        };
        assert_eq!(
            levels(&[Some(1), Some(0), Some(2)]),
            [own(&patches[..1], &["0"]), own(&patches[1..], &["2"])]
        );
        assert_eq!(levels(&[Some(3)]), [own(&patches, &["0"])]);
        assert_eq!(levels(&[]).len(), 3);
        for unknown in [&[Some(2)][..], &[Some(3), None]] {
            let found = levels(unknown);
            let all: Vec<&str> = ["0", "1"][..unknown.len()].to_vec();
            let each = patches.chunks(1).map(|patch| own(patch, &all));
            assert_eq!(found, each.collect::<Vec<_>>());
        }
    }
}

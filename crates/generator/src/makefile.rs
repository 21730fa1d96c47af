// SPDX-License-Identifier: MIT OR Apache-2.0
//! Makefile changes that only affect lists of objects.

mod condition;

use crate::code::Code;
use crate::problem::{Problem, Refused};
use condition::{Active, Line};
use std::collections::{BTreeMap, BTreeSet};

/// Objects that a patched makefile adds to and removes from the hypervisor, relative
/// to the `xen` directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectLists {
    /// New objects.
    pub added: BTreeSet<String>,
    /// Objects that are no longer built.
    pub removed: BTreeSet<String>,
}

impl ObjectLists {
    /// Adds the changes of a later patch, which may undo this one.
    pub(crate) fn follow(&mut self, later: Self) {
        for object in later.added {
            if !self.removed.remove(&object) {
                self.added.insert(object);
            }
        }
        for object in later.removed {
            if !self.added.remove(&object) {
                self.removed.insert(object);
            }
        }
    }
}

/// Reads the changes to the makefile `path` from `original` to `patched`. `setting`
/// is the value of an option of the tree's configuration, such as `CONFIG_HVM`, empty
/// if it is not set.
///
/// # Errors
/// Every changed line that is not a list of objects, or whose condition only the
/// build can evaluate: a payload cannot change how code is compiled.
pub fn object_lists(
    path: &str,
    (original, patched): (&str, &str),
    setting: &dyn Fn(&str) -> String,
) -> Result<ObjectLists, Refused> {
    let refuse = |message: String| Problem::new(Code::BuildSystem, path, message);
    let read = |text: &str| {
        let lines = condition::lines(text, setting);
        lines
            .map(|lines| Makefile::new(lines, setting))
            .map_err(|message| Refused(vec![refuse(message)]))
    };
    let (before, after) = (read(original)?, read(patched)?);
    let mut problems: Vec<Problem> = before
        .other_lines(&after)
        .into_iter()
        .map(|line| refuse(changes_the_build(path, line)))
        .collect();
    let directory = path.strip_prefix("xen/").unwrap_or(path);
    let directory = directory.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut lists = ObjectLists::default();
    for (one, other, list) in [
        (&after, &before, &mut lists.added),
        (&before, &after, &mut lists.removed),
    ] {
        // Entries in both have only moved, or have a different condition.
        for (entry, text) in &one.entries {
            if other.entries.contains_key(entry) {
                continue;
            }
            if entry.is_plain() {
                list.insert(match directory {
                    "" => entry.name.clone(),
                    _ => format!("{directory}/{}", entry.name),
                });
            } else {
                problems.push(refuse(changes_the_build(path, &Line::plain(text))));
            }
        }
    }
    match problems.is_empty() {
        true => Ok(lists),
        false => Err(Refused(problems)),
    }
}

fn changes_the_build(path: &str, line: &Line) -> String {
    let way_out =
        format!("`--leave-out {path}` builds the payload without it, if the code does not need it");
    let text = &line.text;
    match line.unknown.as_slice() {
        [] => format!(
            "`{text}` changes how the hypervisor is built, which a payload cannot carry; only \
             lines that list objects are understood, such as `obj-y += name.o`; {way_out}"
        ),
        conditions => format!(
            "`{text}` changes, and only the build knows whether `{}` holds; {way_out}",
            conditions.join("`, `")
        ),
    }
}

/// A makefile evaluated with a configuration.
struct Makefile {
    /// Objects in lists, each with its line.
    entries: BTreeMap<Entry, String>,
    /// All other active or possibly active lines, in order.
    others: Vec<Line>,
}

impl Makefile {
    fn new(lines: Vec<Line>, setting: &dyn Fn(&str) -> String) -> Self {
        let (mut listed, mut others) = (BTreeMap::new(), Vec::new());
        for line in lines {
            match (line.active, entries(&line.text, setting)) {
                (Active::No, _) => {}
                (Active::Yes, Some(entries)) => {
                    listed.extend(entries.into_iter().map(|entry| (entry, line.text.clone())));
                }
                _ => others.push(line),
            }
        }
        Self {
            entries: listed,
            others,
        }
    }

    /// The other lines that only one makefile has, or whose order differs.
    fn other_lines<'a>(&'a self, patched: &'a Self) -> Vec<&'a Line> {
        let only = |all: &'a Self, other: &'a Self| {
            let mut rest: Vec<&Line> = other.others.iter().collect();
            let mut only: Vec<&Line> = all.others.iter().collect();
            only.retain(|line| {
                let same = rest.iter().position(|other| other == line);
                same.map(|at| rest.remove(at)).is_none()
            });
            only
        };
        let mut found = only(self, patched);
        found.extend(only(patched, self));
        if found.is_empty() {
            let mut pairs = self.others.iter().zip(&patched.others);
            found.extend(pairs.find(|(old, new)| old != new).map(|(_, new)| new));
        }
        found
    }
}

/// An entry that a line adds to a list.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    /// `obj`, `lib`, `obj-bin`.
    list: String,
    name: String,
}

impl Entry {
    /// Whether it is an ordinary object. Code that is freed after boot goes into
    /// `.init.o`.
    fn is_plain(&self) -> bool {
        let usual = |c: char| c.is_ascii_alphanumeric() || "-_+./".contains(c);
        let mut parts = self.name.split('/');
        matches!(&*self.list, "obj" | "lib")
            && self.name.ends_with(".o")
            && !self.name.ends_with(".init.o")
            && self.name.chars().all(usual)
            && !parts.any(|part| matches!(part, "" | "." | ".."))
    }
}

/// The entries that a line adds to lists of objects, with this configuration; `None`
/// for other lines.
fn entries(line: &str, setting: &dyn Fn(&str) -> String) -> Option<Vec<Entry>> {
    let (list, names) = line.split_once("+=").filter(|_| !line.starts_with('\t'))?;
    let (list, switch) = list.trim().rsplit_once('-')?;
    let active = match switch.strip_prefix("$(").and_then(|s| s.strip_suffix(')')) {
        Some(option) => matches!(&*setting(option), "y" | "m"),
        None if switch == "y" => true,
        None => return None,
    };
    if !matches!(list, "obj" | "lib" | "obj-bin") {
        return None;
    }
    let names = names.split_whitespace().filter(|_| active);
    let entry = |name: &str| Entry {
        list: list.to_owned(),
        name: name.to_owned(),
    };
    Some(names.map(entry).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of lines with `-`, `+` or a space in front.
    fn lists(lines: &str) -> Result<ObjectLists, Refused> {
        let side = |without: char| -> String {
            let lines = lines.lines().filter(|line| !line.starts_with(without));
            lines.map(|line| format!("{}\n", &line[1..])).collect()
        };
        let setting = |option: &str| match option {
            "CONFIG_HVM" => "y".to_owned(),
            _ => String::new(),
        };
        object_lists("xen/common/Makefile", (&side('+'), &side('-')), &setting)
    }

    #[test]
    fn lists_of_objects_are_understood() {
        let found = lists(
            "+obj-y += one.o two.o\n+obj-$(CONFIG_HVM) += three.o # why\n\
             +obj-$(CONFIG_ARGO) += four.o\n-obj-y += five.o\n+\n",
        )
        .expect("lists of objects");
        let names = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            names(&found.added),
            "common/one.o common/three.o common/two.o"
        );
        assert_eq!(names(&found.removed), "common/five.o");
    }

    #[test]
    fn an_object_that_moved_in_its_list_is_no_change() {
        assert_eq!(
            lists("-obj-y += one.o\n+obj-y += one.o\n").expect("lists"),
            ObjectLists::default()
        );
    }

    #[test]
    fn what_is_linked_as_before_is_no_change() {
        let unchanged = "-obj-$(CONFIG_HVM) += one.o dir/ two.init.o\n+obj-y += one.o\n\
                         +obj-y += dir/\n+obj-y += two.init.o\n-obj-bin-y += three.o\n\
                         +obj-bin-$(CONFIG_HVM) += three.o\n+obj-$(CONFIG_ARGO) += four.init.o\n";
        assert_eq!(lists(unchanged).expect("lists"), ObjectLists::default());
        assert!(lists("-lib-y += one.o\n+obj-bin-y += one.o\n").is_err());
        let found = lists("-lib-y += one.o\n+obj-y += one.o\n").expect("lists");
        assert_eq!(found.added, found.removed);
    }

    #[test]
    fn every_other_line_is_refused_by_its_text() {
        let Refused(problems) = lists(
            "+CFLAGS-y += -O3\n+obj-y += dir/\n+obj-y += x.init.o\n+obj-y += ../x.o\n\
             +obj-y += $(NAME).o\n+obj-y += `id`.o\n",
        )
        .expect_err("six lines that are more than lists");
        assert_eq!(problems.len(), 6);
        assert!(problems[0].message.starts_with("`CFLAGS-y += -O3`"));
    }

    #[test]
    fn a_list_counts_if_the_conditionals_around_it_hold() {
        let in_hvm = " ifdef CONFIG_HVM\n+obj-y += one.o\n else\n+obj-y += two.o\n endif\n";
        let found = lists(in_hvm).expect("lists");
        assert_eq!(found.added, BTreeSet::from(["common/one.o".to_owned()]));
        assert!(found.removed.is_empty());
        let moved = "-obj-y += one.o\n+ifdef CONFIG_HVM\n+obj-y += one.o\n+endif\n";
        assert_eq!(lists(moved).expect("lists"), ObjectLists::default());
        let lost = "-obj-y += one.o\n+ifndef CONFIG_HVM\n+obj-y += one.o\n+endif\n";
        let found = lists(lost).expect("lists");
        assert_eq!(found.removed, BTreeSet::from(["common/one.o".to_owned()]));
        let unread = " ifdef CONFIG_ARGO\n+CFLAGS-y += -O3\n endif\n";
        assert_eq!(lists(unread).expect("lists"), ObjectLists::default());
        // The other branch is read, where only the conditional changes.
        let turned = "-ifdef CONFIG_HVM\n+ifndef CONFIG_HVM\n obj-y += one.o\n else\n \
                      obj-y += two.o\n endif\n";
        let found = lists(turned).expect("lists");
        assert_eq!(found.added, BTreeSet::from(["common/two.o".to_owned()]));
        assert_eq!(found.removed, BTreeSet::from(["common/one.o".to_owned()]));
        let read = "-ifdef CONFIG_ARGO\n+ifdef CONFIG_HVM\n CFLAGS-y += -O3\n endif\n";
        assert!(lists(read).is_err());
    }

    #[test]
    fn a_list_under_a_condition_of_the_build_is_refused_with_it() {
        let Refused(problems) = lists(" ifeq ($(V),y)\n+obj-y += one.o\n obj-y += two.o\n endif\n")
            .expect_err("it is unclear");
        assert_eq!(problems.len(), 1);
        let start =
            "`obj-y += one.o` changes, and only the build knows whether `ifeq ($(V),y)` holds";
        assert!(problems[0].message.starts_with(start), "{}", problems[0]);
        assert!(lists(" ifdef CONFIG_HVM\n+obj-y += one.o\n").is_err());
    }

    #[test]
    fn lists_may_be_continued_and_other_lines_stay_in_order() {
        let found = lists(" obj-y += one.o \\\n+  two.o \\\n   three.o\n").expect("lists");
        assert_eq!(found.added, BTreeSet::from(["common/two.o".to_owned()]));
        assert!(lists("-A := 1\n B := $(A)\n+A := 1\n").is_err());
    }
}

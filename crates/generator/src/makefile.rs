// SPDX-License-Identifier: MIT OR Apache-2.0
//! Changes of makefiles that say no more than which objects there are.

use crate::patch::{FilePatch, Line};
use crate::{Problem, Refused};
use std::collections::BTreeSet;

/// Objects that a patched makefile adds to the hypervisor and takes out of it,
/// as paths from the `xen` directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectLists {
    /// New objects.
    pub added: BTreeSet<String>,
    /// Objects that are not built any more.
    pub removed: BTreeSet<String>,
}

impl ObjectLists {
    /// Adds what a later patch does: it may take back what this one did.
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

/// Reads what `patch` does to a makefile. `enabled` says whether the tree is
/// configured with an option, such as `CONFIG_HVM`.
///
/// # Errors
/// Every changed line that is more than a list of objects: how things are
/// compiled is not a payload's to change.
pub fn object_lists(
    patch: &FilePatch,
    enabled: &dyn Fn(&str) -> bool,
) -> Result<ObjectLists, Refused> {
    let path = patch.path();
    let directory = path.strip_prefix("xen/").unwrap_or(path);
    let directory = directory.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut problems = Vec::new();
    let mut refuse = |text: &str| {
        let message = format!(
            "`{}` changes how the hypervisor is built, which a payload cannot carry; only \
             lines that list objects are understood, such as `obj-y += name.o`; \
             `--leave-out {path}` does without, if the code does not need it",
            text.trim()
        );
        problems.push(Problem::new(path, message));
    };
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for line in patch.hunks.iter().flat_map(|hunk| &hunk.lines) {
        let (text, list) = match line {
            Line::Context(_) => continue,
            Line::Added(text) => (text, &mut added),
            Line::Removed(text) => (text, &mut removed),
        };
        match entries(text, enabled) {
            Some(found) => list.extend(found),
            None => refuse(text),
        }
    }
    // What is on both sides only moved, or is under another condition.
    added.retain(|entry| {
        let same = removed.iter().position(|other| other.is(entry));
        same.map(|at| removed.remove(at)).is_none()
    });
    let mut lists = ObjectLists::default();
    for (entries, list) in [(added, &mut lists.added), (removed, &mut lists.removed)] {
        for entry in entries {
            if entry.is_plain() {
                list.insert(match directory {
                    "" => entry.name.to_owned(),
                    _ => format!("{directory}/{}", entry.name),
                });
            } else {
                refuse(entry.line);
            }
        }
    }
    match problems.is_empty() {
        true => Ok(lists),
        false => Err(Refused(problems)),
    }
}

/// What a line adds to a list.
struct Entry<'a> {
    /// `obj`, `lib`, `obj-bin`.
    list: &'a str,
    name: &'a str,
    line: &'a str,
}

impl Entry<'_> {
    fn is(&self, other: &Self) -> bool {
        (self.list, self.name) == (other.list, other.name)
    }

    /// Whether it is an object that is compiled as others are. Code that is
    /// freed after boot goes into `.init.o`.
    fn is_plain(&self) -> bool {
        let usual = |c: char| c.is_ascii_alphanumeric() || "-_+./".contains(c);
        let mut parts = self.name.split('/');
        matches!(self.list, "obj" | "lib")
            && self.name.ends_with(".o")
            && !self.name.ends_with(".init.o")
            && self.name.chars().all(usual)
            && !parts.any(|part| matches!(part, "" | "." | ".."))
    }
}

/// What a line adds to lists of objects, with the configuration as it is; `None`
/// if it is another line.
fn entries<'a>(line: &'a str, enabled: &dyn Fn(&str) -> bool) -> Option<Vec<Entry<'a>>> {
    let text = line.split('#').next().unwrap_or_default().trim();
    if text.is_empty() {
        return Some(Vec::new());
    }
    let (list, names) = text.split_once("+=")?;
    let (list, switch) = list.trim().rsplit_once('-')?;
    let active = match switch.strip_prefix("$(").and_then(|s| s.strip_suffix(')')) {
        Some(option) => enabled(option),
        None if switch == "y" => true,
        None => return None,
    };
    if !matches!(list, "obj" | "lib" | "obj-bin") || names.trim_end().ends_with('\\') {
        return None;
    }
    let names = names.split_whitespace().filter(|_| active);
    Some(names.map(|name| Entry { list, name, line }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patch;

    fn lists(lines: &str) -> Result<ObjectLists, Refused> {
        let removed = lines.lines().filter(|l| l.starts_with('-')).count();
        let added = lines.lines().filter(|l| l.starts_with('+')).count();
        let text = format!(
            "--- a/xen/common/Makefile\n+++ b/xen/common/Makefile\n@@ -1,{} +1,{} @@\n x\n{lines}",
            removed + 1,
            added + 1
        );
        let files = patch::parse("test.patch", text.as_bytes()).expect("a patch");
        object_lists(&files[0], &|option| option == "CONFIG_HVM")
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
}

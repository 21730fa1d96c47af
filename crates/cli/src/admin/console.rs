// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the hypervisor printed about an action: its own reasons.

use xsplice_dom0::{Livepatch, Place, Privcmd};

/// What the hypervisor's own lines begin with; a time may follow. Those of a domain begin
/// with its number.
const OWN: &str = "(XEN) ";
/// What lines about live patches have, in Xen's core and in ours.
const MARK: &str = "livepatch: ";
/// The most lines that are shown, the last ones, and the most bytes of a line.
const LINES: usize = 32;
const LENGTH: usize = 512;

/// The hypervisor's console from a moment on.
pub(super) struct Console(Option<Place>);

impl Console {
    /// From now on. A console that cannot be read has nothing to say.
    pub(super) fn from_now(livepatch: &Livepatch<Privcmd>) -> Self {
        Self(livepatch.console_end().ok())
    }

    /// What was printed about the payload `name` since then, `others` being the
    /// payloads that are there too.
    pub(super) fn about<'a>(
        &self,
        livepatch: &Livepatch<Privcmd>,
        name: &str,
        others: impl Iterator<Item = &'a str> + Clone,
    ) -> Vec<String> {
        let text = self.0.and_then(|place| livepatch.console_since(place).ok());
        lines_about(&text.unwrap_or_default(), name, others)
    }
}

/// Whether `line` is about the payload `name`: it begins with the name, or says so of
/// an action, as in `cannot apply NAME (EINVAL): …`.
fn is_about(line: &str, name: &str) -> bool {
    let names = |line: &str| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with([':', ' ']))
    };
    let action = line.strip_prefix("cannot ");
    let of_action = action.and_then(|line| line.split_once(' '));
    names(line) || of_action.is_some_and(|(_, line)| names(line))
}

/// The lines of `text` about `name`. A line that begins with blanks belongs to the one
/// before it; one without a name belongs to the action that runs.
fn lines_about<'a>(
    text: &str,
    name: &str,
    others: impl Iterator<Item = &'a str> + Clone,
) -> Vec<String> {
    let mut others_turn = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let own = line.strip_prefix(OWN);
        let Some((_, said)) = own.and_then(|line| line.split_once(MARK)) else {
            continue;
        };
        if !said.starts_with(' ') {
            let mut others = others.clone();
            others_turn = !is_about(said, name) && others.any(|other| is_about(said, other));
        }
        if !others_turn {
            lines.push(said.chars().take(LENGTH).collect());
        }
    }
    lines.split_off(lines.len().saturating_sub(LINES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_those_of_this_action() {
        let text = "(XEN) livepatch: fix: check against hypervisor build-id failed\n\
                    (XEN) Domain 3 crashed\n\
                    (d3) livepatch: fix: all is well\n\
                    (d3) [2026-11-29 10:00:00] livepatch: fix: all is well\n\
                    (XEN) [2026-11-29 10:00:00] livepatch: other: Applying 2 functions\n\
                    (XEN) livepatch: fix-2 was not loaded (EINVAL)\n\
                    (XEN) livepatch:   this is why\n\
                    (XEN) livepatch: fix was not loaded (EINVAL)\n\
                    (XEN) livepatch:   a symbol is missing\n\
                    (XEN) livepatch: cannot apply other (EBUSY): try again\n\
                    (XEN) livepatch: cannot revert fix (EBUSY): other is on top\n\
                    (XEN) livepatch: out of memory\n";
        let said = lines_about(text, "fix", ["other", "fix-2"].into_iter());
        assert_eq!(
            said,
            [
                "fix: check against hypervisor build-id failed",
                "fix was not loaded (EINVAL)",
                "  a symbol is missing",
                "cannot revert fix (EBUSY): other is on top",
                "out of memory",
            ]
        );
        // One name is the beginning of the other.
        let said = lines_about("(XEN) livepatch: a b: failed\n", "a b", ["a"].into_iter());
        assert_eq!(said, ["a b: failed"]);
    }

    #[test]
    fn there_are_not_more_than_people_read() {
        let text: String = (0..100)
            .map(|n| format!("(XEN) livepatch: {n} {}\n", "x".repeat(9999)))
            .collect();
        let said = lines_about(&text, "fix", std::iter::empty());
        assert_eq!(said.len(), LINES);
        assert!(said[LINES - 1].starts_with("99 x") && said[0].len() == LENGTH);
    }
}

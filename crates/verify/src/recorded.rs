// SPDX-License-Identifier: MIT OR Apache-2.0
//! What payloads record: whether payloads and patches belong together is known before
//! anything is built.

use crate::elf::Wide;
use crate::{Input, Unusable};
use object::{Object as _, ObjectSection as _};
use sha2::{Digest as _, Sha256};
use xsplice_abi::note::{hex, parse_build_id};
use xsplice_abi::payload::section;

/// The source patches recorded in a payload.
#[derive(Debug, Clone, Default)]
pub struct Recorded {
    /// The payload's name for messages.
    payload: String,
    /// Name and SHA-256 of each, in order.
    patches: Vec<(String, String)>,
}

impl Recorded {
    /// Of one payload.
    #[must_use]
    pub fn of(payload: &Input) -> Self {
        Self {
            payload: payload.name.to_owned(),
            patches: patches(payload.data).unwrap_or_default(),
        }
    }

    /// Number of patches; `None` if the payload does not record it.
    #[must_use]
    pub fn count(&self) -> Option<usize> {
        (!self.patches.is_empty()).then_some(self.patches.len())
    }
}

fn patches(payload: &[u8]) -> Option<Vec<(String, String)>> {
    let file = Wide::of(payload).ok()?;
    let elf = file.parse().ok()?;
    let texts = elf.section_by_name(section::MODINFO)?.data().ok()?;
    let texts = texts.split(|&byte| byte == 0).map(String::from_utf8_lossy);
    let patches = texts.filter_map(|text| {
        // The patch may have no effect on the payload.
        let text = text.strip_prefix("unused-").unwrap_or(&text);
        let (name, hash) = text.strip_prefix("patch=")?.rsplit_once(" sha256:")?;
        Some((name.to_owned(), hash.to_owned()))
    });
    Some(patches.collect())
}

/// Checks that the `given` patches, names and contents, match the payloads' patches
/// in number and order. A rewritten patch has a different hash; the proof shows
/// whether it is equivalent, and a note names it. Nothing is checked if there are no
/// payloads, or if one does not record its patches.
pub(crate) fn check_patches(
    payloads: &[Recorded],
    given: &[(String, &[u8])],
) -> Result<Vec<String>, Unusable> {
    let silent = |payload: &Recorded| payload.patches.is_empty();
    if payloads.is_empty() || payloads.iter().any(silent) {
        return Ok(Vec::new());
    }
    let wanted = payloads.iter().flat_map(|payload| {
        let patches = payload.patches.iter();
        patches.map(move |(name, hash)| (payload, name, hash))
    });
    let wanted: Vec<_> = wanted.collect();
    let given: Vec<_> = given
        .iter()
        .map(|(name, text)| (name, hex(&Sha256::digest(text))))
        .collect();
    let unknown = |hash: &String| !wanted.iter().any(|(_, _, wanted)| *wanted == hash);
    let missing = |wanted: &String| !given.iter().any(|(_, hash)| hash == wanted);
    if given.len() > wanted.len()
        && let Some((name, hash)) = given.iter().find(|(_, hash)| unknown(hash))
    {
        let reason = format!(
            "no payload that is given was built from it (sha256:{hash}): give all payloads of the \
             stack, and no other patches"
        );
        return Err(Unusable::new(name, &reason));
    }
    if given.len() < wanted.len()
        && let Some((payload, name, hash)) = wanted.iter().find(|(_, _, hash)| missing(hash))
    {
        let reason =
            format!("it was built from {name} (sha256:{hash}), which is not given with -p");
        return Err(Unusable::new(&payload.payload, &reason));
    }
    for ((name, hash), (payload, wanted_name, wanted)) in given.iter().zip(&wanted) {
        if hash != *wanted && !unknown(hash) && !missing(wanted) {
            let reason = format!(
                "{wanted_name}, which {} was built from, comes before it: give the patches in the \
                 order of the payloads",
                payload.payload
            );
            return Err(Unusable::new(name, &reason));
        }
    }
    let rewritten = given.iter().zip(&wanted);
    let rewritten = rewritten.filter(|((_, hash), _)| unknown(hash));
    let notes = rewritten.map(|((name, _), (payload, wanted_name, _))| {
        format!(
            "{name} is not the {wanted_name} that {} was built from: it is another patch, or was \
             changed since",
            payload.payload
        )
    });
    Ok(notes.collect())
}

/// Checks that each payload depends on the one given before it.
pub(crate) fn check_order(hypervisor: &[u8], payloads: &[Input]) -> Result<(), Unusable> {
    let note = |payload: &Input, section: &str| {
        let file = Wide::of(payload.data).ok()?;
        let elf = file.parse().ok()?;
        let note = elf.section_by_name(section)?.data().ok()?;
        parse_build_id(note).map(<[u8]>::to_vec)
    };
    let ids: Vec<_> = payloads
        .iter()
        .map(|payload| note(payload, section::BUILD_ID))
        .collect();
    for (index, payload) in payloads.iter().enumerate() {
        let bad = |reason: String| Err(Unusable::new(payload.name, &reason));
        let same = |other: &&usize| ids[**other].is_some() && ids[**other] == ids[index];
        if let Some(&first) = (0..index).collect::<Vec<_>>().iter().find(same) {
            return bad(format!(
                "it is the same payload as {}",
                payloads[first].name
            ));
        }
        let Some(below) = note(payload, section::DEPENDS) else {
            continue;
        };
        let there = ids[..index].iter().flatten().any(|id| *id == below);
        if there || below == hypervisor {
            continue;
        }
        let behind = ids[index..]
            .iter()
            .position(|id| id.as_ref() == Some(&below));
        return match behind {
            Some(behind) => bad(format!(
                "it depends on {}, which is given after it: give the lowest first",
                payloads[index + behind].name
            )),
            None => bad(format!(
                "it depends on the payload with build-id {}, which is not given: give all payloads of \
                 the stack, the lowest first",
                hex(&below)
            )),
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(payload: &str, texts: &[&str]) -> Recorded {
        let patches = texts.iter().map(|text| {
            let hash = hex(&Sha256::digest(text.as_bytes()));
            (format!("{text}.patch"), hash)
        });
        Recorded {
            payload: payload.to_owned(),
            patches: patches.collect(),
        }
    }

    fn said(payloads: &[Recorded], given: &[&str]) -> String {
        let given: Vec<_> = given
            .iter()
            .map(|text| (format!("{text}.patch"), text.as_bytes()))
            .collect();
        match check_patches(payloads, &given) {
            Ok(notes) => notes.join("\n"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn patches_belong_to_the_payloads_in_order() {
        let stack = [recorded("low", &["a", "b"]), recorded("high", &["c"])];
        assert_eq!(said(&stack, &["a", "b", "c"]), "");
        for (given, start) in [
            (
                &["a", "b", "c", "d"][..],
                "d.patch: no payload that is given",
            ),
            (&["a", "c"], "low: it was built from b.patch (sha256:"),
            (
                &["c", "a", "b"],
                "c.patch: a.patch, which low was built from,",
            ),
            (
                &["b", "a", "c"],
                "b.patch: a.patch, which low was built from,",
            ),
        ] {
            let said = said(&stack, given);
            assert!(said.starts_with(start), "{given:?}: {said}");
        }
        assert!(said(&stack[1..], &["a", "b", "c"]).starts_with("a.patch: no payload"));
        // Rewritten patches are left to the proof.
        assert_eq!(
            said(&stack, &["a", "b", "C"]),
            "C.patch is not the c.patch that high was built from: it is another patch, or was \
             changed since"
        );
        assert_eq!(said(&[recorded("silent", &[])], &["a"]), "");
        assert_eq!(said(&[], &["a"]), "");
    }
}

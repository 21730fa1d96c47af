// SPDX-License-Identifier: MIT OR Apache-2.0
//! Old and new code of each function, side by side.

use crate::Error;
use crate::elf::Elf;
use crate::payload::{Function, functions};
use crate::place;
use serde::Serialize;
use similar::{Algorithm, DiffOp};
use std::borrow::Cow;
use std::collections::HashMap;
use xsplice_abi::symbol::RuntimeName;
use xsplice_xen_image::Image;

/// One function, before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Listing {
    /// Its record in the payload.
    pub function: Function,
    /// Its instructions, aligned.
    pub lines: Vec<Line>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Line {
    /// The old instruction.
    pub old: Option<Code>,
    /// The new instruction.
    pub new: Option<Code>,
    /// Whether both are equivalent: branches within the function are if they lead to
    /// the same line.
    pub same: bool,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, schemars::JsonSchema)]
pub struct Code {
    /// Offset in the function in bytes.
    pub offset: u64,
    /// The instruction, with names in place of addresses.
    pub text: String,
    /// The target of a branch within the function.
    #[serde(skip)]
    pub(crate) inner: Option<u64>,
    /// The key for comparing instructions: the text without the branch target, and
    /// with all references in full.
    #[serde(skip)]
    pub(crate) shape: String,
}

impl Code {
    /// An instruction that refers to nothing.
    pub(crate) fn plain(offset: u64, text: String) -> Self {
        Self {
            offset,
            shape: text.clone(),
            text,
            inner: None,
        }
    }
}

/// Aligns the code of each function of the payload `data` with the code that it
/// replaces in `image`.
///
/// # Errors
/// If the payload cannot be read.
pub fn compare(data: &[u8], image: &Image) -> Result<Vec<Listing>, Error> {
    let elf = Elf::read(data, &|name| image.address_of(name))?;
    let names = Names { image, elf: &elf };
    let listings = functions(&elf, Some(image))?
        .into_iter()
        .map(|(function, new)| {
            let old = function.old_address.and_then(|address| {
                let code = code(image.tail(address)?, function.old_size)?;
                Some(elf.arch.disassemble(code, address, &names))
            });
            let old = old.unwrap_or_default();
            let new = match new {
                Some(address) => elf.bytes(address).and_then(|bytes| {
                    let code = code(bytes, function.new_size)?;
                    Some(elf.arch.disassemble(code, address, &names))
                }),
                // The code after the no-ops stays.
                None => {
                    let stays = |code: &&Code| code.offset >= function.new_size.into();
                    Some(old.iter().filter(stays).cloned().collect())
                }
            };
            Listing {
                lines: align(&old, &new.unwrap_or_default()),
                function,
            }
        });
    Ok(listings.collect())
}

fn code(bytes: &[u8], size: u32) -> Option<&[u8]> {
    let size = usize::try_from(size).ok()?;
    bytes.get(..size.min(bytes.len()))
}

/// Names for addresses: a symbol and an offset, or a string.
pub(crate) struct Names<'a> {
    image: &'a Image,
    elf: &'a Elf,
}

/// A short name for people, and the full one.
pub(crate) struct Name {
    pub(crate) short: String,
    pub(crate) full: String,
}

impl Names<'_> {
    pub(crate) fn name(&self, address: u64) -> Name {
        let symbol = self.elf.name(address);
        let symbol = symbol.map(|(name, offset)| (Cow::from(name), offset));
        if let Some((name, offset)) = symbol.or_else(|| place::symbol(self.image, address)) {
            // The name of a new symbol is followed by its payload's tag.
            let name = name.split('@').next().unwrap_or_default();
            return Name {
                short: with_offset(RuntimeName::parse(name).name, offset),
                full: with_offset(name, offset),
            };
        }
        let bytes = self.elf.bytes(address);
        if let Some(text) = bytes.or_else(|| self.image.tail(address)).and_then(text) {
            return Name {
                short: shortened(text),
                full: format!("{text:?}"),
            };
        }
        let place = self.elf.place(address);
        let place = place.map(|(section, offset)| (Cow::from(section), offset));
        let place = match place.or_else(|| place::section(self.image, address)) {
            Some((section, offset)) => with_offset(&section, offset),
            None => format!("{address:#x}"),
        };
        Name {
            short: place.clone(),
            full: place,
        }
    }
}

fn with_offset(name: &str, offset: u64) -> String {
    match offset {
        0 => name.to_owned(),
        offset => format!("{name}+{offset:#x}"),
    }
}

/// The string at the start of `bytes`, if it is printable and long enough to be one.
fn text(bytes: &[u8]) -> Option<&str> {
    let end = bytes.iter().position(|&b| b == 0)?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let printable = |c: char| !c.is_control() || c == '\n' || c == '\t';
    (text.chars().count() >= 3 && text.chars().all(printable)).then_some(text)
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 40;
    let short: String = text.chars().take(LONGEST).collect();
    let dots = if short.len() < text.len() { "..." } else { "" };
    format!("{short:?}{dots}")
}

/// More instructions than any function of Xen has. Longer listings are not aligned,
/// since that takes time quadratic in the differences.
const MOST: usize = 40_000;

fn align(old: &[Code], new: &[Code]) -> Vec<Line> {
    // Numbers compare faster than strings.
    let mut numbers = HashMap::new();
    let mut number = |side: &[Code]| -> Vec<usize> {
        side.iter()
            .map(|code| {
                let next = numbers.len();
                *numbers.entry(code.shape.clone()).or_insert(next)
            })
            .collect()
    };
    let (old_numbers, new_numbers) = (number(old), number(new));
    let steps = if old.len() + new.len() > MOST {
        vec![DiffOp::Replace {
            old_index: 0,
            old_len: old.len(),
            new_index: 0,
            new_len: new.len(),
        }]
    } else {
        similar::capture_diff_slices(Algorithm::Myers, &old_numbers, &new_numbers)
    };
    let mut lines = Vec::new();
    for step in steps {
        let (old, new) = (&old[step.old_range()], &new[step.new_range()]);
        for at in 0..old.len().max(new.len()) {
            lines.push(Line {
                old: old.get(at).cloned(),
                new: new.get(at).cloned(),
                same: matches!(step, DiffOp::Equal { .. }),
            });
        }
    }
    compare_branches(&mut lines);
    lines
}

/// Branches of the same kind are the same only if they lead to the same line.
fn compare_branches(lines: &mut [Line]) {
    let offset = |code: &Option<Code>| code.as_ref().map(|code| code.offset);
    let partners: HashMap<u64, Option<u64>> = lines
        .iter()
        .filter_map(|line| Some((offset(&line.old)?, offset(&line.new))))
        .collect();
    for line in lines {
        if let (Some(old), Some(new)) = (&line.old, &line.new)
            && let (Some(old), Some(new)) = (old.inner, new.inner)
        {
            line.same &= partners.get(&old) == Some(&Some(new));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(lines: &[(u64, &str, Option<u64>)]) -> Vec<Code> {
        let code = lines.iter().map(|&(offset, shape, inner)| Code {
            offset,
            text: shape.to_owned(),
            inner,
            shape: shape.to_owned(),
        });
        code.collect()
    }

    fn same(old: &[Code], new: &[Code]) -> Vec<bool> {
        align(old, new).iter().map(|line| line.same).collect()
    }

    #[test]
    fn a_branch_to_the_same_line_is_the_same() {
        let old = code(&[(0, "je ", Some(4)), (2, "push", None), (4, "ret", None)]);
        let new = code(&[
            (0, "je ", Some(5)),
            (2, "push", None),
            (3, "pop", None),
            (5, "ret", None),
        ]);
        assert_eq!(same(&old, &new), [true, true, false, true]);
    }

    #[test]
    fn a_branch_to_another_line_is_a_difference() {
        let old = code(&[(0, "je ", Some(2)), (2, "push", None), (4, "ret", None)]);
        let new = code(&[(0, "je ", Some(4)), (2, "push", None), (4, "ret", None)]);
        assert_eq!(same(&old, &new), [false, true, true]);
        assert_eq!(same(&old, &old), [true, true, true]);
    }

    #[test]
    fn everything_is_listed_however_long() {
        let old = code(&vec![(0, "nop", None); MOST]);
        let new = code(&[(0, "ret", None)]);
        let lines = align(&old, &new);
        assert_eq!(lines.len(), MOST);
        assert!(lines.iter().all(|line| line.old.is_some() && !line.same));
    }

    #[test]
    fn only_strings_are_shown_as_strings() {
        assert_eq!(text(b"a \"b\"\n\0"), Some("a \"b\"\n"));
        assert_eq!(text(b"ab\0"), None);
        assert_eq!(text(b"\x7fELF\0"), None);
        assert_eq!(text(b"no end"), None);
        assert_eq!(shortened("\n"), r#""\n""#);
        let long = "x".repeat(40);
        assert_eq!(shortened(&format!("{long}y")), format!("{long:?}..."));
    }
}

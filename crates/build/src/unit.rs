// SPDX-License-Identifier: MIT OR Apache-2.0
//! An object before and after the patch.

use crate::Problem;
use crate::rebuild::Pair;
use crate::tree::{ObjectFile, Tree};
use std::collections::BTreeSet;
use xsplice_diff::compare::Comparison;
use xsplice_diff::object::Object;

/// An object before and after the patch, with the differences.
#[derive(Debug)]
pub struct Unit {
    /// Where it came from.
    pub file: ObjectFile,
    /// Built from the original source; empty for a new object.
    pub original: Object,
    /// Built from the patched source; empty for a removed object.
    pub patched: Object,
    /// What differs.
    pub comparison: Comparison,
    /// The object as the hypervisor has it, where payloads below changed the
    /// original.
    pub shipped: Option<Shipped>,
}

/// An object as the hypervisor has it, and what payloads below made of it.
#[derive(Debug)]
pub struct Shipped {
    /// The object.
    pub object: Object,
    /// From it to the original of the unit.
    pub comparison: Comparison,
}

impl Unit {
    /// Compares the two builds of an object; `None` if they do the same.
    ///
    /// # Errors
    /// If they cannot be compared.
    pub(crate) fn compare(tree: &Tree, pair: &Pair) -> Result<Option<Self>, Problem> {
        let object = &pair.object;
        if pair.original == pair.patched {
            return Ok(None);
        }
        if object.path.ends_with(".s") {
            return compare_offsets(pair);
        }
        let read = |bytes: &Option<Vec<u8>>| {
            let Some(bytes) = bytes else {
                return Ok(Object::default());
            };
            let mut object = Object::read(&pair.object.path, bytes).map_err(|e| {
                Problem::new(
                    &pair.object.source,
                    format!("changed boot code or an object that cannot be compared: {e}"),
                )
            })?;
            // The build gives the FILE symbol its path after compiling.
            object.file =
                linked_file_name(tree, &pair.object).unwrap_or(pair.object.source.clone());
            Ok(object)
        };
        let (original, patched) = (read(&pair.original)?, read(&pair.patched)?);
        let comparison = xsplice_diff::compare(&original, &patched);
        let shipped = match &pair.shipped {
            None => None,
            Some(bytes) => {
                let bytes = Some(bytes.clone()).filter(|bytes| !bytes.is_empty());
                let object = read(&bytes)?;
                Some(Shipped {
                    comparison: xsplice_diff::compare(&object, &original),
                    object,
                })
            }
        };
        Ok((!comparison.is_empty()).then(|| Self {
            file: object.clone(),
            original,
            patched,
            comparison,
            shipped,
        }))
    }
}

/// Offsets that assembly code uses must be what they were.
fn compare_offsets(pair: &Pair) -> Result<Option<Unit>, Problem> {
    let text = |bytes: &Option<Vec<u8>>| bytes.clone().unwrap_or_default();
    let changed = changed_offsets(&text(&pair.original), &text(&pair.patched));
    if changed.is_empty() {
        return Ok(None);
    }
    Err(Problem::new(
        &pair.object.source,
        format!(
            "the layout of structures changes that assembly code uses ({}): the running \
             hypervisor's assembly and data have the old one; keep the layout of the structure",
            changed.join(", ")
        ),
    ))
}

/// Names of the offsets that differ in two lists for assembly code: lines such
/// as `.ascii "==>#define VCPU_processor 0 ...`.
fn changed_offsets(old: &[u8], new: &[u8]) -> Vec<String> {
    let definitions = |text: &[u8]| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(text).into_owned();
        text.lines()
            .filter_map(|l| Some(l.split_once("==>#define ")?.1.to_owned()))
            .collect()
    };
    let (old, new) = (definitions(old), definitions(new));
    let names: BTreeSet<String> = old
        .symmetric_difference(&new)
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        .collect();
    names.into_iter().collect()
}

/// The FILE symbol of the object that the build of the tree linked.
fn linked_file_name(tree: &Tree, object: &ObjectFile) -> Option<String> {
    let data = std::fs::read(tree.top.join("xen").join(&object.path)).ok()?;
    Some(Object::read(&object.path, &data).ok()?.file)
}

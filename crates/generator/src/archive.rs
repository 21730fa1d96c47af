// SPDX-License-Identifier: MIT OR Apache-2.0
//! Members of the hypervisor's library, of which the linker takes only those that are
//! needed.

use crate::code::Code;
use crate::pair::Pair;
use crate::problem::{Problem, Refused};
use crate::rebuild::{Patched, Rebuild};
use crate::tree::Tree;
use crate::unit::Unit;
use object::{Object as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use xsplice_xen_image::Image;

/// Adds the members that the patched objects, or those of a level below, need: they
/// are new at the first level that needs them. Returns the members to ignore: nothing
/// needs them, and the patch does not change them.
///
/// # Errors
/// If a member that is needed cannot be compiled.
pub(crate) fn settle(
    (tree, image): (&Tree, &Image),
    rebuild: &Rebuild,
    (levels, patched): (&[Patched], &Patched),
    pairs: &mut Vec<Pair>,
) -> Result<BTreeSet<String>, Refused> {
    let members: Vec<_> = tree
        .objects
        .iter()
        .filter(|object| tree.archived.contains(&object.path) && !image.has_file(&object.source))
        .collect();
    let has = |pairs: &[Pair], path: &str| pairs.iter().any(|pair| pair.object.path == path);
    let is_member = |pair: &mut Pair| members.iter().any(|m| m.path == pair.object.path);
    let reached: Vec<Pair> = pairs.extract_if(.., is_member).collect();
    for level in 0..=levels.len() {
        loop {
            let needed = needed(pairs, level, levels.len(), image);
            let missing = members.iter().find(|member| {
                let built = std::fs::read(tree.top.join("xen").join(&member.path));
                let defines = |bytes: Vec<u8>| !needed.is_disjoint(&globals(&bytes, true));
                !has(pairs, &member.path) && built.is_ok_and(defines)
            });
            let Some(member) = missing else {
                break;
            };
            let pair = rebuild.linked_from(level, (levels, patched), member);
            pairs.push(pair.map_err(|problem| Refused(vec![problem]))?);
        }
    }
    // Members that the patch changes but nothing needs are reported.
    let mut unneeded = BTreeSet::new();
    for mut pair in reached {
        let same = |unit: Option<Unit>| unit.is_none_or(|unit| unit.comparison.is_empty());
        let changes = !Unit::compare(tree, &pair, None).is_ok_and(same);
        if has(pairs, &pair.object.path) {
            continue;
        } else if changes {
            pair.original = None;
            pair.below.clear();
            pairs.push(pair);
        } else {
            unneeded.insert(pair.object.path);
        }
    }
    Ok(unneeded)
}

/// The names that objects at `level` refer to, and that neither they nor the
/// hypervisor define; the patch is on top of `top` levels.
fn needed(pairs: &[Pair], level: usize, top: usize, image: &Image) -> BTreeSet<String> {
    let (mut needed, mut defined) = (BTreeSet::new(), BTreeSet::new());
    let builds = pairs.iter().filter_map(|pair| match level == top {
        true => pair.patched.as_deref(),
        false => pair.after(level),
    });
    for bytes in builds {
        needed.extend(globals(bytes, false));
        defined.extend(globals(bytes, true));
    }
    needed.retain(|name| image.global(name).is_none() && !defined.contains(name));
    needed
}

/// The refusal if all changes are in members that are not linked.
pub(crate) fn check_linked(tree: &Tree, image: &Image, changed: &[&str]) -> Result<(), Refused> {
    let unlinked = |path: &&str| {
        let mut objects = tree.objects.iter();
        let object = objects.find(|object| object.path == **path);
        object.is_some_and(|o| tree.archived.contains(&o.path) && !image.has_file(&o.source))
    };
    if changed.is_empty() || !changed.iter().all(unlinked) {
        return Ok(());
    }
    let problems = changed.iter().map(|path| {
        let message = "it is in the hypervisor's library, but nothing needed it, so that it is \
                       not linked: there is nothing to patch";
        Problem::new(Code::NothingToPatch, *path, message)
    });
    Err(Refused(problems.collect()))
}

/// Names of the global symbols that an object defines, or only refers to.
fn globals(bytes: &[u8], defined: bool) -> BTreeSet<String> {
    let Ok(file) = object::File::parse(bytes) else {
        return BTreeSet::new();
    };
    let symbols = file.symbols().filter(|symbol| symbol.is_global());
    symbols
        .filter(|symbol| symbol.is_undefined() != defined)
        .filter_map(|symbol| Some(symbol.name().ok()?.to_owned()))
        .filter(|name| !name.is_empty())
        .collect()
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Members of the hypervisor's library, of which the linker takes those that
//! something needs.

use crate::rebuild::{Pair, Patched, Rebuild};
use crate::tree::Tree;
use crate::unit::Unit;
use crate::{Problem, Refused};
use object::{Object as _, ObjectSymbol as _};
use std::collections::BTreeSet;
use xsplice_xen_image::Image;

/// Makes members that are not linked new to the hypervisor, and adds those that
/// the patched objects need. Returns the members that do not count: nothing needs
/// them, and the patch leaves them as they are.
///
/// # Errors
/// If a member that is needed cannot be compiled.
pub(crate) fn settle(
    (tree, image): (&Tree, &Image),
    (rebuild, patched): (&Rebuild, &Patched),
    pairs: &mut Vec<Pair>,
) -> Result<BTreeSet<String>, Refused> {
    let members: Vec<_> = tree
        .objects
        .iter()
        .filter(|object| tree.archived.contains(&object.path) && !image.has_file(&object.source))
        .collect();
    let is_member = |pair: &Pair| {
        let mut members = members.iter();
        members.any(|member| member.path == pair.object.path)
    };
    // Those that the patch leaves as they are only count if something needs them.
    let mut unneeded = BTreeSet::new();
    pairs.retain(|pair| {
        let same = |unit: Option<Unit>| unit.is_none_or(|unit| unit.comparison.is_empty());
        let stays = !is_member(pair) || !Unit::compare(tree, pair, None).is_ok_and(same);
        if !stays {
            unneeded.insert(pair.object.path.clone());
        }
        stays
    });
    for pair in pairs.iter_mut().filter(|pair| is_member(pair)) {
        pair.original = None;
    }
    loop {
        let (mut needed, mut defined) = (BTreeSet::new(), BTreeSet::new());
        for bytes in pairs.iter().filter_map(|pair| pair.patched.as_deref()) {
            needed.extend(globals(bytes, false));
            defined.extend(globals(bytes, true));
        }
        needed.retain(|name| image.global(name).is_none() && !defined.contains(name));
        let missing = members.iter().find(|member| {
            let built = std::fs::read(tree.top.join("xen").join(&member.path));
            let there = pairs.iter().any(|pair| pair.object.path == member.path);
            !there && built.is_ok_and(|bytes| !needed.is_disjoint(&globals(&bytes, true)))
        });
        let Some(member) = missing else {
            return Ok(unneeded);
        };
        unneeded.remove(&member.path);
        let bytes = rebuild.patched(patched, member);
        pairs.push(Pair {
            object: (*member).clone(),
            was: None,
            original: None,
            patched: Some(bytes.map_err(|problem| Refused(vec![problem]))?),
            below: Vec::new(),
        });
    }
}

/// That everything which changes is in members that are not linked.
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
        Problem::new(*path, message)
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

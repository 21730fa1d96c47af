// SPDX-License-Identifier: MIT OR Apache-2.0
//! Small random edits to the hypervisor's source, each as a patch.

mod edit;

use crate::{Base, machine};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use xsplice_abi::machine::Machine;

/// Random numbers from a seed (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// Equal seeds give equal numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = end.max(1) as u64;
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }
}

/// An edit to a file.
#[derive(Debug)]
pub struct Mutation {
    /// The file, from the top of the tree.
    pub file: String,
    /// The kind of edit.
    pub kind: &'static str,
    /// The edit as a unified diff.
    pub patch: String,
}

/// The sources that the hypervisor of `base` was compiled from.
///
/// # Errors
/// If the tree cannot be read.
pub fn sources(base: &Base) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let arch = match machine(base)? {
        Machine::X86_64 => "arch/x86",
        Machine::Arm64 | Machine::Arm32 => "arch/arm",
    };
    for part in ["common", arch, "drivers", "lib", "xsm"] {
        collect(&base.tree.join("xen").join(part), &mut found)?;
    }
    found.retain(|path| {
        let text = path.to_string_lossy();
        !text.contains("/arch/x86/boot/") && !text.contains("/efi/")
    });
    found.sort();
    Ok(found)
}

fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory).context(directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|e| e == "c") && path.with_extension("o").is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// Changes a random place of a random file of `sources` that is not in `used`.
///
/// # Errors
/// If a file cannot be read.
pub fn mutate(
    tree: &Path,
    sources: &[PathBuf],
    used: &[String],
    random: &mut Random,
) -> anyhow::Result<Mutation> {
    loop {
        let path = random.choose(sources).context("the tree was not built")?;
        let file = path.strip_prefix(tree)?.display().to_string();
        let Ok(old) = std::fs::read_to_string(path) else {
            // Not UTF-8.
            continue;
        };
        if used.contains(&file) {
            continue;
        }
        if let Some((kind, new)) = edit::apply(&old, random) {
            let diff = similar::TextDiff::from_lines(&old, &new);
            let (from, to) = (format!("a/{file}"), format!("b/{file}"));
            let patch = diff.unified_diff().header(&from, &to).to_string();
            return Ok(Mutation { file, kind, patch });
        }
    }
}

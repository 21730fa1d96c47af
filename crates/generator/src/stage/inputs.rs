// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first stage: everything that is read, and fits together.

use crate::account;
use crate::below::Below;
use crate::choice::{Choices, listed};
use crate::code::Code;
use crate::given::File;
use crate::hunk::Hunk;
use crate::metadata::metadata;
use crate::options::Options;
use crate::patch::FilePatch;
use crate::problem::{Refused, all};
use crate::source::SourcePatch;
use crate::tree::Tree;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use xsplice_abi::note::hex;
use xsplice_system::file;
use xsplice_xen_image::Image;

/// What a payload is built from.
pub(crate) struct Inputs<'a> {
    pub(super) options: &'a Options,
    pub(super) image: Arc<Image>,
    pub(super) tree: Tree,
    pub(super) given: Given,
    pub(super) leave_out: Choices,
    pub(super) allow: Choices,
    pub(super) patch_data: Choices,
    pub(super) below: Below,
    /// All patches in the order in which they apply, without what is left out of them.
    pub(super) patches: Vec<SourcePatch>,
    /// How many of the patches are those of the payloads below.
    pub(super) own: usize,
    /// What is left out of the payload's own patches.
    pub(super) left_out: Vec<Hunk>,
    /// The payload's metadata.
    pub(super) metadata: Vec<(String, String)>,
}

impl<'a> Inputs<'a> {
    /// Reads what `options` name.
    ///
    /// # Errors
    /// What cannot be read, and what is not of one hypervisor.
    pub(crate) fn read(options: &'a Options) -> Result<Self, Refused> {
        let image = Image::parse(&read(&options.xen_syms)?).map_err(|e| {
            Refused::one(
                Code::NotXenSyms,
                file::shown(&options.xen_syms),
                e.to_string(),
            )
        })?;
        check_hypervisor(options, &image)?;
        let tree = Tree::read(&options.source)?;
        let given = Given::read(options)?;
        if let Some(config) = &given.config {
            check_config(&tree, config)?;
        }
        let mut patches = SourcePatch::read_all(&options.patches)?;
        let leave_out = Choices::new(&options.leave_out);
        let left_out = account::leave_out(&mut patches, &leave_out);
        let mut below_patches = SourcePatch::read_all(&options.below_patches)?;
        let mut below = Below::read(&options.below)?;
        below.tie(&below_patches, image.build_id())?;
        check_depends(options, &below)?;
        let mut done = 0;
        for level in &below.levels {
            let left_out = Choices::new(&level.left_out());
            account::leave_out(&mut below_patches[done..level.patches], &left_out);
            done = level.patches;
        }
        Ok(Self {
            metadata: metadata(options, &patches, &image)?,
            options,
            image: Arc::new(image),
            tree,
            given,
            leave_out,
            allow: Choices::new(&options.allow),
            patch_data: Choices::new(&options.patch_data),
            below,
            own: below_patches.len(),
            patches: below_patches.into_iter().chain(patches).collect(),
            left_out,
        })
    }

    /// The patches that this payload is for.
    pub(super) fn own_patches(&self) -> &[SourcePatch] {
        &self.patches[self.own..]
    }

    /// The files that these change.
    pub(super) fn own_files(&self) -> impl Iterator<Item = &FilePatch> {
        self.own_patches().iter().flat_map(|patch| &patch.files)
    }
}

/// Input files besides patches and payloads.
pub(super) struct Given {
    pub(super) config: Option<File>,
    pub(super) hooks: Vec<File>,
}

impl Given {
    fn read(options: &Options) -> Result<Self, Refused> {
        let config = options.config.as_deref().map(File::read).transpose();
        let hooks = options.hooks.iter().map(|path| File::read(path));
        Ok(Self {
            config: config.map_err(|problem| Refused(vec![problem]))?,
            hooks: all(hooks.collect())?,
        })
    }
}

/// Checks the hypervisor's build-id, if the user named one.
fn check_hypervisor(options: &Options, image: &Image) -> Result<(), Refused> {
    match &options.xen_depends {
        Some(named) if named.as_slice() != image.build_id() => Err(Refused::one(
            Code::WrongHypervisor,
            "--xen-depends",
            format!(
                "it names the hypervisor {}, but {} is that of {}: a payload is for the \
                 hypervisor that it was proved against",
                hex(named),
                file::shown(&options.xen_syms),
                hex(image.build_id())
            ),
        )),
        _ => Ok(()),
    }
}

/// With payloads below, the dependency is given twice and must agree.
fn check_depends(options: &Options, below: &Below) -> Result<(), Refused> {
    match (&options.depends, below.build_id()) {
        (Some(named), Some(top)) if named != top => Err(Refused::one(
            Code::WrongStack,
            "--depends",
            format!(
                "it names {}, but the last payload of --on has the build-id {}: leave one of the \
                 two options out",
                hex(named),
                hex(top)
            ),
        )),
        _ => Ok(()),
    }
}

fn check_config(tree: &Tree, config: &File) -> Result<(), Refused> {
    let settings = |contents: &[u8]| -> BTreeSet<String> {
        let text = String::from_utf8_lossy(contents);
        let settings = text.lines().filter(|l| l.starts_with("CONFIG_"));
        settings.map(str::to_owned).collect()
    };
    let wanted = settings(&config.contents);
    let built = settings(&read(&tree.top.join("xen/.config"))?);
    if wanted.is_empty() {
        let message = "it has no settings `CONFIG_...`: give the hypervisor's configuration";
        return Err(Refused::one(
            Code::OtherConfiguration,
            file::shown(&config.path),
            message,
        ));
    }
    let only = |one: &BTreeSet<String>, other: &BTreeSet<String>, whose: &str| {
        let settings: Vec<&str> = one.difference(other).map(String::as_str).collect();
        (!settings.is_empty()).then(|| format!("only {whose} has {}", listed(&settings)))
    };
    let differences = [
        only(&wanted, &built, "it"),
        only(&built, &wanted, "the tree"),
    ];
    let differences: Vec<String> = differences.into_iter().flatten().collect();
    if differences.is_empty() {
        return Ok(());
    }
    Err(Refused::one(
        Code::OtherConfiguration,
        file::shown(&config.path),
        format!(
            "the tree was built with another configuration: {}; build the tree with this one, or \
             give the one that it was built with",
            differences.join("; ")
        ),
    ))
}

fn read(path: &Path) -> Result<Vec<u8>, Refused> {
    file::read(path).map_err(|e| Refused::io(path, &e))
}

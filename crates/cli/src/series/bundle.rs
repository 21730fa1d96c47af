// SPDX-License-Identifier: MIT OR Apache-2.0
//! `xsplice series bundle`: what the payloads of a release are built from, in one archive.

use super::read;
use crate::output::{Ended, say, shown};
use anyhow::{Context as _, bail, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::HashSet;
use std::fs::{self, Metadata};
use std::io::Write;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use tar::{Builder, EntryType, Header};
use xsplice_abi::note::hex;
use xsplice_generator::tree::Tree;
use xsplice_review::Image;
use xsplice_store::{Base, BuildId};
use xsplice_system::file;

const EXAMPLES: &str = "\
Examples:
  xsplice series bundle series.toml -o bases.tar.gz
  xsplice series bundle series.toml --base 39a640e6f1412319235087391df9f1c5e13ae920 -o base.tar.gz

The archive has the files under the names that they have in the series, which must be relative.
Unpack it on another machine, beside the series and its patches, and `xsplice series plan`
works there. That machine needs the compiler of the hypervisor; BUILD-ID.bundle.json says
which. What version control keeps in a tree (.git) is left out, and so is the key.";

/// Arguments of `xsplice series bundle`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The file that describes the release.
    series: PathBuf,
    /// Only the hypervisor with this build-id [default: all].
    #[arg(long, value_name = "BUILD-ID")]
    base: Option<String>,
    /// The archive to write, compressed with gzip.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// The hypervisors in the archive.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Bundled {
    bases: Vec<Packed>,
}

/// A hypervisor in the archive.
#[derive(Serialize, JsonSchema)]
struct Packed {
    /// Its build-id.
    base: BuildId,
    /// Its compiler, which the build needs, too.
    compiler: String,
    /// The tree that it was built in.
    tree: String,
    /// Its symbols.
    xen_syms: String,
    /// Its configuration, if the series names one.
    config: Option<String>,
}

pub(super) fn bundle(args: &Args, json: bool) -> anyhow::Result<ExitCode> {
    let series = read(&args.series)?;
    let only = args.base.clone().map(BuildId::try_from).transpose();
    let only = only.map_err(anyhow::Error::msg).context("--base")?;
    let output = || format!("cannot write {}", shown(&args.output));
    let chosen = series.bases(only.as_ref())?;
    let files = chosen.iter().flat_map(|base| base.files());
    let inputs: Vec<PathBuf> = files.map(PathBuf::from).collect();
    let inputs = inputs.iter().chain([&args.series]);
    file::check_output(&args.output, inputs).with_context(output)?;
    let mut archive = Archive::new();
    let mut bases = Vec::new();
    for base in chosen {
        let packed = pack(&mut archive, base);
        bases.push(packed.with_context(|| format!("the hypervisor {}", base.build_id))?);
    }
    file::write(&args.output, &archive.finish()?).with_context(output)?;
    if !json {
        for packed in &bases {
            say!("{}: {}", packed.base, packed.compiler);
        }
    }
    Ok(Ended::well(Bundled { bases }).changed(true).tell(json))
}

/// Adds a hypervisor to the archive, if payloads can be built from what there is.
fn pack(archive: &mut Archive, base: &Base) -> anyhow::Result<Packed> {
    let (tree, syms) = (Path::new(&base.tree), Path::new(&base.xen_syms));
    let image = file::read(syms).with_context(|| shown(syms))?;
    let image = Image::parse(&image).with_context(|| shown(syms))?;
    let id = hex(image.build_id());
    ensure!(
        id == base.build_id.as_str(),
        "{} is the hypervisor {id}",
        shown(syms)
    );
    let top = Tree::read(tree)?.top;
    ensure!(
        top.join("xen") != tree.canonicalize()?,
        "{}: name the directory above it, which the build needs, too",
        shown(tree)
    );
    archive.add(tree, &top)?;
    for file in base.files() {
        let path = Path::new(file);
        let real = path.canonicalize().with_context(|| shown(path))?;
        ensure!(real.is_file(), "{}: it is not a file", shown(path));
        archive.add(path, &real)?;
    }
    let packed = Packed {
        base: base.build_id.clone(),
        compiler: image.compiler().to_owned(),
        tree: base.tree.clone(),
        xen_syms: base.xen_syms.clone(),
        config: base.config.clone(),
    };
    let text = format!("{}\n", serde_json::to_string_pretty(&packed)?);
    let name = format!("{}.bundle.json", packed.base);
    archive.text(Path::new(&name), &text)?;
    Ok(packed)
}

/// An archive that is written.
struct Archive {
    builder: Builder<GzEncoder<Vec<u8>>>,
    /// What is in it: several hypervisors may have the same files.
    names: HashSet<PathBuf>,
}

impl Archive {
    fn new() -> Self {
        Self {
            builder: Builder::new(GzEncoder::new(Vec::new(), Compression::fast())),
            names: HashSet::new(),
        }
    }

    /// Adds the file or directory at `path`, as `name`.
    fn add(&mut self, name: &Path, path: &Path) -> anyhow::Result<()> {
        check_name(name)?;
        let name: PathBuf = name
            .components()
            .filter(|part| *part != Component::CurDir)
            .collect();
        self.add_all(&name, path)
    }

    fn add_all(&mut self, name: &Path, path: &Path) -> anyhow::Result<()> {
        let context = || shown(path);
        let metadata = path.symlink_metadata().with_context(context)?;
        if !metadata.is_dir() && !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        let mut header = header(&metadata);
        if metadata.is_dir() {
            header.set_entry_type(EntryType::Directory);
            self.builder.append_data(&mut header, name, &[][..])?;
            return self.add_inside(name, path).with_context(context);
        }
        if metadata.is_symlink() {
            let target = fs::read_link(path).with_context(context)?;
            header.set_entry_type(EntryType::Symlink);
            return Ok(self.builder.append_link(&mut header, name, target)?);
        }
        ensure!(
            metadata.is_file(),
            "{}: it is neither a file nor a directory nor a link",
            shown(path)
        );
        let data = fs::read(path).with_context(context)?;
        header.set_size(data.len() as u64);
        Ok(self.builder.append_data(&mut header, name, &*data)?)
    }

    /// Adds what is in a directory, in an order that does not depend on the file system.
    fn add_inside(&mut self, name: &Path, directory: &Path) -> anyhow::Result<()> {
        let entries = fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name()));
        let mut files = entries.collect::<std::io::Result<Vec<_>>>()?;
        files.sort_unstable();
        for file in files.iter().filter(|file| *file != ".git") {
            self.add_all(&name.join(file), &directory.join(file))?;
        }
        Ok(())
    }

    fn text(&mut self, name: &Path, text: &str) -> anyhow::Result<()> {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        Ok(self
            .builder
            .append_data(&mut header, name, text.as_bytes())?)
    }

    fn finish(self) -> anyhow::Result<Vec<u8>> {
        let mut encoder = self.builder.into_inner()?;
        encoder.flush()?;
        Ok(encoder.finish()?)
    }
}

/// Rights and times of a file, which the build looks at; it belongs to nobody.
fn header(metadata: &Metadata) -> Header {
    let mut header = Header::new_gnu();
    header.set_metadata(metadata);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header
}

/// Refuses a name that means another place where the archive is unpacked.
fn check_name(name: &Path) -> anyhow::Result<()> {
    let inside = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let mut parts = name.components();
    if !parts.all(inside) || !name.components().any(|part| part != Component::CurDir) {
        bail!(
            "{}: in a series that is bundled, paths are relative and without \"..\", so that \
             they are there on another machine, too",
            shown(name)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["/etc", "..", "a/../../b", "", "."] {
            assert!(check_name(Path::new(name)).is_err(), "{name}");
        }
        for name in ["a", "./a", "a/b"] {
            assert!(check_name(Path::new(name)).is_ok(), "{name}");
        }
    }

    #[test]
    fn a_directory_is_packed_as_it_is_but_for_git() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        let long = "x".repeat(150);
        for name in ["sub", ".git"] {
            fs::create_dir(at(name)).expect("made");
        }
        for name in [".git/HEAD", ".config", &format!("sub/{long}")] {
            fs::write(at(name), name).expect("written");
        }
        std::os::unix::fs::symlink("../.config", at("sub/link")).expect("linked");
        let mut archive = Archive::new();
        archive
            .add(Path::new("./tree"), directory.path())
            .expect("packed");
        archive
            .add(Path::new("tree/.config"), &at(".config"))
            .expect("packed");
        let packed = archive.finish().expect("packed");
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*packed));
        let entries = archive.entries().expect("an archive");
        let names = entries.map(|entry| {
            let entry = entry.expect("an entry");
            entry.path().expect("a name").display().to_string()
        });
        let names: Vec<String> = names.collect();
        let file = format!("tree/sub/{long}");
        assert_eq!(
            names,
            ["tree", "tree/.config", "tree/sub", "tree/sub/link", &file]
        );
    }
}

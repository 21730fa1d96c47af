// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the hypervisor that runs is one that the host can boot again. After an upgrade
//! of Xen it is not: then the next boot starts another one, for which other payloads are.
//!
//! Boot loaders start `/boot/xen*.gz`; UEFI firmware, and some boot loaders, start
//! `xen*.efi` from `/boot` or from a directory of the EFI partition. Which of those that are
//! installed is started next is not known here.

use crate::{BuildId, Disk};
use flate2::read::MultiGzDecoder;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};

/// Where hypervisors are installed.
const DIRECTORY: &str = "/boot";

/// Where the EFI partition may be. On it, hypervisors are in the directories below `EFI`.
const PARTITIONS: [&str; 3] = ["/boot/efi", "/efi", "/boot"];

/// It is there on a host that was booted by UEFI.
const FIRMWARE: &str = "/sys/firmware/efi";

/// The largest image that is looked at, decompressed.
const LARGEST: u64 = 256 << 20;

/// What the host boots next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// It may be the hypervisor that runs: that is one of those installed.
    MayBeSame,
    /// Another hypervisor: these are installed, and the one that runs is none of them.
    Another(Vec<PathBuf>),
    /// That is not known, for this reason.
    Unknown(String),
}

/// Finds out whether the hypervisor `base` is installed.
pub(crate) fn next(disk: &impl Disk, base: &BuildId) -> Next {
    let id = bytes(base);
    let Installed {
        images,
        mut unknown,
    } = Installed::find(disk);
    for path in &images {
        match image(disk, path) {
            Ok(image) if memchr::memmem::find(&image, &id).is_some() => return Next::MayBeSame,
            Ok(_) => {}
            Err(error) => unknown = Some(format!("{}: {error}", path.display())),
        }
    }
    match unknown {
        Some(reason) => Next::Unknown(reason),
        None if images.is_empty() => Next::Unknown(format!(
            "there is no hypervisor in {DIRECTORY}, nor on an EFI partition"
        )),
        None => Next::Another(images),
    }
}

/// The hypervisors that are installed.
#[derive(Default)]
struct Installed {
    images: Vec<PathBuf>,
    /// Why there may be others.
    unknown: Option<String>,
}

impl Installed {
    fn find(disk: &impl Disk) -> Self {
        let mut found = Self::default();
        let mut images = found.inside(disk, DIRECTORY.as_ref());
        images.retain(|path| is_image(path, &["gz", "efi"]));
        let mut partition = false;
        for place in PARTITIONS {
            let tops = found.inside(disk, place.as_ref());
            for top in tops.iter().filter(|path| is_efi(path)) {
                for directory in found.inside(disk, top) {
                    partition = true;
                    let files = found.inside(disk, &directory).into_iter();
                    images.extend(files.filter(|path| is_image(path, &["efi"])));
                }
            }
        }
        found.images = images;
        if !partition && disk.names(FIRMWARE.as_ref()).is_ok() {
            found.unknown = Some(format!(
                "this host boots by UEFI, and no EFI partition is mounted at one of {}",
                PARTITIONS.join(", ")
            ));
        }
        found
    }

    /// What is in a directory; nothing if there is none at `path`.
    fn inside(&mut self, disk: &impl Disk, path: &Path) -> Vec<PathBuf> {
        let none = |kind| matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory);
        match disk.names(path) {
            Ok(names) => names.iter().map(|name| path.join(name)).collect(),
            Err(error) => {
                if !none(error.kind()) {
                    self.unknown = Some(format!("{}: {error}", path.display()));
                }
                Vec::new()
            }
        }
    }
}

/// Whether this is the directory `EFI` of a partition, and no partition itself. Capital
/// letters do not count there.
fn is_efi(path: &Path) -> bool {
    let file = path.file_name().unwrap_or_default();
    file.eq_ignore_ascii_case("efi") && !PARTITIONS.iter().any(|place| Path::new(place) == path)
}

/// Whether a file has the name of a hypervisor, with one of these extensions.
fn is_image(path: &Path, extensions: &[&str]) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name = name.to_ascii_lowercase();
    let mut extensions = extensions.iter();
    name.starts_with("xen") && extensions.any(|end| name.ends_with(&format!(".{end}")))
}

/// The hypervisor in the file at `path`, decompressed.
fn image(disk: &impl Disk, path: &Path) -> io::Result<Vec<u8>> {
    let mut image = disk.tail(path, LARGEST + 1)?;
    if path.extension().is_some_and(|end| end == "gz") {
        let compressed = std::mem::take(&mut image);
        let mut decoder = MultiGzDecoder::new(&*compressed).take(LARGEST + 1);
        decoder.read_to_end(&mut image)?;
    }
    match image.len() as u64 > LARGEST {
        true => Err(ErrorKind::FileTooLarge.into()),
        false => Ok(image),
    }
}

/// The build-id as an image has it.
fn bytes(base: &BuildId) -> Vec<u8> {
    let digits = base.as_str().as_bytes().chunks(2);
    let bytes = digits.map(|pair| {
        let pair = String::from_utf8_lossy(pair);
        u8::from_str_radix(&pair, 16).unwrap_or_default()
    });
    bytes.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use flate2::Compression;
    use flate2::write::GzEncoder;
    use std::io::Write as _;

    fn id(byte: &str) -> BuildId {
        byte.repeat(20).try_into().expect("it is one")
    }

    fn image(id: &BuildId) -> Vec<u8> {
        [vec![7; 5000], bytes(id), vec![9; 5000]].concat()
    }

    fn gz(data: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(data).expect("written");
        encoder.finish().expect("written")
    }

    /// A host with these files.
    fn host(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = Root::new(directory.path());
        for (path, data) in files {
            let path = root.place(path.as_ref());
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("made");
            std::fs::write(path, data).expect("written");
        }
        (directory, root)
    }

    fn unknown(root: &Root, running: &BuildId) -> String {
        match next(root, running) {
            Next::Unknown(reason) => reason,
            known => panic!("{known:?}"),
        }
    }

    #[test]
    fn the_running_one_is_found_in_any_image() {
        let ids = ["ab", "cd", "12", "34"].map(id);
        let images = [
            "/boot/xen-4.17-amd64.efi",
            "/boot/xen-4.17-amd64.gz",
            "/boot/efi/EFI/xen/xen.efi",
            "/boot/EFI/XEN/XEN.EFI",
        ];
        let compressed = |path: &str, id: &BuildId| match path.ends_with(".gz") {
            true => gz(&image(id)),
            false => image(id),
        };
        let files = images.iter().zip(&ids);
        let files = files.map(|(path, id)| (*path, compressed(path, id)));
        let others = [
            ("/boot/xen-4.17-amd64.config", b"CONFIG".to_vec()),
            ("/boot/efi/EFI/BOOT/BOOTX64.EFI", image(&id("ef"))),
            ("/boot/efi/EFI/README", image(&id("ef"))),
        ];
        let files: Vec<(&str, Vec<u8>)> = files.chain(others).collect();
        let (_directory, root) = host(&files);
        for id in &ids {
            assert_eq!(next(&root, id), Next::MayBeSame, "{id}");
        }
        let Next::Another(mut found) = next(&root, &id("ef")) else {
            panic!("{:?}", next(&root, &id("ef")));
        };
        let mut expected = images.map(PathBuf::from);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_not_known_is_not_claimed() {
        let running = id("ab");
        let other = || ("/boot/xen.gz", gz(&image(&id("cd"))));
        let reason = unknown(&host(&[]).1, &running);
        assert!(reason.contains("no hypervisor"), "{reason}");
        let whole = other().1;
        for damaged in [b"no gzip".to_vec(), whole[..whole.len() / 2].to_vec()] {
            let (_directory, root) = host(&[("/boot/xen-1.gz", damaged), other()]);
            let reason = unknown(&root, &running);
            assert!(reason.starts_with("/boot/xen-1.gz: "), "{reason}");
            // It is known if another image is the one that runs.
            assert_eq!(next(&root, &id("cd")), Next::MayBeSame);
        }
        // It may be on a partition that is not mounted.
        let (_directory, root) = host(&[other(), ("/sys/firmware/efi/systab", Vec::new())]);
        let reason = unknown(&root, &running);
        assert!(reason.contains("no EFI partition is mounted"), "{reason}");
        assert_eq!(next(&root, &id("cd")), Next::MayBeSame);
        let loader = ("/efi/EFI/debian/grubx64.efi", b"GRUB".to_vec());
        let firmware = ("/sys/firmware/efi/systab", Vec::new());
        let (_directory, root) = host(&[other(), firmware, loader]);
        let expected = vec![PathBuf::from("/boot/xen.gz")];
        assert_eq!(next(&root, &running), Next::Another(expected));
    }
}

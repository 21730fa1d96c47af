// SPDX-License-Identifier: MIT OR Apache-2.0
//! Whether the hypervisor that runs is one that the host can boot again. After an upgrade
//! of Xen it is not: then the next boot starts another one, for which other payloads are.

use crate::{BuildId, Disk};
use flate2::read::MultiGzDecoder;
use std::io::Read as _;
use std::path::PathBuf;

/// Where hypervisors are installed.
const DIRECTORY: &str = "/boot";

/// The largest image that is looked at, decompressed.
const LARGEST: u64 = 256 << 20;

/// The images in `/boot`, if the hypervisor `base` is none of them; `None` if it is, or if
/// that is not known: without an image, or with one that cannot be read.
pub(crate) fn without(disk: &impl Disk, base: &BuildId) -> Option<Vec<String>> {
    let id = bytes(base);
    let mut images = disk.names(DIRECTORY.as_ref()).ok()?;
    images.retain(|name| {
        name.starts_with("xen") && (name.ends_with(".gz") || name.ends_with(".efi"))
    });
    for name in &images {
        let data = disk.read(&PathBuf::from(DIRECTORY).join(name)).ok()?;
        let image = match name.ends_with(".gz") {
            true => decompressed(&data)?,
            false => data,
        };
        if memchr::memmem::find(&image, &id).is_some() {
            return None;
        }
    }
    (!images.is_empty()).then_some(images)
}

fn decompressed(data: &[u8]) -> Option<Vec<u8>> {
    let mut image = Vec::new();
    let mut decoder = MultiGzDecoder::new(data).take(LARGEST);
    decoder.read_to_end(&mut image).ok()?;
    ((image.len() as u64) < LARGEST).then_some(image)
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

    /// A host with these files in /boot.
    fn images(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, Root) {
        let directory = tempfile::tempdir().expect("a directory");
        let boot = directory.path().join("boot");
        std::fs::create_dir(&boot).expect("made");
        for (name, data) in files {
            std::fs::write(boot.join(name), data).expect("written");
        }
        let root = Root::new(directory.path());
        (directory, root)
    }

    #[test]
    fn the_running_one_is_found_in_any_image() {
        let (old, new) = (id("ab"), id("cd"));
        let (_directory, root) = images(&[
            ("xen-4.17-amd64.gz", gz(&image(&new))),
            ("xen-4.17-amd64.efi", image(&old)),
            ("xen-4.17-amd64.config", b"CONFIG".to_vec()),
        ]);
        assert_eq!(without(&root, &new), None);
        assert_eq!(without(&root, &old), None);
        let names = ["xen-4.17-amd64.efi", "xen-4.17-amd64.gz"];
        assert_eq!(
            without(&root, &id("ef")),
            Some(names.map(str::to_owned).to_vec())
        );
    }

    #[test]
    fn what_is_not_known_is_not_claimed() {
        let running = id("ab");
        let (_directory, root) = images(&[]);
        assert_eq!(without(&root, &running), None);
        let whole = gz(&image(&id("cd")));
        for damaged in [b"no gzip".to_vec(), whole[..whole.len() / 2].to_vec()] {
            let (_directory, root) = images(&[("xen.gz", damaged)]);
            assert_eq!(without(&root, &running), None);
        }
        let (_directory, root) = images(&[]);
        std::fs::remove_dir(root.place("/boot".as_ref())).expect("removed");
        assert_eq!(without(&root, &running), None);
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! Files that a command was told to write.

use crate::{interrupt, lines};
use std::fs::{File, Metadata, OpenOptions};
use std::io::{Error, ErrorKind, Result, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// How many links are followed: as many as the kernel does.
const LINKS: usize = 40;

/// Writes `data` to what `path` names: `-` is standard output, links are
/// followed, a regular file is replaced as a whole, and a device, pipe or open
/// descriptor is written to.
///
/// # Errors
/// If it cannot be written; a regular file has not changed then. An error of
/// writing to standard output is [`lines::finish`]'s to give.
pub fn write(path: &Path, data: &[u8]) -> Result<()> {
    if path == Path::new("-") {
        lines::take(data);
        return Ok(());
    }
    let path = follow(path)?;
    let descriptor = is_descriptor(&path);
    match path.metadata() {
        Ok(metadata) if metadata.is_dir() => Err(ErrorKind::IsADirectory.into()),
        Ok(metadata) if (descriptor || metadata.is_file()) && is_standard_output(&metadata) => {
            lines::take(data);
            Ok(())
        }
        Ok(metadata) if descriptor || !metadata.is_file() => {
            let mut options = OpenOptions::new();
            options.write(true).truncate(metadata.is_file());
            options.open(&path)?.write_all(data)
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => replace(&path, data),
    }
}

/// Writes `data` beside `path` and renames it, so that no reader ever sees
/// half a file.
///
/// # Errors
/// If the directory cannot be written to; then nothing has changed.
pub fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let directory = parent(path);
    if !directory.is_dir() {
        let message = format!("there is no directory {}", directory.display());
        return Err(Error::new(ErrorKind::NotFound, message));
    }
    let _undisturbed = interrupt::hold();
    let mut file = tempfile::Builder::new()
        .permissions(PermissionsExt::from_mode(0o644))
        .tempfile_in(directory)?;
    file.write_all(data)?;
    file.persist(path)?;
    Ok(())
}

/// Sees to it that writing `output` loses none of `inputs`.
///
/// # Errors
/// If one of them is the same regular file.
pub fn keep_apart<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let identity = |path: &Path| {
        let metadata = path.metadata().ok().filter(Metadata::is_file)?;
        Some((metadata.dev(), metadata.ino()))
    };
    let output = identity(output);
    let same = |input: &&PathBuf| output.is_some() && identity(input) == output;
    match inputs.into_iter().find(same) {
        None => Ok(()),
        Some(input) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!("it would overwrite the input {}", input.display()),
        )),
    }
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// What `path` leads to, there or not, if it is a link. The links of open
/// descriptors name what cannot be opened by that name.
fn follow(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        match std::fs::read_link(&path) {
            Ok(target) if !is_descriptor(&path) => path = parent(&path).join(target),
            _ => return Ok(path),
        }
    }
    Err(Error::from_raw_os_error(
        rustix::io::Errno::LOOP.raw_os_error(),
    ))
}

/// Whether `path` is one of `/proc/PID/fd`, where `/dev/fd` leads.
fn is_descriptor(path: &Path) -> bool {
    let directory = parent(path).canonicalize();
    directory.is_ok_and(|d| d.starts_with("/proc") && d.file_name().is_some_and(|n| n == "fd"))
}

fn is_standard_output(metadata: &Metadata) -> bool {
    let output = rustix::io::dup(std::io::stdout()).map(File::from);
    let output = output.map_err(Error::from).and_then(|file| file.metadata());
    output.is_ok_and(|output| (output.dev(), output.ino()) == (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::unix::fs::{FileTypeExt, symlink};

    #[test]
    fn a_link_stays_and_what_it_leads_to_is_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        symlink("file", &link).expect("linked");
        for data in [b"new".as_slice(), b"replaced"] {
            write(&link, data).expect("written");
            assert!(link.is_symlink());
            assert_eq!(std::fs::read(&file).expect("it is there"), data);
        }
    }

    #[test]
    fn an_input_is_not_written_over_by_any_of_its_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = |name| directory.path().join(name);
        std::fs::write(place("input"), "x").expect("written");
        symlink("input", place("link")).expect("linked");
        let inputs = [place("other"), place("input")];
        for output in ["input", "link"] {
            let error = keep_apart(&place(output), &inputs).expect_err(output);
            assert!(error.to_string().contains("would overwrite the input"));
        }
        for output in ["new", "other", "/dev/null"] {
            keep_apart(&place(output), &inputs).expect(output);
        }
    }

    #[test]
    fn links_that_lead_to_each_other_are_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        symlink(&two, &one).expect("linked");
        symlink(&one, &two).expect("linked");
        assert!(write(&one, b"x").is_err());
        assert!(one.is_symlink() && two.is_symlink());
    }

    #[test]
    fn a_pipe_is_written_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let pipe = directory.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
        let reader = std::thread::spawn({
            let pipe = pipe.clone();
            move || std::fs::read(pipe)
        });
        write(&pipe, b"through").expect("written");
        let read = reader.join().expect("no panic").expect("read");
        assert_eq!(read, b"through");
        let kind = pipe.symlink_metadata().expect("still there").file_type();
        assert!(kind.is_fifo());
    }

    #[test]
    fn a_device_is_written_to() {
        let before = Path::new("/dev/null")
            .symlink_metadata()
            .expect("it is there");
        // Who may not replace it would not see if this tried.
        let directory = tempfile::tempdir().expect("a directory");
        let node = directory.path().join("null");
        let mode = Mode::RUSR | Mode::WUSR;
        let made = mknodat(CWD, &node, FileType::CharacterDevice, mode, before.rdev());
        let device = match made {
            Ok(()) => &node,
            Err(_) => Path::new("/dev/null"),
        };
        let inode = device.symlink_metadata().expect("it is there").ino();
        // A file system can be mounted without devices.
        if let Err(error) = write(device, b"gone") {
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
        let after = device.symlink_metadata().expect("it is there");
        assert!(after.file_type().is_char_device());
        assert_eq!(after.ino(), inode);
        write(Path::new("/dev/null"), b"gone").expect("written");
        let after = Path::new("/dev/null")
            .symlink_metadata()
            .expect("it is there");
        assert_eq!((after.rdev(), after.ino()), (before.rdev(), before.ino()));
    }

    #[test]
    fn an_open_descriptor_is_written_to() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        let file = File::create(&path).expect("created");
        let number = std::os::fd::AsRawFd::as_raw_fd(&file);
        let inode = path.metadata().expect("it is there").ino();
        write(Path::new(&format!("/dev/fd/{number}")), b"in place").expect("written");
        assert_eq!(path.metadata().expect("it is there").ino(), inode);
        assert_eq!(std::fs::read(&path).expect("it is there"), b"in place");
    }

    #[test]
    fn a_directory_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(write(directory.path(), b"x").is_err());
    }
}

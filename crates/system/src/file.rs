// SPDX-License-Identifier: MIT OR Apache-2.0
//! The input and output files of a command.

use crate::{interrupt, lines};
use rustix::fs::Access;
use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use xsplice_abi::text::escaped;

/// Limit for following symbolic links, as in the kernel.
const LINKS: usize = 40;

/// Size limit for input files: several times a hypervisor with all its symbols.
const LARGEST: u64 = 256 << 20;
/// The limit for payloads, as dom0 has little memory; Xen accepts 2 MiB.
pub const LARGEST_PAYLOAD: u64 = 8 << 20;

/// Reads the file at `path`, which may be a pipe.
///
/// # Errors
/// If it cannot be read, or exceeds the size limit.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_up_to(path, LARGEST)
}

/// Reads the file at `path`, with at most `largest` bytes.
///
/// # Errors
/// If it cannot be read, or has more.
pub fn read_up_to(path: &Path, largest: u64) -> Result<Vec<u8>> {
    let mut data = Vec::new();
    File::open(path)?.take(largest + 1).read_to_end(&mut data)?;
    if data.len() as u64 > largest {
        let message = format!("it is larger than {} MiB", largest >> 20);
        return Err(Error::new(ErrorKind::FileTooLarge, message));
    }
    Ok(data)
}

/// Writes `data` to `path`: `-` is standard output, links are followed, a regular
/// file is replaced atomically, and a device, pipe or open descriptor is written to.
///
/// # Errors
/// If it cannot be written; a regular file is then unchanged. [`lines::finish`]
/// reports errors of standard output.
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

/// Writes `data` to a temporary file next to `path` and renames it, so that no reader
/// ever sees half a file.
///
/// # Errors
/// If the directory cannot be written to; then nothing has changed.
pub fn replace(path: &Path, data: &[u8]) -> Result<()> {
    let directory = existing_parent(path)?;
    let _undisturbed = interrupt::hold();
    // The kernel applies the umask to this mode.
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(0o666))
        .tempfile_in(directory)?;
    if let Ok(replaced) = path.metadata() {
        // The file may get a new owner, who must not inherit setuid, setgid or sticky
        // bits.
        let mode = replaced.permissions().mode() & 0o777;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(data)?;
    file.persist(path)?;
    Ok(())
}

/// Writes `data` to a new file at `path` that only its owner can read.
///
/// # Errors
/// If it cannot be written, or is there already.
pub fn create_private(path: &Path, data: &[u8]) -> Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(data)
}

/// Checks before the work begins that [`write()`] can write to `path`.
///
/// # Errors
/// The error that [`write()`] would return, as far as it can be predicted.
pub fn check_writable(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    let path = follow(path)?;
    let (place, rights) = match path.metadata() {
        Ok(metadata) if metadata.is_dir() => return Err(ErrorKind::IsADirectory.into()),
        Ok(metadata) if is_descriptor(&path) || !metadata.is_file() => (&*path, Access::WRITE_OK),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => (existing_parent(&path)?, Access::WRITE_OK | Access::EXEC_OK),
    };
    rustix::fs::access(place, rights).map_err(|errno| {
        let error = Error::from(errno);
        Error::new(
            error.kind(),
            format!("cannot write to {}: {error}", shown(place)),
        )
    })
}

/// `path` for a message, with deceptive characters escaped.
pub fn shown(path: &Path) -> String {
    escaped(&path.to_string_lossy()).to_string()
}

/// Checks, before the work begins, whether `output` can be written without
/// overwriting one of `inputs`.
///
/// # Errors
/// If one of them is the same regular file, or `output` cannot be written.
pub fn check_output<'a>(
    output: &Path,
    inputs: impl IntoIterator<Item = &'a PathBuf>,
) -> Result<()> {
    keep_apart(output, inputs)?;
    check_writable(output)
}

/// Checks, before the work begins, whether each of `inputs` can be read more than
/// once.
///
/// # Errors
/// If one is a pipe or similar. A missing file is left to its reader to report.
pub fn check_rereadable<'a>(inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
    let once = |input: &&PathBuf| input.metadata().is_ok_and(|m| !m.is_file());
    match inputs.into_iter().find(once) {
        None => Ok(()),
        Some(input) => Err(Error::new(
            ErrorKind::InvalidInput,
            format!(
                "{}: it is read twice, which only a file can be",
                shown(input)
            ),
        )),
    }
}

fn keep_apart<'a>(output: &Path, inputs: impl IntoIterator<Item = &'a PathBuf>) -> Result<()> {
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
            format!("it would overwrite the input {}", shown(input)),
        )),
    }
}

fn parent(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// The parent directory of `path`.
fn existing_parent(path: &Path) -> Result<&Path> {
    let directory = match path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        true => path,
        false => parent(path),
    };
    if directory.is_dir() {
        return Ok(directory);
    }
    let message = format!("there is no directory {}", shown(directory));
    Err(Error::new(ErrorKind::NotFound, message))
}

/// The target of `path`, whether or not it exists, if it is a link. The links of open
/// descriptors have names that cannot be opened.
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

/// Whether `path` is in `/proc/PID/fd`, which `/dev/fd` links to.
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
    fn an_endless_file_is_an_error() {
        let error = read(Path::new("/dev/zero")).expect_err("it has no end");
        assert!(error.to_string().contains("larger than 256 MiB"), "{error}");
        assert!(
            read(Path::new("/dev/null"))
                .expect("it is empty")
                .is_empty()
        );
    }

    #[test]
    fn a_link_is_kept_and_its_target_is_written() {
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
    fn a_new_file_has_the_usual_mode_and_a_replaced_one_keeps_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| path.metadata().expect("it is there").mode() & 0o7777;
        let (new, usual) = (directory.path().join("new"), directory.path().join("usual"));
        File::create(&usual).expect("created");
        write(&new, b"x").expect("written");
        assert_eq!(mode(&new), mode(&usual));
        for (before, after) in [
            (0o600, 0o600),
            (0o755, 0o755),
            (0o444, 0o444),
            (0o4711, 0o711),
        ] {
            std::fs::set_permissions(&new, Permissions::from_mode(before)).expect("set");
            write(&new, b"y").expect("written");
            assert_eq!(mode(&new), after);
        }
    }

    #[test]
    fn a_private_file_is_new_and_its_owner_s_only() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("key");
        create_private(&path, b"secret").expect("written");
        assert_eq!(std::fs::read(&path).expect("it is there"), b"secret");
        let mode = path.metadata().expect("it is there").mode() & 0o7777;
        assert_eq!(mode, 0o600);
        let error = create_private(&path, b"other").expect_err("it is there");
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).expect("it is there"), b"secret");
    }

    #[test]
    fn an_unwritable_output_is_detected_before_the_work() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = |name: &str| directory.path().join(name);
        std::fs::write(place("file"), "x").expect("written");
        symlink("missing/file", place("link")).expect("linked");
        for good in ["file", "new"] {
            check_writable(&place(good)).expect(good);
        }
        for good in ["-", "/dev/null"] {
            check_writable(Path::new(good)).expect(good);
        }
        for bad in ["", "missing/file", "missing/", "file/x", "link"] {
            let error = check_writable(&place(bad)).expect_err(bad);
            assert!(write(&place(bad), b"x").is_err(), "{bad}: {error}");
        }
        // Even root cannot write to a directory of this kind.
        check_writable(Path::new("/proc/self/new")).expect_err("read-only");
    }

    #[test]
    fn deceptive_file_names_are_escaped() {
        assert_eq!(
            shown(Path::new("a\u{1b}[2K\nb\u{200b}")),
            r"a\u{1b}[2K\nb\u{200b}"
        );
    }

    #[test]
    fn an_input_is_not_overwritten_under_any_of_its_names() {
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
    fn a_cycle_of_links_is_an_error() {
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
        // Without permission to replace it, this could not detect an attempt.
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

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A disk: what is written is not there after the host died, unless it was synced.

use super::{Counter, Fault, Loss};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use xsplice_store::Disk;

#[derive(Debug, Clone, Default)]
struct Contents {
    written: Vec<u8>,
    synced: Vec<u8>,
}

#[derive(Debug, Default)]
struct Files {
    contents: Vec<Contents>,
    names: BTreeMap<PathBuf, usize>,
    synced_names: BTreeMap<PathBuf, usize>,
    directories: BTreeSet<PathBuf>,
}

#[derive(Debug)]
pub(crate) struct Memory {
    files: RefCell<Files>,
    counter: Rc<Counter>,
    full: Cell<bool>,
    /// Files and directories that cannot be read, ever.
    unreadable: RefCell<BTreeSet<PathBuf>>,
}

impl Memory {
    pub(crate) fn new(counter: Rc<Counter>) -> Self {
        Self {
            files: RefCell::default(),
            counter,
            full: Cell::new(false),
            unreadable: RefCell::default(),
        }
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let files = self.files.borrow();
        let names = files.names.iter();
        let names = names.map(|(path, index)| {
            let data = files.contents[*index].written.clone();
            (path.display().to_string(), data)
        });
        names.collect()
    }

    /// From now on, the file or directory at `path` cannot be read.
    pub(crate) fn break_at(&self, path: &Path) {
        self.unreadable.borrow_mut().insert(path.to_owned());
    }

    /// The host died.
    pub(crate) fn lose(&self, loss: Loss) {
        let mut files = self.files.borrow_mut();
        match loss {
            Loss::Nothing => {}
            Loss::All => files.names = files.synced_names.clone(),
            Loss::Contents => {}
        }
        if loss != Loss::Nothing {
            for contents in &mut files.contents {
                contents.written = contents.synced.clone();
            }
        }
        files.synced_names = files.names.clone();
        for contents in &mut files.contents {
            contents.synced = contents.written.clone();
        }
    }

    pub(crate) fn end_of_fault(&self) {
        self.full.set(false);
    }

    /// Reads what is at `path`, or fails to. A disk that is full can be read.
    fn look<T>(&self, path: &Path, read: impl Fn(&Files) -> io::Result<T>) -> io::Result<T> {
        if self.counter.is_over() {
            return Err(ErrorKind::Other.into());
        }
        match self.counter.next() {
            None if self.unreadable.borrow().contains(path) => {
                Err(io::Error::other("the sector cannot be read"))
            }
            None => read(&self.files.borrow()),
            Some(_) => Err(io::Error::other("the sector cannot be read")),
        }
    }

    /// Does `effect`, or what the fault makes of it: `half` is what is left of it.
    fn change(
        &self,
        effect: impl Fn(&mut Files) -> io::Result<()>,
        half: impl Fn(&mut Files),
    ) -> io::Result<()> {
        let gone = || Err(ErrorKind::Other.into());
        if self.counter.is_over() {
            return gone();
        }
        let fault = self.counter.next();
        let mut files = self.files.borrow_mut();
        match fault {
            None if self.full.get() => Err(ErrorKind::StorageFull.into()),
            None => effect(&mut files),
            Some(Fault::KilledBefore | Fault::DiesBefore) => {
                half(&mut files);
                gone()
            }
            Some(Fault::KilledAfter | Fault::DiesAfter) => {
                let _ = effect(&mut files);
                gone()
            }
            Some(fault) => {
                self.full.set(matches!(fault, Fault::FailsFromNowOn(_)));
                half(&mut files);
                Err(ErrorKind::StorageFull.into())
            }
        }
    }
}

impl Files {
    fn at(&self, path: &Path) -> io::Result<&Contents> {
        let index = self.names.get(path).ok_or(ErrorKind::NotFound)?;
        Ok(&self.contents[*index])
    }

    fn has_place(&self, path: &Path) -> io::Result<()> {
        let parent = path.parent().ok_or(ErrorKind::InvalidInput)?;
        match self.directories.contains(parent) {
            true => Ok(()),
            false => Err(ErrorKind::NotFound.into()),
        }
    }

    /// The contents of the file, new if it is not there.
    fn open(&mut self, path: &Path) -> io::Result<&mut Vec<u8>> {
        self.has_place(path)?;
        let next = self.contents.len();
        let index = *self.names.entry(path.to_owned()).or_insert(next);
        if index == next {
            self.contents.push(Contents::default());
        }
        Ok(&mut self.contents[index].written)
    }
}

impl Disk for Memory {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.look(path, |files| Ok(files.at(path)?.written.clone()))
    }

    fn tail(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let data = self.read(path)?;
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        Ok(data[data.len().saturating_sub(most)..].to_vec())
    }

    fn names(&self, directory: &Path) -> io::Result<Vec<String>> {
        self.look(directory, |files| {
            if !files.directories.contains(directory) {
                return Err(ErrorKind::NotFound.into());
            }
            let all = files.names.keys().chain(&files.directories);
            let inside = all.filter(|path| path.parent() == Some(directory));
            let names = inside.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
            Ok(names.collect())
        })
    }

    fn create_directory(&self, path: &Path) -> io::Result<()> {
        let effect = |files: &mut Files| {
            files
                .directories
                .extend(path.ancestors().map(Path::to_owned));
            Ok(())
        };
        self.change(effect, |_| {})
    }

    fn write(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let put = |files: &mut Files, data: &[u8]| {
            let contents = files.open(path)?;
            contents.clear();
            contents.extend_from_slice(data);
            Ok(())
        };
        self.change(
            |files| put(files, data),
            |files| drop(put(files, &data[..data.len() / 2])),
        )
    }

    fn append(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let put = |files: &mut Files, data: &[u8]| {
            files.open(path)?.extend_from_slice(data);
            Ok(())
        };
        self.change(
            |files| put(files, data),
            |files| drop(put(files, &data[..data.len() / 2])),
        )
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let effect = |files: &mut Files| {
            if let Some(index) = files.names.get(path) {
                let contents = &mut files.contents[*index];
                contents.synced = contents.written.clone();
                return Ok(());
            }
            if !files.directories.contains(path) {
                return Err(ErrorKind::NotFound.into());
            }
            let inside = |other: &PathBuf| other.parent() == Some(path);
            files.synced_names.retain(|other, _| !inside(other));
            let names = files.names.clone().into_iter();
            files
                .synced_names
                .extend(names.filter(|(other, _)| inside(other)));
            Ok(())
        };
        self.change(effect, |_| {})
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let effect = |files: &mut Files| {
            files.has_place(to)?;
            let index = files.names.remove(from).ok_or(ErrorKind::NotFound)?;
            files.names.insert(to.to_owned(), index);
            Ok(())
        };
        self.change(effect, |_| {})
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let effect = |files: &mut Files| {
            let removed = files.names.remove(path);
            removed.map(drop).ok_or(ErrorKind::NotFound.into())
        };
        self.change(effect, |_| {})
    }
}

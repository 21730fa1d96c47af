// SPDX-License-Identifier: MIT OR Apache-2.0
//! The two builds of an object.

use crate::tree::ObjectFile;

/// The two builds of an object.
#[derive(Debug, Clone)]
pub(crate) struct Pair {
    /// What is compiled.
    pub(crate) object: ObjectFile,
    /// The original object, if the patch renamed the source.
    pub(crate) was: Option<ObjectFile>,
    /// From the original source, at the level of the payloads below; `None` for a new
    /// object.
    pub(crate) original: Option<Vec<u8>>,
    /// From the patched source; `None` for an object that is no longer built.
    pub(crate) patched: Option<Vec<u8>>,
    /// Its builds at the levels below: the one before each payload, from the first
    /// that changes it to the topmost.
    pub(crate) below: Vec<Before>,
}

/// A build of an object before a payload below changed its source.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    /// Index of the payload, the lowest being 0.
    pub(crate) level: usize,
    /// `None` if there was no such object.
    pub(crate) bytes: Option<Vec<u8>>,
}

impl Pair {
    /// The object of the original source.
    pub(crate) fn original_object(&self) -> &ObjectFile {
        self.was.as_ref().unwrap_or(&self.object)
    }

    /// The build at the level of the payload below with this index.
    pub(crate) fn after(&self, level: usize) -> Option<&[u8]> {
        let mut later = self.below.iter().filter(|before| before.level > level);
        later
            .next()
            .map_or(self.original.as_deref(), |before| before.bytes.as_deref())
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host and its store, without a disk and without Xen.

mod faults;
mod sync;
mod world;

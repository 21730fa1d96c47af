// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far a build has come.

/// Receives what happens while a payload is built.
pub trait Progress: Sync {
    /// A stage begins that has `steps` steps.
    fn stage(&self, name: &str, steps: usize);
    /// One step of the stage is done.
    fn step(&self);
}

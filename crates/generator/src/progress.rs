// SPDX-License-Identifier: MIT OR Apache-2.0
//! How far a build has come.

/// Receives the progress of a build.
pub trait Progress: Sync {
    /// A stage with `steps` steps starts.
    fn stage(&self, name: &str, steps: usize);
    /// One step of the stage is done.
    fn step(&self);
}

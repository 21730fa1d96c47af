// SPDX-License-Identifier: MIT OR Apache-2.0
//! From source patch to payload: each stage is a type that only the stage
//! before it can make, and that later ones look back to.

mod accounted;
mod compared;
mod compiled;
mod inputs;
mod proved;
mod selected;
mod sources;
mod written;

pub(crate) use inputs::Inputs;

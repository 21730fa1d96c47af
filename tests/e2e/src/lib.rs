#![forbid(unsafe_code)]
//! Tests that need a real Xen; see `tests/`.

//! Everything a person or CI does with this repository.
#![forbid(unsafe_code)]
fn main() {}

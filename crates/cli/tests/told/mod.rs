// SPDX-License-Identifier: MIT OR Apache-2.0
//! What commands tell programs, compared with the published schemas.

use std::path::{Path, PathBuf};

/// Where the published schemas are.
pub(crate) fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/schema")
}

/// What the command `name` printed with `--json`: it is as its schema says.
pub(crate) fn told(name: &str, printed: &[u8]) -> serde_json::Value {
    let schema = std::fs::read(schemas().join(name).with_extension("json")).expect(name);
    let schema = serde_json::from_slice(&schema).expect("it is JSON");
    let value = serde_json::from_slice(printed);
    let value = value
        .unwrap_or_else(|error| panic!("{name}: {error}: {}", String::from_utf8_lossy(printed)));
    if let Err(error) = jsonschema::validate(&schema, &value) {
        panic!("{name}: {error} at {}: {value:#}", error.instance_path);
    }
    value
}

// SPDX-License-Identifier: MIT OR Apache-2.0

//! The header that C programs include is the one that the crate's sources make up.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let crate_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = crate_dir.join("include/xsplice.h");
    let config = cbindgen::Config::from_root_or_default(crate_dir);
    let bindings = cbindgen::Builder::new()
        .with_config(config)
        .with_src(crate_dir.join("src/host.rs"))
        .with_src(crate_dir.join("src/engine.rs"))
        .generate()
        .expect("the sources can be read");
    let mut made = Vec::new();
    bindings.write(&mut made);
    let made = String::from_utf8(made).expect("it is a text");
    if std::env::var_os("XSPLICE_BLESS").is_some() {
        std::fs::write(&header, &made).expect("it can be written");
    }
    let committed = std::fs::read_to_string(&header).unwrap_or_default();
    assert_eq!(
        committed, made,
        "include/xsplice.h is not what cbindgen makes of the sources; \
         XSPLICE_BLESS=1 cargo test --package xsplice-engine-c --test header writes it"
    );
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What commands print, word for word: each file of `texts` is a session. After a
//! change on purpose, `TRYCMD=overwrite cargo test -p xsplice --test texts` writes
//! them anew; read the difference.

#[test]
fn sessions() {
    trycmd::TestCases::new().case("tests/texts/*.trycmd");
}

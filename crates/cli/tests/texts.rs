// SPDX-License-Identifier: MIT OR Apache-2.0
//! The exact output of commands: each file of `texts` is a session. After an intended
//! change, run `TRYCMD=overwrite cargo test -p xsplice --test texts` and review the
//! diff.

#[test]
fn sessions() {
    trycmd::TestCases::new().case("tests/texts/*.trycmd");
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! A boot that stalls is reported and tried once more.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use xsplice_lab::{Error, Host, HostConfig};

/// Where it is loaded.
const BASE: u32 = 0x10_0000;
/// Sizes of the headers of a 32-bit ELF file and of one segment.
const HEADERS: u32 = 52 + 32;
/// Offset of the code, behind the header for the loader.
const CODE: u32 = HEADERS + 12;

/// A Multiboot program that never prints anything.
fn silent() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    // cli; 1: hlt; jmp 1b
    let code = [0xfa, 0xf4, 0xeb, 0xfd];
    let size = CODE + 4;
    let mut file = b"\x7fELF\x01\x01\x01".to_vec();
    file.resize(16, 0);
    let mut words = vec![0x0003_0002, 1, BASE + CODE, 52, 0, 0, 0x0020_0034, 1, 0];
    words.extend([1, 0, BASE, BASE, size, size, 7, 0x1000]);
    words.extend([MAGIC, 0, MAGIC.wrapping_neg()]);
    file.extend(words.into_iter().flat_map(u32::to_le_bytes));
    file.extend(code);
    file
}

#[test]
fn a_boot_that_stalls_is_tried_once_more() -> anyhow::Result<()> {
    static STALLED: AtomicUsize = AtomicUsize::new(0);
    static AGAIN: AtomicUsize = AtomicUsize::new(0);
    let directory = tempfile::tempdir()?;
    let xen = directory.path().join("xen");
    std::fs::write(&xen, silent())?;
    let config = HostConfig {
        timeout: Duration::from_secs(4),
        on_line: Some(|line| {
            for (text, count) in [("the boot has stalled", &STALLED), ("once more", &AGAIN)] {
                count.fetch_add(usize::from(line.contains(text)), Ordering::Relaxed);
            }
        }),
        ..HostConfig::new(xen.clone(), xen, None, "/bin/true".into())
    };
    let error = Host::boot(&config).expect_err("nothing is booted");
    anyhow::ensure!(
        matches!(error, Error::Stalled { seconds: 2, .. }),
        "{error}"
    );
    let seen = [&STALLED, &AGAIN].map(|count| count.load(Ordering::Relaxed));
    assert_eq!(seen, [1, 1]);
    Ok(())
}

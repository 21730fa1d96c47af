// SPDX-License-Identifier: MIT OR Apache-2.0

//! The smallest host: a hypervisor with one CPU that runs no code, so that its memory
//! can be simulated. Loads a payload, applies it, reverts it and unloads it.
//!
//! ```sh
//! cargo run --package xsplice-engine --example host
//! ```

use std::ops::Range;
use xsplice_engine::{Absent, Action, Engine, Host, Options, Policy, Region, Resident, X86_64};
use xsplice_host_image::Memory;
use xsplice_test_host::{Payload, XEN_ID as BUILD_ID, func};

/// The text, which is one function, and the area for payloads behind it.
const TEXT: [u8; 32] = [0xcc; 32];
const TARGET: Range<u64> = 0xffff_8000_0000_0000..0xffff_8000_0000_0020;
const PAYLOADS: Range<u64> = 0xffff_8000_0000_1000..0xffff_8000_0010_0000;

struct Hypervisor(Memory);

impl Host for Hypervisor {
    type Architecture = X86_64;

    fn architecture(&self) -> X86_64 {
        X86_64
    }

    fn build_id(&self) -> &[u8] {
        &BUILD_ID
    }
    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        (name == b"target").then_some(TARGET.start)
    }
    fn region(&self, addr: u64) -> Region {
        let text = TARGET.contains(&addr);
        if text { Region::Text } else { Region::Outside }
    }
    fn function_at(&self, addr: u64) -> Option<u64> {
        TARGET.contains(&addr).then_some(TARGET.start)
    }
    fn denied(&self, _patched: Range<u64>) -> Option<&'static str> {
        None // With one CPU, nothing runs while text is written.
    }
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let offset = usize::try_from(addr.wrapping_sub(TARGET.start)).ok();
        let text = offset.and_then(|offset| TEXT.get(offset..)?.get(..buf.len()));
        let copy = |buf: &mut [u8]| text.map(|text| buf.copy_from_slice(text)).is_some();
        self.0.read(addr, buf, copy)
    }
    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        self.0.allocate(size)
    }
    fn rendezvous(&self, _timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        window();
        Ok(())
    }
    fn write_text(&self, addr: u64, bytes: &[u8]) {
        self.0.write(addr, bytes);
    }
    fn log(&self, line: std::fmt::Arguments<'_>) {
        println!("{line}");
    }
    fn fatal(&self, what: std::fmt::Arguments<'_>) -> ! {
        eprintln!("{what}");
        std::process::abort() // Not a panic: nothing may run any more.
    }
}

#[cfg_attr(test, test)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut engine = Engine::new(Hypervisor(Memory::new(PAYLOADS)), Policy::Engine);
    let payload = Payload::new(&[func("target")]).bytes();
    let base = engine.upload("fix", &payload)?.memory().base();
    engine.act("fix", Action::Apply, Options::default())?;
    let mut jump = [0; 5]; // from `target` to the new code
    assert!(engine.host().read(TARGET.start, &mut jump) && jump[0] == 0xe9);
    let displacement = u32::from_le_bytes([jump[1], jump[2], jump[3], jump[4]]);
    assert_eq!(TARGET.start + 5 + u64::from(displacement), base);
    engine.act("fix", Action::Revert, Options::default())?;
    assert!(engine.host().read(TARGET.start, &mut jump) && jump == TEXT[..5]);
    engine.act("fix", Action::Unload, Options::default())?;
    assert!(engine.host().0.is_unused());
    Ok(())
}

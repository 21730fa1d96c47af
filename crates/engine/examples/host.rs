// SPDX-License-Identifier: MIT OR Apache-2.0

//! The smallest host: a hypervisor with one CPU, whose memory is an array. Loads a
//! payload, applies it, reverts it and unloads it.
//!
//! ```sh
//! cargo run --package xsplice-engine --example host
//! ```

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;
use std::rc::Rc;
use xsplice_engine::{
    Absent, Action, Area, Description, Engine, Errno, Hook, Host, LandingPads, Limits, Options,
    Policy, Protection, Region, Resident, Status, WriteAccess,
};
use xsplice_test_host::{Payload, XEN_ID as BUILD_ID, func};

/// Where the hypervisor is, and in it the function `target` and room for payloads.
const BASE: u64 = 0xffff_8000_0000_0000;
const TEXT: Range<u64> = BASE..BASE + 0x1000;
const TARGET: u64 = BASE + 0x100;
const PAYLOADS: Range<u64> = BASE + 0x1000..BASE + 0x10_0000;

#[derive(Debug)]
struct Memory {
    bytes: Vec<u8>,
    payloads: Area,
}

impl Memory {
    fn at(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(addr.checked_sub(BASE)?).ok()?;
        self.bytes.get_mut(start..start.checked_add(len)?)
    }
}

struct Hypervisor(Rc<RefCell<Memory>>);

impl Host for Hypervisor {
    fn build_id(&self) -> &[u8] {
        &BUILD_ID
    }
    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        (name == b"target").then_some(TARGET)
    }
    fn limits(&self) -> Limits {
        Limits {
            features: 0,
            always: None,
            call_sites: false,
            landing_pads: LandingPads::Unused,
        }
    }
    fn region(&self, addr: u64) -> Region {
        if TEXT.contains(&addr) {
            Region::Text
        } else {
            Region::Outside
        }
    }
    fn function_at(&self, addr: u64) -> Option<u64> {
        (TARGET..TARGET + 32).contains(&addr).then_some(TARGET)
    }
    fn denied(&self, _patched: Range<u64>) -> Option<&'static str> {
        None // With one CPU, nothing runs while text is written.
    }
    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let mut memory = self.0.borrow_mut();
        let bytes = memory.at(addr, buf.len());
        bytes.map(|bytes| buf.copy_from_slice(bytes)).is_some()
    }
    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let base = self.0.borrow_mut().payloads.allocate(size)?;
        let made = vec![0; usize::try_from(size).ok()?];
        Some(Box::new(Place {
            base,
            made,
            memory: Rc::clone(&self.0),
        }))
    }
    fn rendezvous(&self, _timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        window();
        Ok(())
    }
    fn open_text(&self, _range: Range<u64>, _access: WriteAccess) -> Result<(), Errno> {
        Ok(())
    }
    fn begin_writing(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn write_text(&self, addr: u64, bytes: &[u8]) {
        let mut memory = self.0.borrow_mut();
        memory
            .at(addr, bytes.len())
            .expect("the engine writes text")
            .copy_from_slice(bytes);
    }
    fn end_writing(&self) {}
    fn close_text(&self) {}
    fn now(&self) -> u64 {
        0
    }
    fn log(&self, line: fmt::Arguments<'_>) {
        println!("{line}");
    }
    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        panic!("{what}")
    }
}

/// A payload's memory. It is made in a buffer, and copied when it is registered.
#[derive(Debug)]
struct Place {
    base: u64,
    made: Vec<u8>,
    memory: Rc<RefCell<Memory>>,
}

impl Resident for Place {
    fn base(&self) -> u64 {
        self.base
    }
    fn bytes(&self) -> &[u8] {
        &self.made
    }
    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.made
    }
    fn register(&mut self, _payload: &Description<'_>) -> Result<(), Errno> {
        let mut memory = self.memory.borrow_mut();
        let place = memory.at(self.base, self.made.len()).ok_or(Errno::EFAULT)?;
        place.copy_from_slice(&self.made);
        Ok(())
    }
    fn protect(&mut self, _range: Range<u64>, _protection: Protection) -> Result<(), Errno> {
        Ok(())
    }
    fn call(&mut self, _hook: Hook, _addr: u64, _status: &mut Status<'_>) -> Result<(), Errno> {
        Err(Errno::EOPNOTSUPP) // Nothing runs here.
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.memory.borrow_mut().payloads.free(self.base);
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bytes = vec![0xcc; 0x10_0000];
    let memory = Rc::new(RefCell::new(Memory {
        bytes,
        payloads: Area::new(PAYLOADS),
    }));
    let mut engine = Engine::new(Hypervisor(Rc::clone(&memory)), Policy::Engine);
    let code = |engine: &Engine<Hypervisor>| {
        let mut first = [0; 5];
        assert!(engine.host().read(TARGET, &mut first));
        first
    };

    // 16 bytes of new code for the function `target`.
    let payload = Payload::new(&[func("target")]).bytes();
    let base = engine.upload("fix", &payload)?.memory().base();
    let distance = u32::try_from(base - (TARGET + 5))?.to_le_bytes();
    engine.act("fix", Action::Apply, Options::default())?;
    assert_eq!(
        code(&engine),
        [&[0xe9], &distance[..]].concat()[..],
        "a jump to the new code"
    );
    engine.act("fix", Action::Revert, Options::default())?;
    assert_eq!(code(&engine), [0xcc; 5]);
    engine.act("fix", Action::Unload, Options::default())?;
    assert!(memory.borrow().payloads.is_unused());

    // What is not for this hypervisor is refused, with everything that is wrong.
    let other = Payload::on(&BUILD_ID, &[0x33; 20], &[func("elsewhere")]).bytes();
    let refusal = engine.upload("other", &other).map(drop).unwrap_err();
    assert_eq!(refusal.errno(), Errno::ENOENT);
    Ok(())
}

#[test]
fn it_loads_applies_reverts_and_unloads() {
    main().unwrap();
}

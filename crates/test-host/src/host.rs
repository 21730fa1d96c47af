// SPDX-License-Identifier: MIT OR Apache-2.0

//! A hypervisor made of memory.

use crate::{
    BOOT_DATA, DENIED, ENDBR_TARGET, INIT, PAYLOADS, SMALL, TARGET, TEXT, USES_BOOT_DATA, XEN_ID,
    on_arm32,
};
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use xsplice_abi::trampoline::{arm32, arm64};
use xsplice_engine::{
    Aarch64, Absent, Architecture, Area, Arm32, Description, Errno, Hook, Host, LandingPads,
    Limits, Protection, Region, Resident, Signatures, State, Status, Symbol as Shown, WriteAccess,
    X86_64,
};

/// A little text, a page of init text, room for payloads.
#[derive(Clone)]
pub struct Hypervisor<A = X86_64> {
    architecture: A,
    symbols: HashMap<Vec<u8>, u64>,
    text: Range<u64>,
    /// The start of 32 bytes that must not be patched.
    pub denied: Option<u64>,
    /// What [`Host::limits`] gives.
    pub limits: Limits,
    /// What [`Host::signatures`] gives.
    pub signatures: Signatures<'static>,
    /// The functions with known start and end.
    pub functions: Vec<Range<u64>>,
    /// Without one, time advances with each call that can fail.
    clock: Option<Instant>,
    memory: Arc<Mutex<Memory>>,
}

/// The engine's requests to its host.
#[derive(Clone, Debug, Default)]
pub struct Noted {
    /// The payload registered last.
    pub registered: Registered,
    /// Ranges opened for writing, and how.
    pub opened: Vec<(Range<u64>, WriteAccess)>,
    /// Pages of payloads that were protected.
    pub protected: Vec<(Range<u64>, Protection)>,
}

/// A payload as described to its host.
#[derive(Clone, Debug, Default)]
pub struct Registered {
    /// Its name.
    pub name: String,
    /// Its code.
    pub text: Range<u64>,
    /// Its writable data.
    pub data: Range<u64>,
    /// Its read-only data.
    pub read_only: Range<u64>,
    /// `.livepatch.funcs`.
    pub funcs: Range<u64>,
    /// `.altinstructions`.
    pub alternatives: Range<u64>,
    /// `.ex_table`.
    pub exceptions: Range<u64>,
    /// `.bug_frames.0` to `.bug_frames.3`.
    pub bug_frames: [Range<u64>; 4],
    /// `.alt_call_sites`.
    pub call_sites: Range<u64>,
    /// `.modinfo`.
    pub metadata: Range<u64>,
    /// Its build-id.
    pub build_id: Vec<u8>,
    /// The build-id that it depends on.
    pub depends: Vec<u8>,
    /// Name, address, size, and whether it is new.
    pub symbols: Vec<(String, u64, u64, bool)>,
}

impl Registered {
    fn new(payload: &Description<'_>) -> Self {
        let symbol = |symbol: &Shown<'_>| {
            let name = String::from_utf8_lossy(symbol.name).into_owned();
            (name, symbol.addr, symbol.size, symbol.new)
        };
        Self {
            name: payload.name.to_owned(),
            text: payload.text.clone(),
            data: payload.data.clone(),
            read_only: payload.read_only.clone(),
            funcs: payload.funcs.clone(),
            alternatives: payload.alternatives.clone(),
            exceptions: payload.exceptions.clone(),
            bug_frames: payload.bug_frames.clone(),
            call_sites: payload.call_sites.clone(),
            metadata: payload.metadata.clone(),
            build_id: payload.build_id.to_vec(),
            depends: payload.depends.to_vec(),
            symbols: payload.symbols.iter().map(symbol).collect(),
        }
    }
}

/// The state to compare before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The text of the hypervisor.
    pub text: Vec<u8>,
    /// The memory of payloads, by address.
    pub payloads: BTreeMap<u64, Vec<u8>>,
    /// The range that is open for writing, and how.
    pub open: Option<(Range<u64>, WriteAccess)>,
    /// Whether text may be written.
    pub writing: bool,
}

/// The hypervisor's state, and its behaviour.
pub struct Memory {
    /// Everything that an action could change.
    pub machine: Machine,
    /// Where the text begins.
    start: u64,
    area: Area,
    /// Whether the rendezvous times out.
    pub late: bool,
    /// Whether reading counts among the calls that can fail.
    pub reads_fail: bool,
    /// Calls until the one that fails.
    pub fail_in: Option<u32>,
    /// Number of calls so far that can fail.
    pub calls: u32,
    /// Bytes that were read.
    pub read: usize,
    /// The log.
    pub logged: Vec<String>,
    /// The engine's requests; not recorded where allocations are counted.
    pub noted: Option<Noted>,
    /// Hooks that were called, with the first byte of their payload's build-id.
    pub hooks: Vec<(Hook, u8)>,
    /// The kind of hooks that fail.
    pub hook_fails: Option<Hook>,
    /// Whether hooks that run after an apply revert it.
    pub hook_reverts: bool,
    /// A byte that revert hooks also write.
    pub hook_leaves: Option<(u64, u8)>,
    in_window: bool,
}

impl Memory {
    /// Whether this call is the one that fails.
    fn fails(&mut self) -> bool {
        self.calls += 1;
        self.fail_in == Some(self.calls)
    }

    fn bytes(&mut self, addr: u64, len: usize) -> Option<&mut [u8]> {
        let Machine { text, payloads, .. } = &mut self.machine;
        let (base, bytes) = match payloads.range_mut(..=addr).next_back() {
            Some((base, bytes)) if addr - base < bytes.len() as u64 => (*base, bytes),
            _ => (self.start, text),
        };
        let start = usize::try_from(addr.checked_sub(base)?).ok()?;
        bytes.get_mut(start..start.checked_add(len)?)
    }
}

impl Hypervisor {
    /// The hypervisor that the constants of this crate describe.
    pub fn new() -> Self {
        let mut text = vec![0xcc; 0x1000];
        text[0x200..0x204].copy_from_slice(&[0xf3, 0x0f, 0x1e, 0xfa]);
        // mov $17, %eax; jmp, and then bytes that are no instruction.
        text[0x300..0x30a].copy_from_slice(&[0xb8, 17, 0, 0, 0, 0xe9, 1, 2, 3, 4]);
        text[0x30a] = 0x06;
        // lea BOOT_DATA(%rip), %rax.
        text[0x380..0x383].copy_from_slice(&[0x48, 0x8d, 0x05]);
        let displacement = u32::try_from(BOOT_DATA - (USES_BOOT_DATA + 7)).unwrap();
        text[0x383..0x387].copy_from_slice(&displacement.to_le_bytes());
        let symbols = [
            ("target", TARGET),
            ("file.c#local", TEXT + 0x180),
            ("endbr_target", ENDBR_TARGET),
            ("at_boot", INIT),
            ("small", SMALL),
            // Xen returns 0 for symbols that it does not have.
            ("absent", 0),
        ];
        let symbols = symbols.map(|(name, addr)| (name.as_bytes().to_vec(), addr));
        Self {
            denied: Some(DENIED),
            functions: vec![SMALL..SMALL + 32, DENIED - 32..DENIED, DENIED..DENIED + 32],
            clock: None,
            ..Self::with(
                X86_64,
                text,
                HashMap::from(symbols),
                PAYLOADS..PAYLOADS + (8 << 20),
            )
        }
    }

    /// Its text is a single unterminated string.
    pub fn without_zeros() -> Self {
        let symbols = HashMap::from([(b"target".to_vec(), TARGET)]);
        let text = vec![0xcc; usize::try_from(PAYLOADS - TEXT).unwrap()];
        Self::with(X86_64, text, symbols, PAYLOADS..PAYLOADS + (8 << 20))
    }

    /// Real time, and functions `f0`, `f1` and so on of 32 bytes each.
    pub fn large(functions: u64) -> Self {
        let text = vec![0xcc; usize::try_from(functions * 32).unwrap().max(0x1000)];
        let symbols = (0..functions).map(|i| (format!("f{i}").into_bytes(), TEXT + 32 * i));
        let area = TEXT + (16 << 20)..TEXT + (512 << 20);
        Self::with(X86_64, text, symbols.collect(), area)
    }
}

impl Hypervisor<Aarch64> {
    /// A hypervisor for ARM64 at the same addresses, with the functions `target` of 32
    /// bytes and `tiny` of 4, and 2 MiB for payloads.
    pub fn arm64() -> Self {
        Self::arm(Aarch64, TEXT, arm64::NOP)
    }
}

impl Hypervisor<Arm32> {
    /// A hypervisor for ARM32 like the one for ARM64, at the addresses that
    /// [`on_arm32`](crate::on_arm32) gives.
    pub fn arm32() -> Self {
        Self::arm(Arm32, on_arm32(TEXT), arm32::NOP)
    }
}

impl<A> Hypervisor<A> {
    /// Text full of `nop`.
    fn arm(architecture: A, text: u64, nop: [u8; 4]) -> Self {
        let moved = |addr: u64| addr - TEXT + text;
        let symbols = [("target", TARGET), ("tiny", SMALL), ("at_boot", INIT)];
        let symbols = symbols.map(|(name, addr)| (name.as_bytes().to_vec(), moved(addr)));
        let [target, tiny, area] = [TARGET, SMALL, PAYLOADS].map(moved);
        let code = nop.repeat(0x1000 / nop.len());
        Self {
            functions: vec![target..target + 32, tiny..tiny + 4, tiny + 4..tiny + 32],
            clock: None,
            limits: Limits {
                features: 18,
                all_features: true,
                landing_pads: LandingPads::Unused,
                ..Limits::default()
            },
            ..Self::at(
                text,
                architecture,
                code,
                HashMap::from(symbols),
                area..area + (2 << 20),
            )
        }
    }
}

impl<A> Hypervisor<A> {
    fn with(
        architecture: A,
        text: Vec<u8>,
        symbols: HashMap<Vec<u8>, u64>,
        payloads: Range<u64>,
    ) -> Self {
        Self::at(TEXT, architecture, text, symbols, payloads)
    }

    fn at(
        start: u64,
        architecture: A,
        text: Vec<u8>,
        symbols: HashMap<Vec<u8>, u64>,
        payloads: Range<u64>,
    ) -> Self {
        let end = start + text.len() as u64;
        let memory = Memory {
            machine: Machine {
                text,
                payloads: BTreeMap::new(),
                open: None,
                writing: false,
            },
            start,
            area: Area::new(payloads),
            late: false,
            reads_fail: false,
            fail_in: None,
            calls: 0,
            read: 0,
            logged: Vec::new(),
            noted: None,
            hooks: Vec::new(),
            hook_fails: None,
            hook_reverts: false,
            hook_leaves: None,
            in_window: false,
        };
        Self {
            architecture,
            symbols,
            text: start..end,
            denied: None,
            signatures: Signatures::default(),
            limits: Limits {
                features: 64,
                all_features: true,
                always: Some(61),
                call_sites: true,
                landing_pads: LandingPads::Unused,
                file_names: true,
            },
            functions: Vec::new(),
            clock: Some(Instant::now()),
            memory: Arc::new(Mutex::new(memory)),
        }
    }

    /// Its memory, locked.
    ///
    /// The engine calls its host: do not hold the lock during its calls.
    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The requests since the last call; the first call starts recording.
    pub fn noted(&self) -> Noted {
        self.memory()
            .noted
            .replace(Noted::default())
            .unwrap_or_default()
    }

    /// Everything that an action could change.
    pub fn machine(&self) -> Machine {
        self.memory().machine.clone()
    }
}

impl Default for Hypervisor {
    fn default() -> Self {
        Self::new()
    }
}

impl<A: Architecture> Host for Hypervisor<A> {
    type Architecture = A;

    fn architecture(&self) -> A {
        self.architecture
    }

    fn build_id(&self) -> &[u8] {
        &XEN_ID
    }

    fn lookup_symbol(&self, name: &[u8]) -> Option<u64> {
        self.symbols.get(name).copied()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn signatures(&self) -> Signatures<'_> {
        self.signatures
    }

    fn region(&self, addr: u64) -> Region {
        let init = self.text.start + (INIT - TEXT);
        if self.text.contains(&addr) {
            Region::Text
        } else if (init..init + 0x1000).contains(&addr) {
            Region::Init
        } else {
            Region::Outside
        }
    }

    fn function_at(&self, addr: u64) -> Option<u64> {
        let mut functions = self.functions.iter();
        let found = functions.find(|function| function.contains(&addr));
        found.map(|function| function.start)
    }

    fn denied(&self, patched: Range<u64>) -> Option<&'static str> {
        let denied = self
            .denied
            .is_some_and(|addr| patched.start < addr + 32 && addr < patched.end);
        denied.then_some("it handles NMIs")
    }

    fn read(&self, addr: u64, buf: &mut [u8]) -> bool {
        let mut memory = self.memory();
        if memory.reads_fail && memory.fails() {
            return false;
        }
        memory.read += buf.len();
        let bytes = memory.bytes(addr, buf.len());
        if let Some(bytes) = &bytes {
            buf.copy_from_slice(bytes);
        }
        bytes.is_some()
    }

    fn allocate(&self, size: u64) -> Option<Box<dyn Resident>> {
        let mut memory = self.memory();
        if memory.fails() {
            return None;
        }
        let base = memory.area.allocate(size)?;
        let bytes = vec![0; usize::try_from(size).unwrap()];
        memory.machine.payloads.insert(base, bytes);
        Some(Box::new(Place {
            base,
            made: vec![0xcc; usize::try_from(size).ok()?],
            build_id: 0,
            memory: Arc::clone(&self.memory),
        }))
    }

    fn rendezvous(&self, _timeout: u64, window: &mut dyn FnMut()) -> Result<(), Absent> {
        let late = self.memory().late;
        if self.memory().fails() || late {
            return Err(Absent {
                step: "not all are waiting",
                cpus: vec![3],
            });
        }
        self.memory().in_window = true;
        window();
        self.memory().in_window = false;
        Ok(())
    }

    fn open_text(&self, range: Range<u64>, access: WriteAccess) -> Result<(), Errno> {
        let mut memory = self.memory();
        assert!(!memory.in_window && memory.machine.open.is_none());
        if memory.fails() {
            return Err(Errno::ENOMEM);
        }
        if let Some(noted) = &mut memory.noted {
            noted.opened.push((range.clone(), access));
        }
        memory.machine.open = Some((range, access));
        Ok(())
    }

    fn begin_writing(&self) -> Result<(), Errno> {
        let mut memory = self.memory();
        assert!(memory.in_window && memory.machine.open.is_some() && !memory.machine.writing);
        if memory.fails() {
            return Err(Errno::EBUSY);
        }
        memory.machine.writing = true;
        Ok(())
    }

    fn write_text(&self, addr: u64, bytes: &[u8]) {
        let mut memory = self.memory();
        let Machine { open, writing, .. } = &memory.machine;
        let (range, _) = open.as_ref().expect("text is open");
        let end = addr + bytes.len() as u64;
        assert!(memory.in_window && *writing && range.start <= addr && end <= range.end);
        let place = memory.bytes(addr, bytes.len()).expect("text is written");
        place.copy_from_slice(bytes);
    }

    fn end_writing(&self) {
        let mut memory = self.memory();
        assert!(memory.in_window && memory.machine.writing);
        memory.machine.writing = false;
    }

    fn close_text(&self) {
        let mut memory = self.memory();
        assert!(!memory.in_window && !memory.machine.writing);
        assert!(memory.machine.open.take().is_some());
    }

    fn now(&self) -> u64 {
        match self.clock {
            Some(start) => u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX),
            None => self.memory().calls.into(),
        }
    }

    fn log(&self, line: fmt::Arguments<'_>) {
        let line = line.to_string();
        let mut memory = self.memory();
        assert!(!memory.in_window, "{line}");
        memory.logged.push(line);
    }

    fn fatal(&self, what: fmt::Arguments<'_>) -> ! {
        panic!("fatal: {what}")
    }
}

/// A payload's memory.
struct Place {
    base: u64,
    made: Vec<u8>,
    build_id: u8,
    memory: Arc<Mutex<Memory>>,
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.base)
    }
}

impl Place {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

    fn register(&mut self, payload: &Description<'_>) -> Result<(), Errno> {
        let mut memory = self.memory();
        let place = memory.bytes(self.base, self.made.len());
        place.expect("it is inside").copy_from_slice(&self.made);
        if let Some(noted) = &mut memory.noted {
            noted.registered = Registered::new(payload);
        }
        drop(memory);
        self.build_id = payload.build_id[0];
        match self.memory().fails() {
            true => Err(Errno::ENOSPC),
            false => Ok(()),
        }
    }

    fn protect(&mut self, range: Range<u64>, protection: Protection) -> Result<(), Errno> {
        assert!(range.start.is_multiple_of(0x1000) && range.end.is_multiple_of(0x1000));
        let mut memory = self.memory();
        if memory.fails() {
            return Err(Errno::EFAULT);
        }
        if let Some(noted) = &mut memory.noted {
            noted.protected.push((range, protection));
        }
        Ok(())
    }

    fn call(&mut self, hook: Hook, _addr: u64, status: &mut Status<'_>) -> Result<(), Errno> {
        let mut memory = self.memory();
        let in_window = matches!(hook, Hook::Load | Hook::Unload | Hook::Apply | Hook::Revert);
        assert_eq!(memory.in_window, in_window, "{hook}");
        let Machine { open, writing, .. } = &memory.machine;
        let hooks = matches!(open, Some((_, WriteAccess::InPlace)));
        assert_eq!(*writing && hooks, in_window, "{hook}");
        memory.hooks.push((hook, self.build_id));
        let returns = !matches!(
            hook,
            Hook::Load | Hook::Unload | Hook::PostApply | Hook::PostRevert
        );
        if returns && (memory.fails() || memory.hook_fails == Some(hook)) {
            return Err(Errno::EPERM);
        }
        // Hooks that replace an action do what the engine would do.
        let patched = match hook {
            Hook::Apply => true,
            Hook::Revert => false,
            Hook::PostApply if memory.hook_reverts => {
                *status.state = State::Checked;
                false
            }
            _ => return Ok(()),
        };
        for (patch, applied) in status.patches.iter().zip(&*status.applied) {
            let bytes = if patched {
                patch.new_bytes()
            } else {
                patch.old()
            };
            if *applied != patched {
                let place = memory.bytes(patch.addr, bytes.len());
                place.expect("text is written").copy_from_slice(bytes);
            }
        }
        if let (Hook::Revert, Some((addr, left))) = (hook, memory.hook_leaves) {
            memory.bytes(addr, 1).expect("there is text")[0] = left;
        }
        status.settle(hook);
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let base = self.base;
        let mut memory = self.memory();
        memory.area.free(base);
        memory.machine.payloads.remove(&base);
    }
}

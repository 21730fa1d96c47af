// SPDX-License-Identifier: MIT OR Apache-2.0
//! A host made of memory: a disk that loses what was not synced when it dies, and a
//! hypervisor with the behaviour of Xen, both of which fail on request.

mod disk;
mod xen;

pub(crate) use disk::Memory;
pub(crate) use xen::{Core, Xen};

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};
use xsplice_abi::errno::Errno;
use xsplice_store::{
    BuildId, Catalogue, Date, Error, Host as _, Incoming, Manifest, Moment, Observed, Policy,
    Progress, Quarantine, Recorder, Report, Request, Sync, SyncSummary, Trust, Unlogged, install,
    replace,
};
use xsplice_test_host::{Payload, XEN_ID, func};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The operation fails.
    Fails(Errno),
    /// It fails, and so do all that follow on the same device.
    FailsFromNowOn(Errno),
    /// It happens, but its answer is that there was no time.
    Late,
    /// It begins and does not end.
    Stuck,
    /// The program is killed before it.
    KilledBefore,
    /// The program is killed after it.
    KilledAfter,
    /// The host dies before it.
    DiesBefore,
    /// The host dies after it.
    DiesAfter,
}

/// Counts operations, and makes one of them fail.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    count: Cell<u32>,
    at: Cell<Option<(u32, Fault)>>,
    happened: Cell<Option<Fault>>,
}

impl Counter {
    /// What happens to the next operation; `None`: all is well.
    fn next(&self) -> Option<Fault> {
        let number = self.count.get();
        self.count.set(number + 1);
        let fault = self
            .at
            .get()
            .filter(|(at, _)| *at == number)
            .map(|(_, fault)| fault);
        if fault.is_some() {
            self.happened.set(fault);
        }
        fault
    }

    /// Whether no operation has any effect any more.
    fn is_over(&self) -> bool {
        use Fault::{DiesAfter, DiesBefore, KilledAfter, KilledBefore};
        let ends = [DiesAfter, DiesBefore, KilledAfter, KilledBefore];
        self.happened
            .get()
            .is_some_and(|fault| ends.contains(&fault))
    }

    pub(crate) fn happened(&self) -> Option<Fault> {
        self.happened.get()
    }
}

/// What of the disk is there after the host died.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    /// All that was written.
    Nothing,
    /// What was not synced.
    All,
    /// The contents that were not synced, but not the names.
    Contents,
}

/// The host.
pub(crate) struct World {
    pub(crate) disk: Memory,
    pub(crate) xen: Xen,
    pub(crate) counter: Rc<Counter>,
    pub(crate) policy: Policy,
    boot: u32,
    uptime: Duration,
    clock: SystemTime,
}

/// The build-id of the hypervisor.
pub(crate) fn base() -> BuildId {
    let id = xsplice_abi::note::hex(&XEN_ID);
    id.try_into().expect("it is one")
}

/// A payload and its manifest.
type Release = (Vec<u8>, Manifest);

/// A payload of this level, and its manifest.
pub(crate) fn payload(level: u8, hooked: bool) -> Release {
    static MADE: Mutex<BTreeMap<(u8, bool), Release>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().expect("no panic");
    let release = made
        .entry((level, hooked))
        .or_insert_with(|| make(level, hooked));
    release.clone()
}

fn make(level: u8, hooked: bool) -> Release {
    let mut payload = Payload::on(&XEN_ID, &[level; 20], &[func("target")]);
    let metadata = format!("level={level}\0");
    let kind = object::SectionKind::ReadOnlyData;
    payload.section(".modinfo", kind, metadata.as_bytes(), 1);
    if hooked {
        payload = payload.hooks(".livepatch.hooks.preapply", 1);
    }
    let data = payload.bytes();
    let release = xsplice_store::Release {
        name: format!("fixes-{level}"),
        level: level.into(),
        fixes: vec![format!("XSA-{level}")],
        date: Date::new(SystemTime::UNIX_EPOCH),
    };
    let manifest = Manifest::new(&data, release).expect("it is good");
    (data, manifest)
}

impl World {
    /// A host that has just booted, with an empty store.
    pub(crate) fn new(core: Core) -> Self {
        let counter = Rc::new(Counter::default());
        Self {
            disk: Memory::new(Rc::clone(&counter)),
            xen: Xen::new(core, Rc::clone(&counter)),
            counter,
            policy: Policy::default(),
            boot: 1,
            uptime: Duration::from_secs(60),
            clock: SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000),
        }
    }

    /// Puts the payload of this level into the store.
    pub(crate) fn install(&mut self, level: u8, hooked: bool) -> Result<bool, Error> {
        let (data, manifest) = payload(level, hooked);
        self.xen.know(&data, &manifest);
        let incoming = Incoming {
            payload: data,
            manifest: manifest.to_json().expect("JSON").into_bytes(),
            signature: None,
        };
        install(&self.disk, &self.policy, &incoming, &self.now().date).map(|(_, new)| new)
    }

    pub(crate) fn now(&self) -> Moment {
        Moment {
            boot: self.boot.to_string(),
            uptime: self.uptime,
            date: Date::new(self.clock),
        }
    }

    pub(crate) fn sync(&mut self, request: &Request) -> SyncSummary {
        self.run(request, |sync| sync.run())
    }

    /// The host goes down in order.
    pub(crate) fn settle_now(&mut self) -> SyncSummary {
        self.run(&Request::default(), |sync| sync.settle_now())
    }

    fn run(&mut self, request: &Request, run: fn(Sync<Memory, Xen>) -> SyncSummary) -> SyncSummary {
        let recorder = Recorder {
            disk: &self.disk,
            now: self.now(),
            user: None,
            log: &Unlogged,
        };
        let sync = Sync {
            disk: &self.disk,
            host: &mut self.xen,
            base: &base(),
            policy: &self.policy,
            request,
            recorder,
        };
        run(sync)
    }

    /// Runs with the operation `at` failing. Returns whether there was one.
    pub(crate) fn sync_with(
        &mut self,
        request: &Request,
        at: u32,
        fault: Fault,
    ) -> (SyncSummary, bool) {
        self.with(at, fault, |world| world.sync(request))
    }

    /// Does something with the operation `at` failing. Returns whether there was one.
    pub(crate) fn with<T>(
        &mut self,
        at: u32,
        fault: Fault,
        change: impl FnOnce(&mut Self) -> T,
    ) -> (T, bool) {
        self.counter.count.set(0);
        self.counter.happened.set(None);
        self.counter.at.set(Some((at, fault)));
        let result = change(self);
        self.counter.at.set(None);
        (result, self.counter.happened().is_some())
    }

    /// What happens after the fault: the program is gone, or the host boots again.
    pub(crate) fn aftermath(&mut self, loss: Loss) {
        use Fault::{DiesAfter, DiesBefore};
        let happened = self.counter.happened.take();
        if matches!(happened, Some(DiesAfter | DiesBefore)) {
            self.disk.lose(loss);
            self.reboot();
            // A host without a battery has a clock that begins anew.
            self.clock = SystemTime::UNIX_EPOCH + Duration::from_secs(10);
        }
        self.xen.end_of_fault();
        self.disk.end_of_fault();
    }

    /// The host boots again, in order.
    pub(crate) fn reboot(&mut self) {
        self.boot += 1;
        self.uptime = Duration::from_secs(20);
        self.xen.reset();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.uptime += time;
        self.clock += time;
    }

    pub(crate) fn report(&self) -> Report {
        let mut quarantine = Quarantine::read(&self.disk).expect("it is whole");
        let mut progress = Progress::read(&self.disk).expect("it is whole");
        for quarantined in progress.recover(&self.now()) {
            quarantine.insert(quarantined);
        }
        let record = progress.of(&base());
        let trust = Trust {
            policy: &self.policy,
            record: &record,
            date: &self.now().date,
        };
        let catalogue = Catalogue::read(&self.disk, &base(), &trust, &quarantine);
        let loaded = self.xen.list().expect("it answers");
        let observed = Observed::new(loaded, &catalogue);
        let (policy, now) = (&self.policy, self.now());
        Report::new(&observed, &catalogue, policy, &record, &quarantine, &now)
    }

    pub(crate) fn quarantine(&self) -> Vec<u32> {
        let quarantine = Quarantine::read(&self.disk).expect("it is whole");
        quarantine.all().iter().map(|q| q.payload.level).collect()
    }

    /// Brings the host to what its policy wants, and lets it run with it until it settles.
    pub(crate) fn settled(&mut self) {
        let ended = self.sync(&Request::default());
        assert!(ended.error.is_none(), "{ended:?}");
        self.pass(Duration::from_secs(3600));
        let ended = self.sync(&Request::default());
        assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    }

    /// All files, by path.
    pub(crate) fn files(&self) -> BTreeMap<String, Vec<u8>> {
        self.disk.files()
    }

    pub(crate) fn write(&self, path: &Path, data: &[u8]) {
        replace(&self.disk, path, data).expect("written");
    }
}

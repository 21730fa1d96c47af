// SPDX-License-Identifier: MIT OR Apache-2.0
//! Every operation of a sync fails once, in every way it can, or the program or the host
//! ends there; operations are counted, so that none is left out. Afterwards the host has
//! what it had, or it is said; no file is half-written; the state is the truth; and the
//! next run brings the host to where it is to be.

use crate::world::{Core, Fault, Loss, World};
use xsplice_abi::errno::Errno;
use xsplice_store::{
    Condition, History, Manifest, Paths, Progress, Quarantine, Request, SyncSummary, Want, remove,
};

const FAULTS: [Fault; 12] = [
    Fault::Fails(Errno::EBUSY),
    Fault::Fails(Errno::EINVAL),
    Fault::Fails(Errno::ENOMEM),
    Fault::FailsFromNowOn(Errno::EBUSY),
    Fault::FailsFromNowOn(Errno::EINVAL),
    Fault::FailsFromNowOn(Errno::ENOMEM),
    Fault::Late,
    Fault::Stuck,
    Fault::KilledBefore,
    Fault::KilledAfter,
    Fault::DiesBefore,
    Fault::DiesAfter,
];

/// What names of files that are being written contain.
const TEMPORARY: &str = ".xsplice-new-";

const LOSSES: [Loss; 3] = [Loss::Nothing, Loss::All, Loss::Contents];

/// What a host is brought from, and to what.
struct Scenario {
    name: &'static str,
    start: fn(&mut World),
    request: Request,
    /// The levels, before and after.
    levels: (u32, u32),
    /// What it ends with if the payload is taken as bad.
    otherwise: u32,
}

fn two_levels(world: &mut World) {
    world.install(1, false).expect("installed");
    world.settled();
    world.install(2, false).expect("installed");
}

fn scenarios() -> Vec<Scenario> {
    let request = Request::default();
    vec![
        Scenario {
            name: "the first payload",
            start: |world| {
                world.install(1, false).expect("installed");
            },
            request: request.clone(),
            levels: (0, 1),
            otherwise: 0,
        },
        Scenario {
            name: "a higher level",
            start: two_levels,
            request: request.clone(),
            levels: (1, 2),
            otherwise: 1,
        },
        Scenario {
            name: "a level that the hypervisor does not load",
            start: |world| {
                two_levels(world);
                world.xen.unloadable.insert(2);
            },
            request: request.clone(),
            levels: (1, 2),
            otherwise: 1,
        },
        Scenario {
            name: "a level that cannot be applied",
            start: |world| {
                two_levels(world);
                world.xen.bad.insert(2);
            },
            request: request.clone(),
            levels: (1, 2),
            otherwise: 1,
        },
        Scenario {
            name: "over a gap",
            start: |world| {
                world.install(1, true).expect("installed");
                world.settled();
                world.install(2, false).expect("installed");
            },
            request: Request {
                allow_gap: true,
                ..request.clone()
            },
            levels: (1, 2),
            otherwise: 1,
        },
        Scenario {
            name: "no payload any more",
            start: |world| {
                world.install(1, false).expect("installed");
                world.settled();
                world.policy.want = Want::None;
            },
            request: Request {
                allow_downgrade: true,
                ..request
            },
            levels: (1, 0),
            otherwise: 0,
        },
    ]
}

/// Whatever is on the disk is whole.
fn check_files(world: &World, when: &str) {
    Progress::read(&world.disk).expect(when);
    Quarantine::read(&world.disk).expect(when);
    for (path, data) in world.files() {
        let is_manifest = path.ends_with(Paths::MANIFEST) && !path.contains(TEMPORARY);
        if is_manifest && path.starts_with("/var/lib/xsplice/store/") {
            Manifest::parse(&data).expect(when);
        }
    }
    let history = History::read(&world.disk).expect(when);
    assert!(history.is_whole(), "{when}: {:?}", history.broken);
}

/// The state is the truth.
fn check_report(world: &World, scenario: &Scenario, when: &str) {
    let report = world.report();
    let applied = world.xen.applied();
    let level = applied.first().copied().unwrap_or(0);
    assert_eq!(report.level, level, "{when}: {report:?}");
    if report.condition.is_as_wanted() {
        assert_eq!(report.wanted, Some(level), "{when}: {report:?}");
        let whole = level == scenario.levels.1 || scenario.levels.1 == 0;
        assert!(whole, "{when}: {report:?}");
    }
}

/// What the run itself said is the truth.
fn check_ended(world: &World, ended: &SyncSummary, scenario: &Scenario, fault: Fault, when: &str) {
    use Fault::{DiesAfter, DiesBefore, KilledAfter, KilledBefore};
    if matches!(fault, DiesAfter | DiesBefore | KilledAfter | KilledBefore) {
        return;
    }
    let level = world.xen.applied().first().copied().unwrap_or(0);
    match ended.level {
        // If that is not known, it is not called done.
        None => assert!(ended.error.is_some(), "{when}: {ended:?}"),
        known => assert_eq!(known, Some(level), "{when}: {ended:?}"),
    }
    if ended.restored == Some(false) {
        assert_eq!(level, 0, "{when}: {ended:?}");
    }
    let (from, to) = scenario.levels;
    match &ended.error {
        None => {
            assert_eq!(level, to, "{when}: {ended:?}");
            assert!(world.xen.checked().is_empty(), "{when}: {ended:?}");
        }
        Some(error) => {
            if level < from && to >= from {
                assert!(
                    ended.has_less() || ended.level.is_none(),
                    "{when}: {ended:?}"
                );
                assert_eq!(
                    world.report().condition,
                    Condition::ApplyFailed,
                    "{when}: {ended:?}"
                );
            }
            let of_payload = error
                .fault()
                .is_some_and(xsplice_store::Fault::is_of_payload);
            let kept = ended.unrecorded.is_empty();
            if of_payload && level != to && !ended.quarantined.is_empty() && kept {
                assert_eq!(world.quarantine(), [to], "{when}: {ended:?}");
            }
        }
    }
}

/// The next runs, without faults, bring the host to where it is to be.
fn check_recovery(world: &mut World, scenario: &Scenario, when: &str) {
    let (from, to) = scenario.levels;
    // Some of what failed is tried again by the next run, and fails again.
    let good = !world.xen.bad.contains(&to) && !world.xen.unloadable.contains(&to);
    let mut ended = world.sync(&scenario.request);
    if !good && ended.error.is_some() {
        ended = world.sync(&scenario.request);
    }
    assert!(ended.error.is_none(), "{when}: {ended:?}");
    let level = world.xen.applied().first().copied().unwrap_or(0);
    let given_up = world.quarantine().contains(&to);
    let expected = if given_up { scenario.otherwise } else { to };
    assert_eq!(level, expected, "{when}: {ended:?}, {:?}", world.report());
    assert!(given_up || good, "{when}: it is good, and is not applied");
    assert!(level >= from.min(to), "{when}");
    assert!(world.xen.applied().len() <= 1, "{when}");
    assert!(
        world.xen.checked().is_empty(),
        "{when}: {:?}",
        world.xen.checked()
    );
    check_files(world, when);
    check_report(world, scenario, when);
    let condition = world.report().condition;
    match (given_up, good) {
        (false, _) => assert!(condition.is_as_wanted(), "{when}: {condition:?}"),
        (true, _) => assert!(!condition.is_as_wanted(), "{when}: {condition:?}"),
    }
    // The bad one is not tried again, whatever else happens.
    if given_up {
        let again = world.sync(&Request::default());
        assert!(again.steps.is_empty(), "{when}: {again:?}");
    }
}

#[test]
fn every_operation_can_fail_in_every_way() {
    let cases: u32 = std::thread::scope(|scope| {
        let cores = [Core::Stock, Core::Ours];
        let threads = cores.map(|core| scope.spawn(move || every_case(core)));
        let cases = threads.map(|thread| thread.join().expect("no invariant is broken"));
        cases.into_iter().sum()
    });
    assert!(cases > 3000, "{cases}");
}

fn every_case(core: Core) -> u32 {
    let mut cases = 0;
    for scenario in &scenarios() {
        for fault in FAULTS {
            let dies = matches!(fault, Fault::DiesAfter | Fault::DiesBefore);
            for loss in LOSSES.into_iter().take(if dies { 3 } else { 1 }) {
                cases += every_operation(core, scenario, fault, loss);
            }
        }
    }
    cases
}

/// Says how many operations there were.
fn every_operation(core: Core, scenario: &Scenario, fault: Fault, loss: Loss) -> u32 {
    for at in 0.. {
        let mut world = World::new(core);
        (scenario.start)(&mut world);
        let when = format!(
            "{core:?}, {}, {fault:?} at {at}, {loss:?} lost",
            scenario.name
        );
        let (ended, happened) = world.sync_with(&scenario.request, at, fault);
        if !happened {
            return at;
        }
        world.disk.end_of_fault();
        world.xen.answer_again();
        check_ended(&world, &ended, scenario, fault, &when);
        world.aftermath(loss);
        check_files(&world, &when);
        check_report(&world, scenario, &when);
        check_recovery(&mut world, scenario, &when);
    }
    unreachable!("it ends")
}

#[test]
fn after_a_boot_the_host_gets_what_it_had_without_being_asked() {
    let unattended = Request {
        unattended: true,
        ..Request::default()
    };
    for core in [Core::Stock, Core::Ours] {
        for fault in [Fault::DiesBefore, Fault::DiesAfter] {
            for loss in LOSSES {
                for at in 0.. {
                    let mut world = World::new(core);
                    two_levels(&mut world);
                    let (_, happened) = world.sync_with(&Request::default(), at, fault);
                    if !happened {
                        break;
                    }
                    world.aftermath(loss);
                    let when = format!("{core:?}, {fault:?} at {at}, {loss:?} lost");
                    let ended = world.sync(&unattended);
                    assert!(ended.error.is_none(), "{when}: {ended:?}");
                    assert_eq!(world.xen.applied(), [1], "{when}");
                    // Before the attempt was on the disk, nothing had happened.
                    let condition = world.report().condition;
                    let expected = match world.quarantine().as_slice() {
                        [2] => Condition::Quarantined,
                        _ => Condition::Behind,
                    };
                    assert_eq!(condition, expected, "{when}");
                }
            }
        }
    }
}

/// Faults of the disk: an operation fails, or the program or the host ends there.
const DISK_FAULTS: [Fault; 5] = [
    Fault::Fails(Errno::EINVAL),
    Fault::KilledBefore,
    Fault::KilledAfter,
    Fault::DiesBefore,
    Fault::DiesAfter,
];

/// Makes every operation of `change` fail once, and checks that what the store had is there
/// as a whole, and that the next try succeeds.
fn every_operation_of(
    change: fn(&mut World) -> Result<(), xsplice_store::Error>,
    check: fn(&World, &str),
) {
    let mut cases = 0;
    for fault in DISK_FAULTS {
        for loss in LOSSES {
            for at in 0.. {
                let mut world = World::new(Core::Stock);
                two_levels(&mut world);
                let (result, happened) = world.with(at, fault, change);
                if !happened {
                    result.expect("nothing has failed");
                    break;
                }
                let when = format!("{fault:?} at {at}, {loss:?} lost");
                world.aftermath(loss);
                check_files(&world, &when);
                check(&world, &when);
                // It may have been done before it could be said.
                let _ = change(&mut world);
                check_files(&world, &when);
                check(&world, &when);
                assert!(world.report().damaged.is_empty(), "{when}");
                cases += 1;
            }
        }
    }
    assert!(cases > 50, "{cases}");
}

/// Every payload that the store has is there as a whole, with the first level.
fn check_store(world: &World, when: &str) {
    for path in world.files().keys() {
        let Some(payload) = path.strip_suffix(Paths::MANIFEST) else {
            continue;
        };
        if path.contains("/store/") && !path.contains(TEMPORARY) {
            assert!(world.files().contains_key(payload), "{when}: {path}");
        }
    }
    assert!(world.report().wanted.expect(when) >= 1, "{when}");
}

#[test]
fn every_operation_of_an_installation_can_fail() {
    every_operation_of(
        |world| world.install(3, false).map(|_| ()),
        |world, when| {
            check_store(world, when);
            let wanted = world.report().wanted.expect(when);
            assert!([2, 3].contains(&wanted), "{when}: {wanted}");
        },
    );
}

#[test]
fn every_operation_of_a_removal_can_fail() {
    every_operation_of(
        |world| {
            let progress = Progress::read(&world.disk)?;
            remove(&world.disk, &progress, "fixes-2").map(|_| ())
        },
        check_store,
    );
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a host is brought to, and what it refuses.

use crate::world::{Core, Fault, Loss, World, base, payload};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xsplice_signing::PrivateKey;
use xsplice_store::{
    Blocked, Condition, Coverage, Fleet, History, Incoming, Manager, Manifest, Paths, Policy,
    Progress, Quarantine, Request, SyncError, SyncSummary, Verify, Want, install, metrics, remove,
};

fn blocked(ended: &SyncSummary) -> &Blocked {
    match &ended.error {
        Some(SyncError::Blocked(blocked)) => blocked,
        _ => panic!("it is not blocked: {ended:?}"),
    }
}

/// A host with level 1, which has settled, and level 2 in its store.
fn behind() -> World {
    let mut world = World::new(Core::Stock);
    assert!(world.install(1, false).expect("installed"));
    world.settled();
    assert!(world.install(2, false).expect("installed"));
    world
}

fn unattended() -> Request {
    Request {
        unattended: true,
        ..Request::default()
    }
}

fn condition(world: &World) -> Condition {
    world.report().condition
}

#[test]
fn a_host_goes_up_step_by_step_and_says_so() {
    let mut world = World::new(Core::Stock);
    assert_eq!(condition(&world), Condition::HypervisorUnknown);
    world.install(1, false).expect("installed");
    assert_eq!(condition(&world), Condition::Behind);
    let ended = world.sync(&Request::default());
    assert!(
        ended.changed && ended.level == Some(1) && ended.from == 0,
        "{ended:?}"
    );
    let report = world.report();
    assert!(
        report.condition == Condition::Current && report.settling,
        "{report:?}"
    );
    world.pass(Duration::from_secs(599));
    world.sync(&unattended());
    assert!(world.report().settling);
    world.pass(Duration::from_secs(1));
    let ended = world.sync(&unattended());
    assert!(ended.error.is_none() && !ended.changed, "{ended:?}");
    assert!(!world.report().settling);
    world.install(2, false).expect("installed");
    let ended = world.sync(&Request::default());
    assert_eq!(
        (ended.from, ended.level, world.xen.applied()),
        (1, Some(2), vec![2])
    );
    assert!(
        world.xen.checked().is_empty(),
        "what was replaced is unloaded"
    );
    let actions: Vec<&str> = History::read(&world.disk)
        .expect("whole")
        .lines
        .iter()
        .map(|line| line.event.action.word())
        .collect();
    assert_eq!(actions, ["sync", "sync", "settle", "sync", "sync"]);
}

#[test]
fn unattended_only_what_was_decided_before_is_done() {
    let mut world = behind();
    let ended = world.sync(&unattended());
    assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    assert_eq!(
        (world.xen.applied(), condition(&world)),
        (vec![1], Condition::Behind)
    );
    world.reboot();
    world.sync(&unattended());
    assert_eq!(world.xen.applied(), [1]);
    world.policy.auto = true;
    world.sync(&unattended());
    assert_eq!(world.xen.applied(), [2]);
}

#[test]
fn what_was_begun_is_kept_while_it_settles() {
    let mut world = behind();
    world.sync(&Request::default());
    let ended = world.sync(&unattended());
    assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    assert_eq!(world.xen.applied(), [2]);
}

#[test]
fn a_host_that_dies_soon_after_does_not_get_it_again() {
    let mut world = behind();
    world.sync(&Request::default());
    world.reboot();
    assert_eq!(condition(&world), Condition::Quarantined, "before any run");
    world.sync(&unattended());
    assert_eq!(
        (world.xen.applied(), world.quarantine()),
        (vec![1], vec![2])
    );
    assert_eq!(condition(&world), Condition::Quarantined);
    let named = Policy {
        want: Want::Named("fixes-2".to_owned()),
        ..Policy::default()
    };
    world.policy = named;
    let ended = world.sync(&Request::default());
    assert!(
        matches!(blocked(&ended), Blocked::Quarantined { .. }),
        "{ended:?}"
    );
    let mut quarantine = Quarantine::read(&world.disk).expect("whole");
    let released = quarantine.all()[0].payload.clone();
    quarantine.release(&world.disk, &released).expect("written");
    assert!(quarantine.all().is_empty());
    world.sync(&Request::default());
    assert_eq!(world.xen.applied(), [2]);
}

#[test]
fn one_power_cut_does_not_cost_a_proven_payload_two_do() {
    let mut world = behind();
    for (boot, levels) in [vec![1], vec![1], vec![]].iter().enumerate() {
        world.reboot();
        world.sync(&unattended());
        assert_eq!(world.xen.applied(), *levels, "boot {boot}");
    }
    assert_eq!(world.quarantine(), [1]);
    // A host that lives in between begins anew.
    let mut world = behind();
    for boot in 0..5 {
        world.reboot();
        world.sync(&unattended());
        world.pass(Duration::from_secs(700));
        world.sync(&unattended());
        assert_eq!(world.xen.applied(), [1], "boot {boot}");
    }
}

#[test]
fn the_level_does_not_fall_unasked() {
    let mut world = behind();
    world.sync(&Request::default());
    let down = Request {
        level: Some(1),
        ..Request::default()
    };
    let ended = world.sync(&down);
    assert_eq!(*blocked(&ended), Blocked::Downgrade { from: 2, to: 1 });
    // Nor after a boot, when nothing is applied.
    world.pass(Duration::from_secs(700));
    world.sync(&unattended());
    world.reboot();
    let ended = world.sync(&down);
    assert_eq!(*blocked(&ended), Blocked::Downgrade { from: 2, to: 1 });
    let down = Request {
        allow_downgrade: true,
        ..down
    };
    let ended = world.sync(&down);
    assert!(ended.error.is_none(), "{ended:?}");
    assert_eq!(world.xen.applied(), [1]);
}

#[test]
fn what_somebody_else_applied_is_not_taken_away() {
    let mut world = behind();
    let (data, manifest) = payload(7, false);
    world.xen.know(&data, &manifest);
    world.xen.load(&manifest);
    let ended = world.sync(&Request::default());
    assert!(
        matches!(blocked(&ended), Blocked::Diverged { .. }),
        "{ended:?}"
    );
    assert_eq!(condition(&world), Condition::Diverged);
    assert_eq!(world.xen.applied(), [1, 7]);
}

#[test]
fn a_payload_of_the_same_name_is_not_taken_for_the_one_in_the_store() {
    let mut world = behind();
    let (data, mut other) = payload(7, false);
    world.xen.know(&data, &other);
    other.name = "fixes-2".to_owned();
    world.xen.upload_only(&other);
    let ended = world.sync(&Request::default());
    assert!(
        matches!(blocked(&ended), Blocked::NameTaken { .. }),
        "{ended:?}"
    );
    assert_eq!(world.xen.checked(), ["fixes-2"]);
}

#[test]
fn a_payload_with_hooks_is_applied_over_a_gap_only_if_asked() {
    let mut world = World::new(Core::Ours);
    world.install(1, true).expect("installed");
    world.settled();
    world.install(2, false).expect("installed");
    let ended = world.sync(&Request::default());
    assert_eq!(
        *blocked(&ended),
        Blocked::Gap {
            name: "fixes-1".to_owned()
        }
    );
    let request = Request {
        allow_gap: true,
        ..Request::default()
    };
    let ended = world.sync(&request);
    assert!(ended.error.is_none(), "{ended:?}");
    assert_eq!(world.xen.applied(), [2]);
}

#[test]
fn the_policy_can_stop_everything() {
    let mut world = behind();
    let files = world.files();
    world.policy.hold = true;
    assert_eq!(*blocked(&world.sync(&Request::default())), Blocked::Held);
    assert_eq!(condition(&world), Condition::Held);
    // It stays as it is, over boots, too.
    let mut held = behind();
    (held.policy.hold, held.policy.auto) = (true, true);
    held.reboot();
    held.sync(&unattended());
    assert_eq!(held.xen.applied(), [1]);
    assert!(held.sync(&unattended()).steps.is_empty());
    world.policy = Policy {
        managed_by: Manager::Xapi,
        ..Policy::default()
    };
    assert_eq!(*blocked(&world.sync(&Request::default())), Blocked::Managed);
    assert_eq!((world.files(), world.xen.applied()), (files, vec![1]));
}

#[test]
fn a_bad_level_is_put_aside_and_the_former_is_back() {
    for core in [Core::Stock, Core::Ours] {
        let mut world = World::new(core);
        world.install(1, false).expect("installed");
        world.settled();
        world.install(2, false).expect("installed");
        world.xen.bad.insert(2);
        let ended = world.sync(&Request::default());
        let restored = (core == Core::Stock).then_some(true);
        assert_eq!(
            (ended.restored, ended.level),
            (restored, Some(1)),
            "{ended:?}"
        );
        assert!(!ended.has_less());
        assert_eq!(
            (world.xen.applied(), world.quarantine()),
            (vec![1], vec![2])
        );
        assert_eq!(condition(&world), Condition::ApplyFailed);
        assert_eq!(ended.retries, 0, "it was refused, and is not tried again");
        // A better one does not stumble over it.
        world.install(3, false).expect("installed");
        let ended = world.sync(&Request::default());
        assert!(ended.error.is_none(), "{ended:?}");
        assert_eq!(
            (world.xen.applied(), condition(&world)),
            (vec![3], Condition::Current)
        );
    }
}

#[test]
fn a_busy_hypervisor_is_asked_again_a_few_times() {
    let request = Request::default();
    let busy = Fault::FailsFromNowOn(xsplice_abi::errno::Errno::EBUSY);
    let (world, ended) = (0..)
        .map(|at| {
            let mut world = behind();
            let (ended, happened) = world.sync_with(&request, at, busy);
            assert!(happened, "it is never busy during the upload");
            (world, ended)
        })
        .find(|(_, ended)| matches!(&ended.error, Some(SyncError::Step { .. })))
        .expect("there is one");
    let fault = ended.error.as_ref().and_then(SyncError::fault);
    assert!(
        fault.is_some_and(xsplice_store::Fault::is_busy),
        "{ended:?}"
    );
    assert!(
        ended.retries >= 5 && world.xen.pauses == ended.retries && ended.steps.is_empty(),
        "{ended:?}"
    );
    assert_eq!(world.xen.applied(), [1]);
    assert!(
        world.quarantine().is_empty(),
        "the payload can do nothing about it"
    );
}

#[test]
fn a_store_that_changes_meanwhile_is_noticed() {
    let path = Paths::store().join(base()).join("fixes-2.livepatch");
    // Another payload, half a payload, and none.
    let (other, _) = payload(7, false);
    for data in [Some(other.clone()), Some(other[..100].to_vec()), None] {
        let mut world = behind();
        match &data {
            Some(data) => world.write(&path, data),
            None => xsplice_store::Disk::remove(&world.disk, &path).expect("removed"),
        }
        let ended = world.sync(&Request::default());
        assert!(!ended.changed && world.xen.applied() == [1], "{ended:?}");
        if data.is_some() {
            assert!(
                matches!(ended.error, Some(SyncError::Unread(_))),
                "{ended:?}"
            );
            assert_eq!(condition(&world), Condition::StoreDamaged);
        }
    }
    // What the host has would not be there after a boot.
    let mut world = behind();
    world.sync(&Request::default());
    assert_eq!(condition(&world), Condition::Current);
    world.write(&path, &other);
    assert_eq!(condition(&world), Condition::StoreDamaged);
    let damaged = world.report().damaged;
    assert!(
        damaged.iter().any(|damaged| damaged.path == path),
        "{damaged:?}"
    );
    let ended = world.sync(&Request::default());
    assert!(!ended.changed && world.xen.applied() == [2], "{ended:?}");
    assert!(
        matches!(blocked(&ended), Blocked::Unread { .. }),
        "{ended:?}"
    );
    // What the host had is not in the store any more when it boots.
    let mut world = behind();
    let path = Paths::store().join(base()).join("fixes-1.livepatch");
    xsplice_store::Disk::remove(&world.disk, &path).expect("removed");
    world.reboot();
    let ended = world.sync(&unattended());
    assert!(
        matches!(blocked(&ended), Blocked::Missing { .. }),
        "{ended:?}"
    );
}

/// The level of a payload whose file is damaged is known.
#[test]
fn a_damaged_payload_below_what_the_host_has_costs_nothing() {
    let file = |name: &str| Paths::store().join(base()).join(name);
    // An old level, and the file of one that a package has too.
    let old = behind();
    old.write(&file("fixes-1.livepatch"), b"half");
    let twice = behind();
    let (incoming, _) = incoming(2, "fixes-2");
    package(&twice, &incoming, "fixes-2");
    twice.write(&file("fixes-2.livepatch"), b"half");
    for mut world in [old, twice] {
        let ended = world.sync(&Request::default());
        assert!(
            ended.error.is_none() && ended.warnings.is_empty() && world.xen.applied() == [2],
            "{ended:?}"
        );
        let report = world.report();
        assert!(
            report.condition == Condition::Current && report.damaged.len() == 1,
            "{report:?}"
        );
    }
    // A higher one is not applied, and that is said.
    let mut world = behind();
    world.install(3, false).expect("installed");
    world.write(&file("fixes-3.livepatch"), b"half");
    let ended = world.sync(&Request::default());
    assert!(
        matches!(ended.error, Some(SyncError::Unread(_))) && world.xen.applied() == [2],
        "{ended:?}"
    );
    assert!(
        ended
            .warnings
            .iter()
            .all(|text| text.contains("of level 3")),
        "{ended:?}"
    );
}

#[test]
fn a_level_that_is_asked_for_is_not_refused_for_another_one() {
    let mut world = behind();
    world.sync(&Request::default());
    world.install(3, false).expect("installed");
    let path = Paths::store().join(base()).join("fixes-3.livepatch");
    world.write(&path, b"half");
    let request = Request {
        level: Some(1),
        ..Request::default()
    };
    let ended = world.sync(&request);
    assert_eq!(*blocked(&ended), Blocked::Downgrade { from: 2, to: 1 });
}

fn incoming(level: u8, name: &str) -> (Incoming, Manifest) {
    let (data, mut manifest) = payload(level, false);
    manifest.name = name.to_owned();
    let incoming = Incoming {
        payload: data,
        manifest: manifest.to_json().expect("JSON").into_bytes(),
        signature: None,
    };
    (incoming, manifest)
}

#[test]
fn a_level_and_a_name_stand_for_one_payload() {
    let mut world = behind();
    let files = world.files();
    assert!(
        !world.install(2, false).expect("it is there"),
        "it is not new"
    );
    let now = world.now().date;
    let policy = Policy::default();
    // The name of level 1, and the level of another name.
    let (same_name, _) = incoming(3, "fixes-1");
    let (mut same_level, mut manifest) = incoming(3, "fixes-3");
    manifest.level = 2;
    same_level.manifest = manifest.to_json().expect("JSON").into_bytes();
    let (mut other_payload, _) = incoming(3, "fixes-3");
    other_payload.payload = payload(4, false).0;
    for bad in [same_name, same_level, other_payload] {
        let error = install(&world.disk, &policy, &bad, &now).expect_err("it is refused");
        assert_eq!(world.files(), files, "{error}");
    }
}

#[test]
fn two_payloads_of_a_level_are_not_chosen_between() {
    let mut world = behind();
    let (data, mut manifest) = payload(3, false);
    manifest.level = 2;
    let path = Paths::vendor().join(base()).join("fixes-3.livepatch");
    world.write(&path, &data);
    world.write(
        &Paths::manifest(&path),
        manifest.to_json().expect("JSON").as_bytes(),
    );
    let ended = world.sync(&Request::default());
    assert!(
        matches!(blocked(&ended), Blocked::Ambiguous { level: 2, .. }),
        "{ended:?}"
    );
}

#[test]
fn what_the_host_has_is_not_removed_from_the_store() {
    let world = behind();
    let progress = Progress::read(&world.disk).expect("whole");
    let files = world.files();
    for name in ["fixes-1", "fixes-9", "../fixes-2"] {
        assert!(remove(&world.disk, &progress, name).is_err(), "{name}");
    }
    assert_eq!(world.files(), files);
    remove(&world.disk, &progress, "fixes-2").expect("removed");
    assert!(!world.files().keys().any(|path| path.contains("fixes-2")));
}

#[test]
fn files_that_are_no_good_are_said_and_not_used() {
    let mut world = behind();
    let directory = Paths::vendor().join(base());
    for (name, manifest) in [
        ("none", None),
        ("damaged", Some("{")),
        ("other", Some("fixes-1")),
    ] {
        let path = directory.join(format!("{name}.livepatch"));
        world.write(&path, &payload(1, false).0);
        if let Some(text) = manifest {
            let text = match text {
                "fixes-1" => payload(1, false).1.to_json().expect("JSON"),
                text => text.to_owned(),
            };
            world.write(&Paths::manifest(&path), text.as_bytes());
        }
    }
    let report = world.report();
    assert_eq!(report.damaged.len(), 3, "{report:?}");
    assert_eq!(world.sync(&Request::default()).level, Some(2));
}

/// Payloads of packages, of which one cannot be read, each in its way, and what it is.
fn with_a_bad_package(level: u8) -> Vec<(World, PathBuf)> {
    let directory = Paths::vendor().join(base());
    let bad = directory.join(format!("fixes-{level}.livepatch"));
    let manifest = Paths::manifest(&bad);
    let worlds = [
        manifest.clone(),
        Paths::signature(&manifest),
        directory.clone(),
        bad.clone(),
    ];
    let worlds = worlds.map(|unreadable| {
        let mut world = behind();
        let (data, text) = payload(level, false);
        world.xen.know(&data, &text);
        world.write(&bad, &data);
        let text = text.to_json().expect("JSON");
        world.write(&manifest, text.as_bytes());
        match unreadable == bad {
            // The payload itself is read only if it is to be applied: damage its manifest.
            true => world.write(&manifest, &text.as_bytes()[1..]),
            false => world.disk.break_at(&unreadable),
        }
        let named = if unreadable == directory {
            directory.clone()
        } else {
            bad.clone()
        };
        (world, named)
    });
    worlds.into()
}

#[test]
fn a_bad_package_is_said_and_does_not_stop_the_others() {
    for (mut world, bad) in with_a_bad_package(3) {
        let report = world.report();
        assert_eq!(report.condition, Condition::Behind, "{report:?}");
        let [damaged] = report.damaged.as_slice() else {
            panic!("{report:?}");
        };
        assert!(
            damaged.path == bad && !damaged.reason.is_empty(),
            "{report:?}"
        );
        let ended = world.sync(&Request::default());
        assert_eq!((ended.level, world.xen.applied()), (Some(2), vec![2]));
        // It is not called done: level 3 may be there.
        let Some(SyncError::Unread(damaged)) = &ended.error else {
            panic!("{ended:?}");
        };
        assert_eq!(damaged.path, bad);
        assert_eq!(ended.warnings.len(), 1, "{ended:?}");
        let report = world.report();
        assert_eq!(report.condition, Condition::StoreDamaged, "{report:?}");
        let again = world.sync(&Request::default());
        assert!(!again.changed && again.error.is_some(), "{again:?}");
        // What was decided before, or is named, does not depend on it.
        let ended = world.sync(&unattended());
        assert!(
            ended.error.is_none() && ended.warnings.is_empty(),
            "{ended:?}"
        );
        world.policy.want = Want::Named("fixes-2".to_owned());
        assert!(world.sync(&Request::default()).error.is_none());
        assert_eq!(condition(&world), Condition::Current);
    }
}

#[test]
fn what_the_host_has_is_not_replaced_because_it_cannot_be_read() {
    let bad = Paths::manifest(&Paths::store().join(base()).join("fixes-2.livepatch"));
    let mut world = behind();
    world.sync(&Request::default());
    world.pass(Duration::from_secs(700));
    world.sync(&unattended());
    world.disk.break_at(&bad);
    for applied in [vec![2], vec![]] {
        for request in [Request::default(), unattended()] {
            let ended = world.sync(&request);
            let blocked = blocked(&ended);
            // After a boot, the level does not fall, either.
            let expected = match blocked {
                Blocked::Unread { name, damaged } => {
                    name == "fixes-2" && damaged.reason.contains("cannot be read")
                }
                Blocked::Downgrade { from, to } => (*from, *to) == (2, 1) && applied.is_empty(),
                _ => false,
            };
            assert!(expected && !ended.changed, "{ended:?}");
            assert_eq!(world.xen.applied(), applied);
        }
        assert!(!condition(&world).is_as_wanted());
        world.reboot();
    }
}

#[test]
fn keys_that_cannot_be_read_verify_nothing() {
    for unreadable in [key_file("vendor.pem"), Paths::keys()] {
        let mut world = behind();
        world.write(&key_file("vendor.pem"), &key("trusted/vendor.pem"));
        world.disk.break_at(&unreadable);
        let report = world.report();
        assert_eq!(report.condition, Condition::Unverified, "{report:?}");
        assert_eq!(report.damaged[0].path, unreadable);
        assert!(!world.sync(&Request::default()).changed);
        assert!(world.install(3, false).is_err());
    }
}

#[test]
fn a_store_that_cannot_be_read_covers_nobody_for_certain() {
    for (world, bad) in with_a_bad_package(3) {
        let fleet = Fleet::parse(&format!("one {}\n", base())).expect("it is good");
        let policy = Policy::default();
        let coverage = |level| {
            let date = world.now().date;
            Coverage::new(&world.disk, &policy, &fleet, Some(level), &date)
        };
        assert!(coverage(2).is_complete() && !coverage(3).is_complete());
        assert_eq!(coverage(3).damaged[0].path, bad);
    }
}

fn key(name: &str) -> Vec<u8> {
    let keys = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/keys");
    std::fs::read(keys.join(name)).expect("it is there")
}

fn key_file(name: &str) -> PathBuf {
    Paths::keys().join(name)
}

/// The payload of this level, with a manifest of this date that the key has signed.
fn signed(level: u8, date: &str, private: &str) -> Incoming {
    let (_, mut manifest) = incoming(level, &format!("fixes-{level}"));
    manifest.date = date.to_owned().try_into().expect("a date");
    let text = manifest.to_json().expect("JSON").into_bytes();
    let digest = xsplice_signature::digest(&text, 0..0).expect("a digest");
    let private = PrivateKey::read(&key(private)).expect("a key");
    Incoming {
        payload: payload(level, false).0,
        signature: Some(private.sign(&digest).expect("signed")),
        manifest: text,
    }
}

#[test]
fn as_soon_as_there_is_a_key_it_must_have_signed() {
    let mut world = behind();
    world.write(&key_file("vendor.pem"), &key("trusted/vendor.pem"));
    // What was there before is not used any more, and that is said.
    let ended = world.sync(&Request::default());
    let name = "fixes-2".to_owned();
    let signer = "nobody".to_owned();
    assert_eq!(*blocked(&ended), Blocked::Unverified { name, signer });
    assert_eq!(condition(&world), Condition::Unverified);
    let now = world.now().date;
    let (date, policy) = ("2026-11-29T14:00:00Z", Policy::default());
    let good = signed(3, date, "vendor.key");
    let mut changed = signed(3, date, "vendor.key");
    changed.manifest = String::from_utf8(changed.manifest)
        .expect("UTF-8")
        .replace("XSA-3", "XSA-4")
        .into_bytes();
    let mut unsigned = signed(3, date, "vendor.key");
    unsigned.signature = None;
    for bad in [signed(3, date, "other.key"), changed, unsigned] {
        let error = install(&world.disk, &policy, &bad, &now).expect_err("it is refused");
        assert!(error.to_string().contains("signed by"), "{error}");
    }
    let (_, manifest) = payload(3, false);
    world.xen.know(&good.payload, &manifest);
    let (entry, _) = install(&world.disk, &policy, &good, &now).expect("installed");
    assert_eq!(entry.signer.to_string(), "vendor");
    let ended = world.sync(&Request::default());
    assert_eq!(ended.level, Some(3), "{ended:?}");
    assert_eq!(condition(&world), Condition::Current);
    // An unsigned one above it does not get in the way, and is said.
    let lax = Policy {
        verify: Some(Verify::Off),
        ..Policy::default()
    };
    let (four, _) = incoming(4, "fixes-4");
    install(&world.disk, &lax, &four, &now).expect("installed");
    assert_eq!(condition(&world), Condition::Unverified);
    assert!(world.sync(&Request::default()).steps.is_empty());
}

#[test]
fn a_file_that_holds_no_key_does_not_turn_verification_off() {
    let mut world = behind();
    world.write(&key_file("vendor.pem"), b"-----BEGIN NOTHING-----");
    let ended = world.sync(&Request::default());
    assert!(!ended.changed && ended.error.is_some(), "{ended:?}");
    assert_eq!(world.report().damaged.len(), 1);
}

#[test]
fn a_certificate_says_when_its_key_may_sign() {
    // The certificate of this key is valid from 2026-11-29 on, for 100 years.
    let world = World::new(Core::Stock);
    world.write(&key_file("large.pem"), &key("trusted/large.pem"));
    let now = world.now().date;
    let policy = Policy::default();
    let early = signed(1, "2001-01-01T00:00:00Z", "large.key");
    let error = install(&world.disk, &policy, &early, &now).expect_err("it is refused");
    assert!(error.to_string().contains("was not valid at"), "{error}");
    let good = signed(1, "2027-01-01T00:00:00Z", "large.key");
    let long_ago = "1970-01-01T00:00:10Z"
        .to_owned()
        .try_into()
        .expect("a date");
    let error = install(&world.disk, &policy, &good, &long_ago).expect_err("it is refused");
    assert!(
        error.to_string().contains("by the clock of this host"),
        "{error}"
    );
    install(&world.disk, &policy, &good, &now).expect("installed");
}

#[test]
fn a_fleet_is_covered_or_not_by_level() {
    let world = behind();
    let fleet = Fleet::parse(&format!("one {}\ntwo {}\nthree abcd\n", base(), base()));
    let fleet = fleet.expect("it is good");
    let covered = |level| {
        Coverage::new(
            &world.disk,
            &Policy::default(),
            &fleet,
            level,
            &world.now().date,
        )
    };
    let abcd = "abcd".to_owned().try_into().expect("it is one");
    let any = covered(None);
    assert_eq!(any.hypervisors[&base()].level, 2);
    assert!(any.hypervisors[&base()].covered && !any.hypervisors[&abcd].covered);
    assert!(!any.is_complete());
    assert!(!covered(Some(3)).hypervisors[&base()].covered);
}

#[test]
fn metrics_have_one_state_and_count_what_was_done() {
    let mut world = behind();
    world.xen.bad.insert(2);
    world.sync(&Request::default());
    let history = History::read(&world.disk).expect("whole");
    let text = metrics(&world.report(), &history, "4.17 \"x\"");
    let states: Vec<&str> = text
        .lines()
        .filter(|l| l.starts_with("xsplice_state{"))
        .collect();
    assert_eq!(states.len(), Condition::ALL.len());
    let on: Vec<_> = states.iter().filter(|line| line.ends_with(" 1")).collect();
    assert_eq!(on, [&"xsplice_state{state=\"apply-failed\"} 1"]);
    for line in [
        "xsplice_level 1",
        "xsplice_quarantined 1",
        "xsplice_actions_total{action=\"sync\",result=\"failed\"} 1",
        "xsplice_last_sync_success 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }
    assert!(text.contains(r#"version="4.17 \"x\"""#), "{text}");
}

/// The alert rules and the dashboard, with the paths that they are in.
const WATCHERS: [&str; 3] = [
    "packaging/xsplice.rules.yml",
    "packaging/xsplice.rules.test.yml",
    "packaging/xsplice.dashboard.json",
];

#[test]
fn what_is_watched_is_what_is_written() {
    let mut world = behind();
    world.sync(&Request::default());
    let history = History::read(&world.disk).expect("whole");
    let text = metrics(&world.report(), &history, "4.17");
    let written: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for path in WATCHERS {
        let watcher = std::fs::read_to_string(root.join(path)).expect(path);
        let words = watcher.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let watched: BTreeSet<&str> = words.filter(|w| w.starts_with("xsplice_")).collect();
        assert!(!watched.is_empty(), "{path} watches nothing");
        let unknown: Vec<_> = watched.difference(&written).collect();
        assert!(unknown.is_empty(), "{path}: {unknown:?} are not written");
        let states = watcher.split("state=~\"").skip(1);
        let states = states.filter_map(|rest| rest.split('"').next());
        for state in states.flat_map(|states| states.split('|')) {
            let known = Condition::ALL.iter().any(|known| known.word() == state);
            assert!(known, "{path}: there is no state {state}");
        }
    }
}

#[test]
fn removing_the_last_key_does_not_turn_verification_off() {
    let mut world = behind();
    let file = key_file("vendor.pem");
    world.write(&file, &key("trusted/vendor.pem"));
    xsplice_store::Disk::remove(&world.disk, &file).expect("removed");
    let ended = world.sync(&Request::default());
    let name = "fixes-2".to_owned();
    let signer = "nobody".to_owned();
    assert_eq!(*blocked(&ended), Blocked::Unverified { name, signer });
    assert_eq!(condition(&world), Condition::Unverified);
    assert!(world.report().damaged.is_empty());
}

#[test]
fn a_file_among_the_keys_with_another_name_is_said() {
    let mut world = behind();
    world.write(&key_file("vendor.crt"), &key("trusted/vendor.pem"));
    assert!(world.sync(&Request::default()).error.is_some());
    let damaged = world.report().damaged;
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert!(damaged[0].reason.contains(".pem"), "{damaged:?}");
}

#[test]
fn any_valid_certificate_of_a_key_counts() {
    let world = World::new(Core::Stock);
    // The same key twice: with a certificate that is not valid yet, and alone.
    world.write(&key_file("a.pem"), &key("trusted/large.pem"));
    let private = PrivateKey::read(&key("large.key")).expect("a key");
    let (_, public) = private.to_pem().expect("encoded");
    world.write(&key_file("b.pem"), public.as_bytes());
    let early = signed(1, "2001-01-01T00:00:00Z", "large.key");
    let now = world.now().date;
    let installed = install(&world.disk, &Policy::default(), &early, &now);
    let (entry, _) = installed.expect("installed");
    assert_eq!(entry.signer.to_string(), "b");
}

#[test]
fn installing_again_repairs_what_is_damaged() {
    let path = Paths::store().join(base()).join("fixes-2.livepatch");
    let now = World::new(Core::Stock).now().date;
    let good = incoming(2, "fixes-2").0;
    let place = Paths::manifest(&path);
    let spaced = [&good.manifest[..], b" "].concat();
    for (file, damaged) in [
        (path.clone(), &b"half"[..]),
        (place.clone(), &spaced),
        (Paths::signature(&place), b"no signature"),
    ] {
        let world = behind();
        let files = world.files();
        world.write(&file, damaged);
        let (_, new) = install(&world.disk, &world.policy, &good, &now).expect("repaired");
        assert!(new, "{}", file.display());
        assert_eq!(world.files(), files, "{}", file.display());
    }
}

#[test]
fn the_damaged_file_of_a_package_is_refused() {
    let world = World::new(Core::Stock);
    let good = incoming(1, "fixes-1").0;
    let path = Paths::vendor().join(base()).join("fixes-1.livepatch");
    world.write(&Paths::manifest(&path), &good.manifest);
    world.write(&path, b"half");
    let now = world.now().date;
    let error = install(&world.disk, &world.policy, &good, &now).expect_err("it is refused");
    assert!(
        error.to_string().contains("reinstall the package"),
        "{error}"
    );
    world.write(&path, &good.payload);
    let (_, new) = install(&world.disk, &world.policy, &good, &now).expect("it is there");
    assert!(!new);
}

#[test]
fn a_manifest_that_says_something_else_than_its_payload_is_refused() {
    let mut world = behind();
    let now = world.now().date;
    let changes: [fn(&mut Manifest); 4] = [
        |manifest| manifest.build_id = "ab".repeat(20).try_into().expect("it is one"),
        |manifest| manifest.metadata = vec!["level=4".to_owned()],
        |manifest| manifest.replaceable = false,
        |manifest| manifest.hooks = vec!["load".to_owned()],
    ];
    for change in changes {
        let (mut bad, mut manifest) = incoming(3, "fixes-3");
        change(&mut manifest);
        bad.manifest = manifest.to_json().expect("JSON").into_bytes();
        let error = install(&world.disk, &world.policy, &bad, &now).expect_err("it is refused");
        assert!(error.to_string().contains("disagree about its"), "{error}");
    }
    // A package has it all the same.
    let (_, mut manifest) = incoming(3, "fixes-3");
    manifest.replaceable = false;
    let path = Paths::vendor().join(base()).join("fixes-3.livepatch");
    world.write(&path, &payload(3, false).0);
    world.write(
        &Paths::manifest(&path),
        manifest.to_json().expect("JSON").as_bytes(),
    );
    let request = Request {
        allow_gap: true,
        ..Request::default()
    };
    let ended = world.sync(&request);
    assert!(
        matches!(ended.error, Some(SyncError::Unread(_))),
        "{ended:?}"
    );
    assert_eq!(world.xen.applied(), [2], "{ended:?}");
}

#[test]
fn what_was_never_uploaded_is_not_why_the_host_went_down() {
    let full = Fault::Fails(xsplice_abi::errno::Errno::ENOMEM);
    let mut early = 0;
    for at in 0.. {
        let mut world = behind();
        let (ended, happened) = world.sync_with(&Request::default(), at, full);
        if !happened {
            break;
        }
        if !matches!(ended.error, Some(SyncError::Store(_))) {
            continue;
        }
        early += 1;
        world.reboot();
        let ended = world.sync(&unattended());
        assert!(ended.quarantined.is_empty(), "{at}: {ended:?}");
        assert_eq!(world.xen.applied(), [1], "{at}");
    }
    assert!(early > 5, "{early}");
}

#[test]
fn a_failed_sync_does_not_forget_what_is_not_settled() {
    // It is never taken away, or it is restored.
    for restored in [None, Some(true)] {
        let mut world = behind();
        world.sync(&Request::default());
        world.install(3, false).expect("installed");
        match restored {
            None => world.xen.unloadable.insert(3),
            Some(_) => world.xen.bad.insert(3),
        };
        let ended = world.sync(&Request::default());
        assert!(ended.error.is_some() && ended.level == Some(2), "{ended:?}");
        assert_eq!(ended.restored, restored, "{ended:?}");
        let ended = world.sync(&unattended());
        assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
        world.pass(Duration::from_secs(700));
        world.sync(&unattended());
        world.reboot();
        world.sync(&unattended());
        assert_eq!(world.xen.applied(), [2]);
    }
}

#[test]
fn what_is_applied_and_wanted_is_adopted() {
    let mut world = World::new(Core::Stock);
    world.install(1, false).expect("installed");
    let (_, manifest) = payload(1, false);
    world.xen.load(&manifest);
    let ended = world.sync(&Request::default());
    assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    assert!(world.report().settling);
    world.pass(Duration::from_secs(700));
    world.sync(&unattended());
    assert!(!world.report().settling);
    world.reboot();
    world.sync(&unattended());
    assert_eq!(world.xen.applied(), [1]);
}

#[test]
fn a_sync_with_nothing_to_do_ends_an_earlier_failure() {
    let mut world = behind();
    world.xen.bad.insert(2);
    world.sync(&Request::default());
    assert_eq!(condition(&world), Condition::ApplyFailed);
    let progress = Progress::read(&world.disk).expect("whole");
    remove(&world.disk, &progress, "fixes-2").expect("removed");
    world.sync(&unattended());
    assert_eq!(
        condition(&world),
        Condition::ApplyFailed,
        "nobody was there"
    );
    world.sync(&Request::default());
    assert_eq!(condition(&world), Condition::Current);
}

#[test]
fn an_orderly_reboot_quarantines_nothing() {
    use xsplice_abi::errno::Errno;
    for fault in [
        Fault::KilledBefore,
        Fault::KilledAfter,
        Fault::Late,
        Fault::Stuck,
        Fault::Fails(Errno::EINVAL),
    ] {
        for at in 0.. {
            let mut world = behind();
            let (_, happened) = world.sync_with(&Request::default(), at, fault);
            if !happened {
                break;
            }
            world.aftermath(Loss::Nothing);
            let before = world.quarantine();
            let level = world.xen.applied();
            let ended = world.settle_now();
            assert!(ended.error.is_none(), "{fault:?} at {at}: {ended:?}");
            world.reboot();
            let ended = world.sync(&unattended());
            assert_eq!(world.quarantine(), before, "{fault:?} at {at}: {ended:?}");
            let expected = if level.is_empty() { vec![1] } else { level };
            assert_eq!(
                world.xen.applied(),
                expected,
                "{fault:?} at {at}: {ended:?}"
            );
        }
    }
}

#[test]
fn unattended_no_level_is_asked_for() {
    let mut world = behind();
    for (hold, auto) in [(false, false), (true, false), (true, true)] {
        (world.policy.hold, world.policy.auto) = (hold, auto);
        let request = Request {
            level: Some(2),
            ..unattended()
        };
        let ended = world.sync(&request);
        assert!(ended.steps.is_empty(), "{ended:?}");
        assert_eq!(world.xen.applied(), [1]);
    }
}

#[test]
fn what_is_not_verified_is_not_restored() {
    let mut world = World::new(Core::Ours);
    world.install(1, true).expect("installed");
    world.settled();
    world.write(&key_file("vendor.pem"), &key("trusted/vendor.pem"));
    let good = signed(3, "2026-11-29T14:00:00Z", "vendor.key");
    world.xen.know(&good.payload, &payload(3, false).1);
    let now = world.now().date;
    install(&world.disk, &world.policy, &good, &now).expect("installed");
    world.xen.bad.insert(3);
    let request = Request {
        allow_gap: true,
        ..Request::default()
    };
    // What was reverted is loaded anew before it is applied again, from bytes that no key
    // of the host has signed.
    let ended = world.sync(&request);
    assert_eq!(ended.restored, Some(false), "{ended:?}");
    assert!(ended.has_less() && world.xen.applied().is_empty());
}

#[test]
fn what_is_still_at_work_is_remembered() {
    let mut found = false;
    for at in 0.. {
        let mut world = behind();
        let (ended, happened) = world.sync_with(&Request::default(), at, Fault::Stuck);
        if !happened {
            break;
        }
        let Some(SyncError::Step { step, .. }) = &ended.error else {
            continue;
        };
        if !step.to_string().starts_with("apply") {
            continue;
        }
        found = true;
        let attempt = Progress::read(&world.disk)
            .expect("whole")
            .of(&base())
            .attempt;
        let attempt = attempt.expect("it is remembered");
        let level = attempt.payload.map(|payload| payload.level);
        assert_eq!((level, attempt.done), (Some(2), false));
    }
    assert!(found);
}

#[test]
fn no_payload_wanted_and_none_applied_is_as_it_should_be() {
    let mut world = behind();
    world.policy.want = Want::None;
    world.pass(Duration::from_secs(700));
    world.reboot();
    assert_eq!(condition(&world), Condition::NothingToApply);
    let ended = world.sync(&unattended());
    assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    // It is what is applied that is not taken away unasked.
    let mut world = behind();
    world.policy.want = Want::None;
    let ended = world.sync(&unattended());
    assert_eq!(*blocked(&ended), Blocked::Downgrade { from: 1, to: 0 });
}

#[test]
fn a_full_history_does_not_stop_a_sync() {
    let mut world = behind();
    let line = [vec![b'x'; 1 << 20], b"\n".to_vec()].concat();
    for _ in 0..17 {
        xsplice_store::Disk::append(&world.disk, &Paths::history(), &line).expect("written");
    }
    let ended = world.sync(&Request::default());
    assert!(ended.error.is_none() && ended.level == Some(2), "{ended:?}");
    let history = History::read(&world.disk).expect("read");
    let previous = history.lines.last().and_then(|line| line.previous.as_ref());
    assert!(previous.is_some_and(|hash| *hash != xsplice_store::Sha256::zero()));
    // Only the lines that are no records are wrong; the chain goes on behind them.
    assert!(history.changed().count() == 17 && history.broken.len() == 17);
}

#[test]
fn the_policy_says_what_is_done_without_a_record() {
    let world = World::new(Core::Stock);
    let permitted = || Policy::permit_unrecorded(&world.disk, "the disk is full");
    assert!(permitted().is_ok(), "a host without a policy");
    world.write(&Paths::policy(), b"audit = \"warn\"");
    assert!(permitted().is_ok());
    world.write(&Paths::policy(), b"audit = \"enforce\"");
    let error = permitted().expect_err("it is refused").to_string();
    assert!(error.contains("the disk is full; audit = "), "{error}");
    // It may say enforce.
    world.write(&Paths::policy(), b"audit = \"warn\"\nunknown = 1");
    let error = permitted().expect_err("it is refused").to_string();
    assert!(
        error.contains("not known: /etc/xsplice/host.toml"),
        "{error}"
    );
    world.disk.break_at(&Paths::policy());
    assert!(permitted().is_err());
}

#[test]
fn a_failure_before_the_attempt_is_remembered_and_recorded() {
    let mut world = behind();
    world.xen.refused = true;
    let ended = world.sync(&Request::default());
    assert!(ended.error.is_some() && !ended.changed, "{ended:?}");
    assert_eq!(condition(&world), Condition::ApplyFailed);
    let history = History::read(&world.disk).expect("whole");
    let event = &history.lines.last().expect("there is one").event;
    assert_eq!(event.outcome, xsplice_store::Outcome::Failed, "{event:?}");
}

#[test]
fn only_the_fault_of_a_payload_is_held_against_it() {
    use xsplice_abi::errno::Errno;
    // The request did not reach the payload.
    for errno in [
        Errno::EEXIST,
        Errno::ENOENT,
        Errno::EFAULT,
        Errno::EINTR,
        Errno::EACCES,
        Errno::ENOSYS,
        Errno::ENOMEM,
        Errno::EBUSY,
    ] {
        for at in 0.. {
            let mut world = behind();
            let (ended, happened) = world.sync_with(&Request::default(), at, Fault::Fails(errno));
            if !happened {
                break;
            }
            assert!(ended.quarantined.is_empty(), "{errno} at {at}: {ended:?}");
        }
    }
    // It is refused as it is, or its signature is.
    for errno in [Errno::EINVAL, Errno::EPERM, Errno::EOPNOTSUPP] {
        let quarantined = (0..30).any(|at| {
            let mut world = behind();
            world.sync_with(&Request::default(), at, Fault::Fails(errno));
            world.quarantine() == [2]
        });
        assert!(quarantined, "{errno}");
    }
}

#[test]
fn what_was_begun_and_came_to_nothing_is_not_why_the_host_goes_down() {
    let mut checked = 0;
    for at in 0.. {
        let mut world = behind();
        let (_, happened) = world.sync_with(&Request::default(), at, Fault::KilledBefore);
        if !happened {
            break;
        }
        world.aftermath(Loss::Nothing);
        let attempted = |world: &World| {
            Progress::read(&world.disk)
                .expect("whole")
                .of(&base())
                .attempt
        };
        if attempted(&world).is_none() || world.xen.applied() != [1] {
            continue;
        }
        checked += 1;
        let ended = world.sync(&unattended());
        assert!(ended.error.is_none(), "{at}: {ended:?}");
        world.reboot();
        let ended = world.sync(&unattended());
        assert_eq!(world.xen.applied(), [1], "{at}: {ended:?}");
        assert!(world.quarantine().is_empty(), "{at}: {ended:?}");
    }
    assert!(checked > 1, "{checked}");
}

/// Puts the payload of this level where packages do.
fn package(world: &World, incoming: &Incoming, name: &str) {
    let path = Paths::vendor()
        .join(base())
        .join(format!("{name}.livepatch"));
    let place = Paths::manifest(&path);
    world.write(&path, &incoming.payload);
    world.write(&place, &incoming.manifest);
    if let Some(signature) = &incoming.signature {
        world.write(&Paths::signature(&place), signature);
    }
}

#[test]
fn what_others_have_uploaded_stays() {
    for core in [Core::Stock, Core::Ours] {
        let mut world = World::new(core);
        world.install(1, false).expect("installed");
        world.settled();
        for level in [2, 3, 4] {
            world.install(level, false).expect("installed");
        }
        // Level 3 is in the store, and not what is wanted; level 7 is not in the store.
        for level in [3, 7] {
            let (data, manifest) = payload(level, false);
            world.xen.know(&data, &manifest);
            world.xen.upload_only(&manifest);
        }
        let ended = world.sync(&Request::default());
        assert!(ended.error.is_none(), "{ended:?}");
        assert_eq!(world.xen.applied(), [4]);
        assert_eq!(world.xen.checked(), ["fixes-3", "fixes-7"]);
        assert!(world.sync(&Request::default()).steps.is_empty());
    }
}

#[test]
fn a_package_does_not_take_away_what_was_installed() {
    let mut world = behind();
    world.settled();
    let (mut other, mut manifest) = incoming(5, "fixes-2");
    manifest.level = 5;
    other.manifest = manifest.to_json().expect("JSON").into_bytes();
    package(&world, &other, "fixes-2");
    world.xen.know(&other.payload, &manifest);
    let report = world.report();
    assert_eq!((report.condition, report.level), (Condition::Current, 2));
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    world.reboot();
    let ended = world.sync(&unattended());
    assert_eq!(
        (ended.level, world.xen.applied()),
        (Some(2), vec![2]),
        "{ended:?}"
    );
    // Unless it may not be applied, and the package's may.
    let date = "2026-11-29T14:00:00Z";
    let good = signed(2, date, "vendor.key");
    world.write(&key_file("vendor.pem"), &key("trusted/vendor.pem"));
    package(&world, &good, "fixes-2");
    world.reboot();
    let ended = world.sync(&Request::default());
    assert_eq!(ended.level, Some(2), "{ended:?}");
    assert_eq!(condition(&world), Condition::Current);
}

#[test]
fn what_is_not_signed_and_used_all_the_same_is_reported() {
    let mut world = behind();
    world.policy.verify = Some(Verify::Warn);
    let ended = world.sync(&Request::default());
    assert_eq!(ended.level, Some(2), "{ended:?}");
    assert_eq!(ended.warnings.len(), 1, "{ended:?}");
    assert!(ended.warnings[0].contains("signed by nobody"), "{ended:?}");
    assert_eq!(world.report().warnings.len(), 2, "both are in the store");
    world.policy.verify = Some(Verify::Off);
    assert!(world.report().warnings.is_empty());
}

#[test]
fn a_package_must_be_signed_by_a_key_that_is_valid_today_unless_the_host_has_it() {
    // The certificate of this key is valid from 2026-11-29 on, for 100 years; the clock
    // of the host is in 2027.
    let date = "2027-01-01T00:00:00Z";
    let mut world = World::new(Core::Stock);
    world.write(&key_file("large.pem"), &key("trusted/large.pem"));
    for level in [1, 2] {
        let (data, manifest) = payload(level, false);
        world.xen.know(&data, &manifest);
    }
    package(&world, &signed(1, date, "large.key"), "fixes-1");
    world.settled();
    assert_eq!(world.xen.applied(), [1]);
    // The key expires. A thief signs with it, and gives a date at which it was valid.
    world.pass(Duration::from_secs(200 * 365 * 86_400));
    package(&world, &signed(2, date, "large.key"), "fixes-2");
    let ended = world.sync(&Request::default());
    assert!(ended.error.is_none() && ended.steps.is_empty(), "{ended:?}");
    let report = world.report();
    assert_eq!((report.condition, report.level), (Condition::Unverified, 1));
    let reason = report.reason.expect("there is one");
    assert!(reason.contains("not valid today"), "{reason}");
    // What the host has, it keeps.
    world.reboot();
    let ended = world.sync(&unattended());
    assert_eq!(ended.level, Some(1), "{ended:?}");
}

#[test]
fn a_hypervisor_that_is_not_installed_any_more_is_reported() {
    let world = World::new(Core::Stock);
    assert_eq!(condition(&world), Condition::HypervisorUnknown);
    let image = Path::new("/boot/xen-4.17-amd64.efi");
    world.write(image, b"another hypervisor");
    let report = world.report().with_boot(&world.disk);
    assert_eq!(report.condition, Condition::RebootRequired);
    assert!(
        report
            .reboot
            .is_some_and(|reason| reason.contains("xen-4.17-amd64.efi"))
    );
    // With a payload, the host is as it should be, and the reboot is due all the same.
    let world = behind();
    world.write(image, b"another hypervisor");
    let report = world.report().with_boot(&world.disk);
    assert_eq!(report.condition, Condition::Behind);
    assert!(report.reboot.is_some());
    world.write(image, &xsplice_test_host::XEN_ID);
    assert_eq!(world.report().with_boot(&world.disk).reboot, None);
}

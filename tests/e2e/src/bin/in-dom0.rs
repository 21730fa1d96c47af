// SPDX-License-Identifier: MIT OR Apache-2.0
//! Operations that tests repeat thousands of times in dom0, in one process, because
//! starting processes is slow on an emulated machine.
//!
//! `try-each FILE...` uploads files under their names, whatever they contain, and
//! unloads those that are accepted. A file given as `+FILE` is applied before that,
//! run if it patches the version call, and reverted. The error number of each step is
//! printed. `nameless FILE` uploads it under a name that is not UTF-8, and reverts
//! that name, with the C tool, because ours has no such names. `locked COMMAND...` holds
//! the lock of xsplice while a command runs, `locked-first COMMAND...` only for its first
//! two seconds. `unrecorded POLICY COMMAND...` runs a command on a host with this policy,
//! whose history cannot be written; `damaged HOW PATH COMMAND...` while a file is `empty`,
//! its first `half`, `binary`, or a `directory`; `at SECONDS COMMAND...` while the clock
//! says so many after 1970. `cycles NUMBER FIRST SECOND` applies and reverts two payloads
//! while other threads keep the CPUs and the hypervisor busy. `microcode FILE` has the CPUs load the
//! file, which it says on standard error, and prints the error number; `microcode-cycles
//! NUMBER FILE FIRST SECOND` has them load one again and again while payloads are applied
//! and reverted; `microcode-and-unload FILE PAYLOAD` unloads a payload one second after the
//! load has begun.
#![forbid(unsafe_code)]

use anyhow::{Context as _, bail, ensure};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, Timespec, clock_gettime, clock_settime};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use xsplice_dom0::{Action, Errno, Livepatch, Privcmd, State, load_microcode, version_info};
use xsplice_e2e::{Cycles, Loads};

/// In one of so many cycles, the second payload replaces the first.
const REPLACES: u64 = 4;
/// Rendezvous timeout of an action: the C tool's 30 ms.
const TIMEOUT: Duration = Duration::from_millis(30);
/// Tries for an action whose rendezvous times out.
const TRIES: u32 = 200;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let hypervisor = Privcmd::open()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["try-each", files @ ..] => try_each(&hypervisor, files),
        ["nameless", file] => nameless(file),
        ["cycles", number, first, second] => {
            let done = cycles(&hypervisor, number.parse()?, first, second)?;
            println!("{}", serde_json::to_string(&done)?);
            Ok(())
        }
        ["locked", command, arguments @ ..] => locked(command, arguments, None),
        ["locked-first", command, arguments @ ..] => {
            locked(command, arguments, Some(Duration::from_secs(2)))
        }
        ["unrecorded", policy, command @ ..] => unrecorded(policy, command),
        ["damaged", how, path, command @ ..] => exit(damaged(how, path, command)?),
        ["at", seconds, command @ ..] => exit(at(seconds.parse()?, command)?),
        ["microcode", file] => microcode(&hypervisor, file),
        ["microcode-cycles", number, file, first, second] => {
            let done = microcode_cycles(&hypervisor, number.parse()?, file, first, second)?;
            println!("{}", serde_json::to_string(&done)?);
            Ok(())
        }
        ["microcode-and-unload", file, payload] => microcode_and_unload(&hypervisor, file, payload),
        _ => bail!("the first lines of in-dom0.rs say what it does"),
    }
}

/// Runs a command; the lock is held while it runs, or for a time.
fn locked(command: &str, arguments: &[&str], time: Option<Duration>) -> anyhow::Result<()> {
    std::fs::create_dir_all("/run/xsplice")?;
    let lock = File::create("/run/xsplice/lock")?;
    lock.lock()?;
    let mut child = Command::new(command).args(arguments).spawn()?;
    if let Some(time) = time {
        std::thread::sleep(time);
        lock.unlock()?;
    }
    let status = child.wait()?;
    std::process::exit(status.code().unwrap_or(1))
}

fn unrecorded(policy: &str, command: &[&str]) -> anyhow::Result<()> {
    let file = "/etc/xsplice/host.toml";
    std::fs::write(file, policy)?;
    // No line can be added to a directory.
    let status = damaged("directory", "/var/lib/xsplice/history.jsonl", command)?;
    std::fs::remove_file(file)?;
    exit(status)
}

/// Runs a command while the file at `path` is damaged. Afterwards it is as before.
fn damaged(how: &str, path: &str, command: &[&str]) -> anyhow::Result<ExitStatus> {
    let data = std::fs::read(path).with_context(|| path.to_owned())?;
    std::fs::remove_file(path)?;
    match how {
        "empty" => std::fs::write(path, [])?,
        "half" => std::fs::write(path, &data[..data.len() / 2])?,
        "binary" => std::fs::write(path, [0, 0xff, 0x1b, b'{', 0xc3])?,
        "directory" => std::fs::create_dir(path)?,
        _ => bail!("{how}"),
    }
    let status = status(command)?;
    if how == "directory" {
        std::fs::remove_dir(path)?;
    }
    std::fs::write(path, data)?;
    Ok(status)
}

/// Runs a command at another time.
fn at(seconds: i64, command: &[&str]) -> anyhow::Result<ExitStatus> {
    let (now, start) = (clock_gettime(ClockId::Realtime), Instant::now());
    let set = |tv_sec| {
        let time = Timespec { tv_sec, tv_nsec: 0 };
        clock_settime(ClockId::Realtime, time)
    };
    set(seconds)?;
    let status = status(command)?;
    set(now.tv_sec + i64::try_from(start.elapsed().as_secs())?)?;
    Ok(status)
}

fn status(command: &[&str]) -> anyhow::Result<ExitStatus> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    Ok(Command::new(program).args(arguments).status()?)
}

/// Ends as the command has ended.
fn exit(status: ExitStatus) -> anyhow::Result<()> {
    let code = status.code();
    std::process::exit(code.with_context(|| format!("{status}"))?)
}

fn errno(error: Errno) -> anyhow::Error {
    anyhow::anyhow!("{error}")
}

fn try_each(hypervisor: &Privcmd, files: &[&str]) -> anyhow::Result<()> {
    for file in files {
        let (file, apply) = match file.strip_prefix('+') {
            Some(file) => (file, true),
            None => (*file, false),
        };
        let data = std::fs::read(file).with_context(|| file.to_owned())?;
        let name = Path::new(file).file_name().unwrap_or_default();
        let name = name.to_string_lossy();
        let mut line = name.clone().into_owned();
        for result in steps(hypervisor, &name, &data, apply)? {
            line.push_str(&format!(" {}", result.map_or_else(|Errno(e)| e, |()| 0)));
        }
        line.push('\n');
        // If the next one crashes the hypervisor, the console still has this.
        std::fs::write("/dev/console", &line)?;
        print!("{line}");
    }
    Ok(())
}

/// The results of its upload, and of its apply and revert, if any. It is unloaded at
/// the end.
fn steps(
    hypervisor: &Privcmd,
    name: &str,
    data: &[u8],
    apply: bool,
) -> anyhow::Result<Vec<Result<(), Errno>>> {
    let livepatch = Livepatch::negotiate(hypervisor).map_err(errno)?;
    let late = AtomicU64::new(0);
    let mut results = vec![livepatch.upload(name, data, false)];
    if results == [Ok(())] {
        if apply {
            results.push(settle(&livepatch, name, Action::Apply, &late)?);
        }
        if results == [Ok(()), Ok(())] {
            version_info(hypervisor).map_err(errno)?;
            results.push(settle(&livepatch, name, Action::Revert, &late)?);
        }
        act(&livepatch, name, Action::Unload, &late)?;
    }
    Ok(results)
}

fn nameless(file: &str) -> anyhow::Result<()> {
    let name = OsStr::from_bytes(b"\xff");
    for (action, file) in [("upload", Some(file)), ("revert", None)] {
        let mut tool = Command::new("/c/xen-livepatch");
        let output = tool.arg(action).arg(name).args(file).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("{action} {}", said.lines().last().unwrap_or_default());
    }
    Ok(())
}

/// Runs the action, with retries after timeouts, which are counted in `late`.
fn act(
    livepatch: &Livepatch<Privcmd>,
    name: &str,
    action: Action,
    late: &AtomicU64,
) -> anyhow::Result<()> {
    let done = settle(livepatch, name, action, late)?;
    done.map_err(|error| anyhow::anyhow!("{action:?} {name}: {error}"))
}

/// Like [`act`], but a refusal is a result, and so is a timeout of every try.
fn settle(
    livepatch: &Livepatch<Privcmd>,
    name: &str,
    action: Action,
    late: &AtomicU64,
) -> anyhow::Result<Result<(), Errno>> {
    let timeout = u32::try_from(TIMEOUT.as_nanos())?;
    let mut done = Ok(());
    for _ in 0..TRIES {
        done = livepatch.act(name, action, timeout, false);
        if !matches!(done, Err(Errno::EBUSY | Errno::EAGAIN)) {
            break;
        }
        late.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(TIMEOUT);
    }
    Ok(done)
}

/// What the other threads do meanwhile, and their results.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    late: AtomicU64,
    calls: Mutex<Vec<u64>>,
    longest: Mutex<Duration>,
}

fn cycles(hypervisor: &Privcmd, number: u64, first: &str, second: &str) -> anyhow::Result<Cycles> {
    let (first, second) = (std::fs::read(first)?, std::fs::read(second)?);
    let load = Load::default();
    let start = Instant::now();
    let done = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !load.stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
            scope.spawn(|| ask_on_and_on(hypervisor, &load));
        }
        let done = (0..number).try_for_each(|cycle| {
            let done = once(hypervisor, cycle, &first, &second, &load.late);
            done.with_context(|| format!("cycle {cycle}"))
        });
        load.stop.store(true, Ordering::Relaxed);
        done
    });
    done?;
    let calls = load.calls.into_inner().unwrap_or_default();
    ensure!(calls.len() == 2, "a thread ended early");
    Ok(Cycles {
        cycles: number,
        late: load.late.into_inner(),
        seconds: start.elapsed().as_secs_f64(),
        calls,
        longest_call: load.longest.into_inner().unwrap_or_default().as_secs_f64(),
    })
}

fn microcode(hypervisor: &Privcmd, file: &str) -> anyhow::Result<()> {
    let data = std::fs::read(file).with_context(|| file.to_owned())?;
    eprintln!("loading {file}");
    let errno = load_microcode(hypervisor, &data).map_or_else(|Errno(e)| e, |()| 0);
    println!("{errno}");
    Ok(())
}

/// Loads microcode `number` times, and goes through cycles of two payloads meanwhile, at
/// least until one has replaced the other.
fn microcode_cycles(
    hypervisor: &Privcmd,
    number: u64,
    file: &str,
    first: &str,
    second: &str,
) -> anyhow::Result<Loads> {
    let data = std::fs::read(file)?;
    let (first, second) = (std::fs::read(first)?, std::fs::read(second)?);
    let (late, over) = (AtomicU64::new(0), AtomicBool::new(false));
    let mut done = Loads::default();
    let loaded = std::thread::scope(|scope| {
        let loads = scope.spawn(|| {
            let loaded = load_again_and_again(hypervisor, number, &data);
            over.store(true, Ordering::Relaxed);
            loaded
        });
        while !over.load(Ordering::Relaxed) || done.cycles < REPLACES {
            let cycle = once(hypervisor, done.cycles, &first, &second, &late);
            cycle.with_context(|| format!("cycle {}", done.cycles))?;
            done.cycles += 1;
        }
        let loaded = loads.join();
        loaded.unwrap_or_else(|_| bail!("the thread that loads microcode has ended"))
    });
    done.busy = loaded?;
    done.loads = number;
    done.late = late.into_inner();
    Ok(done)
}

fn microcode_and_unload(hypervisor: &Privcmd, file: &str, payload: &str) -> anyhow::Result<()> {
    let name = Path::new(payload).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let livepatch = Livepatch::negotiate(hypervisor).map_err(errno)?;
    let payload = std::fs::read(payload)?;
    livepatch.upload(&name, &payload, false).map_err(errno)?;
    // In another process and on another CPU: the CPU of the load is held, and must not be
    // needed by the unload.
    run_on(1)?;
    let itself = std::env::current_exe()?;
    let mut load = Command::new(itself);
    load.args(["microcode", file]).stderr(Stdio::piped());
    let mut load = load.spawn()?;
    run_on(2)?;
    let begun = load.stderr.as_mut().context("it has no standard error")?;
    begun.read_exact(&mut [0])?;
    std::thread::sleep(Duration::from_secs(1));
    act(&livepatch, &name, Action::Unload, &AtomicU64::new(0))?;
    let loaded = load.wait()?;
    ensure!(loaded.success(), "{loaded}");
    Ok(())
}

/// Has this process run on this CPU of dom0 only.
fn run_on(cpu: usize) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only)?;
    Ok(())
}

/// Returns how often it was tried again, because a live-patch action was in progress or
/// CPUs did not come.
fn load_again_and_again(hypervisor: &Privcmd, number: u64, data: &[u8]) -> anyhow::Result<u64> {
    let mut busy = 0;
    for load in 0..number {
        let mut loaded = Err(Errno::EBUSY);
        for _ in 0..TRIES {
            loaded = load_microcode(hypervisor, data);
            if loaded != Err(Errno::EBUSY) {
                break;
            }
            busy += 1;
            std::thread::sleep(TIMEOUT);
        }
        loaded.map_err(|error| anyhow::anyhow!("load {load}: {error}"))?;
    }
    Ok(busy)
}

fn ask_on_and_on(hypervisor: &Privcmd, load: &Load) {
    let Ok(livepatch) = Livepatch::negotiate(hypervisor) else {
        return;
    };
    let (mut calls, mut longest) = (0, Duration::ZERO);
    while !load.stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let asked = version_info(hypervisor).map(drop);
        let listed = match livepatch.list() {
            // The list changes all the time.
            Err(Errno::EAGAIN) => Ok(()),
            listed => listed.map(drop),
        };
        if asked.and(listed).is_err() {
            return;
        }
        longest = longest.max(start.elapsed());
        calls += 1;
    }
    if let (Ok(mut all), Ok(mut most)) = (load.calls.lock(), load.longest.lock()) {
        all.push(calls);
        *most = longest.max(*most);
    }
}

/// Applies a payload, replaces it by another one in every fourth round, and reverts.
fn once(
    hypervisor: &Privcmd,
    cycle: u64,
    first: &[u8],
    second: &[u8],
    late: &AtomicU64,
) -> anyhow::Result<()> {
    let livepatch = Livepatch::negotiate(hypervisor).map_err(errno)?;
    let says = || version_info(hypervisor).map_err(errno);
    let original = says()?;
    livepatch.upload("first", first, false).map_err(errno)?;
    act(&livepatch, "first", Action::Apply, late)?;
    let patched = says()?;
    ensure!(patched.extra == "-live-patched", "applied: {patched:?}");
    if cycle % REPLACES == REPLACES - 1 {
        livepatch.upload("second", second, false).map_err(errno)?;
        act(&livepatch, "second", Action::Replace, late)?;
        let replaced = says()?;
        let right = replaced.extra == original.extra && replaced.changeset != original.changeset;
        ensure!(right, "replaced: {replaced:?}");
        let states: Vec<State> = livepatch
            .list()
            .map_err(errno)?
            .iter()
            .map(|p| p.status.state)
            .collect();
        ensure!(states == [State::Checked, State::Applied], "{states:?}");
        act(&livepatch, "second", Action::Revert, late)?;
        act(&livepatch, "second", Action::Unload, late)?;
    } else {
        act(&livepatch, "first", Action::Revert, late)?;
    }
    act(&livepatch, "first", Action::Unload, late)?;
    let after = says()?;
    ensure!(after == original, "{after:?}, at first {original:?}");
    let left = livepatch.list().map_err(errno)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

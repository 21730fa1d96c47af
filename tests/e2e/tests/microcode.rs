// SPDX-License-Identifier: MIT OR Apache-2.0
//! Microcode loading on the rendezvous, on a debug build of Xen with our core and its
//! option `CONFIG_MICROCODE_RUST`.
//!
//! QEMU's processor accepts microcode of the revision that it has, and ignores it; one of
//! another revision it does not accept. So a load is seen by Xen's own messages about
//! each core, and by its result.

use anyhow::{Context as _, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _};
use std::path::PathBuf;
use std::time::Duration;
use xsplice_e2e::{
    Base, Loads, base, build, config, debug_base, example, exhaustive, memory, settled,
    unsigned_config,
};
use xsplice_lab::microcode::{self, PROCESSOR, REVISION, SIGNATURE};
use xsplice_lab::{Debugger, Error, Host, HostConfig, Output};

/// CPUs, and of which two each are threads of one core.
const CPUS: u32 = 4;
const THREADS: u32 = 2;

const OK: &str = "0";
const EIO: &str = "5";
const EBUSY: &str = "16";
const EEXIST: &str = "17";
const EINVAL: &str = "22";
const ENOENT: &str = "2";

/// The files that are loaded, with their names.
fn blobs() -> Vec<(&'static str, Vec<u8>)> {
    let good = microcode::intel(SIGNATURE, REVISION);
    let mut damaged = good.clone();
    damaged[100] ^= 1;
    vec![
        ("same", good.clone()),
        // The processor still says that it has the old one.
        ("newer", microcode::intel(SIGNATURE, REVISION + 1)),
        ("older", microcode::intel(SIGNATURE, 0)),
        ("foreign", microcode::intel(SIGNATURE + 1, REVISION)),
        ("damaged", damaged),
        ("short", good[..40].to_vec()),
        ("cut", good[..1024].to_vec()),
        ("two", [microcode::intel(SIGNATURE + 1, 9), good].concat()),
        ("empty", Vec::new()),
    ]
}

fn machine(mut config: HostConfig) -> anyhow::Result<(HostConfig, tempfile::TempDir)> {
    let directory = tempfile::tempdir()?;
    config.cpus = Some(CPUS);
    config.threads = THREADS;
    config.processor = Some(PROCESSOR.to_owned());
    let driver = PathBuf::from(env!("CARGO_BIN_EXE_in-dom0"));
    config.programs.push(("bin/in-dom0".to_owned(), driver));
    for (name, data) in blobs() {
        let file = directory.path().join(name);
        std::fs::write(&file, data)?;
        config.files.push((format!("lab/{name}"), file));
    }
    Ok((config, directory))
}

/// A host with our option, which takes the revision that it has.
fn ours() -> anyhow::Result<(HostConfig, tempfile::TempDir)> {
    let (mut config, directory) = machine(unsigned_config(&debug_base()?)?)?;
    config.xen_arguments.push_str(" ucode=allow-same");
    Ok((config, directory))
}

/// Loads a file in dom0; returns the error number.
fn load(host: &mut Host, name: &str) -> anyhow::Result<String> {
    let output = host.run(&["in-dom0", "microcode", &format!("/lab/{name}")])?;
    ensure!(output.code == Some(0), "{output:?}\n{}", host.console());
    Ok(output.stdout.trim().to_owned())
}

/// Loads a file until CPUs come in time, as they do not always on a busy machine.
fn load_in_time(host: &mut Host, name: &str) -> anyhow::Result<String> {
    for _ in 0..10 {
        let number = load(host, name)?;
        if number != EBUSY {
            return Ok(number);
        }
    }
    anyhow::bail!("CPUs never come in time\n{}", host.console())
}

/// Loads the file that is loaded without an error.
fn load_good(host: &mut Host) -> anyhow::Result<()> {
    let number = load_in_time(host, "same")?;
    ensure!(number == OK, "{number}\n{}", host.console());
    Ok(())
}

/// Counts the console's lines.
fn lines(console: &str, text: &str) -> u64 {
    u64::try_from(console.matches(text).count()).unwrap_or(u64::MAX)
}

/// What Xen prints for each core, and our core for each load.
const UPDATED: &str = "updated from revision 0x1 to 0x1";
const STOPPED: &str = "microcode: waited ";

#[test]
fn microcode_is_loaded_while_payloads_are_applied_and_reverted() -> anyhow::Result<()> {
    let base = debug_base()?;
    let (mut config, directory) = ours()?;
    config.timeout = Duration::from_secs(600);
    let tool = base.c_tool.with_file_name("xen-ucode");
    config.programs.push(("c/xen-ucode".to_owned(), tool));
    for name in ["extra-version", "two-files"] {
        let payload = directory.path().join(name);
        build(&base, &example(&base, name)?, &payload)?;
        config.files.push((format!("lab/{name}"), payload));
    }
    let mut host = Host::boot(&config)?;
    // Xen's own tool; and the first cycles make allocations that are kept.
    let told = host.run(&["/c/xen-ucode", "/lab/same"])?;
    ensure!(told.code == Some(0), "{told:?}\n{}", host.console());
    cycles(&mut host, 2)?;
    let before = (memory(&mut host)?, host.console());
    let done = cycles(&mut host, if exhaustive() { 200 } else { 20 })?;
    let after = (memory(&mut host)?, host.console());
    ensure!(after.0 == before.0, "{:?}, before {:?}", after.0, before.0);
    host.shut_down()?;

    let console = after.1.strip_prefix(before.1.as_str()).unwrap_or_default();
    let cores = u64::from(CPUS / THREADS);
    for (text, times) in [(STOPPED, 1), (UPDATED, cores)] {
        let found = lines(console, text);
        ensure!(found == done.loads * times, "{found} {text}\n{console}");
    }
    println!("{done:?}");
    Ok(())
}

fn cycles(host: &mut Host, loads: u64) -> anyhow::Result<Loads> {
    let loads = loads.to_string();
    let payloads = ["/lab/extra-version", "/lab/two-files"];
    let output = host.run(&[
        "in-dom0",
        "microcode-cycles",
        &loads,
        "/lab/same",
        payloads[0],
        payloads[1],
    ])?;
    ensure!(output.code == Some(0), "{output:?}\n{}", host.console());
    serde_json::from_str(&output.stdout).context(output.stdout)
}

/// The hypercall's errors are those of Xen, with and without `ucode=allow-same`, with one
/// exception: when the leader fails, the CPUs that it does not ask to load have `EBUSY`,
/// and stock Xen returns the error of the CPU that ends last.
#[test]
fn errors_are_those_of_xen() -> anyhow::Result<()> {
    let all = [
        EEXIST, EIO, EEXIST, ENOENT, EINVAL, EINVAL, EINVAL, EEXIST, ENOENT,
    ];
    let stock = (machine(config(&base()?)?)?, false);
    let ours = (machine(unsigned_config(&debug_base()?)?)?, true);
    for ((config, _directory), leaders) in [stock, ours] {
        for (argument, [same, two]) in [("", [EEXIST; 2]), (" ucode=allow-same", [OK; 2])] {
            let mut config = config.clone();
            config.xen_arguments.push_str(argument);
            let mut expected = all;
            (expected[0], expected[7]) = (same, two);
            let mut host = Host::boot(&config)?;
            for ((name, _), expected) in blobs().iter().zip(expected) {
                let found = if leaders {
                    load_in_time(&mut host, name)?
                } else {
                    load(&mut host, name)?
                };
                let others = !leaders && [EEXIST, EIO].contains(&expected) && found == EBUSY;
                ensure!(
                    found == expected || others,
                    "{name}: {found}, not {expected}\n{}",
                    host.console()
                );
            }
            host.shut_down()?;
        }
    }
    Ok(())
}

/// The address of a function of the hypervisor.
fn address(base: &Base, name: &str) -> anyhow::Result<u64> {
    let data = std::fs::read(&base.xen_syms)?;
    let file = object::File::parse(data.as_slice())?;
    let symbol = file.symbol_by_name(name).context(name.to_owned())?;
    Ok(symbol.address())
}

/// The address of the instruction behind the call of `callee` in `caller`.
fn behind_call(base: &Base, caller: &str, callee: &str) -> anyhow::Result<u64> {
    let data = std::fs::read(&base.xen_syms)?;
    let file = object::File::parse(data.as_slice())?;
    let symbol = file.symbol_by_name(caller).context(caller.to_owned())?;
    let section = symbol.section_index().context("the caller is nowhere")?;
    let section = file.section_by_index(section)?;
    let code = section.data_range(symbol.address(), symbol.size())?;
    let target = address(base, callee)?;
    let calls = code.context("the caller is empty")?.windows(5).zip(5_u64..);
    let mut behind = calls.filter_map(|(call, end)| {
        let &[0xe8, ref distance @ ..] = call else {
            return None;
        };
        let distance = i32::from_le_bytes(distance.try_into().ok()?);
        let behind = symbol.address() + end;
        (behind.wrapping_add_signed(distance.into()) == target).then_some(behind)
    });
    behind.next().context("no such call")
}

/// Has a CPU held at `place` while a command runs in dom0, until the console says `text`;
/// returns the result and which CPU it was.
fn run_with_one_held(
    host: &mut Host,
    command: &[&str],
    mut debugger: Debugger,
    place: u64,
    text: &str,
) -> anyhow::Result<(Result<Output, Error>, u32)> {
    let (monitor, text) = (host.monitor()?, text.to_owned());
    let holding = std::thread::spawn(move || {
        let held = debugger.hold_at(place)?;
        monitor.wait_for_more(monitor.printed(), &text)?;
        // Dropping the debugger lets all CPUs run.
        std::io::Result::Ok(held)
    });
    let output = host.run(command);
    let held = holding.join().ok().context("the thread has panicked")??;
    Ok((output, held))
}

/// While the CPU that leads the load waits until another one leaves the vCPU whose
/// hypercall it is, a payload is unloaded: that other CPU must be able to leave it.
#[test]
fn an_unload_does_not_wait_for_the_load() -> anyhow::Result<()> {
    let base = debug_base()?;
    let (mut config, directory) = ours()?;
    config.debugger = true;
    config.timeout = Duration::from_secs(120);
    config.xen_arguments.push_str(" dom0_vcpus_pin");
    let payload = directory.path().join("extra-version");
    build(&base, &example(&base, "extra-version")?, &payload)?;
    config.files.push(("lab/extra-version".to_owned(), payload));
    let mut host = Host::boot(&config)?;
    let place = behind_call(&base, "do_platform_op", "microcode_update")?;
    let command = [
        "in-dom0",
        "microcode-and-unload",
        "/lab/same",
        "/lab/extra-version",
    ];
    let debugger = host.debugger()?;
    let text = "extra-version: unloaded";
    let (output, _) = run_with_one_held(&mut host, &command, debugger, place, text)?;
    let output = output?;
    ensure!(output.code == Some(0), "{output:?}\n{}", host.console());
    Ok(())
}

/// A CPU that does not come, or that does not enter the handler of its NMI, is named, and
/// nothing is loaded. When it comes, all goes on. If a core does not finish, Xen ends, as
/// it does by itself.
#[test]
fn cpus_that_do_not_come() -> anyhow::Result<()> {
    const LOAD: &[&str] = &["in-dom0", "microcode", "/lab/same"];
    let base = debug_base()?;
    let (mut config, _directory) = ours()?;
    config.debugger = true;
    let mut host = Host::boot(&config)?;
    drop(host.debugger()?);
    load_good(&mut host)?;
    for (place, text) in [
        ("xsplice_check", "not all CPUs are waiting; missing: CPU "),
        (
            "xsplice_microcode_in_nmi",
            "not all CPUs have interrupts off; missing: CPU ",
        ),
    ] {
        let before = host.console().len();
        let debugger = host.debugger()?;
        let place = address(&base, place)?;
        let (result, held) = run_with_one_held(&mut host, LOAD, debugger, place, text)?;
        let (result, console) = (result?.stdout, host.console().split_off(before));
        ensure!(result.trim() == EBUSY, "{result}");
        let line = format!("microcode was not loaded (EBUSY): {text}{held}; try again");
        ensure!(console.contains(&line), "{line}: not in\n{console}");
        ensure!(!console.contains(UPDATED), "{console}");
        load_good(&mut host)?;
        let info = settled(&mut host, &["xsplice", "info"])?;
        ensure!(info.code == Some(0), "{info:?}");
    }

    let place = address(&base, "xsplice_microcode_work")?;
    let text = "1 CPUs have begun to load it and do not finish";
    let debugger = host.debugger()?;
    match run_with_one_held(&mut host, LOAD, debugger, place, text)? {
        (Err(Error::Crashed(_) | Error::Off { .. }), _) => {}
        (other, _) => anyhow::bail!("{other:?}\n{}", host.console()),
    }
    let console = host.console();
    ensure!(console.contains("Panic on CPU 0:"), "{console}");
    Ok(())
}

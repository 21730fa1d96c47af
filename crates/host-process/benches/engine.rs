// SPDX-License-Identifier: MIT OR Apache-2.0

//! Benchmarks of the engine, and how its times grow: `cargo xtask bench engine`.
//! Prints tables in Markdown.
#![allow(missing_docs, reason = "a program")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use xsplice_engine::{Action, Engine, Host, Options, Policy, Times};
use xsplice_host_process::{Cpus, Machine, call, image, payloads};
use xsplice_test_host::{Hypervisor, Payload, TEXT, XEN_ID, func};

/// Number of runs; the median is reported.
const TIMES: usize = 7;
/// Long timeouts, because this machine may be busy.
const PATIENT: Options = Options {
    nodeps: false,
    timeout: 4_000_000_000,
};
/// The load of a payload with 10,000 symbols.
const LOAD_TARGET: Duration = Duration::from_millis(10);
/// The window of an apply of 1,000 functions.
const WINDOW_TARGET: Duration = Duration::from_micros(100);

fn main() {
    // `cargo test --benches` only checks that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    functions();
    symbols();
    stacks();
    cpus();
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Runs `step` and returns its time in nanoseconds.
fn timed<T>(step: impl FnOnce() -> T) -> (T, u64) {
    let start = Instant::now();
    let result = step();
    (result, nanoseconds(start.elapsed()))
}

/// The median of each column.
fn medians<const N: usize>(mut measure: impl FnMut() -> [u64; N]) -> [u64; N] {
    let rows: Vec<_> = (0..TIMES).map(|_| measure()).collect();
    std::array::from_fn(|column| {
        let mut values: Vec<u64> = rows.iter().map(|row| row[column]).collect();
        values.sort_unstable();
        values[TIMES / 2]
    })
}

/// A table of times in microseconds, by a count.
struct Table {
    rows: Vec<(u64, Vec<u64>)>,
}

impl Table {
    fn new(title: &str, columns: &[&str]) -> Self {
        println!("\n### {title}\n");
        println!("| {} |", columns.join(" | "));
        println!("|{}", "---:|".repeat(columns.len()));
        Self { rows: Vec::new() }
    }

    fn row(&mut self, count: u64, times: &[u64]) {
        let cells = times.iter().map(|time| {
            let tenths = (time + 50) / 100;
            format!(" {}.{} |", tenths / 10, tenths % 10)
        });
        println!("| {count} |{}", cells.collect::<String>());
        self.rows.push((count, times.to_vec()));
    }

    /// Prints how the times grew between the last two rows, whose counts differ by a
    /// factor of two.
    fn growth(&self) {
        let [.., (half, before), (whole, after)] = self.rows.as_slice() else {
            return;
        };
        assert_eq!(half * 2, *whole);
        let float = |value: u64| f64::from(u32::try_from(value.max(1)).unwrap_or(u32::MAX));
        let cells = before.iter().zip(after);
        let cells =
            cells.map(|(before, after)| format!(" {:.1} |", float(*after) / float(*before)));
        println!("| growth |{}", cells.collect::<String>());
        println!(
            "\nGrowth is from {half} to {whole}; with n log n it would be {:.1}.",
            2.0 * float(*whole).ln() / float(*half).ln()
        );
    }
}

fn target(what: &str, time: u64, limit: Duration) {
    let limit = nanoseconds(limit);
    let verdict = if time < limit { "reached" } else { "MISSED" };
    println!(
        "\nTarget, {what} in less than {} µs: {verdict} ({}.{} µs).",
        limit / 1000,
        time / 1000,
        time / 100 % 10
    );
}

fn engine(functions: u64) -> Engine<Hypervisor> {
    Engine::new(Hypervisor::large(functions), Policy::Stock)
}

fn upload(engine: &mut Engine<impl Host>, name: &str, file: &[u8]) {
    if let Err(refusal) = engine.upload(name, file) {
        panic!("{refusal}");
    }
}

/// Runs an action; returns the time before the window and the engine's own times.
fn act(engine: &mut Engine<impl Host>, name: &str, action: Action) -> (u64, Times) {
    let (started, before) = timed(|| engine.start(name, action, PATIENT));
    if let Err(failure) = started.and_then(|_| engine.run()) {
        panic!("{failure}");
    }
    let payload = engine.stack().find(name);
    (
        before,
        payload.map(|payload| payload.times()).unwrap_or_default(),
    )
}

fn id(number: u64) -> [u8; 20] {
    let mut id = [0xff; 20];
    id[..8].copy_from_slice(&number.to_le_bytes());
    id
}

/// A payload that patches `count` functions of the hypervisor from `first` on.
fn patching(depends: &[u8], own: u64, first: u64, count: u64) -> Payload {
    let function = |index| func("").with(|f| f.old_addr.set(TEXT + 32 * index));
    let functions: Vec<_> = (first..first + count).map(function).collect();
    Payload::on(depends, &id(own), &functions)
}

/// Load, apply and revert of payloads with increasing numbers of functions.
fn functions() {
    let columns = [
        "functions",
        "load",
        "apply, before",
        "window",
        "revert, before",
        "window",
        "unload",
    ];
    let mut table = Table::new("Functions of a payload (µs)", &columns);
    let mut window = 0;
    for count in [1, 10, 100, 1_000, 5_000, 10_000] {
        let file = patching(&XEN_ID, 0, 0, count).bytes();
        let times = medians(|| {
            let mut engine = engine(count);
            let (_, load) = timed(|| upload(&mut engine, "payload", &file));
            let (apply, applied) = act(&mut engine, "payload", Action::Apply);
            let (revert, reverted) = act(&mut engine, "payload", Action::Revert);
            let (_, unload) = timed(|| act(&mut engine, "payload", Action::Unload));
            [load, apply, applied.window, revert, reverted.window, unload]
        });
        table.row(count, &times);
        if count == 1_000 {
            window = times[2];
        }
    }
    table.growth();
    target("the window for 1,000 functions", window, WINDOW_TARGET);
}

/// Loads of payloads with increasing numbers of symbols: half of them refer to the
/// hypervisor, half are new.
fn symbols() {
    let columns = ["symbols", "load", "load on top"];
    let mut table = Table::new("Symbols of a payload (µs)", &columns);
    let mut longest = 0;
    for count in [1, 10, 100, 1_000, 5_000, 10_000] {
        let make = |own, depends: &[u8], new: &str| {
            let mut payload = patching(depends, own, 0, 1);
            let (text, size) = (payload.text, 4 * usize::try_from(count).unwrap());
            let code = vec![0x90; size];
            let start = payload.object.append_section_data(text, &code, 4);
            for index in 0..count {
                let at = start + 4 * index;
                if index % 2 == 0 {
                    let symbol = payload.symbol(&format!("f{index}"), None);
                    payload.relocation(text, at, 2, symbol, -4);
                } else {
                    payload.symbol(&format!("{new}{index}"), Some((text, at)));
                }
            }
            payload.bytes()
        };
        let (first, second) = (make(0, &XEN_ID, "a"), make(1, &id(0), "b"));
        let times = medians(|| {
            let mut engine = engine(count);
            let (_, load) = timed(|| upload(&mut engine, "first", &first));
            act(&mut engine, "first", Action::Apply);
            let (_, on_top) = timed(|| upload(&mut engine, "second", &second));
            [load, on_top]
        });
        table.row(count, &times);
        longest = times[0].max(times[1]);
    }
    table.growth();
    target("the load of 10,000 symbols", longest, LOAD_TARGET);
}

/// One more payload on stacks of increasing height, and a replace of all.
fn stacks() {
    let columns = [
        "payloads below",
        "load",
        "apply, before",
        "window",
        "revert, before",
        "window",
        "replace, before",
        "window",
    ];
    let mut table = Table::new("Payloads below (µs)", &columns);
    for count in [1, 10, 100, 500, 1_000] {
        let depends = |number: u64| match number {
            0 => XEN_ID,
            number => id(number - 1),
        };
        let files: Vec<_> = (0..=count)
            .map(|number| patching(&depends(number), number, number, 1).bytes())
            .collect();
        let all = patching(&XEN_ID, count + 1, 0, 1).bytes();
        let times = medians(|| {
            let mut engine = engine(count + 1);
            for (number, file) in files.iter().take(files.len() - 1).enumerate() {
                let name = format!("p{number}");
                upload(&mut engine, &name, file);
                act(&mut engine, &name, Action::Apply);
            }
            let (_, load) = timed(|| upload(&mut engine, "top", &files[files.len() - 1]));
            let (apply, applied) = act(&mut engine, "top", Action::Apply);
            let (revert, reverted) = act(&mut engine, "top", Action::Revert);
            upload(&mut engine, "all", &all);
            let (replace, replaced) = act(&mut engine, "all", Action::Replace);
            [
                load,
                apply,
                applied.window,
                revert,
                reverted.window,
                replace,
                replaced.window,
            ]
        });
        table.row(count, &times);
    }
    table.growth();
}

/// Threads that run guests must rendezvous; the pages of real code change protection
/// in the window.
fn cpus() {
    let columns = ["CPUs", "waiting", "window"];
    let mut table = Table::new("CPUs that run guests in this process (µs)", &columns);
    for cpus in [1, 2, 4, 8, 16] {
        let machine = Machine::new(image(), cpus).unwrap_or_else(|error| panic!("{error}"));
        let mut engine = Engine::new(machine.clone(), Policy::Stock);
        upload(&mut engine, "grant", payloads::GRANT);
        let running = Arc::new(AtomicU32::new(1));
        let guests = Cpus::run(&machine, cpus, |_| {
            let running = Arc::clone(&running);
            let mut began = false;
            move |hypercall: &dyn Fn(u64, u64, u64) -> i64| {
                hypercall(call::GRANT, 0, 4096);
                running.fetch_add(u32::from(!began), Ordering::Relaxed);
                began = true;
            }
        });
        while running.load(Ordering::Relaxed) < cpus {
            std::thread::yield_now();
        }
        let times = medians(|| {
            let (_, applied) = act(&mut engine, "grant", Action::Apply);
            let (_, reverted) = act(&mut engine, "grant", Action::Revert);
            upload_again(&mut engine);
            [
                applied.waiting.midpoint(reverted.waiting),
                applied.window.midpoint(reverted.window),
            ]
        });
        table.row(cpus.into(), &times);
        drop(guests);
    }
}

/// A payload with writable data can be applied only once per upload.
fn upload_again(engine: &mut Engine<Machine>) {
    act(engine, "grant", Action::Unload);
    upload(engine, "grant", payloads::GRANT);
}

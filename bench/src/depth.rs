// SPDX-License-Identifier: MIT OR Apache-2.0

//! Stack depth and code size of the engine, read from the machine code of its
//! benchmark.
//!
//! This counts everything that an entry point reaches by direct calls, but not what a
//! hypervisor provides itself: the host's functions, the allocator and memory copies;
//! nor panics, which do not return.

use anyhow::{Context, ensure};
use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind, Register};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SymbolKind};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use xsplice_testbed::command;

/// Limit for the engine's use of a hypervisor's stack, in bytes.
const LIMIT: u64 = 2048;
/// The engine's entry points on the benchmark's host.
const ENTRIES: [(&str, &str); 3] = [
    ("load", "::upload"),
    ("prepare an action", "::start"),
    ("do it", "::run"),
];
const ENGINE: &str = "<xsplice_engine::action::Engine<xsplice_test_host::host::Hypervisor>>";

/// The depth of each entry and the size of the code, in Markdown.
pub(super) fn report() -> anyhow::Result<String> {
    let program = std::fs::read(build()?)?;
    let code = read(&program)?;
    let mut text = "\n### Stack and code\n\n".to_owned();
    text.push_str("| | stack, bytes | code, bytes |\n|---|---:|---:|\n");
    let mut deepest = (0, Vec::new());
    let mut reached = BTreeSet::new();
    for (what, entry) in ENTRIES {
        let wanted = format!("{ENGINE}{entry}");
        let mut entries = code.iter().filter(|(_, function)| function.name == wanted);
        let (start, _) = entries.next().with_context(|| format!("no {wanted}"))?;
        let mut walk = Walk::new(&code);
        let (depth, path) = walk.depth(*start);
        writeln!(text, "| {what} | {depth} | {} |", walk.size())?;
        reached.extend(walk.done.keys().copied());
        if depth > deepest.0 {
            deepest = (depth, path);
        }
    }
    let size: u64 = reached
        .iter()
        .filter_map(|at| code.get(at))
        .map(|f| f.size)
        .sum();
    writeln!(text, "| all | | {size} |")?;
    let verdict = if deepest.0 <= LIMIT {
        "reached"
    } else {
        "MISSED"
    };
    writeln!(
        text,
        "\nTarget, at most {LIMIT} bytes of stack: {verdict}. The deepest path:\n"
    )?;
    for at in deepest.1 {
        if let Some(function) = code.get(&at) {
            writeln!(text, "- {} bytes: `{}`", function.frame, function.name)?;
        }
    }
    Ok(text)
}

/// The benchmark's executable, with symbol names that include type parameters.
fn build() -> anyhow::Result<PathBuf> {
    let output = command::output(
        Command::new("cargo")
            .args(["bench", "--quiet", "--no-run", "--message-format=json"])
            .args(["--package", "xsplice-host-process", "--bench", "engine"])
            .args(["--target-dir", "target/depth"])
            .env(
                "RUSTFLAGS",
                "-C symbol-mangling-version=v0 -C panic=abort -C relocation-model=static",
            ),
    )?;
    let mut executables = output.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(PathBuf::from(message["executable"].as_str()?))
    });
    executables.next_back().context("cargo names no executable")
}

struct Function {
    name: String,
    size: u64,
    /// Bytes of stack that it uses, including the return address.
    frame: u64,
    calls: BTreeSet<u64>,
    /// Functions that it tail-calls, after releasing its frame.
    jumps: BTreeSet<u64>,
}

/// All functions, by start address.
fn read(program: &[u8]) -> anyhow::Result<BTreeMap<u64, Function>> {
    let file = object::File::parse(program)?;
    let text = file.section_by_name(".text").context("no .text")?;
    let (base, bytes) = (text.address(), text.data()?);
    let mut functions = BTreeMap::new();
    for symbol in file.symbols() {
        if symbol.kind() != SymbolKind::Text || symbol.size() == 0 {
            continue;
        }
        let name = format!("{:#}", rustc_demangle::demangle(symbol.name()?));
        let place = symbol.address().checked_sub(base);
        let body = place.and_then(|at| {
            let at = usize::try_from(at).ok()?;
            bytes.get(at..at.checked_add(usize::try_from(symbol.size()).ok()?)?)
        });
        if let Some(body) = body {
            functions.insert(symbol.address(), disassemble(name, symbol.address(), body));
        }
    }
    ensure!(!functions.is_empty(), "the benchmark has no symbols");
    Ok(functions)
}

fn disassemble(name: String, start: u64, body: &[u8]) -> Function {
    let size = body.len() as u64;
    let mut function = Function {
        name,
        size,
        frame: 8,
        calls: BTreeSet::new(),
        jumps: BTreeSet::new(),
    };
    let outside = |target| target < start || target >= start + size;
    for instruction in &mut Decoder::with_ip(64, body, start, DecoderOptions::NONE) {
        match instruction.mnemonic() {
            Mnemonic::Push => function.frame += 8,
            Mnemonic::Sub
                if instruction.op0_register() == Register::RSP
                    && instruction.op1_kind() != OpKind::Register =>
            {
                function.frame += instruction.immediate(1);
            }
            _ => {}
        }
        let target = instruction.near_branch_target();
        match instruction.flow_control() {
            FlowControl::Call if instruction.code() == Code::Call_rel32_64 => {
                function.calls.insert(target);
            }
            FlowControl::UnconditionalBranch | FlowControl::ConditionalBranch
                if outside(target) =>
            {
                function.jumps.insert(target);
            }
            _ => {}
        }
    }
    function
}

/// Whether a hypervisor provides this itself, or it does not return.
fn is_foreign(name: &str) -> bool {
    let traits = [
        "as xsplice_engine::host::Host>",
        "as xsplice_engine::host::Resident>",
    ];
    traits.iter().any(|of| name.contains(of))
        || [
            "__rust_",
            "__rdl_",
            "core::panicking::",
            "handle_error",
            "handle_alloc_error",
        ]
        .iter()
        .any(|part| name.contains(part))
        || ["memcpy", "memmove", "memset", "memcmp", "bcmp"].contains(&name)
}

/// Walks the calls below a function.
struct Walk<'c> {
    code: &'c BTreeMap<u64, Function>,
    /// Stack depth from each function on, and the call on the deepest path.
    done: BTreeMap<u64, (u64, Option<u64>)>,
    /// Functions on the current path: a call to one of them is recursive, and counts
    /// once.
    open: BTreeSet<u64>,
}

impl<'c> Walk<'c> {
    fn new(code: &'c BTreeMap<u64, Function>) -> Self {
        Self {
            code,
            done: BTreeMap::new(),
            open: BTreeSet::new(),
        }
    }

    /// The stack depth from `start`, and the functions on the deepest path.
    fn depth(&mut self, start: u64) -> (u64, Vec<u64>) {
        let depth = self.visit(start);
        let mut path = vec![start];
        let mut at = start;
        while let Some((_, Some(next))) = self.done.get(&at) {
            at = *next;
            path.push(at);
        }
        (depth, path)
    }

    fn visit(&mut self, at: u64) -> u64 {
        if let Some((depth, _)) = self.done.get(&at) {
            return *depth;
        }
        let code = self.code;
        let function = match code.get(&at) {
            Some(function) if !is_foreign(&function.name) => function,
            _ => return 0,
        };
        if !self.open.insert(at) {
            return 0;
        }
        let mut deepest = (function.frame, None);
        let calls = function.calls.iter().map(|call| (function.frame, call));
        let jumps = function.jumps.iter().map(|jump| (0, jump));
        for (above, target) in calls.chain(jumps) {
            let depth = above + self.visit(*target);
            if depth > deepest.0 {
                deepest = (depth, Some(*target));
            }
        }
        self.open.remove(&at);
        self.done.insert(at, deepest);
        deepest.0
    }

    /// Code size in bytes of everything that was reached.
    fn size(&self) -> u64 {
        let reached = self.done.keys().filter_map(|at| self.code.get(at));
        reached.map(|function| function.size).sum()
    }
}

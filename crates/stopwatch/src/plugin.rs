// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's plugin interface, version 1 (its `include/qemu/qemu-plugin.h`, and
//! `docs/devel/tcg-plugins.rst`).
#![expect(unsafe_code, reason = "the plugin interface is one of C")]

use crate::request::Request;
use crate::stopwatch::Stopwatch;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// Code that is being translated. It is valid in the callback that gets it.
#[repr(C)]
struct Block {
    _opaque: [u8; 0],
}

/// An instruction of a [`Block`], valid as long as this is.
#[repr(C)]
struct Instruction {
    _opaque: [u8; 0],
}

/// The identity of a plugin.
type Id = u64;
type OnTranslation = extern "C" fn(Id, &Block);
/// Gets the number of the CPU and what was registered with it.
type OnExecution = extern "C" fn(c_uint, *mut c_void);

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers of the guest.
const NO_REGISTERS: c_int = 0;

// SAFETY: these are QEMU's declarations; the opaque structures are only ever
// pointers that QEMU gave. They have no requirements but valid pointers, and
// they keep nothing of what they get but function and userdata.
unsafe extern "C" {
    safe fn qemu_plugin_n_max_vcpus() -> c_int;
    safe fn qemu_plugin_register_vcpu_tb_trans_cb(id: Id, callback: OnTranslation);
    safe fn qemu_plugin_tb_n_insns(block: &Block) -> usize;
    safe fn qemu_plugin_tb_get_insn(block: &Block, index: usize) -> Option<&Instruction>;
    safe fn qemu_plugin_insn_vaddr(instruction: &Instruction) -> u64;
    safe fn qemu_plugin_register_vcpu_insn_exec_cb(
        instruction: &Instruction,
        callback: OnExecution,
        flags: c_int,
        userdata: *mut c_void,
    );
}

/// The version of the interface that this is written for.
// SAFETY: nothing else has this name, and QEMU only reads it.
#[unsafe(no_mangle)]
static qemu_plugin_version: c_int = 1;

static STOPWATCH: OnceLock<Stopwatch> = OnceLock::new();

/// Called by QEMU once, before any CPU runs; anything but 0 ends QEMU.
///
/// # Safety
/// `arguments` points to `number` strings.
// SAFETY: nothing else has this name, and the signature is the interface's.
#[unsafe(no_mangle)]
unsafe extern "C" fn qemu_plugin_install(
    id: Id,
    _info: *const c_void,
    number: c_int,
    arguments: *const *const c_char,
) -> c_int {
    let number = usize::try_from(number).unwrap_or_default();
    let arguments = (0..number).map(|index| {
        // SAFETY: there are `number` strings, as the caller says.
        unsafe { CStr::from_ptr(*arguments.add(index)) }
    });
    if let Err(error) = start(&arguments.collect::<Vec<_>>()) {
        eprintln!("stopwatch: {error}");
        return 1;
    }
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    0
}

fn start(arguments: &[&CStr]) -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments.iter().map(|argument| argument.to_str());
    let request = Request::read(arguments.collect::<Result<Vec<_>, _>>()?)?;
    let cpus = usize::try_from(qemu_plugin_n_max_vcpus())?;
    let stopwatch = Stopwatch::new(&request, cpus, ticks);
    let stopwatch = stopwatch.map_err(|error| format!("{}: {error}", request.output.display()))?;
    let first = STOPWATCH.set(stopwatch);
    first.map_err(|_| "there is one already; QEMU takes a plugin once".into())
}

extern "C" fn translated(_: Id, block: &Block) {
    let instructions = (0..qemu_plugin_tb_n_insns(block))
        .filter_map(|index| qemu_plugin_tb_get_insn(block, index));
    let address = |instruction| qemu_plugin_insn_vaddr(instruction);
    let mut addresses = instructions.clone().map(address);
    let (Some(stopwatch), Some(first)) = (STOPWATCH.get(), addresses.next()) else {
        return;
    };
    let last = addresses.next_back().unwrap_or(first);
    let all = first..=last;
    stopwatch.translate(&all);
    if !stopwatch.cares(&all) {
        return;
    }
    for instruction in instructions {
        let address = address(instruction);
        let on_execution = |callback: OnExecution, number: usize| {
            let userdata = std::ptr::without_provenance_mut(number);
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, callback, NO_REGISTERS, userdata);
        };
        for place in stopwatch.places(address) {
            on_execution(passed, place);
        }
        // Behind the places, so that the first instruction of a stretch counts
        // and the one at its end does not.
        if stopwatch.counts(address) {
            on_execution(counted, 0);
        }
    }
}

extern "C" fn passed(cpu: c_uint, place: *mut c_void) {
    if let Some(stopwatch) = STOPWATCH.get() {
        stopwatch.pass(cpu as usize, place.addr());
    }
}

extern "C" fn counted(cpu: c_uint, _: *mut c_void) {
    if let Some(stopwatch) = STOPWATCH.get() {
        stopwatch.count(cpu as usize);
    }
}

fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has a time-stamp counter that programs may
    // read, unless the operating system forbids it, which ends the program.
    unsafe { std::arch::x86_64::_rdtsc() }
}

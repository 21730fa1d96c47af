// SPDX-License-Identifier: MIT OR Apache-2.0
//! QEMU's plugin interface, version 1 (its `include/qemu/qemu-plugin.h`, and
//! `docs/devel/tcg-plugins.rst`).
#![expect(unsafe_code, reason = "the plugin interface is one of C")]

use crate::request::Request;
use crate::stopwatch::Stopwatch;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// A block of code being translated; valid only during the callback.
#[repr(C)]
struct Block {
    _opaque: [u8; 0],
}

/// An instruction of a [`Block`]; valid as long as the block.
#[repr(C)]
struct Instruction {
    _opaque: [u8; 0],
}

/// The identity of a plugin.
type Id = u64;
type OnTranslation = extern "C" fn(Id, &Block);
/// Called with the CPU number and the registered userdata.
type OnExecution = extern "C" fn(c_uint, *mut c_void);

/// `QEMU_PLUGIN_CB_NO_REGS`: the callback reads no registers of the guest.
const NO_REGISTERS: c_int = 0;

// SAFETY: these are QEMU's declarations; the opaque structures are only pointers that
// QEMU provided. The functions only require valid pointers, and keep nothing but
// function and userdata.
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

/// The plugin interface version that this uses.
// SAFETY: nothing else has this name, and QEMU only reads it.
#[unsafe(no_mangle)]
static qemu_plugin_version: c_int = 1;

static STOPWATCH: OnceLock<Stopwatch> = OnceLock::new();

/// Called once by QEMU, before any CPU runs; a nonzero result ends QEMU.
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
    first.map_err(|_| "the plugin is already loaded; QEMU loads a plugin only once".into())
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
        // After the places, so that the first instruction of a stretch counts and the
        // one at its end does not.
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
    // SAFETY: every x86-64 processor has a time-stamp counter that programs may read,
    // unless the operating system forbids it; then the instruction traps and the
    // program ends.
    unsafe { std::arch::x86_64::_rdtsc() }
}

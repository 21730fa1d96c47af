/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/*
 * Live patching for hypervisors in C: what libxsplice_engine_c.a asks of the
 * hypervisor, and what it offers.
 *
 * The hypervisor fills in a `struct xsplice_host`, makes an engine of it, and hands
 * payloads to it. The engine takes no lock: calls with the same engine follow each
 * other. No callback may call the engine.
 *
 * Where there is no operating system, the hypervisor also has xsplice_host_alloc(),
 * xsplice_host_free() and xsplice_host_panic().
 *
 * Written by cbindgen from the crate xsplice-engine-c. Do not edit.
 */

#ifndef XSPLICE_H
#define XSPLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Results are 0, or a negative error number as in Xen's public errno.h. */


// `region()`: code that stays for as long as the hypervisor runs.
#define XSPLICE_REGION_TEXT 1

// `region()`: code or data that is freed after boot.
#define XSPLICE_REGION_INIT 2

// `region()`: anything else that stays.
#define XSPLICE_REGION_DATA 3

// `region()`: not part of the hypervisor.
#define XSPLICE_REGION_OUTSIDE 4

// `open_text()`: written by `write_text()` only; an alias of the pages will do.
#define XSPLICE_ACCESS_ALIAS 0

// `open_text()`: hooks run in the window, and find text writable at its own
// addresses, that of payloads too.
#define XSPLICE_ACCESS_IN_PLACE 1

// `protect()`: readable and executable.
#define XSPLICE_PROTECT_TEXT 0

// `protect()`: readable.
#define XSPLICE_PROTECT_READ_ONLY 1

// `call()`: before the functions are patched, in the window; returns nothing.
#define XSPLICE_HOOK_LOAD 0

// `call()`: after the functions are put back, in the window; returns nothing.
#define XSPLICE_HOOK_UNLOAD 1

// `call()`: before an apply; can veto it.
#define XSPLICE_HOOK_PRE_APPLY 2

// `call()`: in place of an apply, in the window.
#define XSPLICE_HOOK_APPLY 3

// `call()`: after an apply; returns nothing.
#define XSPLICE_HOOK_POST_APPLY 4

// `call()`: before a revert; can veto it.
#define XSPLICE_HOOK_PRE_REVERT 5

// `call()`: in place of a revert, in the window.
#define XSPLICE_HOOK_REVERT 6

// `call()`: after a revert; returns nothing.
#define XSPLICE_HOOK_POST_REVERT 7

// A payload is checked against the build-id of what it depends on.
#define XSPLICE_GUARD_STACK 0

// A payload is checked against the hash of each function that it patches.
#define XSPLICE_GUARD_OLD_CODE 1

// A payload is checked against both.
#define XSPLICE_GUARD_BOTH 2

// Take a payload out of memory.
#define XSPLICE_ACTION_UNLOAD 1

// Put the functions back that it patches.
#define XSPLICE_ACTION_REVERT 2

// Patch the functions.
#define XSPLICE_ACTION_APPLY 3

// Revert everything that is applied, and apply it.
#define XSPLICE_ACTION_REPLACE 4

// Loaded.
#define XSPLICE_STATE_CHECKED 1

// Loaded and applied.
#define XSPLICE_STATE_APPLIED 2

// Live patching of one hypervisor.
struct xsplice_engine;

// Bytes with their length. They need no zero at the end, and are there for as long
// as the call that they are given to.
struct xsplice_bytes {
  // The first byte; not null, even when there are none.
  const uint8_t *data;
  // How many there are.
  size_t len;
};

// What the hypervisor's own code takes for granted of a payload.
struct xsplice_limits {
  // Numbers of processor features are less than this.
  uint16_t features;
  // With this feature, an entry of .altinstructions may make a call direct; 0 when
  // there is none.
  uint16_t always;
  // Whether payloads have .alt_call_sites for that.
  bool call_sites;
  // Whether the processor checks that what is called through pointers begins with
  // endbr64.
  bool landing_pads;
};

// Addresses from `start` up to, and without, `end`.
struct xsplice_range {
  // The first address.
  uint64_t start;
  // The address after the last one.
  uint64_t end;
};

// Memory for a payload.
struct xsplice_memory {
  // Its address, page-aligned, near enough to the text for a jump.
  uint64_t base;
  // Where the engine writes it: that address, or a buffer that `register_payload()`
  // copies there. It stays until `free()`.
  uint8_t *bytes;
};

// A payload that is made. Everything in it is there for as long as the call.
struct xsplice_description {
  // Its name.
  struct xsplice_bytes name;
  // Its build-id.
  struct xsplice_bytes build_id;
  // The build-id that it depends on.
  struct xsplice_bytes depends;
  // Code; not rounded to pages.
  struct xsplice_range text;
  // Writable data.
  struct xsplice_range data;
  // Read-only data.
  struct xsplice_range read_only;
  // .livepatch.funcs: records whose old addresses are filled in.
  struct xsplice_range funcs;
  // .altinstructions, to be applied.
  struct xsplice_range alternatives;
  // .ex_table, to be sorted and registered.
  struct xsplice_range exceptions;
  // .bug_frames.0 to .bug_frames.3.
  struct xsplice_range bug_frames[4];
  // .alt_call_sites, to be made direct calls.
  struct xsplice_range call_sites;
  // .modinfo: strings that each end with a zero byte.
  struct xsplice_range metadata;
};

// The part of a payload's record that its hooks see and may change.
struct xsplice_record {
  // `XSPLICE_STATE_CHECKED` or `XSPLICE_STATE_APPLIED`.
  uint32_t state;
  // Result of the last action: 0, or a negative error number.
  int32_t result;
  // For each function whether it is patched. An apply or revert hook sets all of
  // these, or it fails and changes none.
  bool *applied;
  // How many functions there are.
  size_t functions;
};

// The hypervisor: functions that the engine calls, each with `context`. All of them
// must be there. *In the window* all other CPUs are stopped: such a function must not
// wait, allocate or print.
struct xsplice_host {
  // What each function gets.
  void *context;
  // The build-id; it stays.
  struct xsplice_bytes build_id;
  // What its own code takes for granted of payloads.
  struct xsplice_limits limits;
  // The address of a symbol, 0 when there is none: `function` for a global one,
  // `file.c#function` for a local one.
  uint64_t (*lookup_symbol)(void *context, struct xsplice_bytes name);
  // `XSPLICE_REGION_...`; payloads are outside.
  uint32_t (*region)(void *context, uint64_t addr);
  // Copies the `len` bytes at `addr`, in the hypervisor or in a payload's memory;
  // false when they are not all there.
  bool (*read)(void *context, uint64_t addr, uint8_t *buf, size_t len);
  // Where the function begins that has the instruction at `addr`; 0 when that is not
  // known.
  uint64_t (*function_at)(void *context, uint64_t addr);
  // Why these bytes must not be written over, as a string that stays; null when they
  // may be. What a CPU may run while the others wait, and what handles events that
  // cannot be masked, must not be.
  const char *(*denied)(void *context, struct xsplice_range patched);
  // Memory for a payload: `size` bytes, whole pages, writable and not executable;
  // false when there is none.
  bool (*allocate)(void *context, uint64_t size, struct xsplice_memory *memory);
  // Takes back a payload's memory and everything that is known about it.
  void (*free)(void *context, struct xsplice_memory memory);
  // Takes over a payload and its tables. Nothing is protected yet.
  int32_t (*register_payload)(void *context,
                              struct xsplice_memory memory,
                              const struct xsplice_description *payload);
  // Protects pages of a payload: `XSPLICE_PROTECT_...`.
  int32_t (*protect)(void *context,
                     struct xsplice_memory memory,
                     struct xsplice_range pages,
                     uint32_t protection);
  // Calls the hook at `addr`: `XSPLICE_HOOK_...`.
  int32_t (*call)(void *context,
                  struct xsplice_memory memory,
                  uint32_t hook,
                  uint64_t addr,
                  struct xsplice_record *record);
  // Stops all CPUs, calls `window(argument)` once on this one, and lets them go; each
  // synchronises its instruction stream first. False when they did not all enter it
  // within `timeout` ns: `window` has not run then.
  bool (*rendezvous)(void *context,
                     uint64_t timeout,
                     void (*window)(void *argument),
                     void *argument);
  // Gets ready for a rendezvous in which text of `range` is written:
  // `XSPLICE_ACCESS_...`.
  int32_t (*open_text)(void *context, struct xsplice_range range, uint32_t access);
  // Begins to write, *in the window*.
  int32_t (*begin_writing)(void *context);
  // Writes, *in the window*.
  void (*write_text)(void *context, uint64_t addr, struct xsplice_bytes bytes);
  // Undoes `begin_writing()`, *in the window*.
  void (*end_writing)(void *context);
  // Undoes `open_text()`, whether there was a window or not.
  void (*close_text)(void *context);
  // Nanoseconds since some moment in the past, also *in the window*.
  uint64_t (*now)(void *context);
  // A part of the log; lines end with a newline.
  void (*log)(void *context, struct xsplice_bytes text);
  // The machine is in no defined state; does not return. May be called *in the
  // window*.
  void (*fatal)(void *context, struct xsplice_bytes what);
};

// A payload that is loaded. The texts are there until it is unloaded.
struct xsplice_payload {
  // Its name.
  struct xsplice_bytes name;
  // Its build-id.
  struct xsplice_bytes build_id;
  // The address of its memory.
  uint64_t base;
  // `XSPLICE_STATE_CHECKED` or `XSPLICE_STATE_APPLIED`.
  uint32_t state;
  // Result of the last action: 0, a negative error number, or -EAGAIN while an action
  // is under way.
  int32_t result;
};

// Makes an engine for a hypervisor on which no payload is loaded: `guard` is
// `XSPLICE_GUARD_...`. Null when a function of `host` is missing, when there is no such
// guard, or without memory.
//
// # Safety
// `host` is null, or leads to an `xsplice_host` whose functions do what this header
// says, with its context, from any call of the engine.
struct xsplice_engine *xsplice_engine_new(const struct xsplice_host *host,
                                          uint32_t guard);

// Drops an engine. The memory of its payloads is freed, applied or not: revert and
// unload them before.
//
// # Safety
// `engine` is null, or of `xsplice_engine_new()` and not used any more.
void xsplice_engine_free(struct xsplice_engine *engine);

// Loads the payload `file` under `name`. What is wrong with it is in the log.
//
// # Safety
// `engine` is of `xsplice_engine_new()`, and nobody else uses it.
int32_t xsplice_upload(struct xsplice_engine *engine,
                       struct xsplice_bytes name,
                       struct xsplice_bytes file);

// Prepares an action, `XSPLICE_ACTION_...`, on the payload `name`; `*pending` says
// whether `xsplice_run()` has to do it, in a context in which all CPUs can be stopped.
// With `nodeps`, a payload may be applied on top of whatever there is. `timeout` is how
// many nanoseconds the CPUs may take to enter the rendezvous; 0 for 30 ms.
//
// # Safety
// `engine` is of `xsplice_engine_new()`, and nobody else uses it; `pending` leads to a
// `bool`.
int32_t xsplice_start(struct xsplice_engine *engine,
                      struct xsplice_bytes name,
                      uint32_t action,
                      bool nodeps,
                      uint32_t timeout,
                      bool *pending);

// Stops all CPUs and does what `xsplice_start()` has prepared. Why it did not happen is
// in the log and, as a number, in the payload's result.
//
// # Safety
// `engine` is of `xsplice_engine_new()`, and nobody else uses it.
int32_t xsplice_run(struct xsplice_engine *engine);

// `xsplice_start()` and, if need be, `xsplice_run()`.
//
// # Safety
// As these.
int32_t xsplice_act(struct xsplice_engine *engine,
                    struct xsplice_bytes name,
                    uint32_t action,
                    bool nodeps,
                    uint32_t timeout);

// Describes the payload that is at `index` among those that are loaded, the oldest
// first; false when there is none.
//
// # Safety
// `engine` is of `xsplice_engine_new()`, and nobody else uses it; `payload` can be
// written.
bool xsplice_loaded(const struct xsplice_engine *engine,
                    size_t index,
                    struct xsplice_payload *payload);

#endif  /* XSPLICE_H */

/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/*
 * Live patching for hypervisors in C: the interface of libxsplice_engine_c.a.
 *
 * The hypervisor fills in a `struct xsplice_host`, creates an engine with it, and
 * passes payloads to the engine. The engine takes no lock: the hypervisor serialises
 * its calls. No callback may call the engine.
 *
 * Without an operating system, the hypervisor also defines xsplice_host_alloc(),
 * xsplice_host_free() and xsplice_host_panic().
 *
 * The interface between our core and Xen (host-xen/shim) is another: it also carries
 * what only Xen has, and its C side includes Xen's headers.
 *
 * Written by cbindgen from the crate xsplice-engine-c. Do not edit.
 */

#ifndef XSPLICE_H
#define XSPLICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Results are 0, or a negative error number as in Xen's public errno.h. */


// `region()`: permanent code.
#define XSPLICE_REGION_TEXT 1

// `region()`: code or data that is freed after boot.
#define XSPLICE_REGION_INIT 2

// `region()`: other permanent memory.
#define XSPLICE_REGION_DATA 3

// `region()`: not part of the hypervisor.
#define XSPLICE_REGION_OUTSIDE 4

// `open_text()`: for `write_text()` only; an alias of the pages will do.
#define XSPLICE_ACCESS_ALIAS 0

// `open_text()`: hooks run in the window: text must be writable at its own addresses,
// that of payloads included.
#define XSPLICE_ACCESS_IN_PLACE 1

// `protect()`: readable and executable.
#define XSPLICE_PROTECT_TEXT 0

// `protect()`: readable.
#define XSPLICE_PROTECT_READ_ONLY 1

// `call()`: before the functions are patched, in the window; returns nothing.
#define XSPLICE_HOOK_LOAD 0

// `call()`: after the functions are restored, in the window; returns nothing.
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

// Unload a payload.
#define XSPLICE_ACTION_UNLOAD 1

// Restore the functions that it patches.
#define XSPLICE_ACTION_REVERT 2

// Patch the functions.
#define XSPLICE_ACTION_APPLY 3

// Revert all applied payloads, and apply it.
#define XSPLICE_ACTION_REPLACE 4

// Loaded.
#define XSPLICE_STATE_CHECKED 1

// Loaded and applied.
#define XSPLICE_STATE_APPLIED 2

// Live patching of one hypervisor.
struct xsplice_engine;

// Bytes with their length, not zero-terminated; valid for the call they are passed to.
struct xsplice_bytes {
  // The first byte; not null, even when there are none.
  const uint8_t *data;
  // Their number.
  size_t len;
};

// What the hypervisor's own code assumes about a payload.
struct xsplice_limits {
  // The number of processor features.
  uint16_t features;
  // With this feature, an entry of .altinstructions may make an indirect call direct;
  // 0 if there is none.
  uint16_t always;
  // Whether payloads use .alt_call_sites for that.
  bool call_sites;
  // Whether the processor checks that targets of indirect calls start with endbr64.
  bool landing_pads;
};

// Addresses from `start` up to, but not including, `end`.
struct xsplice_range {
  // The first address.
  uint64_t start;
  // The address after the last one.
  uint64_t end;
};

// Memory for a payload.
struct xsplice_memory {
  // Its address, page-aligned, within jump range of the text.
  uint64_t base;
  // Where the engine builds it: that address, or a buffer that `register_payload()`
  // copies there. Valid until `free()`.
  uint8_t *bytes;
};

// A finished payload. Everything in it is valid for the call.
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
  // For each function, whether it is patched. An apply or revert hook sets all of
  // them, or fails and changes none.
  bool *applied;
  // The number of functions.
  size_t functions;
};

// The hypervisor: functions that the engine calls, each with `context`. Those that may
// be null say so. *In the window* all other CPUs are stopped: such a function must not
// wait, allocate or print.
struct xsplice_host {
  // Passed to each function.
  void *context;
  // The build-id; valid for as long as the engine.
  struct xsplice_bytes build_id;
  // What its own code assumes about payloads.
  struct xsplice_limits limits;
  // The address of a symbol, 0 if there is none: `function` for a global one,
  // `file.c#function` for a local one.
  uint64_t (*lookup_symbol)(void *context, struct xsplice_bytes name);
  // `XSPLICE_REGION_...`; payloads are outside.
  uint32_t (*region)(void *context, uint64_t addr);
  // Copies the `len` bytes at `addr`, in the hypervisor or in a payload's memory;
  // false if some are missing.
  bool (*read)(void *context, uint64_t addr, uint8_t *buf, size_t len);
  // The start of the function that contains the instruction at `addr`; 0 if unknown.
  uint64_t (*function_at)(void *context, uint64_t addr);
  // Why these bytes must not be overwritten, as a static string; null if they may be.
  // Code that a CPU may run while the others wait, that handles events which cannot be
  // masked, or that writes text, must be denied.
  const char *(*denied)(void *context, struct xsplice_range patched);
  // Memory for a payload: `size` bytes, whole pages, writable and not executable;
  // false if there is none.
  bool (*allocate)(void *context, uint64_t size, struct xsplice_memory *memory);
  // Releases a payload's memory and everything that is registered about it.
  void (*free)(void *context, struct xsplice_memory memory);
  // Takes over the finished payload and registers its tables. Nothing is protected
  // yet. Null if the hypervisor has no use for tables and `memory.bytes` is always at
  // `memory.base`; a payload for which that is not so is refused.
  int32_t (*register_payload)(void *context,
                              struct xsplice_memory memory,
                              const struct xsplice_description *payload);
  // Protects pages of a payload: `XSPLICE_PROTECT_...`. Null if payloads run as
  // allocated.
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
  // Stops all CPUs, calls `window(argument)` once on this one, and releases them; each
  // serialises its instruction stream before it resumes. False if the rendezvous was
  // not reached within `timeout` ns; `window` has then not run.
  bool (*rendezvous)(void *context,
                     uint64_t timeout,
                     void (*window)(void *argument),
                     void *argument);
  // Gets ready for a rendezvous in which text of `range` is written:
  // `XSPLICE_ACCESS_...`. Null if text is always writable.
  int32_t (*open_text)(void *context, struct xsplice_range range, uint32_t access);
  // Begins to write, *in the window*. Null if text is always writable.
  int32_t (*begin_writing)(void *context);
  // Writes, *in the window*.
  void (*write_text)(void *context, uint64_t addr, struct xsplice_bytes bytes);
  // Undoes `begin_writing()`, *in the window*; may be null.
  void (*end_writing)(void *context);
  // Undoes `open_text()`, even if there was no window; may be null.
  void (*close_text)(void *context);
  // Nanoseconds since an arbitrary point in time, also *in the window*. Null if there
  // is no clock.
  uint64_t (*now)(void *context);
  // A part of the log; lines end with a newline.
  void (*log)(void *context, struct xsplice_bytes text);
  // The machine is in an undefined state: does not return. Called *in the window*.
  // Null if a panic stops the hypervisor.
  void (*fatal)(void *context, struct xsplice_bytes what);
};

// A loaded payload. The texts are valid until it is unloaded.
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
  // is in progress.
  int32_t result;
};

// Creates an engine for a hypervisor on which no payload is loaded: `guard` is
// `XSPLICE_GUARD_...`. Null if a required function of `host` is missing, if there is no
// such guard, or without memory.
//
// # Safety
// `host` is null, or points to an `xsplice_host` whose functions do what this header
// says, with its context, in any call of the engine.
struct xsplice_engine *xsplice_engine_new(const struct xsplice_host *host,
                                          uint32_t guard);

// Drops an engine. It frees the memory of its payloads, applied or not: revert and
// unload them first.
//
// # Safety
// `engine` is null, or from `xsplice_engine_new()` and no longer used.
void xsplice_engine_free(struct xsplice_engine *engine);

// Loads the payload `file` under `name`. The log shows everything that is wrong with it.
//
// # Safety
// `engine` is from `xsplice_engine_new()`, and no other call uses it.
int32_t xsplice_upload(struct xsplice_engine *engine,
                       struct xsplice_bytes name,
                       struct xsplice_bytes file);

// Prepares an action, `XSPLICE_ACTION_...`, on the payload `name`; `*pending` is set if
// `xsplice_run()` must finish it, in a context in which all CPUs can be stopped. With
// `nodeps`, the payload need not depend on what is applied. `timeout` is the limit for
// the rendezvous in nanoseconds; 0 for 30 ms.
//
// # Safety
// `engine` is from `xsplice_engine_new()`, and no other call uses it; `pending` points
// to a `bool`.
int32_t xsplice_start(struct xsplice_engine *engine,
                      struct xsplice_bytes name,
                      uint32_t action,
                      bool nodeps,
                      uint32_t timeout,
                      bool *pending);

// Stops all CPUs and runs the action that `xsplice_start()` prepared. The log shows why
// it failed, and the payload's result has the error number.
//
// # Safety
// `engine` is from `xsplice_engine_new()`, and no other call uses it.
int32_t xsplice_run(struct xsplice_engine *engine);

// `xsplice_start()` and, if `*pending`, `xsplice_run()`.
//
// # Safety
// As for these.
int32_t xsplice_act(struct xsplice_engine *engine,
                    struct xsplice_bytes name,
                    uint32_t action,
                    bool nodeps,
                    uint32_t timeout);

// Describes the loaded payload at `index`, oldest first; false if there is none.
//
// # Safety
// `engine` is from `xsplice_engine_new()`, and no other call uses it; `payload` can be
// written.
bool xsplice_loaded(const struct xsplice_engine *engine,
                    size_t index,
                    struct xsplice_payload *payload);

#endif  /* XSPLICE_H */

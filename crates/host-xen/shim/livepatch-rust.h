/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The interface between xsplice's engine and Xen.
 *
 * The Rust side of this file is src/ffi.rs: names, types and order of members
 * are the same there, and both sides assert sizes and offsets. Texts have a
 * length and no terminating zero. Addresses are uint64_t, and ranges exclude
 * their end.
 */
#ifndef LIVEPATCH_RUST_H
#define LIVEPATCH_RUST_H

#include <xen/types.h>

static inline void *pointer(uint64_t addr)
{
    return (void *)(unsigned long)addr;
}

static inline uint64_t address(const void *data)
{
    return (unsigned long)data;
}

struct xsplice_text {
    const char *data;
    size_t len;
};

struct xsplice_range {
    uint64_t start, end;
};

/* Addresses and properties of the hypervisor. */
struct xsplice_image {
    struct xsplice_range text;
    /* Freed after boot. */
    struct xsplice_range init;
    struct xsplice_range read_only;
    struct xsplice_range data;
    /* The number of processor features, and the one that every processor has,
     * with which .altinstructions makes calls direct; 0 if there is none. */
    uint16_t features, always;
    /* Whether payloads use .alt_call_sites for that instead. */
    bool call_sites;
    /* Whether the CPUs require endbr64 where indirect branches land. */
    bool landing_pads;
};

/* A trusted RSA key: its modulus, least significant word first. */
struct xsplice_key {
    struct xsplice_text name;
    const uint64_t *modulus;
    size_t words;
};

/* The command line's setting for unsigned payloads. */
enum xsplice_enforcement {
    XSPLICE_UNSET,
    XSPLICE_OFF,
    XSPLICE_WARN,
    XSPLICE_ENFORCE,
};

struct xsplice_signatures {
    const struct xsplice_key *keys;
    size_t nkeys;
    enum xsplice_enforcement enforcement;
    /* Whether the command line is ignored. */
    bool locked;
};

struct xsplice_symbol {
    struct xsplice_text name;
    uint64_t addr;
    uint64_t size;
    bool new;
};

/* A payload at its final addresses. */
struct xsplice_payload {
    struct xsplice_text name;
    struct xsplice_text build_id;
    struct xsplice_text depends;
    struct xsplice_range text;
    struct xsplice_range data;
    struct xsplice_range read_only;
    struct xsplice_range funcs;
    struct xsplice_range alternatives;
    struct xsplice_range exceptions;
    struct xsplice_range bug_frames[4];
    struct xsplice_range call_sites;
    struct xsplice_range metadata;
    const struct xsplice_symbol *symbols;
    size_t nsymbols;
};

enum xsplice_protection {
    XSPLICE_TEXT,
    XSPLICE_READ_ONLY,
};

enum xsplice_hook {
    XSPLICE_LOAD,
    XSPLICE_UNLOAD,
    XSPLICE_PRE_APPLY,
    XSPLICE_APPLY,
    XSPLICE_POST_APPLY,
    XSPLICE_PRE_REVERT,
    XSPLICE_REVERT,
    XSPLICE_POST_REVERT,
};

/* Events that cannot be masked. */
enum xsplice_event {
    XSPLICE_NMI,
    XSPLICE_MACHINE_CHECK,
};

/* The phases in which CPUs load microcode, after the leader has loaded it. */
enum xsplice_phase {
    XSPLICE_PRIMARY_LOADS,
    XSPLICE_SIBLING_READS,
};

/* A position in the list of payloads and their functions. */
struct xsplice_cursor {
    uint32_t payload;
    uint32_t function;
};

/* What a hook can see and change of its payload. */
struct xsplice_status {
    uint32_t state;
    int32_t result;
    /* One element for each function. */
    bool *applied;
    size_t nfuncs;
};

/* A payload in the list, identified by the base of its memory. */
struct xsplice_entry {
    uint64_t base;
    uint32_t state;
    int32_t result;
};

/* src/ffi.rs asserts the same sizes, offsets and numbers. W is the size of a pointer. */
#define W sizeof(void *)
#define XSPLICE_SIZE(name, size) \
    _Static_assert(sizeof(struct xsplice_##name) == (size), "struct xsplice_" #name)
#define XSPLICE_OFFSET(name, member, offset) \
    _Static_assert(__builtin_offsetof(struct xsplice_##name, member) == (offset), \
                   "struct xsplice_" #name ", " #member)
#define XSPLICE_NUMBER(name, number) \
    _Static_assert(XSPLICE_##name == (number), "XSPLICE_" #name)

XSPLICE_SIZE(text, 2 * W);
XSPLICE_OFFSET(text, data, 0);
XSPLICE_OFFSET(text, len, W);
XSPLICE_SIZE(range, 16);
XSPLICE_OFFSET(range, start, 0);
XSPLICE_OFFSET(range, end, 8);
XSPLICE_SIZE(image, 72);
XSPLICE_OFFSET(image, text, 0);
XSPLICE_OFFSET(image, init, 16);
XSPLICE_OFFSET(image, read_only, 32);
XSPLICE_OFFSET(image, data, 48);
XSPLICE_OFFSET(image, features, 64);
XSPLICE_OFFSET(image, always, 66);
XSPLICE_OFFSET(image, call_sites, 68);
XSPLICE_OFFSET(image, landing_pads, 69);
XSPLICE_SIZE(key, 4 * W);
XSPLICE_OFFSET(key, name, 0);
XSPLICE_OFFSET(key, modulus, 2 * W);
XSPLICE_OFFSET(key, words, 3 * W);
XSPLICE_SIZE(signatures, 2 * W + 8);
XSPLICE_OFFSET(signatures, keys, 0);
XSPLICE_OFFSET(signatures, nkeys, W);
XSPLICE_OFFSET(signatures, enforcement, 2 * W);
XSPLICE_OFFSET(signatures, locked, 2 * W + 4);
XSPLICE_SIZE(symbol, 2 * W + 24);
XSPLICE_OFFSET(symbol, name, 0);
XSPLICE_OFFSET(symbol, addr, 2 * W);
XSPLICE_OFFSET(symbol, size, 2 * W + 8);
XSPLICE_OFFSET(symbol, new, 2 * W + 16);
XSPLICE_SIZE(payload, 8 * W + 192);
XSPLICE_OFFSET(payload, name, 0);
XSPLICE_OFFSET(payload, build_id, 2 * W);
XSPLICE_OFFSET(payload, depends, 4 * W);
XSPLICE_OFFSET(payload, text, 6 * W);
XSPLICE_OFFSET(payload, data, 6 * W + 16);
XSPLICE_OFFSET(payload, read_only, 6 * W + 32);
XSPLICE_OFFSET(payload, funcs, 6 * W + 48);
XSPLICE_OFFSET(payload, alternatives, 6 * W + 64);
XSPLICE_OFFSET(payload, exceptions, 6 * W + 80);
XSPLICE_OFFSET(payload, bug_frames, 6 * W + 96);
XSPLICE_OFFSET(payload, call_sites, 6 * W + 160);
XSPLICE_OFFSET(payload, metadata, 6 * W + 176);
XSPLICE_OFFSET(payload, symbols, 6 * W + 192);
XSPLICE_OFFSET(payload, nsymbols, 7 * W + 192);
XSPLICE_SIZE(cursor, 8);
XSPLICE_OFFSET(cursor, payload, 0);
XSPLICE_OFFSET(cursor, function, 4);
XSPLICE_SIZE(status, 2 * W + 8);
XSPLICE_OFFSET(status, state, 0);
XSPLICE_OFFSET(status, result, 4);
XSPLICE_OFFSET(status, applied, 8);
XSPLICE_OFFSET(status, nfuncs, W + 8);
XSPLICE_SIZE(entry, 16);
XSPLICE_OFFSET(entry, base, 0);
XSPLICE_OFFSET(entry, state, 8);
XSPLICE_OFFSET(entry, result, 12);
_Static_assert(sizeof(enum xsplice_enforcement) == 4, "enum xsplice_enforcement");
XSPLICE_NUMBER(UNSET, 0);
XSPLICE_NUMBER(OFF, 1);
XSPLICE_NUMBER(WARN, 2);
XSPLICE_NUMBER(ENFORCE, 3);
_Static_assert(sizeof(enum xsplice_protection) == 4, "enum xsplice_protection");
XSPLICE_NUMBER(TEXT, 0);
XSPLICE_NUMBER(READ_ONLY, 1);
_Static_assert(sizeof(enum xsplice_hook) == 4, "enum xsplice_hook");
XSPLICE_NUMBER(LOAD, 0);
XSPLICE_NUMBER(UNLOAD, 1);
XSPLICE_NUMBER(PRE_APPLY, 2);
XSPLICE_NUMBER(APPLY, 3);
XSPLICE_NUMBER(POST_APPLY, 4);
XSPLICE_NUMBER(PRE_REVERT, 5);
XSPLICE_NUMBER(REVERT, 6);
XSPLICE_NUMBER(POST_REVERT, 7);
_Static_assert(sizeof(enum xsplice_event) == 4, "enum xsplice_event");
XSPLICE_NUMBER(NMI, 0);
XSPLICE_NUMBER(MACHINE_CHECK, 1);
_Static_assert(sizeof(enum xsplice_phase) == 4, "enum xsplice_phase");
XSPLICE_NUMBER(PRIMARY_LOADS, 0);
XSPLICE_NUMBER(SIBLING_READS, 1);

#undef W
#undef XSPLICE_SIZE
#undef XSPLICE_OFFSET
#undef XSPLICE_NUMBER

/* A payload's memory and Xen's record of it. */
struct xsplice_memory;

/* Xen's services for the engine. */
void *xsplice_alloc(size_t size, size_t align);
void xsplice_free(void *data, size_t size);
void xsplice_print(struct xsplice_text line);
void noreturn xsplice_panic(struct xsplice_text what);
uint64_t xsplice_now(void);
struct xsplice_image xsplice_image(void);
struct xsplice_text xsplice_build_id(void);
struct xsplice_signatures xsplice_signatures(void);
/* Returns 0 if there is none; `name` is zero-terminated. */
uint64_t xsplice_lookup(const char *name);
/* The start of the function that contains `addr`; 0 if unknown. */
uint64_t xsplice_function_at(uint64_t addr);
/* Reads the symbol at *index and advances it; false after the last one. */
#define XSPLICE_NAME_SIZE 128
bool xsplice_next_symbol(uint32_t *index, uint64_t *addr, char *name);
/* Copies bytes of a payload; false if they are in none. */
bool xsplice_read_payload(uint64_t addr, void *buf, size_t len);

struct xsplice_memory *xsplice_memory_new(uint64_t size);
void xsplice_memory_drop(struct xsplice_memory *memory);
uint64_t xsplice_memory_base(const struct xsplice_memory *memory);
int xsplice_memory_register(struct xsplice_memory *memory,
                            const struct xsplice_payload *payload);
int xsplice_memory_protect(struct xsplice_memory *memory,
                           struct xsplice_range pages,
                           enum xsplice_protection protection);
/* Records the bytes that a revert of function `index` restores at `addr`. */
void xsplice_memory_saved(struct xsplice_memory *memory, size_t index,
                          uint64_t addr, struct xsplice_text bytes);
int xsplice_memory_call(struct xsplice_memory *memory, enum xsplice_hook hook,
                        uint64_t addr, struct xsplice_status *status);

/* Before and after a rendezvous; false if CPU hotplug is in progress. */
bool xsplice_rendezvous_begin(void);
void xsplice_rendezvous_end(void);
unsigned int xsplice_cpu(void);
void xsplice_relax(void);
void xsplice_kick(unsigned int cpu);
void xsplice_mask(void);
void xsplice_unmask(void);
void xsplice_synchronise(void);
/* First and last calls in the window. */
void xsplice_window_begin(void);
void xsplice_window_end(void);
/* Raises an event again that was held on this CPU. */
void xsplice_replay(enum xsplice_event event);

/*
 * Called before a rendezvous. Between xsplice_text_begin(), in the window, and
 * xsplice_text_end(), text in `range` can be written at *distance from its
 * address.
 */
int xsplice_text_open(struct xsplice_range range, bool hooks,
                      uint64_t *distance);
int xsplice_text_begin(void);
void xsplice_text_write(uint64_t addr, const void *bytes, size_t len);
void xsplice_text_end(void);
void xsplice_text_close(void);

/*
 * Microcode, with CONFIG_MICROCODE_RUST: the leader loads it, in the window; whether
 * a CPU stays in the handler of an NMI while it is stopped; a stopped CPU's part
 * of a phase.
 */
int xsplice_microcode_first(void);
bool xsplice_microcode_in_nmi(void);
void xsplice_microcode_work(enum xsplice_phase phase);
/* Stops all CPUs and has them load it: for core.c, whose stack is not aligned. */
int xsplice_load_microcode(void);

/*
 * The engine's entry points. Those of the second group, from xsplice_init() on,
 * are called with engine_lock held.
 */
void xsplice_cpu_online(unsigned int cpu);
void xsplice_cpu_offline(unsigned int cpu);
/* Takes part in a rendezvous if one is in progress. */
void xsplice_check(unsigned int cpu);
/* Whether an event's handler must return at once on this CPU. */
bool xsplice_hold(unsigned int cpu, enum xsplice_event event);
/* The machine-check handler on this CPU, which was not held, has finished. */
void xsplice_handled(unsigned int cpu);

void xsplice_init(unsigned int cpus);
int xsplice_upload(struct xsplice_text name, struct xsplice_text file);
int xsplice_get(struct xsplice_text name, struct xsplice_entry *entry);
unsigned int xsplice_count(void);
/* Lists payloads from `index` on, oldest first; returns their number. */
unsigned int xsplice_list(unsigned int index, struct xsplice_entry *entries,
                          unsigned int nr);
/* Starts an action; *pending is set if xsplice_run() must finish it. */
int xsplice_action(struct xsplice_text name, unsigned int action, bool nodeps,
                   unsigned int timeout, bool *pending);
/* Runs the prepared action: stops all CPUs and writes. */
void xsplice_run(void);
/* Stops all CPUs and has them load microcode. Only with CONFIG_MICROCODE_RUST. */
int xsplice_microcode(void);
/*
 * Prints a few lines about loaded payloads from *cursor on, and advances it;
 * returns whether there are more.
 */
bool xsplice_show(struct xsplice_cursor *cursor);

#endif /* LIVEPATCH_RUST_H */

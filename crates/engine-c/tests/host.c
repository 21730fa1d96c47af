/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/*
 * A small hypervisor in C: one CPU, and pages in which `target` is real code. It loads
 * the payload that is its argument, applies it, reverts it and unloads it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include "xsplice.h"

#define PAGE 0x1000
#define PAYLOAD (4 * PAGE)

/* The text, a page; the rest is for one payload. */
static uint8_t *pages;
static bool in_use;
static const uint8_t build_id[20] = {
    0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
    0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11, 0x11,
};
/* mov $1, %eax; ret */
static const uint8_t code[] = { 0xb8, 1, 0, 0, 0, 0xc3 };

#define CHECK(what) \
    do { if (!(what)) { fprintf(stderr, "%d: %s\n", __LINE__, #what); exit(1); } } while (0)
#define CONTEXT void *context __attribute__((unused))
#define TEXT (uint64_t)(uintptr_t)pages

static uint64_t lookup_symbol(CONTEXT, struct xsplice_bytes name)
{
    return name.len == 6 && !memcmp(name.data, "target", 6) ? TEXT : 0;
}
static uint32_t region(CONTEXT, uint64_t addr)
{
    return addr - TEXT < PAGE ? XSPLICE_REGION_TEXT : XSPLICE_REGION_OUTSIDE;
}
static bool read_bytes(CONTEXT, uint64_t addr, uint8_t *buf, size_t len)
{
    if (addr < TEXT || addr - TEXT > PAGE + PAYLOAD || len > TEXT + PAGE + PAYLOAD - addr)
        return false;
    memcpy(buf, (void *)(uintptr_t)addr, len);
    return true;
}
static uint64_t function_at(CONTEXT, uint64_t addr)
{
    return addr - TEXT < 32 ? TEXT : 0;
}
static const char *denied(CONTEXT, struct xsplice_range patched)
{
    return patched.start - TEXT >= 32 ? "only `target` is for patching" : NULL;
}
static bool allocate(CONTEXT, uint64_t size, struct xsplice_memory *memory)
{
    if (in_use || size > PAYLOAD)
        return false;
    in_use = true;
    *memory = (struct xsplice_memory){ TEXT + PAGE, pages + PAGE };
    return true;
}
static void free_memory(CONTEXT, struct xsplice_memory memory)
{
    CHECK(in_use && memory.base == TEXT + PAGE);
    in_use = false;
}
static int32_t register_payload(CONTEXT, struct xsplice_memory memory,
                                const struct xsplice_description *payload)
{
    CHECK(payload->name.len == 3 && payload->text.start == memory.base);
    return 0;
}
static int32_t protect(CONTEXT, struct xsplice_memory memory, struct xsplice_range range,
                       uint32_t protection)
{
    int how = PROT_READ | (protection == XSPLICE_PROTECT_TEXT ? PROT_EXEC : 0);
    CHECK(range.start >= memory.base && range.end > range.start);
    return mprotect((void *)(uintptr_t)range.start, range.end - range.start, how) ? -12 : 0;
}
static int32_t call(CONTEXT, struct xsplice_memory memory __attribute__((unused)),
                    uint32_t hook, uint64_t addr __attribute__((unused)),
                    struct xsplice_record *record __attribute__((unused)))
{
    fprintf(stderr, "hook %u\n", hook);
    return -95;
}
static bool rendezvous(CONTEXT, uint64_t timeout __attribute__((unused)),
                       void (*window)(void *), void *argument)
{
    window(argument);
    return true;
}
static int32_t open_text(CONTEXT, struct xsplice_range range, uint32_t access)
{
    CHECK(range.start == TEXT && access == XSPLICE_ACCESS_ALIAS);
    return 0;
}
static int32_t begin_writing(CONTEXT)
{
    return mprotect(pages, PAGE, PROT_READ | PROT_WRITE) ? -12 : 0;
}
static void write_text(CONTEXT, uint64_t addr, struct xsplice_bytes bytes)
{
    memcpy((void *)(uintptr_t)addr, bytes.data, bytes.len);
}
static void end_writing(CONTEXT)
{
    CHECK(!mprotect(pages, PAGE, PROT_READ | PROT_EXEC));
}
static void close_text(CONTEXT)
{
}
static uint64_t now(CONTEXT)
{
    return (uint64_t)clock();
}
static void log_text(CONTEXT, struct xsplice_bytes text)
{
    fwrite(text.data, 1, text.len, stdout);
}
static void fatal(CONTEXT, struct xsplice_bytes what)
{
    log_text(NULL, what);
    abort();
}

static int target(void)
{
    int (*function)(void) = (int (*)(void))(uintptr_t)pages;
    return function();
}

int main(int argc, char **argv)
{
    static uint8_t file[1 << 20];
    FILE *stream = argc == 2 ? fopen(argv[1], "rb") : NULL;
    CHECK(stream);
    struct xsplice_bytes payload = { file, fread(file, 1, sizeof(file), stream) };
    struct xsplice_bytes name = { (const uint8_t *)"fix", 3 };

    pages = mmap(NULL, PAGE + PAYLOAD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    memset(pages, 0xcc, PAGE);
    memcpy(pages, code, sizeof(code));
    CHECK(!mprotect(pages, PAGE, PROT_READ | PROT_EXEC));

    struct xsplice_host host = {
        .build_id = { build_id, sizeof(build_id) },
        .lookup_symbol = lookup_symbol, .region = region, .read = read_bytes,
        .function_at = function_at, .denied = denied, .allocate = allocate,
        .free = free_memory, .register_payload = register_payload, .protect = protect,
        .call = call, .rendezvous = rendezvous, .open_text = open_text,
        .begin_writing = begin_writing, .write_text = write_text, .end_writing = end_writing,
        .close_text = close_text, .now = now, .log = log_text,
    };
    /* A function is missing. */
    CHECK(!xsplice_engine_new(&host, XSPLICE_GUARD_BOTH));
    host.fatal = fatal;
    CHECK(!xsplice_engine_new(&host, 7));
    struct xsplice_engine *engine = xsplice_engine_new(&host, XSPLICE_GUARD_BOTH);
    CHECK(engine);

    struct xsplice_payload loaded;
    CHECK(target() == 1);
    CHECK(xsplice_upload(engine, name, payload) == 0);
    CHECK(xsplice_upload(engine, name, payload) == -17 /* EEXIST */);
    CHECK(target() == 1);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_APPLY, false, 0) == 0);
    CHECK(target() == 2);
    CHECK(xsplice_loaded(engine, 0, &loaded) && !xsplice_loaded(engine, 1, &loaded));
    CHECK(loaded.state == XSPLICE_STATE_APPLIED && loaded.result == 0);
    CHECK(loaded.base == TEXT + PAGE && !memcmp(loaded.name.data, "fix", 3));
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_UNLOAD, false, 0) == -22 /* EINVAL */);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_REVERT, false, 0) == 0);
    CHECK(target() == 1);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_UNLOAD, false, 0) == 0);
    CHECK(!in_use && !xsplice_loaded(engine, 0, &loaded));
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_APPLY, false, 0) == -2 /* ENOENT */);
    CHECK(xsplice_act(engine, name, 9, false, 0) == -95 /* EOPNOTSUPP */);
    xsplice_engine_free(engine);
    return 0;
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/*
 * The smallest hypervisor in C: one CPU, and real code that is always writable. It
 * loads the payload on its standard input, applies it, reverts it and unloads it.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "xsplice.h"

#define CHECK(what) \
    do { if (!(what)) { fprintf(stderr, "%d: %s\n", __LINE__, #what); exit(1); } } while (0)

/* A page of text, which is the function `target`, and memory for one payload. */
enum { PAGE = 0x1000, SIZE = 5 * PAGE };
static _Alignas(PAGE) uint8_t pages[SIZE] = { 0xb8, 1, 0, 0, 0, 0xc3 }; /* mov $1, %eax; ret */
static bool in_use;
static const uint8_t build_id[20] = { [0 ... 19] = 0x11 };

static uint64_t lookup_symbol(void *context, struct xsplice_bytes name)
{
    return name.len == 6 && !memcmp(name.data, "target", 6) ? (uint64_t)pages : 0;
}
static uint64_t function_at(void *context, uint64_t addr)
{
    return addr - (uint64_t)pages < PAGE ? (uint64_t)pages : 0;
}
static uint32_t region(void *context, uint64_t addr)
{
    return function_at(context, addr) ? XSPLICE_REGION_TEXT : XSPLICE_REGION_OUTSIDE;
}
static const char *denied(void *context, struct xsplice_range patched)
{
    return NULL; /* With one CPU, nothing runs while text is written. */
}
static bool read_bytes(void *context, uint64_t addr, uint8_t *buf, size_t len)
{
    uint64_t offset = addr - (uint64_t)pages;
    if (offset > SIZE || len > SIZE - offset)
        return false;
    memcpy(buf, pages + offset, len);
    return true;
}
static bool allocate(void *context, uint64_t size, struct xsplice_memory *memory)
{
    if (in_use || size > SIZE - PAGE)
        return false;
    in_use = true;
    *memory = (struct xsplice_memory){ (uint64_t)pages + PAGE, pages + PAGE };
    return true;
}
static void free_memory(void *context, struct xsplice_memory memory)
{
    in_use = false;
}
static int32_t call(void *context, struct xsplice_memory memory, uint32_t hook,
                    uint64_t addr, struct xsplice_record *record)
{
    CHECK(!"no payload here has hooks");
}
static bool rendezvous(void *context, uint64_t timeout, void (*window)(void *), void *argument)
{
    window(argument);
    return true;
}
static void write_text(void *context, uint64_t addr, struct xsplice_bytes bytes)
{
    memcpy((void *)addr, bytes.data, bytes.len);
}
static void log_text(void *context, struct xsplice_bytes text)
{
    fwrite(text.data, 1, text.len, stdout);
}

static struct xsplice_host host = {
    .build_id = { build_id, sizeof(build_id) }, .lookup_symbol = lookup_symbol,
    .function_at = function_at, .region = region, .denied = denied, .read = read_bytes,
    .allocate = allocate, .free = free_memory, .call = call, .rendezvous = rendezvous,
    .write_text = write_text, .log = log_text,
};

int main(void)
{
    static uint8_t file[1 << 16];
    struct xsplice_bytes payload = { file, fread(file, 1, sizeof(file), stdin) };
    struct xsplice_bytes name = { (const uint8_t *)"fix", 3 };
    CHECK(!mprotect(pages, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC));
    int (*target)(void) = (int (*)(void))pages;
    struct xsplice_engine *engine = xsplice_engine_new(&host, XSPLICE_GUARD_BOTH);

    CHECK(engine && xsplice_upload(engine, name, payload) == 0 && target() == 1);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_APPLY, false, 0) == 0 && target() == 2);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_REVERT, false, 0) == 0 && target() == 1);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_UNLOAD, false, 0) == 0 && !in_use);
    xsplice_engine_free(engine);
    return 0;
}

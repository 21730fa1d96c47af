/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/*
 * The example's hypervisor with all optional functions: its text and the payload's are
 * only writable when the engine may write. Checks the results of each call and that
 * the engine calls the functions as the header says.
 */

#define main example
#include "../examples/host.c"
#undef main

static unsigned int opened, begun, ended, closed, registered, protected_pages;

static int32_t set_protection(uint64_t start, uint64_t end, int protection)
{
    return mprotect((void *)start, end - start, protection) ? -12 /* ENOMEM */ : 0;
}
static int32_t open_text(void *context, struct xsplice_range range, uint32_t access)
{
    CHECK(range.start == (uint64_t)pages && access == XSPLICE_ACCESS_ALIAS);
    opened++;
    return 0;
}
static int32_t begin_writing(void *context)
{
    begun++;
    return set_protection((uint64_t)pages, (uint64_t)pages + PAGE, PROT_READ | PROT_WRITE);
}
static void end_writing(void *context)
{
    ended++;
    CHECK(!set_protection((uint64_t)pages, (uint64_t)pages + PAGE, PROT_READ | PROT_EXEC));
}
static void close_text(void *context)
{
    closed++;
}
static int32_t register_payload(void *context, struct xsplice_memory memory,
                                const struct xsplice_description *payload)
{
    CHECK(memory.base == (uint64_t)pages + PAGE && payload->text.start == memory.base);
    registered++;
    return 0;
}
static int32_t protect(void *context, struct xsplice_memory memory,
                       struct xsplice_range range, uint32_t protection)
{
    CHECK(range.start >= memory.base && range.end > range.start);
    protected_pages += (range.end - range.start) / PAGE;
    return set_protection(range.start, range.end,
                          protection == XSPLICE_PROTECT_TEXT ? PROT_READ | PROT_EXEC : PROT_READ);
}
static uint64_t now(void *context)
{
    static uint64_t time;
    return time++;
}
static void fatal(void *context, struct xsplice_bytes what)
{
    log_text(NULL, what);
    abort();
}

int main(int argc, char **argv)
{
    CHECK(argc == 3 && example() == 0);

    host.log = NULL;
    CHECK(!xsplice_engine_new(&host, XSPLICE_GUARD_BOTH));
    host.log = log_text;
    CHECK(!xsplice_engine_new(&host, 7));

    static uint8_t file[1 << 16];
    FILE *stream = fopen(argv[1], "rb");
    struct xsplice_bytes payload = { file, fread(file, 1, sizeof(file), stream) };
    struct xsplice_bytes name = { (const uint8_t *)"fix", 3 };
    struct xsplice_engine *engine = xsplice_engine_new(&host, XSPLICE_GUARD_BOTH);
    CHECK(xsplice_upload(engine, name, payload) == -95 /* EOPNOTSUPP: it has a table */);
    CHECK(!in_use);
    host.register_payload = register_payload;
    xsplice_engine_free(engine);
    engine = xsplice_engine_new(&host, XSPLICE_GUARD_BOTH);
    CHECK(xsplice_upload(engine, name, payload) == 0 && registered == 1);
    xsplice_engine_free(engine);

    host.open_text = open_text;
    host.begin_writing = begin_writing;
    host.end_writing = end_writing;
    host.close_text = close_text;
    host.protect = protect;
    host.now = now;
    host.fatal = fatal;
    CHECK(!set_protection((uint64_t)pages, (uint64_t)pages + PAGE, PROT_READ | PROT_EXEC));
    engine = xsplice_engine_new(&host, XSPLICE_GUARD_BOTH);
    CHECK(engine);

    stream = fopen(argv[2], "rb");
    payload.len = fread(file, 1, sizeof(file), stream);
    int (*target)(void) = (int (*)(void))pages;
    struct xsplice_payload loaded;
    CHECK(xsplice_upload(engine, name, payload) == 0);
    CHECK(protected_pages == 2);
    CHECK(xsplice_upload(engine, name, payload) == -17 /* EEXIST */);
    CHECK(opened == 0 && target() == 1);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_APPLY, false, 0) == 0);
    CHECK(target() == 2);
    CHECK(xsplice_loaded(engine, 0, &loaded) && !xsplice_loaded(engine, 1, &loaded));
    CHECK(loaded.state == XSPLICE_STATE_APPLIED && loaded.result == 0);
    CHECK(loaded.base == (uint64_t)pages + PAGE && !memcmp(loaded.name.data, "fix", 3));
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_UNLOAD, false, 0) == -22 /* EINVAL */);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_REVERT, false, 0) == 0);
    CHECK(target() == 1);
    CHECK(opened == 2 && begun == 2 && ended == 2 && closed == 2);
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_UNLOAD, false, 0) == 0);
    CHECK(!in_use && !xsplice_loaded(engine, 0, &loaded));
    CHECK(xsplice_act(engine, name, XSPLICE_ACTION_APPLY, false, 0) == -2 /* ENOENT */);
    CHECK(xsplice_act(engine, name, 9, false, 0) == -95 /* EOPNOTSUPP */);
    xsplice_engine_free(engine);
    return 0;
}

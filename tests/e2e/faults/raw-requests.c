/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Makes live-patch hypercalls that no tool makes, in dom0: raw-requests PAYLOAD. For
 * each it prints a description, the error number, and whether the version of the
 * payload list has changed. PAYLOAD is unloaded at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>

#include <xen/sysctl.h>

/* The kernel driver's interface, as in xen-sys/Linux/privcmd.h. */
struct hypercall {
    uint64_t op, argument[5];
};
#define HYPERCALL _IOC(_IOC_NONE, 'P', 0, sizeof(struct hypercall))

/* From 4.19 on it is flags, of which there is one. */
#ifdef LIVEPATCH_FLAG_FORCE
#define PADDING flags
#else
#define PADDING pad
#endif

#define NAME "raw-requests"
#define MOST_BYTES (512 << 10)
#define TRIES 200

/* Memory that the hypervisor reads and writes: pages that are never moved. */
static struct memory {
    struct xen_sysctl request, other;
    char name[4096];
    xen_livepatch_status_t status[8];
    char names[4096], metadata[4096];
    uint32_t sizes[8], metadata_sizes[8];
    char payload[MOST_BYTES];
} *memory;

static struct xen_sysctl_livepatch_op *op_of(struct xen_sysctl *sysctl)
{
    return &sysctl->u.livepatch;
}

static int driver;
static size_t payload_size;
static uint32_t last_version;

static int call(struct xen_sysctl *sysctl)
{
    struct hypercall hypercall = {
        .op = __HYPERVISOR_sysctl,
        .argument = { (uintptr_t)sysctl },
    };

    return ioctl(driver, HYPERCALL, &hypercall) < 0 ? errno : 0;
}

static struct xen_sysctl_livepatch_op *begin(struct xen_sysctl *sysctl,
                                             uint32_t cmd)
{
    memset(sysctl, 0, sizeof(*sysctl));
    sysctl->cmd = XEN_SYSCTL_livepatch_op;
    sysctl->interface_version = XEN_SYSCTL_INTERFACE_VERSION;
    op_of(sysctl)->cmd = cmd;

    return op_of(sysctl);
}

static void set_name(struct xen_livepatch_name *name)
{
    strcpy(memory->name, NAME);
    name->size = sizeof(NAME);
    set_xen_guest_handle(name->name, memory->name);
}

/* Gets the payload's status, or an error number. */
static int status(xen_livepatch_status_t *status)
{
    struct xen_sysctl_livepatch_op *op =
        begin(&memory->other, XEN_SYSCTL_LIVEPATCH_GET);
    int error;

    set_name(&op->u.get.name);
    error = call(&memory->other);
    *status = op->u.get.status;

    return error;
}

static uint32_t version(void)
{
    struct xen_sysctl_livepatch_op *op =
        begin(&memory->other, XEN_SYSCTL_LIVEPATCH_LIST);

    if (call(&memory->other)) {
        perror("list");
        exit(1);
    }

    return op->u.list.version;
}

static void report(const char *what, int error)
{
    uint32_t now = version();

    printf("%s\t%d\t%s\n", what, error, now == last_version ? "same" : "changed");
    fflush(stdout);
    last_version = now;
}

/* A valid request. */
static struct xen_sysctl_livepatch_op *good(uint32_t cmd)
{
    struct xen_sysctl_livepatch_op *op = begin(&memory->request, cmd);

    switch (cmd) {
    case XEN_SYSCTL_LIVEPATCH_UPLOAD:
        set_name(&op->u.upload.name);
        op->u.upload.size = payload_size;
        set_xen_guest_handle(op->u.upload.payload, (uint8_t *)memory->payload);
        break;

    case XEN_SYSCTL_LIVEPATCH_GET:
        set_name(&op->u.get.name);
        break;

    case XEN_SYSCTL_LIVEPATCH_LIST:
        op->u.list.nr = 8;
        /* They count from 4.21 on. */
        op->u.list.name_total_size = sizeof(memory->names);
        op->u.list.metadata_total_size = sizeof(memory->metadata);
        set_xen_guest_handle(op->u.list.status, memory->status);
        set_xen_guest_handle(op->u.list.name, memory->names);
        set_xen_guest_handle(op->u.list.len, memory->sizes);
        set_xen_guest_handle(op->u.list.metadata, memory->metadata);
        set_xen_guest_handle(op->u.list.metadata_len, memory->metadata_sizes);
        break;

    case XEN_SYSCTL_LIVEPATCH_ACTION:
        set_name(&op->u.action.name);
        op->u.action.cmd = LIVEPATCH_ACTION_REVERT;
        break;
    }

    return op;
}

/* Makes a request that is valid except for `fault`. */
#define TRY(what, command, fault)                                             \
    do {                                                                      \
        struct xen_sysctl_livepatch_op *op =                                  \
            good(XEN_SYSCTL_LIVEPATCH_ ## command);                           \
        fault;                                                                \
        (void)op;                                                             \
        report(what, call(&memory->request));                                 \
    } while (0)

/* Runs an action with a rendezvous; retries while it times out. */
static void act(const char *what, uint32_t cmd)
{
    const struct timespec moment = { .tv_nsec = 20000000 };
    int error = EBUSY, tries;

    for (tries = 0; error == EBUSY && tries < TRIES; tries++) {
        xen_livepatch_status_t now = { };
        struct xen_sysctl_livepatch_op *op = good(XEN_SYSCTL_LIVEPATCH_ACTION);

        op->u.action.cmd = cmd;
        op->u.action.timeout = 2000000000;
        error = call(&memory->request);
        do
            nanosleep(&moment, NULL);
        while (!error && !(error = status(&now)) && now.rc == -EAGAIN);
        error = error ? error : -now.rc;
    }
    report(what, error);
}

static void requests(void)
{
    TRY("padding", LIST, op->PADDING = 2);
    TRY("unknown operation", LIST, op->cmd = 99);

    TRY("upload, name without size", UPLOAD, op->u.upload.name.size = 0);
    TRY("upload, name too long", UPLOAD, op->u.upload.name.size = 129);
    TRY("upload, padding of the name", UPLOAD, op->u.upload.name.pad[2] = 1);
    TRY("upload, name without end", UPLOAD, op->u.upload.name.size--);
    TRY("upload, unreadable name", UPLOAD,
        set_xen_guest_handle(op->u.upload.name.name, (char *)64));
    TRY("upload, no file", UPLOAD, op->u.upload.size = 0);
    TRY("upload, file too large", UPLOAD, op->u.upload.size = (2 << 20) + 1);
    TRY("upload, unreadable file", UPLOAD,
        set_xen_guest_handle(op->u.upload.payload, (uint8_t *)64));
    TRY("upload, no payload", UPLOAD,
        set_xen_guest_handle(op->u.upload.payload, (uint8_t *)memory->names));
    TRY("get, before the upload", GET, );
    TRY("action, before the upload", ACTION, );
    TRY("unknown action, before the upload", ACTION, op->u.action.cmd = 99);
    TRY("upload", UPLOAD, );
    TRY("upload, name taken", UPLOAD, );
    TRY("upload, name taken, unreadable file", UPLOAD,
        set_xen_guest_handle(op->u.upload.payload, (uint8_t *)64));

    TRY("get", GET, );
    TRY("get, unreadable name", GET,
        set_xen_guest_handle(op->u.get.name.name, (char *)64));
    TRY("get, name without end", GET, op->u.get.name.size--);

    TRY("list", LIST, );
    TRY("list, padding", LIST, op->u.list.pad = 1);
    TRY("list, too many", LIST, op->u.list.nr = 1025);
    TRY("list, from the end on", LIST, op->u.list.idx = 1);
    TRY("list, unwritable status", LIST,
        set_xen_guest_handle(op->u.list.status, (xen_livepatch_status_t *)64));
    TRY("list, unwritable names", LIST,
        set_xen_guest_handle(op->u.list.name, (char *)64));
    TRY("list, no room for names", LIST,
        op->u.list.name_total_size = sizeof(NAME) - 1);
    TRY("list, no room for metadata", LIST,
        op->u.list.metadata_total_size = 1);

    TRY("action, padding", ACTION, op->u.action.pad = 1);
    TRY("action, unknown flags", ACTION, op->u.action.flags = 2);
    TRY("action, unreadable name", ACTION,
        set_xen_guest_handle(op->u.action.name.name, (char *)64));
    TRY("action, none", ACTION, op->u.action.cmd = 0);
    TRY("unknown action", ACTION, op->u.action.cmd = 99);
    TRY("revert, not applied", ACTION, );
    act("apply", LIVEPATCH_ACTION_APPLY);
    TRY("apply, applied", ACTION, op->u.action.cmd = LIVEPATCH_ACTION_APPLY);
    TRY("replace, applied", ACTION, op->u.action.cmd = LIVEPATCH_ACTION_REPLACE);
    TRY("unload, applied", ACTION, op->u.action.cmd = LIVEPATCH_ACTION_UNLOAD);
    act("revert", LIVEPATCH_ACTION_REVERT);
    TRY("unload", ACTION, op->u.action.cmd = LIVEPATCH_ACTION_UNLOAD);
    TRY("unload, unloaded", ACTION, op->u.action.cmd = LIVEPATCH_ACTION_UNLOAD);
}

int main(int argc, char **argv)
{
    int pages = open("/dev/xen/hypercall", O_RDWR);
    FILE *file = argc == 2 ? fopen(argv[1], "r") : NULL;

    driver = open("/dev/xen/privcmd", O_RDWR);
    memory = mmap(NULL, sizeof(*memory), PROT_READ | PROT_WRITE, MAP_SHARED,
                  pages, 0);
    if (driver < 0 || memory == MAP_FAILED || !file) {
        perror("raw-requests PAYLOAD");
        return 1;
    }
    payload_size = fread(memory->payload, 1, sizeof(memory->payload), file);
    last_version = version();
    requests();

    return 0;
}

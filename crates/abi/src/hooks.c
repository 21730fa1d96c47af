/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hooks that the generator adds to a payload: they change data in place
 * (`xsplice build --patch-data`) and prepare new per-CPU variables. The file is
 * compiled as the tree compiles its common code, with a definition of what is needed
 * of it; whoever writes the payload fills the tables that it declares.
 *
 * Load and unload hooks run with all CPUs in the rendezvous, interrupts off, and
 * read-only pages writable.
 */
#include <xen/cpumask.h>
#include <xen/errno.h>
#include <xen/lib.h>
#include <xen/percpu.h>
#include <xen/string.h>
#include <xen/types.h>
#include <xen/livepatch.h>
#include <xen/livepatch_payload.h>

#ifdef XSPLICE_PATCHES_DATA

/* One piece of a variable or constant. */
struct patched_data {
    char *place;        /* In the hypervisor. */
    const char *was;    /* What is there after boot. */
    const char *now;    /* What the patched source has there. */
    const char *name;
    uint32_t size;      /* In bytes. */
    uint32_t variable;  /* Whether the hypervisor may have written there. */
};

extern const struct patched_data xsplice_patched_data[];
extern const struct patched_data xsplice_patched_data_end[];

#define for_each_patched_data(d) \
    for ( d = xsplice_patched_data; d < xsplice_patched_data_end; d++ )

static void replace_data(const struct patched_data *d, const char *from,
                         const char *to)
{
    if ( !memcmp(d->place, from, d->size) )
        memcpy(d->place, to, d->size);
    else
        printk(XENLOG_WARNING
               "livepatch: %s was written meanwhile and keeps its value\n",
               d->name);
}

static void cf_check put_new_data(void)
{
    const struct patched_data *d;

    for_each_patched_data ( d )
        replace_data(d, d->was, d->now);
}
LIVEPATCH_LOAD_HOOK(put_new_data);

static void cf_check put_old_data(void)
{
    const struct patched_data *d;

    for_each_patched_data ( d )
        replace_data(d, d->now, d->was);
}
LIVEPATCH_UNLOAD_HOOK(put_old_data);

/* A variable that the hypervisor has written may have any meaning by now. */
static inline int check_data(const char *payload)
{
    const struct patched_data *d;
    int rc = 0;

    for_each_patched_data ( d )
        if ( d->variable && memcmp(d->place, d->was, d->size) )
        {
            printk(XENLOG_ERR
                   "livepatch: %s: %s no longer has its initial value\n",
                   payload, d->name);
            rc = -EINVAL;
        }

    return rc;
}

#else

static inline int check_data(const char *payload)
{
    return 0;
}

#endif /* XSPLICE_PATCHES_DATA */

#ifdef XSPLICE_PER_CPU

/* A new variable, in padding of the per-CPU areas. */
struct per_cpu_variable {
    char *place;        /* In the area of the first CPU. */
    unsigned long size; /* In bytes. */
};

extern const struct per_cpu_variable xsplice_per_cpu[];
extern const struct per_cpu_variable xsplice_per_cpu_end[];

/* A bit for each eight bytes of padding that a payload has: all payloads'... */
extern unsigned long xsplice_per_cpu_claims[];
/* ... and this one's. */
extern const unsigned long xsplice_per_cpu_mine[];
extern const unsigned long xsplice_per_cpu_mine_end[];

#ifndef INVALID_PERCPU_AREA
#ifdef CONFIG_X86
#define INVALID_PERCPU_AREA (0x8000000000000000UL - (unsigned long)__per_cpu_start)
#else
#define INVALID_PERCPU_AREA (-(unsigned long)__per_cpu_start)
#endif
#endif

#define for_each_claim(i) \
    for ( i = 0; &xsplice_per_cpu_mine[i] < xsplice_per_cpu_mine_end; i++ )

/* The areas of CPUs that come online later are zero. */
static void cf_check claim_per_cpu(void)
{
    const struct per_cpu_variable *v;
    unsigned int cpu, i;

    for_each_claim ( i )
        xsplice_per_cpu_claims[i] |= xsplice_per_cpu_mine[i];

    for ( cpu = 0; cpu < nr_cpu_ids; cpu++ )
        if ( __per_cpu_offset[cpu] != INVALID_PERCPU_AREA )
            for ( v = xsplice_per_cpu; v < xsplice_per_cpu_end; v++ )
                memset(v->place + __per_cpu_offset[cpu], 0, v->size);
}
LIVEPATCH_LOAD_HOOK(claim_per_cpu);

static void cf_check release_per_cpu(void)
{
    unsigned int i;

    for_each_claim ( i )
        xsplice_per_cpu_claims[i] &= ~xsplice_per_cpu_mine[i];
}
LIVEPATCH_UNLOAD_HOOK(release_per_cpu);

/* Not EBUSY: trying again does not help. */
static inline int check_per_cpu(const char *payload)
{
    unsigned int i;

    for_each_claim ( i )
        if ( xsplice_per_cpu_claims[i] & xsplice_per_cpu_mine[i] )
        {
            printk(XENLOG_ERR
                   "livepatch: %s: another payload has the place of its per-CPU variables\n",
                   payload);
            return -EADDRINUSE;
        }

    return 0;
}

#else

static inline int check_per_cpu(const char *payload)
{
    return 0;
}

#endif /* XSPLICE_PER_CPU */

#if defined(XSPLICE_PATCHES_VARIABLES) || defined(XSPLICE_PER_CPU)
static int cf_check check(livepatch_payload_t *payload)
{
    int rc = check_data(payload->name);

    return rc ?: check_per_cpu(payload->name);
}
LIVEPATCH_PREAPPLY_HOOK(check);
#endif

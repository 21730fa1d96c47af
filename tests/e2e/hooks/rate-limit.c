/* SPDX-License-Identifier: GPL-2.0-only */
#include <xen/lib.h>
#include <public/sysctl.h>
#include <xen/livepatch_payload.h>

extern int sched_ratelimit_us;

/* Keep a value set on the command line. */
static void change(int from, int to)
{
    if ( sched_ratelimit_us != from )
        return;
    sched_ratelimit_us = to;
    printk("hooks: the rate limit goes from %d to %d us\n", from, to);
}

static void applied(livepatch_payload_t *payload)
{
    change(1000, 2000);
}
LIVEPATCH_POSTAPPLY_HOOK(applied);

static void reverted(livepatch_payload_t *payload)
{
    change(2000, 1000);
}
LIVEPATCH_POSTREVERT_HOOK(reverted);

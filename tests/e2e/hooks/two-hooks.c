/* SPDX-License-Identifier: GPL-2.0-only */
#include <xen/lib.h>
#include <xen/livepatch_payload.h>

static void loaded(void)
{
    printk("hooks: loaded\n");
}
LIVEPATCH_LOAD_HOOK(loaded);

static void applied(livepatch_payload_t *payload)
{
    printk("hooks: applied %s\n", payload->name);
}
LIVEPATCH_POSTAPPLY_HOOK(applied);

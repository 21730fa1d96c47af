/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* grant() without the wrap-around, and a count of those who tried. */

#include "payload.h"

static unsigned long attempts;
static int ready;

__attribute__((used)) long new_grant(unsigned long offset, unsigned long size)
{
    if ( !ready )
        return -2;

    if ( offset > 4096 || size > 4096 - offset )
    {
        if ( offset + size < size )
            __atomic_fetch_add(&attempts, 1, __ATOMIC_RELAXED);
        refuse();
        return -1;
    }

    return 0;
}

__attribute__((used)) static void load(void)
{
    ready = 1;
}

#ifdef SIZE_new_grant
REPLACES(grant, new_grant);
#endif
HOOK(load, load);

/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* Everything in one payload, for replace. */

#include "payload.h"

__attribute__((used)) unsigned long cumulative_version(void)
{
    return 12;
}

__attribute__((used)) long cumulative_grant(unsigned long offset, unsigned long size)
{
    unsigned long end;

    if ( __builtin_add_overflow(offset, size, &end) || end > 4096 )
    {
        refuse();
        return -1;
    }

    return 0;
}

#ifdef SIZE_cumulative_grant
REPLACES(version, cumulative_version);
REPLACES(grant, cumulative_grant);
#endif

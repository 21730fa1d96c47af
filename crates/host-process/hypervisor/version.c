/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* Another version, on top of the fix of grant(). It can be vetoed. */

#include "payload.h"

__attribute__((used)) unsigned long new_version(void)
{
    return 11;
}

__attribute__((used)) static int preapply(struct payload *payload)
{
    return payload->state == 1 && payload->result == 0 ? 0 : -22;
}

__attribute__((used)) static int postapply_calls;

__attribute__((used)) static void postapply(struct payload *payload)
{
    if ( payload->state == 2 )
        postapply_calls++;
}

#ifdef SIZE_new_version
REPLACES(version, new_version);
#endif
#ifdef HOOKS
HOOK(preapply, preapply);
HOOK(postapply, postapply);
#endif

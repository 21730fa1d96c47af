/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What differs between versions of Xen, from 4.17 on.
 *
 * Each function here is what the shim needs of all of them; its #if says from which
 * version on Xen has it in another form. The makefile passes the version.
 */
#ifndef LIVEPATCH_XEN_H
#define LIVEPATCH_XEN_H

#include <xen/types.h>
#include <xen/version.h>
#include <xen/virtual_region.h>

#include <public/sysctl.h>

#include "livepatch-rust.h"

#if XEN_MINOR < 17
#error "the live-patch core is for Xen 4.17 and later"
#endif

static inline int get_build_id(const void **id, unsigned int *len)
{
#if XEN_MINOR >= 21
    *id = xen_build_id;
    *len = xen_build_id_len;

    return *len ? 0 : -ENODATA;
#else
    return xen_build_id(id, len);
#endif
}

static inline void set_bug_frames(struct virtual_region *region,
                                  unsigned int kind, struct xsplice_range frames)
{
    const struct bug_frame *start = pointer(frames.start),
                           *end = pointer(frames.end);

#if XEN_MINOR >= 19
    region->frame[kind].start = start;
    region->frame[kind].stop = end;
#else
    region->frame[kind].bugs = start;
    region->frame[kind].n_bugs = end - start;
#endif
}

/*
 * Whether an operation has only flags that this version of Xen knows.
 * LIVEPATCH_FLAG_FORCE skips checks that can be skipped: there are none.
 */
static inline bool flags_known(const struct xen_sysctl_livepatch_op *op)
{
#if XEN_MINOR >= 19
    return !(op->flags & ~LIVEPATCH_FLAGS_MASK);
#else
    return !op->pad;
#endif
}

/* The sizes of the buffers for names and metadata, as far as they are given. */
static inline void list_room(const struct xen_sysctl_livepatch_list *op,
                             uint32_t *names, uint32_t *metadata)
{
#if XEN_MINOR >= 21
    *names = op->name_total_size;
    *metadata = op->metadata_total_size;
#else
    *names = *metadata = UINT32_MAX;
#endif
}

#endif /* LIVEPATCH_XEN_H */

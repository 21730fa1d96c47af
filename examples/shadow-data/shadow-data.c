/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Shadow data: memory that a payload attaches to objects of the hypervisor whose
 * structures it cannot change. Give this file to `xsplice build --hooks`, and
 * shadow-data.patch, which has the declarations, as the first `--patch`.
 *
 * Callers of get and free have to see to it that the data is not freed while it is
 * used, as they do for the object itself.
 */
#include <xen/spinlock.h>
#include <xen/xmalloc.h>
#include <xen/livepatch.h>
#include <xen/livepatch_payload.h>
#include <xen/xsplice_shadow.h>

struct shadow {
    struct shadow *next;
    const void *object;
    unsigned int id;
    unsigned long data[];
};

#define BUCKETS 256

static struct shadow *buckets[BUCKETS];
static DEFINE_SPINLOCK(shadow_lock);

static struct shadow **find(const void *object, unsigned int id)
{
    /* Objects are allocated in units of 16 bytes at least. */
    struct shadow **at = &buckets[(((unsigned long)object >> 4) + id) % BUCKETS];

    while ( *at && ((*at)->object != object || (*at)->id != id) )
        at = &(*at)->next;

    return at;
}

void *xsplice_shadow_get(const void *object, unsigned int id)
{
    struct shadow *found;
    unsigned long flags;

    spin_lock_irqsave(&shadow_lock, flags);
    found = *find(object, id);
    spin_unlock_irqrestore(&shadow_lock, flags);

    return found ? found->data : NULL;
}

void *xsplice_shadow_attach(const void *object, unsigned int id, size_t size)
{
    struct shadow *new, **at;
    void *data = xsplice_shadow_get(object, id);
    unsigned long flags;

    if ( data )
        return data;

    new = _xzalloc(sizeof(*new) + size, sizeof(new->data[0]));
    if ( !new )
        return NULL;
    new->object = object;
    new->id = id;

    spin_lock_irqsave(&shadow_lock, flags);
    at = find(object, id);
    if ( !*at )
    {
        *at = new;
        new = NULL;
    }
    data = (*at)->data;
    spin_unlock_irqrestore(&shadow_lock, flags);

    /* Another CPU was faster. */
    xfree(new);

    return data;
}

void xsplice_shadow_free(const void *object, unsigned int id)
{
    struct shadow *found, **at;
    unsigned long flags;

    spin_lock_irqsave(&shadow_lock, flags);
    at = find(object, id);
    found = *at;
    if ( found )
        *at = found->next;
    spin_unlock_irqrestore(&shadow_lock, flags);

    xfree(found);
}

/* All CPUs are in the rendezvous, and nothing uses the payload's code any more. */
static void cf_check free_all(void)
{
    unsigned int i;

    for ( i = 0; i < BUCKETS; i++ )
        while ( buckets[i] )
        {
            struct shadow *first = buckets[i];

            buckets[i] = first->next;
            xfree(first);
        }
}
LIVEPATCH_UNLOAD_HOOK(free_all);

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the shim needs of ARM64 and ARM32: how code is changed, and caches. Included
 * once, by livepatch-rust.c.
 *
 * Code is written as data. It reaches an instruction cache only after it was cleaned
 * from the data cache to the point of unification, the instruction caches of all CPUs
 * were invalidated, and each CPU that runs it has had a context synchronisation event.
 */
#ifndef LIVEPATCH_ARCH_H
#define LIVEPATCH_ARCH_H

#include <asm/alternative.h>
#include <asm/cpufeature.h>
#include <asm/page.h>
#include <asm/system.h>

/* Memory. */

static inline bool is_vmapped(const void *data)
{
    unsigned long addr = (unsigned long)data;

    return addr >= VMAP_VIRT_START && addr - VMAP_VIRT_START < VMAP_VIRT_SIZE;
}

static void __init init_payload_area(void)
{
    vm_init_type(VMAP_XEN, (void *)LIVEPATCH_VMAP_START,
                 (void *)(LIVEPATCH_VMAP_START + LIVEPATCH_VMAP_SIZE));
    /* As with Xen's own core, for alternatives of payloads. */
    cpus_set_cap(LIVEPATCH_FEATURE);
}

/* Tables of payloads. */

static inline int patch_alternatives(struct xsplice_range table)
{
    struct alt_instr *start = pointer(table.start), *end = pointer(table.end);

    return start == end ? 0 : apply_alternatives(start, end);
}

static inline int patch_call_sites(struct xsplice_range table)
{
    return table.start == table.end ? 0 : -EOPNOTSUPP;
}

/* ARM has no exception table; the engine refuses payloads that have one. */
static inline void set_exceptions(struct virtual_region *region,
                                  struct xsplice_range table)
{
}

/*
 * Makes all code of a payload visible to the instruction caches of all CPUs, not only
 * the functions that are jumped to: hooks and helpers too, and what was there before.
 */
static void code_is_written(const void *code, size_t size)
{
    clean_dcache_va_range(code, size);
    invalidate_icache();
}

/* The hypervisor. */

/* From the linker script; Xen has no header for them. */
extern char __init_begin[], __init_end[];

/* The number of processor features, for those who read the hypervisor's file. */
const uint16_t xsplice_features = ARM_NCAPS;

/* What is freed after boot is between initialised data and the rest. */
struct xsplice_image xsplice_image(void)
{
    return (struct xsplice_image){
        .text = between(_stext, _etext),
        .init = between(__init_begin, __init_end),
        .read_only = between(_srodata, __init_begin),
        .data = between(__init_end, _end),
        .features = xsplice_features,
        .call_sites = false,
        .always = 0,
        .landing_pads = false,
    };
}

/* CPUs. */

/* SError is masked too: its handler could run code that is half written. */
void xsplice_mask(void)
{
    local_irq_save(this_cpu(irq_flags));
    local_abort_disable();
}

void xsplice_unmask(void)
{
    local_abort_enable();
    local_irq_restore(this_cpu(irq_flags));
}

void xsplice_synchronise(void)
{
    isb();
}

/* No event is held here: what cannot be masked does not return. */
void xsplice_replay(enum xsplice_event event)
{
    ASSERT_UNREACHABLE();
}

/* Text. */

/*
 * The hypervisor's text cannot be made writable: what is writable is not executable
 * (SCTLR_EL2.WXN, HSCTLR.WXN). It is written through a second mapping of its pages.
 */
static void *text_alias;
static uint64_t text_distance;

/* The mapping that hooks know, of everything from _start on, while they can run. */
void *vmap_of_xen_text;

/* The page at `addr`, in the text or in a payload; others are not written. */
static mfn_t page_at(uint64_t addr)
{
    if ( contains(xsplice_image().text, addr, 1) || find_memory(addr, 1) )
        return _mfn(__virt_to_mfn(addr));

    return _mfn(__virt_to_mfn((vaddr_t)_stext));
}

static void *map_writable(uint64_t start, uint64_t end)
{
    unsigned int i, pages = PFN_UP(end) - PFN_DOWN(start);
    mfn_t *mfns = xmalloc_array(mfn_t, pages);
    void *alias;

    if ( !mfns )
        return NULL;

    for ( i = 0; i < pages; i++ )
        mfns[i] = page_at((start & PAGE_MASK) + i * PAGE_SIZE);
    alias = vmap(mfns, pages);
    xfree(mfns);

    return alias;
}

/* Text and data up to what is freed after boot, in the order of their addresses. */
static void *map_hypervisor(void)
{
    mfn_t first = _mfn(__virt_to_mfn((vaddr_t)_start));

    return __vmap(&first, PFN_UP(__init_begin - _start), 1, 1,
                  PAGE_HYPERVISOR, VMAP_DEFAULT);
}

int xsplice_text_open(struct xsplice_range range, bool hooks,
                      uint64_t *distance)
{
    uint64_t start = range.start & PAGE_MASK, addr;

    *distance = 0;
    if ( hooks )
    {
        vmap_of_xen_text = map_hypervisor();
        if ( !vmap_of_xen_text )
            return -ENOMEM;
    }
    if ( range.start == range.end )
        return 0;

    text_alias = map_writable(range.start, range.end);
    if ( !text_alias )
    {
        xsplice_text_close();
        return -ENOMEM;
    }

    text_distance = *distance = address(text_alias) - start;
    /* Load the TLB: no page walks in the window. */
    for ( addr = start; addr < range.end; addr += PAGE_SIZE )
        (void)ACCESS_ONCE(*(const char *)pointer(addr + *distance));

    return 0;
}

int xsplice_text_begin(void)
{
    /* The code of hooks may have been written by another CPU. */
    isb();

    return 0;
}

void xsplice_text_write(uint64_t addr, const void *bytes, size_t len)
{
    memcpy(pointer(addr), bytes, len);
    clean_dcache_va_range(pointer(addr), len);
}

void xsplice_text_end(void)
{
    /* On all CPUs; each has an ISB before it resumes, see xsplice_synchronise(). */
    invalidate_icache();
}

void xsplice_text_close(void)
{
    if ( text_alias )
        vunmap(text_alias);
    if ( vmap_of_xen_text )
        vunmap(vmap_of_xen_text);
    text_alias = vmap_of_xen_text = NULL;
}

/* The text that a payload has changed. */
static struct xsplice_range changed_by(const struct payload *payload)
{
    struct xsplice_range all = { ~0UL, 0 };
    unsigned int i;

    for ( i = 0; i < payload->nfuncs; i++ )
    {
        const struct livepatch_func *func = &payload->funcs[i];
        uint64_t start = address(func->old_addr), end = start + func->old_size;

        all.start = min(all.start, start);
        all.end = max(all.end, end);
    }

    return all.end ? all : (struct xsplice_range){ };
}

int revert_payload(struct payload *payload)
{
    /* A hook called after the window has to make the text writable itself. */
    bool in_window = text_alias;
    uint64_t distance;
    unsigned int i;
    int rc = in_window ? 0 : xsplice_text_open(changed_by(payload), false,
                                               &distance);

    if ( rc )
        return rc;

    for ( i = 0; i < payload->nfuncs; i++ )
    {
        const struct livepatch_func *func = &payload->funcs[i];
        struct livepatch_fstate *fstate = &payload->fstate[i];
        uint64_t addr = address(func->old_addr) + fstate->patch_offset;

        if ( fstate->applied == LIVEPATCH_FUNC_APPLIED )
            xsplice_text_write(addr + text_distance, fstate->insn_buffer,
                               livepatch_insn_len(func, fstate));
        fstate->applied = LIVEPATCH_FUNC_NOT_APPLIED;
    }
    if ( !in_window )
    {
        xsplice_text_end();
        xsplice_text_close();
    }

    return 0;
}

#endif /* LIVEPATCH_ARCH_H */

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the shim needs of x86: how code is changed, NMIs and machine checks. Included
 * once, by livepatch-rust.c, which is compiled for 16-byte aligned stacks here.
 */
#ifndef LIVEPATCH_ARCH_H
#define LIVEPATCH_ARCH_H

#include <xen/kexec.h>
#include <xen/vm_event.h>
#include <xen/wait.h>

#include <asm/alternative.h>
#include <asm/apic.h>
#include <asm/fixmap.h>
#include <asm/flushtlb.h>
#include <asm/nmi.h>
#include <asm/uaccess.h>

#include "cpu/mcheck/mce.h"

/* Memory. */

static inline bool is_vmapped(const void *data)
{
    unsigned long addr = (unsigned long)data;

    return addr >= VMAP_VIRT_START && addr < VMAP_VIRT_END;
}

/*
 * Payloads are allocated within the range of a jump from the hypervisor: from its end
 * to the CPUs' stubs, which precede the fixed mappings.
 */
static void __init init_payload_area(void)
{
    vm_init_type(VMAP_XEN, (void *)__2M_rwdata_end,
                 (void *)(FIXADDR_X_START - NR_CPUS * PAGE_SIZE));
}

/* Tables of payloads. */

static inline int patch_alternatives(struct xsplice_range table)
{
    struct alt_instr *start = (void *)table.start, *end = (void *)table.end;

    if ( start == end )
        return 0;

#if XEN_MINOR >= 18
    return apply_alternatives(start, end);
#else
    apply_alternatives(start, end);

    return 0;
#endif
}

/* How calls through pointers are made direct. */
#if XEN_MINOR >= 21
#include <asm/alternative-call.h>

#define CALL_SITES true
#define CALL_FEATURE 0

static inline int patch_call_sites(struct xsplice_range table)
{
    const struct alt_call *start = (void *)table.start,
                          *end = (void *)table.end;

    return start == end ? 0 : livepatch_apply_alt_calls(start, end);
}
#else
/* By .altinstructions. */
#define CALL_SITES false
#define CALL_FEATURE X86_FEATURE_ALWAYS

static inline int patch_call_sites(struct xsplice_range table)
{
    return table.start == table.end ? 0 : -EOPNOTSUPP;
}
#endif

static inline void set_exceptions(struct virtual_region *region,
                                  struct xsplice_range table)
{
    sort_exception_table(pointer(table.start), pointer(table.end));
    region->ex = pointer(table.start);
    region->ex_end = pointer(table.end);
}

/* Instruction caches see what is written. */
static inline void code_is_written(const void *code, size_t size)
{
}

/* The hypervisor. */

struct xsplice_image xsplice_image(void)
{
    return (struct xsplice_image){
        .text = between(_stext, _etext),
        .init = between(__2M_init_start, __2M_init_end),
        .read_only = between(__2M_rodata_start, __2M_rodata_end),
        .data = between(__2M_rwdata_start, __2M_rwdata_end),
        .features = NCAPINTS * 32,
        .call_sites = CALL_SITES,
        .always = CALL_FEATURE,
        .landing_pads = cpu_has_xen_ibt,
    };
}

/* CPUs. */

void xsplice_mask(void)
{
    local_irq_save(this_cpu(irq_flags));
}

void xsplice_unmask(void)
{
    local_irq_restore(this_cpu(irq_flags));
}

/* The vector of #MC, which has two names in Xen's headers. */
#define MACHINE_CHECK_VECTOR 18

/* Executes a serialising instruction. */
static inline void serialise(void)
{
    cpuid_eax(0);
}

void xsplice_synchronise(void)
{
    serialise();
}

/*
 * Called at the start of every NMI, before any callback: Xen has only one NMI
 * callback, which other code uses too. During a crash, NMIs stop the other CPUs
 * and must not be held.
 */
bool xsplice_hold_nmi(void)
{
    return !kexecing && xsplice_hold(smp_processor_id(), XSPLICE_NMI);
}

/*
 * Called at the start of every machine check. On a stopped CPU it is handled
 * later: the banks and MCG_STATUS keep its information, including MCIP, so a
 * second machine check resets the machine, as it does during the handler. If
 * the CPU cannot resume, Xen panics at once: deferring the event would leave
 * the other CPUs waiting for this one.
 */
bool xsplice_hold_machine_check(void)
{
    uint64_t status;
    unsigned int i;

    if ( !xsplice_hold(smp_processor_id(), XSPLICE_MACHINE_CHECK) )
        return false;

    rdmsrl(MSR_IA32_MCG_STATUS, status);
    if ( !(status & MCG_STATUS_RIPV) )
        mc_panic("no way back to where CPUs were stopped for live patching");

    for ( i = 0; i < this_cpu(nr_mce_banks); i++ )
    {
        rdmsrl(MSR_IA32_MCx_STATUS(i), status);
        if ( (status & MCi_STATUS_VAL) &&
             (status & (MCi_STATUS_PCC | MCi_STATUS_AR)) )
            mc_panic("fatal while CPUs were stopped for live patching");
    }

    return true;
}

/* Called at the end of every machine check that was not held. */
void xsplice_machine_check_done(void)
{
    xsplice_handled(smp_processor_id());
}

/*
 * Calls the handler as the exception would have. An `int` instruction is not
 * equivalent: with FRED it is a different event type, fatal in the hypervisor.
 */
static void replay_machine_check(void)
{
    unsigned long flags;
    struct cpu_user_regs regs = {
        .rip = (unsigned long)replay_machine_check,
        .cs = __HYPERVISOR_CS,
        .rsp = (unsigned long)__builtin_frame_address(0),
        .ss = __HYPERVISOR_DS,
        .entry_vector = MACHINE_CHECK_VECTOR,
    };

    local_irq_save(flags);
    regs.rflags = flags;
    do_machine_check(&regs);
    local_irq_restore(flags);
}

void xsplice_replay(enum xsplice_event event)
{
    switch ( event )
    {
    case XSPLICE_NMI:
        self_nmi();
        break;

    case XSPLICE_MACHINE_CHECK:
        replay_machine_check();
        break;
    }
}

/* Text. */

/*
 * Text is written through a second mapping of its pages, which is writable and
 * not executable, so the permissions of the first do not change in the window.
 */
static void *text_alias;

/* Where that is not possible, the text itself is made writable, as Xen does. */
static bool text_is_writable;

int xsplice_text_open(struct xsplice_range range, bool hooks,
                      uint64_t *distance)
{
    struct xsplice_range text = xsplice_image().text;
    uint64_t start = range.start & PAGE_MASK, addr;
    mfn_t first;

    *distance = 0;
    /* Hooks may write text directly; payload pages are physically scattered. */
    if ( hooks || !contains(text, range.start, range.end - range.start) )
        return 0;

    first = _mfn(virt_to_mfn(start));
    text_alias = __vmap(&first, PFN_UP(range.end - start), 1, 1,
                        PAGE_HYPERVISOR | MAP_SMALL_PAGES, VMAP_DEFAULT);
    if ( !text_alias )
        return -ENOMEM;

    *distance = (uint64_t)text_alias - start;
    /* Load the TLB: no page walks in the window. */
    for ( addr = start; addr < range.end; addr += PAGE_SIZE )
        ACCESS_ONCE(*(const char *)pointer(addr + *distance));

    return 0;
}

/* A vCPU in a wait queue has a saved call stack in the hypervisor. */
static bool has_sleepers(const struct vm_event_domain *ved)
{
    /* It may be zeroed but not yet initialised. */
    return ved && ved->wq.list.next && !list_empty(&ved->wq.list);
}

int xsplice_text_begin(void)
{
    struct domain *d;

    for_each_domain ( d )
    {
#ifdef CONFIG_MEM_SHARING
        if ( has_sleepers(d->vm_event_share) )
            return -EBUSY;
#endif
#ifdef CONFIG_MEM_PAGING
        if ( has_sleepers(d->vm_event_paging) )
            return -EBUSY;
#endif
        if ( has_sleepers(d->vm_event_monitor) )
            return -EBUSY;
    }

    if ( !text_alias )
    {
        relax_virtual_region_perms();
        flush_local(FLUSH_TLB_GLOBAL);
        text_is_writable = true;
    }

    return 0;
}

void xsplice_text_write(uint64_t addr, const void *bytes, size_t len)
{
    memcpy(pointer(addr), bytes, len);
}

void xsplice_text_end(void)
{
    if ( text_is_writable )
    {
        tighten_virtual_region_perms();
        flush_local(FLUSH_TLB_GLOBAL);
        text_is_writable = false;
    }
    else
        /* Text was written through another mapping than it is executed from. */
        serialise();
}

void xsplice_text_close(void)
{
    if ( text_alias )
        vunmap(text_alias);
    text_alias = NULL;
}

int revert_payload(struct payload *payload)
{
    /* A hook called after the window has to make the text writable itself. */
    bool in_window = text_is_writable;
    unsigned int i;
    int rc = in_window ? 0 : xsplice_text_begin();

    if ( rc )
        return rc;

    for ( i = 0; i < payload->nfuncs; i++ )
    {
        const struct livepatch_func *func = &payload->funcs[i];
        struct livepatch_fstate *fstate = &payload->fstate[i];

        if ( fstate->applied == LIVEPATCH_FUNC_APPLIED )
            memcpy(func->old_addr + fstate->patch_offset, fstate->insn_buffer,
                   livepatch_insn_len(func, fstate));
        fstate->applied = LIVEPATCH_FUNC_NOT_APPLIED;
    }
    if ( !in_window )
        xsplice_text_end();

    return 0;
}

#endif /* LIVEPATCH_ARCH_H */

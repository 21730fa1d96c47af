/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Microcode loading on xsplice's rendezvous.
 *
 * cpu/microcode/core.c includes this file after everything that it uses: the
 * vendor's operations, which threads are primary, and the count of updates.
 * Which CPUs do what in which order is decided in Rust (src/microcode.rs). The
 * makefile passes the minor version of Xen.
 */

#include "livepatch-rust.h"

/* What stop_machine_run() is given. */
#if XEN_MINOR >= 20
typedef struct patch_with_flags update_t;
#else
typedef struct microcode_patch update_t;
#endif

/* The update that is being loaded, if one is. */
static update_t *update;

/* The error of a CPU other than the leader. */
static int others_error;

static int load_here(void)
{
    int rc;

#if XEN_MINOR >= 22
    rc = ucode_load(update->patch, update->flags);
#elif XEN_MINOR >= 20
    rc = alternative_call(ucode_ops.apply_microcode, update->patch,
                          update->flags);
#else
    rc = alternative_call(ucode_ops.apply_microcode, update);
#endif
    if ( !rc )
        atomic_inc(&cpu_updated);

    return rc;
}

int xsplice_microcode_first(void)
{
    int rc = load_here();

    if ( rc )
        printk(XENLOG_ERR
               "Late loading aborted: CPU%u failed to update ucode: %d\n",
               smp_processor_id(), rc);

    return rc;
}

/*
 * As in Xen, primary threads stay there unless the command line forbids it,
 * and other threads always. On nmi_cpu, Xen reports an NMI that has no cause in
 * the hardware; it leads, so it does not ask.
 */
bool xsplice_microcode_in_nmi(void)
{
    unsigned int cpu = smp_processor_id();

    return update && cpu != nmi_cpu && (ucode_in_nmi || !is_cpu_primary(cpu));
}

void xsplice_microcode_work(enum xsplice_phase phase)
{
    unsigned int cpu = smp_processor_id();
    bool primary = is_cpu_primary(cpu);
    int rc = 0;

    switch ( phase )
    {
    case XSPLICE_PRIMARY_LOADS:
        if ( primary )
            rc = load_here();
        break;

    case XSPLICE_SIBLING_READS:
        if ( !primary )
            this_cpu(cpu_sig).rev =
                per_cpu(cpu_sig,
                        cpumask_first(per_cpu(cpu_sibling_mask, cpu))).rev;
        break;
    }

    if ( rc )
        write_atomic(&others_error, rc);
}

static int load_everywhere(update_t *what)
{
    int rc;

    update = what;
    others_error = 0;
    /* Interrupts may be off for long. */
    watchdog_disable();
    rc = xsplice_load_microcode();
    watchdog_enable();
    update = NULL;

    return rc ?: others_error;
}

/*
 * What follows in core.c calls stop_machine_run() to have all CPUs run `fn`. The
 * leader must be primary, and nmi_cpu: CPU 0, where Xen runs the hypercall's
 * second half from 4.18 on.
 */
#define stop_machine_run(fn, what, cpus) ((void)(fn), load_everywhere(what))
#if XEN_MINOR < 18
#define continue_hypercall_on_cpu(cpu, fn, data) \
    (continue_hypercall_on_cpu)(0, fn, data)
#endif

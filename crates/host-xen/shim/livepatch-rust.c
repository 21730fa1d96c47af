/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Live patching with xsplice's engine.
 *
 * This file contains what needs Xen's macros, inline functions and structures:
 * the hypercall and its guest copies, the payload records that hooks see,
 * virtual regions, tasklets and CPU maps. All decisions about payloads are made in
 * the engine.
 *
 * What differs between architectures is in livepatch-arch.h, of which there is one for
 * each; it is included at the place that it needs. Only these two files call Rust.
 */

#include <xen/cpu.h>
#include <xen/ctype.h>
#include <xen/err.h>
#include <xen/guest_access.h>
#include <xen/init.h>
#include <xen/keyhandler.h>
#include <xen/lib.h>
#include <xen/livepatch.h>
#include <xen/livepatch_payload.h>
#include <xen/mm.h>
#include <xen/param.h>
#include <xen/rcupdate.h>
#include <xen/sched.h>
#include <xen/smp.h>
#include <xen/softirq.h>
#include <xen/spinlock.h>
#include <xen/string.h>
#include <xen/symbols.h>
#include <xen/tasklet.h>
#include <xen/time.h>
#include <xen/version.h>
#include <xen/virtual_region.h>
#include <xen/vmap.h>

#include <asm/event.h>
#include <asm/processor.h>
#include <asm/setup.h>

#include <public/sysctl.h>

#include "livepatch-rust.h"
#include "livepatch-keys.h"
#include "livepatch-xen.h"

struct xsplice_memory {
    /* Passed to hooks. */
    struct payload payload;
    uint64_t base, size;
    /* Copies of the payload's tables: one allocation of this size. */
    void *copies;
    size_t copied;
    struct list_head list;
    struct rcu_head rcu;
};

/*
 * Serialises calls of the engine. The holder may wait for all CPUs to reach
 * check_for_livepatch_work(), so no CPU may spin on this lock.
 */
static DEFINE_SPINLOCK(engine_lock);

/* All payloads, for lookups by address. */
static LIST_HEAD(memories);
static DEFINE_RCU_READ_LOCK(memories_rcu);

/* Whether an action is pending; read by all CPUs before they enter a guest. */
enum attention { IDLE, PENDING, RUNNING };
static unsigned int __read_mostly attention;

/* Changes on each successful upload and unload, as in stock Xen. */
static uint32_t list_version = 1;

/* One per CPU; scheduling it makes that CPU run check_for_livepatch_work(). */
static struct tasklet *__read_mostly tasklets;

/* Memory in use: heap bytes and payload pages; protected by engine_lock. */
static unsigned long heap_bytes, payload_pages;

static DEFINE_PER_CPU(unsigned long, irq_flags);

static bool contains(struct xsplice_range range, uint64_t addr, size_t len)
{
    return addr >= range.start && addr <= range.end && len <= range.end - addr;
}

static struct xsplice_range between(const void *start, const void *end)
{
    return (struct xsplice_range){ address(start), address(end) };
}

static struct xsplice_memory *find_memory(uint64_t addr, size_t len);

#include "livepatch-arch.h"

/* Memory. */

/*
 * Lists may take hundreds of pages. vmalloc() needs no contiguous pages, but
 * each vfree() flushes the TLBs of all CPUs, so it is only the fallback.
 */
void *xsplice_alloc(size_t size, size_t align)
{
    void *data = _xmalloc(size, align);

    if ( !data )
        data = vmalloc(size);
    if ( data )
        heap_bytes += size;

    return data;
}

static void free_data(void *data)
{
    if ( is_vmapped(data) )
        vfree(data);
    else
        xfree(data);
}

void xsplice_free(void *data, size_t size)
{
    heap_bytes -= size;
    free_data(data);
}

/* Console and time. */

void xsplice_print(struct xsplice_text line)
{
    /* Xen's default log level shows warnings: refusals must be visible. */
    printk(XENLOG_WARNING LIVEPATCH "%.*s\n", (int)line.len, line.data);
}

void noreturn xsplice_panic(struct xsplice_text what)
{
    panic(LIVEPATCH "%.*s\n", (int)what.len, what.data);
}

uint64_t xsplice_now(void)
{
    return get_s_time();
}

/* The hypervisor's identity. */

struct xsplice_text xsplice_build_id(void)
{
    const void *id;
    unsigned int len;

    if ( get_build_id(&id, &len) )
        return (struct xsplice_text){ "", 0 };

    return (struct xsplice_text){ id, len };
}

/* Signatures. */

static enum xsplice_enforcement __read_mostly enforcement = XSPLICE_UNSET;

static int __init cf_check parse_signatures(const char *s)
{
    if ( !strcmp(s, "off") )
        enforcement = XSPLICE_OFF;
    else if ( !strcmp(s, "warn") )
        enforcement = XSPLICE_WARN;
    else if ( !strcmp(s, "enforce") )
        enforcement = XSPLICE_ENFORCE;
    else
        return -EINVAL;

    return 0;
}
custom_param("livepatch-signatures", parse_signatures);

struct xsplice_signatures xsplice_signatures(void)
{
    return (struct xsplice_signatures){
        .keys = keys,
        .nkeys = ARRAY_SIZE(keys),
        .enforcement = enforcement,
        .locked = XSPLICE_SIGNATURES_LOCKED,
    };
}

uint64_t xsplice_lookup(const char *name)
{
    return symbols_lookup_by_name(name);
}

uint64_t xsplice_function_at(uint64_t addr)
{
    unsigned long size, offset;
    char name[KSYM_NAME_LEN + 1];

    return symbols_lookup(addr, &size, &offset, name) ? addr - offset : 0;
}

bool xsplice_next_symbol(uint32_t *index, uint64_t *addr, char *name)
{
    unsigned long value = 0;
    char type;

    BUILD_BUG_ON(XSPLICE_NAME_SIZE <= KSYM_NAME_LEN);
    if ( xensyms_read(index, &type, &value, name) || !name[0] )
        return false;

    *addr = value;
    return true;
}

static struct xsplice_memory *find_memory(uint64_t addr, size_t len)
{
    struct xsplice_memory *memory, *found = NULL;

    rcu_read_lock(&memories_rcu);
    list_for_each_entry_rcu ( memory, &memories, list )
    {
        struct xsplice_range all = { memory->base, memory->base + memory->size };

        if ( contains(all, addr, len) )
        {
            found = memory;
            break;
        }
    }
    rcu_read_unlock(&memories_rcu);

    return found;
}

bool xsplice_read_payload(uint64_t addr, void *buf, size_t len)
{
    if ( !find_memory(addr, len) )
        return false;

    memcpy(buf, pointer(addr), len);

    return true;
}

bool is_patch(const void *addr)
{
    return find_memory(address(addr), 1);
}

/* Payloads. */

struct xsplice_memory *xsplice_memory_new(uint64_t size)
{
    struct xsplice_memory *memory = xzalloc(struct xsplice_memory);
    void *pages;

    if ( !memory )
        return NULL;

    pages = vmalloc_xen(size);
    if ( !pages )
    {
        xfree(memory);
        return NULL;
    }

    memory->base = address(pages);
    memory->size = size;
    payload_pages += PFN_UP(size);
    INIT_LIST_HEAD(&memory->list);

    return memory;
}

static void free_memory(struct xsplice_memory *memory)
{
    vfree(pointer(memory->base));
    free_data(memory->copies);
    xfree(memory);
}

static void cf_check free_unlisted(struct rcu_head *head)
{
    free_memory(container_of(head, struct xsplice_memory, rcu));
}

void xsplice_memory_drop(struct xsplice_memory *memory)
{
    payload_pages -= PFN_UP(memory->size);
    if ( memory->copies )
        heap_bytes -= memory->copied;

    if ( list_empty(&memory->list) )
    {
        free_memory(memory);
        return;
    }

    list_del_rcu(&memory->list);
    /*
     * Not by unregister_virtual_region(): it waits in rcu_barrier(), and until all
     * CPUs take part in that, none can switch to another vCPU. A CPU that waits for
     * such a switch, as vcpu_sleep_sync() does, never would. Nothing else changes
     * the list of regions once Xen has booted.
     */
    list_del_rcu(&memory->payload.region.list);
    /* When no CPU reads either list. */
    call_rcu(&memory->rcu, free_unlisted);
}

uint64_t xsplice_memory_base(const struct xsplice_memory *memory)
{
    return memory->base;
}

/* Strings from payloads are printed on the console. */
static void make_printable(char *text, size_t len)
{
    for ( ; len; text++, len-- )
        if ( !isprint(*text) )
            *text = '?';
}

static const char *cf_check lookup_symbol(
    unsigned long addr, unsigned long *size, unsigned long *offset, char *name)
{
    const struct xsplice_memory *memory = find_memory(addr, 1);
    const struct livepatch_symbol *best = NULL;
    unsigned int i;

    if ( !memory )
        return NULL;

    for ( i = 0; i < memory->payload.nsyms; i++ )
    {
        const struct livepatch_symbol *symbol = &memory->payload.symtab[i];

        if ( symbol->value <= addr && (!best || symbol->value > best->value) )
            best = symbol;
    }

    if ( !best )
        return NULL;

    *size = best->size;
    *offset = addr - best->value;
    /* As in Xen: `%pS` shows the returned name, and this one in brackets. */
    strlcpy(name, memory->payload.name, KSYM_NAME_LEN + 1);
    make_printable(name, strlen(name));

    return best->name;
}

/* Copies bytes to *to and advances it past them. Returns the copy. */
static const void *copy(void **to, struct xsplice_text bytes)
{
    void *at = memcpy(*to, bytes.data, bytes.len);

    *to += bytes.len;

    return at;
}

static int copy_tables(struct xsplice_memory *memory,
                       const struct xsplice_payload *from)
{
    struct payload *payload = &memory->payload;
    struct livepatch_symbol *symbols;
    size_t states = payload->nfuncs * sizeof(*payload->fstate), i;
    void *to;

    memory->copied = from->nsymbols * sizeof(*symbols) + states +
                     from->build_id.len + from->depends.len;
    for ( i = 0; i < from->nsymbols; i++ )
        memory->copied += from->symbols[i].name.len + 1;
    memory->copies = xsplice_alloc(memory->copied, sizeof(uint64_t));
    if ( !memory->copies )
        return -ENOMEM;

    /* Aligned tables come first. */
    payload->symtab = symbols = memory->copies;
    payload->nsyms = from->nsymbols;
    payload->fstate = (void *)(symbols + from->nsymbols);
    memset(payload->fstate, 0, states);

    to = (void *)payload->fstate + states;
    payload->id.p = copy(&to, from->build_id);
    payload->id.len = from->build_id.len;
    payload->dep.p = copy(&to, from->depends);
    payload->dep.len = from->depends.len;

    payload->strtab = to;
    for ( i = 0; i < from->nsymbols; i++ )
    {
        const struct xsplice_symbol *symbol = &from->symbols[i];

        symbols[i] = (struct livepatch_symbol){
            .name = copy(&to, symbol->name),
            .value = symbol->addr,
            .size = symbol->size,
            .new_symbol = symbol->new,
        };
        make_printable(to - symbol->name.len, symbol->name.len);
        *(char *)to++ = 0;
    }

    return 0;
}

int xsplice_memory_register(struct xsplice_memory *memory,
                            const struct xsplice_payload *from)
{
    struct payload *payload = &memory->payload;
    struct virtual_region *region = &payload->region;
    unsigned int i;
    int rc;

    if ( from->name.len >= sizeof(payload->name) )
        return -EINVAL;
    memcpy(payload->name, from->name.data, from->name.len);

    payload->state = LIVEPATCH_STATE_CHECKED;
    payload->text_addr = pointer(from->text.start);
    payload->text_size = from->text.end - from->text.start;
    payload->rw_addr = pointer(from->data.start);
    payload->rw_size = from->data.end - from->data.start;
    payload->ro_addr = pointer(from->read_only.start);
    payload->ro_size = from->read_only.end - from->read_only.start;
    payload->pages = PFN_UP(memory->size);
    payload->funcs = pointer(from->funcs.start);
    payload->nfuncs = (from->funcs.end - from->funcs.start) /
                      sizeof(*payload->funcs);
    payload->metadata.data = pointer(from->metadata.start);
    payload->metadata.len = from->metadata.end - from->metadata.start;
    INIT_LIST_HEAD(&payload->list);
    INIT_LIST_HEAD(&payload->applied_list);

    rc = copy_tables(memory, from);
    if ( rc )
        return rc;

    rc = patch_alternatives(from->alternatives);
    if ( !rc )
        rc = patch_call_sites(from->call_sites);
    if ( rc )
        return rc;
    region->text_start = payload->text_addr;
    region->text_end = payload->text_addr + payload->text_size;
    /* Read-only data of a payload is never patched: no rodata range. */
    region->symbols_lookup = lookup_symbol;
    set_exceptions(region, from->exceptions);
    BUILD_BUG_ON(ARRAY_SIZE(from->bug_frames) != BUGFRAME_NR);
    for ( i = 0; i < BUGFRAME_NR; i++ )
        set_bug_frames(region, i, from->bug_frames[i]);

    code_is_written(payload->text_addr, payload->text_size);

    list_add_tail_rcu(&memory->list, &memories);
    register_virtual_region(region);

    return 0;
}

int xsplice_memory_protect(struct xsplice_memory *memory,
                           struct xsplice_range pages,
                           enum xsplice_protection protection)
{
    return modify_xen_mappings(pages.start, pages.end,
                               protection == XSPLICE_TEXT ? PAGE_HYPERVISOR_RX
                                                          : PAGE_HYPERVISOR_RO);
}

void xsplice_memory_saved(struct xsplice_memory *memory, size_t index,
                          uint64_t addr, struct xsplice_text bytes)
{
    struct payload *payload = &memory->payload;
    struct livepatch_fstate *fstate = &payload->fstate[index];

    fstate->patch_offset = addr - address(payload->funcs[index].old_addr);
    memcpy(fstate->insn_buffer, bytes.data,
           min(bytes.len, sizeof(fstate->insn_buffer)));
}

int xsplice_memory_call(struct xsplice_memory *memory, enum xsplice_hook hook,
                        uint64_t addr, struct xsplice_status *status)
{
    struct payload *payload = &memory->payload;
    void *code = pointer(addr);
    int rc = 0;
    size_t i;

    payload->state = status->state;
    payload->rc = status->result;
    for ( i = 0; i < status->nfuncs; i++ )
        payload->fstate[i].applied = status->applied[i]
                                     ? LIVEPATCH_FUNC_APPLIED
                                     : LIVEPATCH_FUNC_NOT_APPLIED;

    switch ( hook )
    {
    case XSPLICE_LOAD:
    case XSPLICE_UNLOAD:
        ((livepatch_loadcall_t *)code)();
        break;

    case XSPLICE_PRE_APPLY:
    case XSPLICE_PRE_REVERT:
        rc = ((livepatch_precall_t *)code)(payload);
        break;

    case XSPLICE_APPLY:
    case XSPLICE_REVERT:
        rc = ((livepatch_actioncall_t *)code)(payload);
        break;

    case XSPLICE_POST_APPLY:
    case XSPLICE_POST_REVERT:
        ((livepatch_postcall_t *)code)(payload);
        break;
    }

    status->state = payload->state;
    for ( i = 0; i < status->nfuncs; i++ )
        status->applied[i] = payload->fstate[i].applied ==
                             LIVEPATCH_FUNC_APPLIED;

    return rc;
}

/* For hooks that revert their own payload, as revert_payload() is. */

void revert_payload_tail(struct payload *payload)
{
    payload->state = LIVEPATCH_STATE_CHECKED;
}

/* CPUs. */

unsigned int xsplice_cpu(void)
{
    return smp_processor_id();
}

void xsplice_relax(void)
{
    cpu_relax();
}

void xsplice_kick(unsigned int cpu)
{
    tasklet_schedule_on_cpu(&tasklets[cpu], cpu);
}

bool xsplice_rendezvous_begin(void)
{
    return get_cpu_maps();
}

void xsplice_rendezvous_end(void)
{
    put_cpu_maps();
}

void xsplice_window_begin(void)
{
    /* Hooks may take locks with interrupts off that are taken with them on. */
    spin_debug_disable();
}

void xsplice_window_end(void)
{
    spin_debug_enable();
}

static void cf_check do_nothing(void *unused)
{
}

/*
 * The tasklets make every CPU call this from its idle loop. A CPU that is about
 * to enter a guest may be in the middle of a core-scheduling decision.
 */
static bool idling(void)
{
    return system_state == SYS_STATE_active &&
           is_idle_domain(current->sched_unit->domain);
}

void check_for_livepatch_work(void)
{
    unsigned int cpu;

    if ( likely(!read_atomic(&attention)) )
        return;

    if ( !idling() )
        return;

    cpu = smp_processor_id();
    xsplice_check(cpu);

    if ( spin_trylock(&engine_lock) )
    {
        if ( attention == PENDING )
        {
            write_atomic(&attention, RUNNING);
            xsplice_run();
            write_atomic(&attention, IDLE);
        }
        spin_unlock(&engine_lock);
    }
    else if ( read_atomic(&attention) == PENDING )
        /* A hypercall holds the lock: try again soon. */
        xsplice_kick(cpu);
}

#ifdef CONFIG_MICROCODE_RUST
/* Called in a tasklet. Xen, too, refuses this while another CPU stops the machine. */
int xsplice_load_microcode(void)
{
    unsigned int before;
    int rc;

    /* The holder may be waiting for this CPU. */
    if ( !spin_trylock(&engine_lock) )
        return -EBUSY;

    before = attention;
    write_atomic(&attention, RUNNING);
    rc = xsplice_microcode();
    write_atomic(&attention, before);
    spin_unlock(&engine_lock);

    /* The CPU that was to run the action may have looked meanwhile. */
    if ( before == PENDING )
        xsplice_kick(smp_processor_id());

    return rc;
}
#endif

static int cf_check cpu_changes(
    struct notifier_block *block, unsigned long action, void *hcpu)
{
    unsigned int cpu = (unsigned long)hcpu;

    switch ( action )
    {
    case CPU_STARTING:
        xsplice_cpu_online(cpu);
        break;

    case CPU_DYING:
        xsplice_cpu_offline(cpu);
        break;
    }

    return NOTIFY_DONE;
}

static struct notifier_block cpu_notifier = {
    .notifier_call = cpu_changes,
};

/* The hypercall. */

static int get_name(const struct xen_livepatch_name *from, char *buf,
                    struct xsplice_text *name)
{
    if ( !from->size || from->size > XEN_LIVEPATCH_NAME_SIZE ||
         from->pad[0] || from->pad[1] || from->pad[2] )
        return -EINVAL;

    if ( copy_from_guest(buf, from->name, from->size) )
        return -EFAULT;

    if ( buf[from->size - 1] )
        return -EINVAL;

    name->data = buf;
    name->len = strlen(buf);

    return 0;
}

/* Reports a refusal in the engine's format. */
static int refuse(char *payload, int rc, const char *reason)
{
    const char *error = rc == -EFAULT ? "EFAULT"
                      : rc == -ENOMEM ? "ENOMEM" : "EINVAL";

    make_printable(payload, strlen(payload));
    printk(XENLOG_WARNING LIVEPATCH "%s was not loaded (%s)\n", payload, error);
    printk(XENLOG_WARNING LIVEPATCH "  %s\n", reason);

    return rc;
}

static int upload(const struct xen_sysctl_livepatch_upload *op)
{
    char buf[XEN_LIVEPATCH_NAME_SIZE];
    struct xsplice_text name, file = { "", 0 };
    struct xsplice_entry entry;
    void *data;
    int rc;

    rc = get_name(&op->name, buf, &name);
    if ( rc )
    {
        strlcpy(buf, "a payload", sizeof(buf));
        return refuse(buf, -EINVAL,
                      "its name is empty, too long or unreadable");
    }

    if ( !op->size || op->size > LIVEPATCH_MAX_SIZE )
        return refuse(buf, -EINVAL, "its size is 0 or more than 2 MiB");

    /* A name that is taken is reported before any fault of the file. */
    if ( !xsplice_get(name, &entry) )
        return xsplice_upload(name, file);

    data = xsplice_alloc(op->size, sizeof(uint64_t));
    if ( !data )
        return refuse(buf, -ENOMEM, "there is no memory left for its file");

    if ( copy_from_guest(data, op->payload, op->size) )
        rc = refuse(buf, -EFAULT, "its file cannot be read");
    else
    {
        file = (struct xsplice_text){ data, op->size };
        rc = xsplice_upload(name, file);
    }
    xsplice_free(data, op->size);
    list_version += !rc;

    return rc;
}

static int get(struct xen_sysctl_livepatch_get *op)
{
    char buf[XEN_LIVEPATCH_NAME_SIZE];
    struct xsplice_text name;
    struct xsplice_entry entry;
    int rc = get_name(&op->name, buf, &name);

    if ( !rc )
        rc = xsplice_get(name, &entry);
    if ( rc )
        return rc;

    op->status.state = entry.state;
    op->status.rc = entry.result;

    return 0;
}

/* Number of payloads listed at a time. */
#define LIST_CHUNK 8
/* Number of payloads that one call may request. */
#define LIST_MAX 1024

static int list(struct xen_sysctl_livepatch_list *op)
{
    struct xsplice_entry entries[LIST_CHUNK];
    unsigned int i, n, done = 0, total = xsplice_count();
    uint32_t names, metadata;
    bool copy = op->nr;

    if ( op->nr > LIST_MAX )
        return -E2BIG;

    if ( op->pad ||
         (copy && (!guest_handle_okay(op->status, op->nr) ||
                   !guest_handle_okay(op->name, op->nr) ||
                   !guest_handle_okay(op->len, op->nr) ||
                   !guest_handle_okay(op->metadata, op->nr) ||
                   !guest_handle_okay(op->metadata_len, op->nr))) ||
         (total && op->idx >= total) )
        return -EINVAL;

    list_room(op, &names, &metadata);
    op->name_total_size = 0;
    op->metadata_total_size = 0;
    do {
        n = xsplice_list(op->idx + done, entries, LIST_CHUNK);
        for ( i = 0; i < n && (!copy || done < op->nr); i++, done++ )
        {
            const struct xsplice_memory *memory =
                find_memory(entries[i].base, 1);
            struct xen_livepatch_status status = {
                .state = entries[i].state,
                .rc = entries[i].result,
            };
            uint32_t name_len, metadata_len;

            ASSERT(memory);
            name_len = strlen(memory->payload.name) + 1;
            metadata_len = memory->payload.metadata.len;

            if ( copy && (name_len > names - op->name_total_size ||
                          metadata_len > metadata - op->metadata_total_size) )
                return -ENOBUFS;

            if ( copy &&
                 (copy_to_guest_offset(op->status, done, &status, 1) ||
                  copy_to_guest_offset(op->name, op->name_total_size,
                                       memory->payload.name, name_len) ||
                  copy_to_guest_offset(op->len, done, &name_len, 1) ||
                  copy_to_guest_offset(op->metadata, op->metadata_total_size,
                                       memory->payload.metadata.data,
                                       metadata_len) ||
                  copy_to_guest_offset(op->metadata_len, done, &metadata_len,
                                       1)) )
                return -EFAULT;

            op->name_total_size += name_len;
            op->metadata_total_size += metadata_len;
        }
    } while ( n == LIST_CHUNK && (!copy || done < op->nr) &&
              !(copy && hypercall_preempt_check()) );

    op->nr = copy ? total - op->idx - done : total;
    op->version = list_version;

    return copy ? done : 0;
}

static int action(const struct xen_sysctl_livepatch_action *op)
{
    char buf[XEN_LIVEPATCH_NAME_SIZE];
    struct xsplice_text name;
    bool pending = false;
    int rc;

    if ( op->pad || (op->flags & ~LIVEPATCH_ACTION_APPLY_NODEPS) )
        return -EINVAL;

    rc = get_name(&op->name, buf, &name);
    if ( rc )
        return rc;

    rc = xsplice_action(name, op->cmd,
                        op->flags & LIVEPATCH_ACTION_APPLY_NODEPS, op->timeout,
                        &pending);
    list_version += !rc && op->cmd == LIVEPATCH_ACTION_UNLOAD;
    if ( pending )
    {
        write_atomic(&attention, PENDING);
        xsplice_kick(smp_processor_id());
    }

    return rc;
}

int livepatch_op(struct xen_sysctl_livepatch_op *op)
{
    int rc;

    if ( !flags_known(op) )
        return -EINVAL;

    /* The leader may be waiting for this CPU to leave the hypervisor. */
    if ( !spin_trylock(&engine_lock) )
        return -ERESTART;

    switch ( op->cmd )
    {
    case XEN_SYSCTL_LIVEPATCH_UPLOAD:
        rc = upload(&op->u.upload);
        break;

    case XEN_SYSCTL_LIVEPATCH_GET:
        rc = get(&op->u.get);
        break;

    case XEN_SYSCTL_LIVEPATCH_LIST:
        rc = list(&op->u.list);
        break;

    case XEN_SYSCTL_LIVEPATCH_ACTION:
        rc = action(&op->u.action);
        break;

    default:
        rc = -EOPNOTSUPP;
        break;
    }
    spin_unlock(&engine_lock);

    return rc;
}

/* Console key and initialisation. */

static void cf_check show(unsigned char key)
{
    struct xsplice_cursor cursor = { };
    bool first = true, more;

    /* The console is slow: hold the lock for a few lines at a time. */
    do {
        if ( !spin_trylock(&engine_lock) )
        {
            printk(LIVEPATCH "an action is in progress; try again\n");
            return;
        }
        if ( first )
            printk(LIVEPATCH "%u payloads in %lu pages, %lu bytes of heap\n",
                   xsplice_count(), payload_pages, heap_bytes);
        first = false;
        more = xsplice_show(&cursor);
        spin_unlock(&engine_lock);
        process_pending_softirqs();
    } while ( more );
}

/* Runs before the other CPUs start, so that none is missed. */
static int __init cf_check livepatch_init(void)
{
    unsigned int cpu;

    tasklets = xzalloc_array(struct tasklet, nr_cpu_ids);
    if ( !tasklets )
        panic(LIVEPATCH "no memory\n");
    for ( cpu = 0; cpu < nr_cpu_ids; cpu++ )
        tasklet_init(&tasklets[cpu], do_nothing, NULL);

    init_payload_area();

    xsplice_init(nr_cpu_ids);
    xsplice_cpu_online(smp_processor_id());
    register_cpu_notifier(&cpu_notifier);
    register_keyhandler('x', show, "list live patches", 1);

    return 0;
}
presmp_initcall(livepatch_init);

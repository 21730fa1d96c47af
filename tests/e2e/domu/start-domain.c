/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Starts an unprivileged PV domain and prints its console until it shuts down,
 * for at most two minutes: start-domain KERNEL INITRAMFS COMMAND-LINE. The domain
 * has neither xenstore nor devices.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define XC_WANT_COMPAT_MAP_FOREIGN_API
#include <xenctrl.h>
#include <xenguest.h>
#include <xen/io/console.h>

#define MEMORY_MIB 160
#define PATIENCE_S 120

static void check(int failed, const char *what)
{
    if (failed) {
        perror(what);
        exit(1);
    }
}

/* Prints what the domain has written since the last call. */
static void show(struct xencons_interface *console)
{
    XENCONS_RING_IDX from = console->out_cons, to = console->out_prod;

    __sync_synchronize();
    for (; from != to; from++)
        putchar(console->out[MASK_XENCONS_IDX(from, console->out)]);
    __sync_synchronize();
    console->out_cons = from;
    fflush(stdout);
}

int main(int argc, char **argv)
{
    struct xen_domctl_createdomain config = {
        .max_vcpus = 1,
        .max_evtchn_port = 1023,
        .max_grant_frames = -1,
        .max_maptrack_frames = -1,
        .grant_opts = XEN_DOMCTL_GRANT_version(1),
    };
    xc_interface *xen = xc_interface_open(NULL, NULL, 0);
    struct xc_dom_image *image;
    struct xencons_interface *console;
    xc_dominfo_t info;
    uint32_t domain = 0;
    time_t end;

    check(argc != 4, "arguments");
    check(!xen, "xc_interface_open");
    check(xc_domain_create(xen, &domain, &config), "xc_domain_create");
    check(xc_domain_max_vcpus(xen, domain, 1), "xc_domain_max_vcpus");
    check(xc_domain_setmaxmem(xen, domain, (MEMORY_MIB + 1) << 10),
          "xc_domain_setmaxmem");

    image = xc_dom_allocate(xen, argv[3], NULL);
    check(!image, "xc_dom_allocate");
    image->container_type = XC_DOM_PV_CONTAINER;
    image->console_evtchn = xc_evtchn_alloc_unbound(xen, domain, 0);
    check(xc_dom_kernel_file(image, argv[1]), "xc_dom_kernel_file");
    check(xc_dom_module_file(image, argv[2], NULL), "xc_dom_module_file");
    check(xc_dom_boot_xen_init(image, xen, domain), "xc_dom_boot_xen_init");
    check(xc_dom_parse_image(image), "xc_dom_parse_image");
    check(xc_dom_mem_init(image, MEMORY_MIB), "xc_dom_mem_init");
    check(xc_dom_boot_mem_init(image), "xc_dom_boot_mem_init");
    check(xc_dom_build_image(image), "xc_dom_build_image");
    check(xc_dom_boot_image(image), "xc_dom_boot_image");

    console = xc_map_foreign_range(xen, domain, XC_PAGE_SIZE,
                                   PROT_READ | PROT_WRITE,
                                   xc_dom_p2m(image, image->console_pfn));
    check(!console, "console");
    xc_dom_release(image);
    check(xc_domain_unpause(xen, domain), "xc_domain_unpause");
    end = time(NULL) + PATIENCE_S;
    do {
        usleep(10000);
        show(console);
        check(xc_domain_getinfo(xen, domain, 1, &info) != 1, "xc_domain_getinfo");
    } while (!info.shutdown && time(NULL) < end);
    show(console);
    check(xc_domain_destroy(xen, domain), "xc_domain_destroy");
    return !info.shutdown;
}

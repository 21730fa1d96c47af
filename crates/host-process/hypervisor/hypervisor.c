/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* A hypervisor in name only: what the in-process host runs and patches. */

#define MEMORY 4096ul

#ifdef __aarch64__
#define RELAX() asm volatile ( "yield" )
#else
#define RELAX() __builtin_ia32_pause()
#endif

enum { VERSION, GRANT, REFUSALS, STALL };

static unsigned long refusals;

__attribute__((noinline)) void refuse(void)
{
    __atomic_fetch_add(&refusals, 1, __ATOMIC_RELAXED);
}

/* What the administrator sees, as a number: 1 for 1.0. */
__attribute__((noinline)) unsigned long version(void)
{
    return 10;
}

/* May a guest have `size` bytes at `offset`? The sum can wrap around: a guest
 * that asks for enough gets everything. */
__attribute__((noinline)) long grant(unsigned long offset, unsigned long size)
{
    if ( offset + size > MEMORY )
    {
        refuse();
        return -1;
    }

    return 0;
}

/* Stays in the hypervisor until somebody sets the byte at `address`. */
__attribute__((noinline)) static long stall(const unsigned char *address)
{
    while ( !__atomic_load_n(address, __ATOMIC_ACQUIRE) )
        RELAX();

    return 0;
}

/* Every guest comes in here. */
long hypercall(unsigned long number, unsigned long a, unsigned long b)
{
    switch ( number )
    {
    case VERSION:
        return version();
    case GRANT:
        return grant(a, b);
    case REFUSALS:
        return __atomic_load_n(&refusals, __ATOMIC_RELAXED);
    case STALL:
        return stall((const unsigned char *)a);
    default:
        return -38;
    }
}

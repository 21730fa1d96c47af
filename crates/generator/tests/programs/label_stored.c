// SPDX-License-Identifier: MIT OR Apache-2.0
// What a variable holds is a label of the old code.
// BEFORE: 100 101 100
// REFUSED: call takes the addresses of its own labels
#ifdef PATCHED
#define BASE 900
#else
#define BASE 100
#endif
long call(void)
{
    static const void *next;
    volatile long x = 1;

    if ( next )
        goto *next;
    x = BASE;
    next = &&again;
    return x;
 again:
    x = BASE + 1;
    next = 0;
    return x;
}

// SPDX-License-Identifier: MIT OR Apache-2.0
// A table of labels goes with its function, although no entry changes its offset.
// BEFORE: 100 101 102
// AFTER: 900 901 902 900
// BACK: 101
#ifdef PATCHED
#define BASE 900
#else
#define BASE 100
#endif
long call(void)
{
    static const void *const table[] = { &&zero, &&one, &&two };
    static unsigned int n;
    volatile long x = 1;

    goto *table[n++ % 3];
 zero:
    x = BASE;
    goto out;
 one:
    x = BASE + 1;
    goto out;
 two:
    x = BASE + 2;
 out:
    return x;
}

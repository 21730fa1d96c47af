// SPDX-License-Identifier: MIT OR Apache-2.0
// So does a table of tables of labels.
// BEFORE: 100 101 100
// AFTER: 900 901 900
// BACK: 100
#ifdef PATCHED
#define BASE 900
#else
#define BASE 100
#endif
long call(void)
{
    static const void *const even[] = { &&zero, &&one };
    static const void *const odd[] = { &&one, &&zero };
    static const void *const *const tables[] = { even, odd };
    static unsigned int n;
    volatile long x = 1;
    const void *const *table = tables[*(volatile unsigned int *)&n / 3 % 2];

    goto *table[n++ % 2];
 zero:
    x = BASE;
    goto out;
 one:
    x = BASE + 1;
 out:
    return x;
}

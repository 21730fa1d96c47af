// SPDX-License-Identifier: MIT OR Apache-2.0
// A table that the program may have written to cannot go with its function.
// BEFORE: 100 101
// REFUSED: holds addresses of labels in call
// REFUSED: which is replaced
#ifdef PATCHED
#define BASE 900
#else
#define BASE 100
#endif
long call(void)
{
    static const void *table[] = { &&zero, &&one };
    static unsigned int n;
    volatile long x = 1;

    if ( n == 77 )
        table[1] = table[0];
    goto *table[n++ % 2];
 zero:
    x = BASE;
    goto out;
 one:
    x = BASE + 1;
 out:
    return x;
}

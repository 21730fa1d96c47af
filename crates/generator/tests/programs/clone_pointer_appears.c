// SPDX-License-Identifier: MIT OR Apache-2.0
// A function that the compiler gave other arguments is called by a pointer: as
// long as the payload is there, the pointer leads to the new one.
// BEFORE: 35 35
// WARNING: call takes the address of sum
// AFTER: 37 37
// BACK: 35
static __attribute__((__noinline__)) int sum(int a, int b, int c)
{
    static volatile int seen;
    seen = a;
    return a + b + 10 * c;
}
#ifdef PATCHED
static int (*volatile kept)(int, int, int);
#endif
long call(void)
{
#ifdef PATCHED
    kept = sum;
    return kept(5, 2, 3);
#else
    return sum(5, 0, 3);
#endif
}

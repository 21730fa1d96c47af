// SPDX-License-Identifier: MIT OR Apache-2.0
// Functions whose address leaves the payload, and one whose address does not.
// BEFORE: 1
// AFTER: 15
// BACK: 3
// WARNING: call takes the address of first, which is only in the payload
// WARNING: table takes the address of second, which is only in the payload
static long (*volatile kept)(long);
#ifdef PATCHED
static long first(long x) { return x + 1; }
static long second(long x) { return x + 2; }
static __attribute__((__noinline__)) long third(long x) { return x + kept(3); }
static long (*const table[])(long) = { second };
#endif
static long (*volatile *volatile where)(long);
long call(void)
{
    static long calls;
#ifdef PATCHED
    kept = first;
    where = (void *)table;
    return third((*where)(5)) + calls++ * 0 + 4;
#else
    kept = 0;
    where = 0;
    return ++calls;
#endif
}

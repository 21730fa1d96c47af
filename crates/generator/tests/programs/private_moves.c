// SPDX-License-Identifier: MIT OR Apache-2.0
// A private variable that moves with its functions keeps its value; so does one
// that is local to a function.
// BEFORE: 1001 2002 3003
// AFTER: 104004 105005
// BACK: 6006
#ifndef PATCHED
static long count;
__attribute__((__noinline__)) long next(void)
{
    static long local;
    local += 1000;
    return ++count + local;
}
#endif
long next(void);
long call(void) { return next(); }
// FILE: other.c
long other(long x) { return x + 1; }
#ifdef PATCHED
static long count;
__attribute__((__noinline__)) long next(void)
{
    static long local;
    local += 1000;
    return ++count + local + 100000;
}
#endif

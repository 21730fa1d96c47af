// SPDX-License-Identifier: MIT OR Apache-2.0
// A private variable that another file defines now, for all.
// BEFORE: 1 2
// AFTER: 13 14
// BACK: 5
#ifndef PATCHED
static long count;
#else
extern __attribute__((visibility("hidden"))) long count;
#endif
__attribute__((__noinline__)) long bump(void)
{
#ifdef PATCHED
    return ++count + 10;
#else
    return ++count;
#endif
}
long call(void) { return bump(); }
// FILE: other.c
long other(long x) { return x + 1; }
#ifdef PATCHED
long count;
__attribute__((__noinline__)) long bump_twice(void) { return count += 2; }
#endif

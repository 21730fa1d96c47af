// SPDX-License-Identifier: MIT OR Apache-2.0
// One that moves and begins with another value is not the same.
// BEFORE: 6 7
// REFUSED: it is unclear whether it is the same
#ifndef PATCHED
static long count = 5;
__attribute__((__noinline__)) long next(void) { return ++count; }
#endif
long next(void);
long call(void) { return next(); }
// FILE: other.c
long other(long x) { return x + 1; }
#ifdef PATCHED
static long count = 8;
__attribute__((__noinline__)) long next(void) { return ++count; }
#endif

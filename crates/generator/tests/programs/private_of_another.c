// SPDX-License-Identifier: MIT OR Apache-2.0
// A variable of the same name, with no function in common, may be another one.
// BEFORE: 1 2
// REFUSED: the variable count is new here, another file loses one of that name
#ifndef PATCHED
static long count;
long call(void) { return ++count; }
#else
long fresh(void);
long call(void) { return fresh(); }
#endif
// FILE: other.c
long other(long x) { return x + 1; }
#ifdef PATCHED
static long count;
__attribute__((__noinline__)) long fresh(void) { return count += 50; }
#endif

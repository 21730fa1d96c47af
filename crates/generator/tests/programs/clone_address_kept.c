// SPDX-License-Identifier: MIT OR Apache-2.0
// A pointer that the program keeps goes on passing all arguments.
// BEFORE: 37 37
// REFUSED: keep takes its address, which may be stored
static int (*kept)(int, int, int);
static __attribute__((__noinline__)) int sum(int a, int b, int c)
{
    static volatile int seen;
    seen = a;
    return a + b + 10 * c;
}
#ifdef PATCHED
static int checked(int a, int b, int c) { return c ? sum(5, b, 3) : 0; }
#define keep_it checked
#else
#define keep_it sum
#endif
static __attribute__((__noinline__)) void keep(void) { kept = keep_it; }
long call(void)
{
    if ( !kept )
        keep();
    return kept(5, 2, 3);
}

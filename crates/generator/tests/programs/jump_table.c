// SPDX-License-Identifier: MIT OR Apache-2.0
// Tables of jumps lead into the new function.
// FLAGS: -fjump-tables
// BEFORE: 3 14 15 92 65 35 7
// AFTER: 3 14 15 92 65 36 7
// BACK: 3
#ifdef PATCHED
#define LAST 36
#else
#define LAST 35
#endif
static volatile int a;
static __attribute__((__noinline__)) int f(int x)
{
    switch ( x )
    {
    case 0: a = 1; return 3;
    case 1: a = 9; a = 7; return 14;
    case 2: a = a + 3; return 15;
    case 3: a = a * 5; return 92;
    case 4: a = 0; return 65;
    case 5: a ^= 4; return LAST;
    }
    return 7;
}
long call(void)
{
    static int n;
    return f(n++ % 7);
}

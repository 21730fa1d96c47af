// SPDX-License-Identifier: MIT OR Apache-2.0
// Data without a name are walked from one label in them to another: they stay
// whole, also where another function refers to a place between.
// BEFORE: 16
// AFTER: 115
// BACK: 16
#ifdef PATCHED
#define FIRST 100
#else
#define FIRST 1
#endif
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)
asm(".section .rodata.table,\"a\"\n"
    ".Ltable: .quad " TEXT(FIRST) ", 2\n"
    ".Lmiddle: .quad 3, 4, 5\n"
    ".Lend: .quad 77\n"
    ".previous");
__attribute__((__noinline__)) static long middle(void)
{
    const long *p;
    asm ( "lea .Lmiddle(%%rip), %0" : "=r" (p) );
    return *(const volatile long *)p;
}
long call(void)
{
    const long *p, *end;
    long sum = 0;

    asm ( "lea .Ltable(%%rip), %0; lea .Lend(%%rip), %1" : "=r" (p), "=r" (end) );
    while ( p < end )
        sum += *p++;
#ifdef PATCHED
    return sum + middle() - 3 + 1;
#else
    return sum + middle() - 2;
#endif
}

/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* What is around a random program, and never changes. */

typedef unsigned long u64;

u64 entry0(u64 x), entry1(u64 x), entry2(u64 x);

__attribute__((noinline)) u64 digest(const char *text)
{
    u64 hash = 0xcbf29ce484222325;

    for ( ; *text; text++ )
        hash = (hash ^ (unsigned char)*text) * 0x100000001b3;

    return hash;
}

__attribute__((noinline)) u64 through(u64 (*function)(u64), u64 x)
{
    return function(x);
}

u64 hypercall(u64 number, u64 a, u64 b)
{
    switch ( number )
    {
    case 0:
        return entry0(a);
    case 1:
        return entry1(a);
    default:
        return entry2(a) + b;
    }
}

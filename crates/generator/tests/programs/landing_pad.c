// SPDX-License-Identifier: MIT OR Apache-2.0
// The old place of a function that no pointer led to lacks the landing pad that
// processors want there: a pointer leads to the new place.
// FLAGS: -fcf-protection=branch -mmanual-endbr
// BEFORE: 5
// AFTER: 6
// BACK: 5
// WARNING: call takes the address of plain, which is only in the payload
#ifdef PATCHED
#define PAD __attribute__((__cf_check__))
#else
#define PAD
#endif
static long (*volatile kept)(long);
static __attribute__((__noinline__)) PAD long plain(long x) { return x + 4; }
long call(void)
{
#ifdef PATCHED
    kept = plain;
    return kept(2);
#else
    kept = 0;
    return plain(1);
#endif
}

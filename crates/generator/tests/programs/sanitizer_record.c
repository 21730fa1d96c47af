// SPDX-License-Identifier: MIT OR Apache-2.0
// The sanitizer's calls get records that the compiler writes, which have no name, and
// in which the hypervisor notes what it has reported: the payload has its own.
// FLAGS: -fsanitize=signed-integer-overflow
// BEFORE: 1 1
// AFTER: 102 102
// BACK: 2
struct record
{
    struct
    {
        const char *file;
        unsigned int line, column;
    } location;
    const void *type;
};
static long reports;
void __ubsan_handle_add_overflow(struct record *record, long left, long right)
{
    if ( record->location.column == ~0u )
        return;
    record->location.column = ~0u;
    reports++;
}
static volatile int large = 0x7fffffff;
long call(void)
{
    volatile int sum = large + 1;
    (void)sum;
#ifdef PATCHED
    return reports + 100;
#else
    return reports;
#endif
}

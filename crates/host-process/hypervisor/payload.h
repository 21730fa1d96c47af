/* SPDX-License-Identifier: MIT OR Apache-2.0 */

/* What every payload for it has. BUILD_ID and DEPENDS are the bytes that an
 * identification is made of; SIZE_f is the size of the function f. */

#define STRING_(x) #x
#define STRING(x) STRING_(x)

#define NOTE(section, byte)                                                    \
    asm ( ".pushsection " section ", \"a\", @note\n"                           \
          ".balign 4\n"                                                        \
          ".long 4, 20, 3\n"                                                   \
          ".asciz \"GNU\"\n"                                                   \
          ".fill 20, 1, " STRING(byte) "\n"                                    \
          ".popsection" )

/* One record of .livepatch.funcs. */
#define REPLACES(old, new)                                                     \
    asm ( ".pushsection .livepatch.strings, \"a\", @progbits\n"                \
          ".Lname_" #old ": .asciz \"" #old "\"\n"                             \
          ".popsection\n"                                                      \
          ".pushsection .livepatch.funcs, \"aw\", @progbits\n"                 \
          ".quad .Lname_" #old ", " #new ", 0\n"                               \
          ".long " STRING(SIZE_##new) ", " STRING(SIZE_##old) "\n"             \
          ".byte 2\n"                                                          \
          ".zero 71\n"                                                         \
          ".popsection" )

#define HOOK(kind, function)                                                   \
    asm ( ".pushsection .livepatch.hooks." #kind ", \"a\", @progbits\n"        \
          ".balign 8\n"                                                        \
          ".quad " #function "\n"                                              \
          ".popsection" )

NOTE(".note.gnu.build-id", BUILD_ID);
NOTE(".livepatch.depends", DEPENDS);
NOTE(".livepatch.xen_depends", 0xaa);

/* What hooks get: the payload's record. */
struct payload {
    unsigned int state;
    int result;
};

void refuse(void);

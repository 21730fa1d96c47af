// SPDX-License-Identifier: MIT OR Apache-2.0
/* A payload made by hand, for hypervisors without a source tree: xen_extra_version() at
   OLD_ADDR, OLD_SIZE bytes long, returns "-by-hand". */

#define OWN_BYTE 0x5a
#define DEPENDS_ID XEN_ID
#include "../../../crates/host-image/tests/fixture/notes.S"

    .section .text.by_hand, "ax", @progbits
    .type by_hand, @function
by_hand:
    endbr64
    lea .Ltext(%rip), %rax
    ret
    .size by_hand, . - by_hand

    .section .rodata.str, "a", @progbits
.Ltext:
    .asciz "-by-hand"
.Lname:
    .asciz "xen_extra_version"

    .section .modinfo, "a", @progbits
    .asciz "made=by hand"

    .section .livepatch.funcs, "aw", @progbits
    .quad .Lname, by_hand, OLD_ADDR
    .long by_hand_size, OLD_SIZE
    .byte 2
    .zero 71

    .set by_hand_size, .Lend - by_hand
    .section .text.by_hand
.Lend:

    .section .note.GNU-stack, "", @progbits

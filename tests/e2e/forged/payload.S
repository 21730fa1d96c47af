// SPDX-License-Identifier: MIT OR Apache-2.0
/* A payload with TEXT in all its names: metadata, sections, symbols, hooks, a bug
   frame and the build record, RECORD. It replaces the function at OLD_ADDR,
   OLD_SIZE bytes long, which returns a string. */

#define QUOTED_(text) #text
#define QUOTED(text) QUOTED_(text)

#define OWN_BYTE 0x5a
#define DEPENDS_ID XEN_ID
#include "../../../crates/host-image/tests/fixture/notes.S"

    .section .note.xsplice.build, "", @note
    .incbin RECORD

    .section .text.TEXT, "ax", @progbits
    .globl TEXT.new
    .type TEXT.new, @function
TEXT.new:
    endbr64
    lea TEXT.data(%rip), %rax
    ret
.Lbug:
    ud2
    .size TEXT.new, . - TEXT.new
    .type TEXT.hook, @function
TEXT.hook:
    endbr64
    xor %eax, %eax
    ret
    .size TEXT.hook, . - TEXT.hook

    .section .data.TEXT, "aw", @progbits
    .type TEXT.data, @object
TEXT.data:
    .asciz QUOTED(TEXT)
    .size TEXT.data, . - TEXT.data

    .section .rodata.str, "a", @progbits
.Lname:
    .asciz QUOTED(TEXT)
.Lfile:
    .asciz QUOTED(TEXT)

    .section .bug_frames.2, "a", @progbits
.Lframe:
    .long .Lbug - .Lframe + (1 << 24), .Lfile - .Lframe

    .section .modinfo, "a", @progbits
    .asciz QUOTED(author=TEXT)
    .asciz QUOTED(TEXT)

    .section .livepatch.hooks.unload, "aw", @progbits
    .quad TEXT.hook

    .section .livepatch.funcs, "aw", @progbits
    .quad .Lname, TEXT.new, OLD_ADDR
    .long .Lbug - TEXT.new, OLD_SIZE
    .byte 2
    .zero 71

    .section .note.GNU-stack, "", @progbits

// A guest that does nothing but leave KVM for QEMU: a port write per turn, counted at GPA 0x1000.

        .text
        .globl _start
_start:
entry:
        .code16
        xor     %ax, %ax
        mov     %ax, %ds
turn:   incl    0x1000
        out     %al, $0x80
        jmp     turn

        .org    0xfff0
        ljmp    $0xf000, $(entry - _start)
        .org    0x10000

// A guest that debugs itself: int3, debug registers and the trap flag, each time round a loop. Its
// handlers write a trace to GPA TRACE, 32 bytes an entry: vector, rip, dr6, rflags. When it has gone
// round ROUNDS times it writes the number of entries to GPA DONE and halts.
//
// The 64 KiB image is firmware: it runs where it is mapped, below 1 MiB, in 64-bit mode.

.set ROM, 0xf0000
.set TRACE, 0x200000
.set DONE, 0x5000
.set WATCHED, 0x5100
.set STACK, 0x7000
.set ROUNDS, 20

        .text
        .globl _start
_start:
        .code16
entry:  cli
        mov     $(ROM >> 4), %ax
        mov     %ax, %ds
        lgdtl   gdtr - _start
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $(protected - _start + ROM)

        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        movl    $0x2003, 0x1000         // PML4, one page directory pointer, 8 large pages
        movl    $0x3003, 0x2000
        mov     $0x83, %eax
        mov     $0x3000, %edi
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        cmp     $0x3040, %edi
        jne     1b
        mov     $0x20, %eax             // PAE
        mov     %eax, %cr4
        mov     $0x1000, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax            // LME
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmpl   $24, $(long - _start + ROM)

        .code64
long:   mov     $STACK, %esp
        // The IDT is made in RAM, at 0x6000: vectors 1 and 3.
        lea     debug(%rip), %rax
        mov     $0x6010, %edi
        call    gate
        lea     breakpoint(%rip), %rax
        mov     $0x6030, %edi
        call    gate
        lidt    idtr(%rip)
        mov     $TRACE, %r12d           // where the next entry goes
        mov     $ROUNDS, %r13d

round:  int3
        nop
        int3

        lea     executed(%rip), %rax    // DR0: execution
        mov     %rax, %dr0
        mov     $WATCHED, %eax          // DR1: an 8-byte store
        mov     %rax, %dr1
        mov     $0x900405, %eax
        mov     %rax, %dr7
        nop
executed:
        nop
        incq    WATCHED
        nop
        mov     $0x400, %eax
        mov     %rax, %dr7

        mov     $6, %r14d               // steps left
        pushf
        orl     $0x100, (%rsp)
        popf
        nop
        mov     %rsp, %rax
        push    %rax
        pop     %rbx
        xor     %ecx, %ecx
        inc     %rcx
        nop
        nop

        dec     %r13d
        jnz     round
        mov     %r12, DONE
1:      hlt
        jmp     1b

gate:   mov     %ax, (%rdi)             // an interrupt gate for %rax at %rdi
        movw    $24, 2(%rdi)
        movw    $0x8e00, 4(%rdi)
        shr     $16, %rax
        mov     %ax, 6(%rdi)
        movq    $0, 8(%rdi)
        ret

breakpoint:
        push    %rax
        movq    $3, (%r12)
        movq    $0, 16(%r12)
        jmp     record
debug:  push    %rax
        movq    $1, (%r12)
        mov     %dr6, %rax
        mov     %rax, 16(%r12)
        test    $1 << 14, %eax          // a step
        jz      1f
        dec     %r14d
        jnz     2f
        andl    $~0x100, 24(%rsp)
        jmp     2f
1:      orl     $0x10000, 24(%rsp)      // go past the instruction
2:      xor     %eax, %eax
        mov     %rax, %dr6
record: mov     8(%rsp), %rax
        mov     %rax, 8(%r12)
        mov     24(%rsp), %rax
        mov     %rax, 24(%r12)
        add     $32, %r12
        pop     %rax
        iretq

        .balign 16
gdt:    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr:   .word   . - gdt - 1
        .long   gdt - _start + ROM
idtr:   .word   0x3f
        .quad   0x6000

        .org    0xfff0
        .code16
        ljmp    $(ROM >> 4), $(entry - _start)
        .org    0x10000

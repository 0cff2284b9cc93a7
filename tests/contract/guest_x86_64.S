// A guest that is a whole firmware: in 64-bit mode a millisecond after power-on, on every vCPU.
//
// The 64 KiB image is mapped below 1 MiB and copied to GPA 0x200000, where it runs at its linked
// addresses, IMAGE and up. Mapped: GVA 0 and 0xffffffff80000000 to GPA 0 (16 MiB, large pages), and
// GVA SMALL to GPA 0x300000 (one 4 KiB page, nothing after it).

.set IMAGE, 0xffffffff80200000
.set COPY, 0x200000
.set ROM, 0xf0000
.set APIC, 0xfee00000

        .text
        .globl _start
_start:
image:
        .code16
entry:  cli                             // reset (through the last line), and start-up IPI
        mov     $(ROM >> 4), %ax
        mov     %ax, %ds
        lgdtl   gdtr - image
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmpl   $8, $(protected - image + ROM)

        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %ss
        mov     $0x1b, %ecx
        rdmsr
        test    $0x100, %eax            // the bootstrap processor?
        jz      long

        mov     $ROM, %esi
        mov     $COPY, %edi
        mov     $0x4000, %ecx
        rep movsl
        movl    $0x2003, 0x1000         // PML4: low and high half
        movl    $0x3003, 0x1ff8
        movl    $0x4003, 0x2000         // low: 0, 1 GiB, 3 GiB
        movl    $0x6003, 0x2008
        movl    $0x7003, 0x2018
        movl    $0x4003, 0x3ff0         // high: -2 GiB
        movl    $0x8003, 0x6000
        movl    $0x300003, 0x8000       // the small page
        movl    $APIC + 0x93, 0x7fb8
        mov     $0x83, %eax             // 8 large pages
        mov     $0x4000, %edi
1:      mov     %eax, (%edi)
        add     $0x200000, %eax
        add     $8, %edi
        cmp     $0x4040, %edi
        jne     1b
        movl    $0x1ff, APIC + 0xf0
        movl    $0xc4500, APIC + 0x300          // INIT to all others
        movl    $0xc4600 + (ROM >> 12), APIC + 0x300
long:
        mov     %cr4, %eax
        or      $0x220, %eax            // PAE, OSFXSR
        mov     %eax, %cr4
        mov     $0x1000, %eax
        mov     %eax, %cr3
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x100, %eax            // LME
        wrmsr
        mov     %cr0, %eax
        and     $~0xc, %eax             // EM, TS
        or      $0x80000002, %eax
        mov     %eax, %cr0
        ljmpl   $24, $(low64 - image + ROM)

        .code64
low64:  movabs  $high, %rax
        jmp     *%rax

high:   mov     $APIC, %edx
        mov     0x20(%rdx), %ebx        // rbx: this vCPU's number
        shr     $24, %ebx
        mov     %rbx, %rax
        shl     $12, %rax
        lea     stacks(%rax), %rsp
        lidt    idtr
        mov     $0x1234, %eax
        mov     %rax, %dr1
        test    %ebx, %ebx
        jnz     other
        movl    $0x20020, 0x320(%rdx)   // periodic timer, vector 0x20, 1 ms
        movl    $0xb, 0x3e0(%rdx)
        movl    $1000000, 0x380(%rdx)
        sti

        .globl loop, store, stored, load, loaded, answer, answered, halted, tick, other
loop:   cmpq    $0, halt
        jne     halting
        nop
store:  incq    counters
stored: nop
load:   mov     shared, %rcx
loaded: call    answer
answered:
        mov     %rax, result
        jmp     loop

other:  incq    counters(,%rbx,8)
        jmp     other

answer: mov     $0x11, %eax
        ret

halting:
        hlt                             // until the next tick
halted: jmp     loop

tick:   push    %rdx
        incq    ticks
        mov     $APIC, %edx
        movl    $0, 0xb0(%rdx)
        pop     %rdx
        iretq

        .balign 16
gdt:    .quad   0, 0x00cf9b000000ffff, 0x00cf93000000ffff, 0x00af9b000000ffff
gdtr:   .word   . - gdt - 1
        .long   gdt - image + ROM
idt:    .fill   0x40, 8, 0
        .word   tick - image, 24, 0x8e00, (IMAGE >> 16) & 0xffff
        .long   0xffffffff, 0
idtr:   .word   idtr - idt - 1
        .quad   idt

        .balign 4096
        .globl halt, halting, shared, high, gdt, idt, stacks, counters, result, ticks
halt:   .quad   0
shared: .quad   0x5aa5
result: .quad   0
ticks:  .quad   0
        .balign 64
counters: .fill 8, 8, 0
        .org    0x8000
stacks = image + 0x9000
        .org    0xfff0
        .code16
        ljmp    $(ROM >> 4), $(entry - image)
        .org    0x10000

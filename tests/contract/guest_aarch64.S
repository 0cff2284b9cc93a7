// A guest that is a whole firmware: with its MMU on a millisecond after power-on, on every vCPU.
//
// The image is in flash at GPA 0, and copied to COPY, where it runs at its linked addresses, IMAGE
// and up. Mapped: GVA 0 (flash, devices) and 0x40000000 (RAM) to themselves, IMAGE - 0x200000 to
// RAM, by 1 GiB each, and GVA SMALL to GPA 0x40300000 (one 4 KiB page, nothing after it).

.set IMAGE, 0xffffff8000200000
.set COPY, 0x40200000
.set TABLES, 0x40100000
.set GICD, 0x08000000
.set GICC, 0x08010000
.set TICK, 62500                        // 1 ms

.macro  set32 register, value
        mov     \register, #(\value) & 0xffff
        movk    \register, #((\value) >> 16) & 0xffff, lsl #16
.endm

        .text
        .globl _start
_start:
image:
entry:  mrs     x20, mpidr_el1          // x20: this vCPU's number
        and     x20, x20, #0xff
        cbnz    x20, paging

        adr     x0, image
        set32   x1, COPY
        mov     x2, #0x10000
1:      ldp     x3, x4, [x0], #16
        stp     x3, x4, [x1], #16
        subs    x2, x2, #16
        b.ne    1b
        set32   x0, TABLES              // low level 1, high level 1, level 2, level 3
        mov     x1, #0x405              // a block of device memory
        str     x1, [x0]
        set32   x1, 0x40000701          // a block of normal memory
        str     x1, [x0, #8]
        str     x1, [x0, #0x1000]
        set32   x1, TABLES + 0x2003
        str     x1, [x0, #16]
        set32   x1, TABLES + 0x3003
        add     x2, x0, #0x2000
        str     x1, [x2]
        set32   x1, 0x40300703
        str     x1, [x2, #0x1000]
        set32   x0, 0xc4000003          // PSCI: CPU_ON of vCPU 1, if there is one
        mov     x1, #1
        set32   x2, COPY
        mov     x3, #0
        hvc     #0

paging: mov     x0, #0x00ff             // attribute 0: normal memory, 1: devices
        msr     mair_el1, x0
        set32   x0, TABLES
        msr     ttbr0_el1, x0
        add     x0, x0, #0x1000
        msr     ttbr1_el1, x0
        set32   x0, 0xb5193519          // 4 KiB, two halves of 39 bits
        msr     tcr_el1, x0
        mov     x0, #3 << 20            // no traps of SIMD
        msr     cpacr_el1, x0
        isb
        mrs     x0, sctlr_el1
        orr     x0, x0, #1
        msr     sctlr_el1, x0
        isb
        ldr     x0, entrance
        br      x0

high:   adr     x0, vectors
        msr     vbar_el1, x0
        adr     x0, stacks
        add     x0, x0, x20, lsl #12
        mov     sp, x0
        mov     x2, #0
        adr     x3, counters
        adr     x5, shared
        cbnz    x20, other
        set32   x0, GICD
        mov     w1, #1
        str     w1, [x0]
        mov     w1, #1 << 27            // the virtual timer
        str     w1, [x0, #0x100]
        set32   x0, GICC
        mov     w1, #0xff
        str     w1, [x0, #4]
        mov     w1, #1
        str     w1, [x0]
        mov     x0, #TICK
        msr     cntv_tval_el0, x0
        mov     x0, #1
        msr     cntv_ctl_el0, x0
        msr     daifclr, #2

        .globl loop, store, stored, load, loaded, answer, answered, halted, tick, other
loop:   ldr     x1, quiet
        cbz     x1, 1f
        msr     cntv_ctl_el0, xzr
1:      ldr     x1, halt
        cbnz    x1, halting
        add     x2, x2, #1              // not loaded: nothing but store accesses the counter
store:  str     x2, [x3]
stored: nop
load:   ldrb    w4, [x5]
loaded: bl      answer
answered:
        str     x0, [x5, #result - shared]
        b       loop

other:  ldr     x2, [x3, x20, lsl #3]
        add     x2, x2, #1
        str     x2, [x3, x20, lsl #3]
        b       other

answer: mov     w0, #0x11
        ret

halting:
        wfi                             // until the next tick
halted: b       loop

tick:   stp     x0, x1, [sp, #-16]!
        ldr     x0, ticks
        add     x0, x0, #1
        adr     x1, ticks
        str     x0, [x1]
        set32   x0, TICK
        msr     cntv_tval_el0, x0
        isb
        set32   x0, GICC
        ldr     w1, [x0, #12]
        str     w1, [x0, #16]
        ldp     x0, x1, [sp], #16
        eret

        .balign 2048
vectors:
        .org    vectors + 0x280 - image
        b       tick
        .balign 4096
        .globl halt, quiet, halting, shared, high, vectors, stacks, counters, result, ticks
halt:   .quad   0
quiet:  .quad   0
shared: .quad   0x5aa5
result: .quad   0
ticks:  .quad   0
entrance: .quad high
        .balign 64
counters: .fill 8, 8, 0
        .org    0x8000
stacks = image + 0x9000
        .org    0x10000

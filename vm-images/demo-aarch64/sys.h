/* Linux system calls of arm64 (syscall(2), "Architecture calling conventions"). */
#ifndef WORKLOAD_SYS_H
#define WORKLOAD_SYS_H

enum {
    NR_OPENAT = 56,
    NR_CLOSE = 57,
    NR_READ = 63,
    NR_WRITE = 64,
    NR_NANOSLEEP = 101,
    NR_GETPID = 172,
};

static inline long sys4(long nr, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = nr;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

/* The kernel enters with sp aligned to 16 bytes, as the ABI expects it. */
__asm__(".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "    mov x29, xzr\n"
        "    bl workload_main\n"
        "    brk #0\n"
        ".size _start, . - _start\n");

#endif

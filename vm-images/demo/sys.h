/* Linux system calls of x86-64 (syscall(2), "Architecture calling conventions"). */
#ifndef WORKLOAD_SYS_H
#define WORKLOAD_SYS_H

enum {
    NR_READ = 0,
    NR_WRITE = 1,
    NR_CLOSE = 3,
    NR_NANOSLEEP = 35,
    NR_GETPID = 39,
    NR_OPENAT = 257,
};

static inline long sys4(long nr, long a, long b, long c, long d)
{
    register long r10 __asm__("r10") = d;
    long ret;

    __asm__ volatile("syscall"
                     : "=a"(ret)
                     : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return ret;
}

/* The kernel enters with rsp aligned to 16 bytes; `call` gives main the frame the ABI expects. */
__asm__(".globl _start\n"
        ".type _start, @function\n"
        "_start:\n"
        "    xor %ebp, %ebp\n"
        "    call workload_main\n"
        "    ud2\n"
        ".size _start, . - _start\n");

#endif

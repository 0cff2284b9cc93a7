// Waits as QEMU's main thread does: in ppoll(2), for standard input. For each byte it gets it
// prints "same", or what is not as it was before the system call. With an argument it never waits.

#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef __x86_64__
enum { PRESERVED = 11, VECTORS = 16 };

struct state {
    uint64_t registers[PRESERVED]; // rbx, rdi, rsi, rdx, r8, r9, r10, r12, r13, r14, flags
    unsigned char vectors[VECTORS][16];
};

#define EACH_VECTOR(X)                                                                             \
    X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define LOAD_VECTOR(N) "movdqu 88+16*" #N "(%%r15), %%xmm" #N "\n"
#define STORE_VECTOR(N) "movdqu %%xmm" #N ", 88+16*" #N "(%%r15)\n"

static const char *wait_and_compare(void)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};
    struct state before, after;
    long result;

    for (size_t i = 0; i < sizeof(before); i++)
        ((unsigned char *)&before)[i] = (unsigned char)(i * 37 + 11);
    before.registers[1] = (uintptr_t)&input; // fds, nfds, no timeout, no mask
    before.registers[2] = 1;
    before.registers[3] = before.registers[4] = before.registers[6] = 0;
    after = before;
    register struct state *state asm("r15") = &after;
    asm volatile(EACH_VECTOR(LOAD_VECTOR) "movq (%%r15), %%rbx\n"
                                          "movq 8(%%r15), %%rdi\n"
                                          "movq 16(%%r15), %%rsi\n"
                                          "movq 24(%%r15), %%rdx\n"
                                          "movq 32(%%r15), %%r8\n"
                                          "movq 40(%%r15), %%r9\n"
                                          "movq 48(%%r15), %%r10\n"
                                          "movq 56(%%r15), %%r12\n"
                                          "movq 64(%%r15), %%r13\n"
                                          "movq 72(%%r15), %%r14\n"
                                          "syscall\n"
                                          "movq %%rbx, (%%r15)\n"
                                          "movq %%rdi, 8(%%r15)\n"
                                          "movq %%rsi, 16(%%r15)\n"
                                          "movq %%rdx, 24(%%r15)\n"
                                          "movq %%r8, 32(%%r15)\n"
                                          "movq %%r9, 40(%%r15)\n"
                                          "movq %%r10, 48(%%r15)\n"
                                          "movq %%r12, 56(%%r15)\n"
                                          "movq %%r13, 64(%%r15)\n"
                                          "movq %%r14, 72(%%r15)\n" EACH_VECTOR(STORE_VECTOR)
                 : "=a"(result)
                 : "a"((long)SYS_ppoll), "r"(state)
                 : "memory", "cc", "rbx", "rcx", "rdx", "rdi", "rsi", "r8", "r9", "r10", "r11",
                   "r12", "r13", "r14", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
                   "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    if (result != 1)
        return "the result";
    if (memcmp(before.registers, after.registers, sizeof(before.registers)))
        return "a register";
    return memcmp(before.vectors, after.vectors, sizeof(before.vectors)) ? "a vector register"
                                                                         : "same";
}
#else
static const char *wait_and_compare(void)
{
    struct pollfd input = {.fd = 0, .events = POLLIN};

    return ppoll(&input, 1, NULL, NULL) == 1 ? "same" : "the result";
}
#endif

int main(int argc, char **argv)
{
    char byte;

    (void)argv;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (argc > 1)
        continue;
    for (;;) {
        const char *found = wait_and_compare();

        if (read(0, &byte, 1) != 1)
            return 0;
        puts(found);
    }
}

// Functions called in another process, by one of its own threads. Declared in cdefs/native.cdef.h.
//
// A system call that the stop interrupted is restarted by the kernel: it looks at the registers
// when the thread runs on, and finds those that were there before (orig_rax among them).

#include "native.h"

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// A function returns to here: nothing is mapped, so that SIGSEGV tells.
#define RETURN_ADDRESS 0x10

#define LONGEST_VECTOR_STATE 16384
#define NAP_NS 50000

#ifdef __x86_64__
typedef struct user_regs_struct registers;
enum { VECTOR_STATE = NT_X86_XSTATE };
#define RED_ZONE 128

static long system_call(const registers *regs)
{
    long result = (long)regs->rax;

    // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK: the kernel's, not
    // errno.h's.
    return result == -512 || result == -513 || result == -514 || result == -516
               ? (long)regs->orig_rax
               : -1;
}

static uint64_t program_counter(const registers *regs)
{
    return regs->rip;
}

static uint64_t stack_pointer(const registers *regs)
{
    return regs->rsp;
}

static uint64_t result_of(const registers *regs)
{
    return regs->rax;
}

static int enter(pid_t tid, registers *regs, uint64_t function, uint64_t a, uint64_t b,
                 uint64_t stack)
{
    uint64_t return_address = RETURN_ADDRESS;
    struct iovec local = {.iov_base = &return_address, .iov_len = sizeof(return_address)};
    struct iovec remote = {.iov_len = sizeof(return_address)};

    regs->rsp = (stack & ~15ULL) - sizeof(return_address);
    remote.iov_base = (void *)(uintptr_t)regs->rsp;
    if (process_vm_writev(tid, &local, 1, &remote, 1, 0) != (ssize_t)sizeof(return_address))
        return -EFAULT;
    regs->rip = function;
    regs->rdi = a;
    regs->rsi = b;
    regs->rax = 0; // no vector registers are arguments
    regs->orig_rax = -1ULL;
    regs->eflags &= ~0x400ULL; // DF
    return 0;
}
#else
typedef struct user_regs_struct registers;
enum { VECTOR_STATE = NT_PRFPREG };
#define RED_ZONE 0

static long system_call(const registers *regs)
{
    // pc is at the svc again if the kernel means to restart it.
    return (long)regs->regs[8];
}

static uint64_t program_counter(const registers *regs)
{
    return regs->pc;
}

static uint64_t stack_pointer(const registers *regs)
{
    return regs->sp;
}

static uint64_t result_of(const registers *regs)
{
    return regs->regs[0];
}

static int enter(pid_t tid, registers *regs, uint64_t function, uint64_t a, uint64_t b,
                 uint64_t stack)
{
    (void)tid;
    regs->sp = stack & ~15ULL;
    regs->pc = function;
    regs->regs[0] = a;
    regs->regs[1] = b;
    regs->regs[30] = RETURN_ADDRESS;
    return 0;
}
#endif

struct remote_thread {
    pid_t tid;
    registers saved;
    size_t vector_length;
    unsigned char vector_state[LONGEST_VECTOR_STATE];
};

static int get_registers(pid_t tid, registers *regs)
{
    struct iovec set = {.iov_base = regs, .iov_len = sizeof(*regs)};

    if (ptrace(PTRACE_GETREGSET, tid, NT_PRSTATUS, &set) < 0)
        return -errno;
    return set.iov_len == sizeof(*regs) ? 0 : -ENOTSUP;
}

static int set_registers(pid_t tid, registers *regs)
{
    struct iovec set = {.iov_base = regs, .iov_len = sizeof(*regs)};

    return ptrace(PTRACE_SETREGSET, tid, NT_PRSTATUS, &set) < 0 ? -errno : 0;
}

static int64_t now_ms(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

// The next stop of the thread, as waitpid(2) tells it. Returns 0, -ETIMEDOUT, or -ESRCH at its end.
static int wait_for_stop(pid_t tid, int64_t deadline, int *status)
{
    const struct timespec nap = {.tv_nsec = NAP_NS};

    for (;;) {
        pid_t found = waitpid(tid, status, __WALL | WNOHANG);

        if (found < 0)
            return -errno;
        if (found == tid)
            return WIFSTOPPED(*status) ? 0 : -ESRCH;
        if (now_ms() > deadline)
            return -ETIMEDOUT;
        nanosleep(&nap, NULL);
    }
}

static int is_event_stop(int status)
{
    return status >> 16 == PTRACE_EVENT_STOP;
}

static int save(struct remote_thread *thread)
{
    struct iovec vectors = {.iov_base = thread->vector_state, .iov_len = LONGEST_VECTOR_STATE};
    int error = get_registers(thread->tid, &thread->saved);

    if (error)
        return error;
    if (ptrace(PTRACE_GETREGSET, thread->tid, VECTOR_STATE, &vectors) < 0)
        return -errno;
    thread->vector_length = vectors.iov_len;
    return vectors.iov_len < LONGEST_VECTOR_STATE ? 0 : -ENOTSUP;
}

// Until the thread is stopped for us alone; a signal that comes before is given to it.
static int interrupt(struct remote_thread *thread, int milliseconds)
{
    int64_t deadline = now_ms() + milliseconds;
    int status, error;

    if (ptrace(PTRACE_INTERRUPT, thread->tid, 0, 0) < 0)
        return -errno;
    for (;;) {
        error = wait_for_stop(thread->tid, deadline, &status);
        if (error)
            return error;
        if (is_event_stop(status))
            break;
        if (ptrace(PTRACE_CONT, thread->tid, 0, (uintptr_t)WSTOPSIG(status)) < 0)
            return -errno;
    }
    error = WSTOPSIG(status) == SIGTRAP ? save(thread) : -EAGAIN;
    if (error)
        ptrace(PTRACE_DETACH, thread->tid, 0, 0);
    return error;
}

int remote_stop(int tid, int milliseconds, struct remote_thread **result)
{
    struct remote_thread *thread = calloc(1, sizeof(*thread));
    int error;

    if (!thread)
        return -ENOMEM;
    thread->tid = tid;
    error = ptrace(PTRACE_SEIZE, tid, 0, 0) < 0 ? -errno : interrupt(thread, milliseconds);
    if (error) {
        free(thread);
        return error;
    }
    *result = thread;
    return 0;
}

long remote_system_call(const struct remote_thread *thread)
{
    return system_call(&thread->saved);
}

unsigned long long remote_stack(const struct remote_thread *thread)
{
    return stack_pointer(&thread->saved) - RED_ZONE;
}

int remote_write(const struct remote_thread *thread, unsigned long long address, const void *data,
                 size_t length)
{
    struct iovec local = {.iov_base = (void *)(uintptr_t)data, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t count = process_vm_writev(thread->tid, &local, 1, &remote, 1, 0);

    if (count < 0)
        return -errno;
    return (size_t)count == length ? 0 : -EFAULT;
}

static int is_crash(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGILL || signal == SIGFPE ||
           signal == SIGTRAP || signal == SIGABRT || signal == SIGSYS;
}

// Lets the thread run until it comes back to RETURN_ADDRESS.
static int run_to_return(pid_t tid, int64_t deadline, registers *regs)
{
    int signal = 0, status, error;

    for (;;) {
        if (ptrace(PTRACE_CONT, tid, 0, (uintptr_t)signal) < 0)
            return -errno;
        error = wait_for_stop(tid, deadline, &status);
        if (error)
            return error;
        signal = is_event_stop(status) ? 0 : WSTOPSIG(status);
        if (is_crash(signal)) {
            error = get_registers(tid, regs);
            if (error)
                return error;
            return signal == SIGSEGV && program_counter(regs) == RETURN_ADDRESS ? 0 : -EFAULT;
        }
    }
}

int remote_call(struct remote_thread *thread, unsigned long long function, unsigned long long a,
                unsigned long long b, unsigned long long stack, int milliseconds,
                unsigned long long *result)
{
    registers regs = thread->saved;
    int error = enter(thread->tid, &regs, function, a, b, stack);

    if (!error)
        error = set_registers(thread->tid, &regs);
    if (!error)
        error = run_to_return(thread->tid, now_ms() + milliseconds, &regs);
    if (!error)
        *result = result_of(&regs);
    return error;
}

void remote_release(struct remote_thread *thread)
{
    struct iovec vectors = {.iov_base = thread->vector_state, .iov_len = thread->vector_length};
    int status;

    // After a call that took too long it runs still.
    if (set_registers(thread->tid, &thread->saved) == -ESRCH) {
        ptrace(PTRACE_INTERRUPT, thread->tid, 0, 0);
        wait_for_stop(thread->tid, now_ms() + 1000, &status);
        set_registers(thread->tid, &thread->saved);
    }
    ptrace(PTRACE_SETREGSET, thread->tid, VECTOR_STATE, &vectors);
    ptrace(PTRACE_DETACH, thread->tid, 0, 0);
    free(thread);
}

int copy_descriptor(int pidfd, int descriptor)
{
    long copy = syscall(SYS_pidfd_getfd, pidfd, descriptor, 0);

    return copy < 0 ? -errno : (int)copy;
}

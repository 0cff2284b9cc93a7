// The fake KVM, guest and QEMU of fake.h.

#include "fake.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"

#define TF 0x100ull
#define BS 0x4000ull

enum { VM_FD = 900, VCPU_FD = 1000, RAM_SIZE = 0x40000, LOOKS_BEFORE_HANG = 60000 };

uint8_t ram[RAM_SIZE];
atomic_bool armed[SITES], logging, logging_window, stopped, hurried;
atomic_int licence[VCPUS];
atomic_ullong token[VCPUS], progress[VCPUS], passed[SITES], events, writes, resets;
atomic_bool watching;
pthread_mutex_t no_reset = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

struct kvm_sregs fake_sregs = {
    .cr0 = 0x80000001, .cr3 = 0x1000, .cr4 = 0x20, .efer = 0x500, .cs.l = 1, .ss.dpl = 3};

static const uint8_t PROGRAM[] = {
    0x90,             // 0: nop
    0x55,             // 1: push %rbp
    0x5d,             // 2: pop %rbp; it faults now and then
    0x48, 0x89, 0xe5, // 3: mov %rsp, %rbp
    0xe6, 0x80,       // 4: out %al, $0x80
    0x48, 0xff, 0xc0, // 5: inc %rax
    0xf3, 0xa4,       // 6: rep movsb; here of 3 turns
    0xcc,             // 7: the guest's own int3
    0xf4,             // 8: hlt
    0xeb, 0xef,       // jmp 0
};
const uint64_t SITE[SITES] = {CODE,     CODE + 1,  CODE + 2,  CODE + 3, CODE + 6,
                              CODE + 8, CODE + 11, CODE + 13, CODE + 14};

// The latest events.
static struct {
    _Atomic(const char *) what;
    atomic_ullong who, more;
} notes[1024];
static atomic_uint note_count;

void note(const char *what, uint64_t who, uint64_t more)
{
    const unsigned at = note_count++ % 1024;

    atomic_store_explicit(&notes[at].what, what, memory_order_relaxed);
    atomic_store_explicit(&notes[at].who, who, memory_order_relaxed);
    atomic_store_explicit(&notes[at].more, more, memory_order_relaxed);
}

void broken(const char *invariant, ...)
{
    const unsigned now = note_count;
    va_list arguments;

    // First, because whoever shows a failed test may cut its output.
    va_start(arguments, invariant);
    fprintf(stderr, "BROKEN: ");
    vfprintf(stderr, invariant, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    for (unsigned back = now < 200 ? now : 200; back; back--) {
        const unsigned at = (now - back) % 1024;

        fprintf(stderr, "  %s %llx %llx\n", notes[at].what, (unsigned long long)notes[at].who,
                (unsigned long long)notes[at].more);
    }
    abort();
}

void blur_licences(int site)
{
    for (unsigned i = 0; i < VCPUS; i++) {
        int now = licence[i];

        if (now != NO_SITE && now < MAYBE && (site == NO_SITE || now == site))
            atomic_compare_exchange_strong(&licence[i], &now, now + MAYBE);
    }
}

static _Thread_local uint64_t sequence = 88172645463325252ull;

void random_seed(unsigned seed)
{
    sequence = 88172645463325252ull ^ (seed + 1) * 0x9e3779b97f4a7c15ull;
}

unsigned random_below(unsigned bound)
{
    sequence ^= sequence << 13;
    sequence ^= sequence >> 7;
    sequence ^= sequence << 17;
    return (unsigned)((sequence >> 20) % bound);
}

void dawdle(void)
{
    unsigned how = random_below(64);

    if (how < 8)
        sched_yield();
    else if (how == 8)
        poll(NULL, 0, 0);
    else if (how == 9 && !random_below(20))
        usleep(random_below(300));
}

// The guest's processor, as KVM has it.
struct cpu {
    pthread_mutex_t mutex; // KVM's vcpu->mutex
    struct kvm_run run;
    atomic_bool executing; // guest instructions
    uint64_t rax, rbx, rbp, rsp, rip, rcx;
    bool tf, rf;
    uint64_t singlestep_rip;
    struct kvm_guest_debug debug;
    bool completing; // an OUT
    bool injected;   // the guest's #BP, for its next entry
    bool frame_tf, faulted;
    bool excused; // it faulted while the breakpoints were out, and is tried again
    uint64_t frame_rip;
    unsigned handler_left;
    bool asleep; // in the handler, until there are interrupts
    bool halted;
    bool passed;    // the instruction at rip has begun
    unsigned fired; // debug registers that the instruction's write met
    uint64_t tsc_offset;

    // QEMU's side
    pthread_t thread;
    bool stop, has_stopped, dirty;
    struct kvm_regs copy;
};
static struct cpu cpus[VCPUS];

static struct cpu *cpu_of(int fd)
{
    return &cpus[fd - VCPU_FD];
}

static uint64_t base_of(unsigned index)
{
    return index == ALIASED ? ALIAS : 0;
}

static uint64_t flags_of(const struct cpu *cpu)
{
    const bool ours = cpu->debug.control & KVM_GUESTDBG_SINGLESTEP;

    return 2 | (cpu->tf && !ours ? TF : 0) | (cpu->rf ? 0x10000 : 0);
}

static void set_flags(struct cpu *cpu, uint64_t flags)
{
    cpu->tf = flags & TF ||
              (cpu->debug.control & KVM_GUESTDBG_SINGLESTEP && cpu->rip == cpu->singlestep_rip);
    cpu->rf = flags & 0x10000;
}

static long debug_exit(struct cpu *cpu, unsigned exception, uint64_t dr6)
{
    note("debug exit", (uint64_t)(cpu - cpus), exception << 16 | dr6);
    note("at", (uint64_t)(cpu - cpus), cpu->rip);
    cpu->run.exit_reason = KVM_EXIT_DEBUG;
    cpu->run.debug.arch = (struct kvm_debug_exit_arch){
        .exception = exception, .pc = cpu->rip, .dr6 = dr6 | 0xffff0ff0, .dr7 = 0x400};
    return 0;
}

static bool intercepts_db(const struct cpu *cpu)
{
    return cpu->debug.control & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP);
}

// The vCPU executes the instruction at a site: for the first time, or one more turn of it.
static void pass_site(unsigned index, uint64_t rip, bool again)
{
    for (int site = 0; site < SITES; site++) {
        if (rip != SITE[site])
            continue;
        if (licence[index] == site || licence[index] == site + MAYBE)
            licence[index] = NO_SITE;
        else if (armed[site] && !logging && !again && !cpus[index].excused)
            broken("vCPU %u passed site %d without hitting its breakpoint (it may pass %d)", index,
                   site, licence[index]);
        passed[site] += !again;
    }
}

static bool watches(const struct cpu *cpu, unsigned number)
{
    const uint64_t dr7 = cpu->debug.arch.debugreg[7];

    return cpu->debug.control & KVM_GUESTDBG_USE_HW_BP && dr7 & 2ull << 2 * number &&
           dr7 >> (16 + 4 * number) & 1;
}

static bool debug_register_hits(struct cpu *cpu, unsigned *number)
{
    if (!(cpu->debug.control & KVM_GUESTDBG_USE_HW_BP) || cpu->rf)
        return false;
    for (*number = 0; *number < 4; ++*number) {
        if (cpu->debug.arch.debugreg[7] & 2ull << 2 * *number && !watches(cpu, *number) &&
            cpu->debug.arch.debugreg[*number] == cpu->rip)
            return true;
    }
    return false;
}

static void write_memory(struct cpu *cpu, uint64_t address, const uint64_t *value)
{
    memcpy(ram + address, value, 8);
    if (address != WATCHED)
        return;
    for (unsigned number = 0; number < 4; number++) {
        if (watches(cpu, number) && cpu->debug.arch.debugreg[number] == address)
            cpu->fired |= 1u << number;
    }
    if (cpu->fired)
        writes++;
    else if (watching)
        broken("a write passes a watchpoint");
}

static void advance(unsigned index, struct cpu *cpu, unsigned length)
{
    if (index != ALIASED && !cpu->passed)
        pass_site(index, cpu->rip, false);
    cpu->rip += length;
    cpu->rf = false;
    cpu->passed = false;
    cpu->faulted = false;
    cpu->excused = false;
    progress[index]++;
}

static void enter_handler(unsigned index, struct cpu *cpu)
{
    cpu->frame_rip = cpu->rip;
    cpu->frame_tf = cpu->tf;
    cpu->rsp -= 48;
    cpu->tf = false;
    cpu->rip = base_of(index) + HANDLER;
    cpu->handler_left = random_below(40);
    cpu->asleep = !random_below(50);
}

// An instruction of the handler. true: a trap follows.
static bool handler_step(unsigned index, struct cpu *cpu)
{
    bool trap;

    if (cpu->asleep && cpu->debug.control & KVM_GUESTDBG_BLOCKIRQ)
        return cpu->tf;
    cpu->asleep = false;
    progress[index]++;
    if (cpu->handler_left--) {
        if (!random_below(2000))
            usleep(6000); // longer than the agent lets the others wait
        return cpu->tf;
    }
    trap = cpu->tf;
    cpu->rip = cpu->frame_rip;
    cpu->rsp += 48;
    cpu->tf = cpu->frame_tf;
    return trap;
}

enum step { STEPPED, TRAPPED, EXITED };

static enum step out_instruction(unsigned index, struct cpu *cpu)
{
    if (index != ALIASED)
        pass_site(index, cpu->rip, false);
    cpu->run.exit_reason = KVM_EXIT_IO;
    cpu->completing = true;
    cpu->passed = true;
    return EXITED;
}

static enum step execute(unsigned index, struct cpu *cpu)
{
    uint64_t at = cpu->rip - base_of(index);
    const bool trap = cpu->tf;

    if (at >= HANDLER)
        return handler_step(index, cpu) ? TRAPPED : STEPPED;
    switch (ram[at]) {
    case 0x90:
        advance(index, cpu, 1);
        break;
    case 0x55:
        cpu->rsp -= 8;
        write_memory(cpu, cpu->rsp, &cpu->rbp);
        advance(index, cpu, 1);
        break;
    case 0x5d:
        if (!cpu->faulted && !random_below(30)) {
            cpu->faulted = true;
            cpu->excused = logging;
            enter_handler(index, cpu);
            return STEPPED;
        }
        memcpy(&cpu->rbp, ram + cpu->rsp, 8);
        cpu->rsp += 8;
        advance(index, cpu, 1);
        break;
    case 0x48:
        if (ram[at + 1] == 0x89)
            cpu->rbp = cpu->rsp;
        else
            cpu->rax++;
        advance(index, cpu, 3);
        break;
    case 0xe6:
        return out_instruction(index, cpu);
    case 0xf3:
        if (!cpu->passed)
            cpu->rcx = 3;
        if (index != ALIASED)
            pass_site(index, cpu->rip, cpu->passed);
        cpu->passed = true;
        if (!--cpu->rcx)
            advance(index, cpu, 2);
        break;
    case 0xf4:
        cpu->halted = true;
        advance(index, cpu, 1);
        break;
    case 0xeb:
        cpu->rip += 2 + (uint64_t)(int64_t)(int8_t)ram[at + 1];
        break;
    default:
        broken("vCPU %u executes %#x at %#lx", index, ram[at], (long)at);
    }
    return trap ? TRAPPED : STEPPED;
}

// One instruction, with what may come before and after it. true: to user space.
static bool instruction(unsigned index, struct cpu *cpu, long *result)
{
    uint64_t at = cpu->rip - base_of(index);
    enum step step;
    unsigned number;
    uint64_t dr6;

    if (token[index] && cpu->rbx != token[index])
        broken("vCPU %u runs with a register that the controller had set otherwise", index);
    if (debug_register_hits(cpu, &number)) {
        *result = debug_exit(cpu, 1, 1u << number);
        return true;
    }
    if (at < HANDLER && ram[at] == 0xcc) {
        if (cpu->debug.control & KVM_GUESTDBG_USE_SW_BP) {
            *result = debug_exit(cpu, 3, 0xf); // dr6 is stale here
            return true;
        }
        if (at != SITE[OUR_OWN])
            broken("vCPU %u got the #BP of a breakpoint at %#lx", index, (long)at);
        advance(index, cpu, 1);
        enter_handler(index, cpu);
        return false;
    }
    step = execute(index, cpu);
    if (step == EXITED) {
        *result = 0;
        return true;
    }
    dr6 = (step == TRAPPED ? BS : 0) | cpu->fired;
    cpu->fired = 0;
    if (dr6) {
        if (!intercepts_db(cpu))
            broken("vCPU %u got a #DB that is not its own", index);
        *result = debug_exit(cpu, 1, dr6);
        return true;
    }
    return false;
}

static long fake_run(unsigned index, struct cpu *cpu)
{
    long result = -EINTR;

    events++;
    note("enter", index, cpu->rip);
    if (cpu->completing) {
        cpu->completing = false;
        advance(index, cpu, 2);
        if (cpu->tf)
            return debug_exit(cpu, 1, BS);
    }
    if (__atomic_load_n(&cpu->run.immediate_exit, __ATOMIC_SEQ_CST))
        return -EINTR;
    if (stopped)
        broken("vCPU %u runs while QEMU has the VM stopped", index);
    cpu->executing = true;
    if (cpu->injected) {
        cpu->injected = false;
        advance(index, cpu, 1);
        enter_handler(index, cpu);
    }
    for (unsigned count = 0; !__atomic_load_n(&cpu->run.immediate_exit, __ATOMIC_SEQ_CST);
         count++) {
        if (!(count & 15))
            poll(NULL, 0, 0); // signals are delivered
        if (cpu->halted && random_below(20))
            continue;
        cpu->halted = false;
        if (instruction(index, cpu, &result))
            break;
    }
    cpu->executing = false;
    note("leave", index, cpu->rip);
    return result;
}

static void get_regs(const struct cpu *cpu, struct kvm_regs *regs)
{
    *regs = (struct kvm_regs){.rax = cpu->rax,
                              .rbx = cpu->rbx,
                              .rbp = cpu->rbp,
                              .rsp = cpu->rsp,
                              .rip = cpu->rip,
                              .rflags = flags_of(cpu)};
}

static void set_regs(unsigned index, struct cpu *cpu, const struct kvm_regs *regs)
{
    note("set rip", index, regs->rip);
    // An emulated instruction is passed as an executed one is.
    if (watching && regs->rsp == WATCHED && cpu->rsp == WATCHED + 8)
        broken("a push to what is watched is emulated");
    if (regs->rip != cpu->rip && regs->rip - cpu->rip < 16)
        advance(index, cpu, (unsigned)(regs->rip - cpu->rip));
    cpu->rax = regs->rax;
    cpu->rbx = regs->rbx;
    cpu->rbp = regs->rbp;
    cpu->rsp = regs->rsp;
    cpu->rip = regs->rip;
    set_flags(cpu, regs->rflags);
}

static void set_debug(struct cpu *cpu, const struct kvm_guest_debug *debug)
{
    uint64_t flags = flags_of(cpu);

    note("set debug", (uint64_t)(cpu - cpus), debug->control);
    cpu->debug = *debug;
    cpu->singlestep_rip = cpu->rip;
    set_flags(cpu, flags);
}

static long vcpu_request(int fd, unsigned request, void *argument)
{
    const unsigned index = (unsigned)(fd - VCPU_FD);
    struct cpu *cpu = &cpus[index];

    switch (request) {
    case KVM_RUN:
        return fake_run(index, cpu);
    case KVM_GET_REGS:
        get_regs(cpu, argument);
        return 0;
    case KVM_SET_REGS:
        set_regs(index, cpu, argument);
        return 0;
    case KVM_GET_SREGS:
        memcpy(argument, &fake_sregs, sizeof(fake_sregs));
        return 0;
    case KVM_SET_GUEST_DEBUG:
        set_debug(cpu, argument);
        return 0;
    case KVM_GET_MSRS: { // the TSC; 1 GHz
        struct kvm_msrs *msrs = argument;

        msrs->entries[0].data = now() + cpu->tsc_offset;
        return 1;
    }
    case KVM_GET_DEVICE_ATTR:
    case KVM_SET_DEVICE_ATTR: {
        const struct kvm_device_attr *attribute = argument;
        uint64_t *offset = (uint64_t *)attribute->addr;

        if (request == KVM_GET_DEVICE_ATTR)
            *offset = cpu->tsc_offset;
        else
            cpu->tsc_offset = *offset;
        return 0;
    }
    case KVM_SET_MP_STATE:
        return 0;
    case KVM_GET_VCPU_EVENTS:
        memset(argument, 0, sizeof(struct kvm_vcpu_events));
        return 0;
    default:
        broken("the agent asked KVM for %#x", request);
    }
}

static long fake_ioctl(int fd, unsigned request, uintptr_t argument)
{
    long result;

    dawdle();
    if (fd == VM_FD) {
        if (request == KVM_SET_USER_MEMORY_REGION) {
            const struct kvm_userspace_memory_region *region = (const void *)argument;

            note("logging", region->flags, 0);
            logging = region->flags & KVM_MEM_LOG_DIRTY_PAGES;
            if (logging && memcmp(ram + CODE, PROGRAM, sizeof(PROGRAM)))
                broken("a breakpoint is in memory when KVM begins to log writes");
        }
        return request == KVM_CHECK_EXTENSION ? KVM_GUESTDBG_BLOCKIRQ : 0;
    }
    pthread_mutex_lock(&cpu_of(fd)->mutex);
    result = vcpu_request(fd, request, (void *)argument);
    pthread_mutex_unlock(&cpu_of(fd)->mutex);
    dawdle();
    return result;
}

static void fake_kick(pid_t thread)
{
    events++;
    note("kick", (uint64_t)thread, 0);
    syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
}

static bool fake_load(uint64_t hva, void *buffer, size_t length)
{
    memcpy(buffer, (void *)(uintptr_t)hva, length);
    return true;
}

// Plain stores and loads: the sanitizer sees a guest that runs meanwhile, too.
static bool fake_store(uint64_t hva, const void *buffer, size_t length)
{
    const uint64_t gpa = hva - (uintptr_t)ram;

    if (logging)
        broken("a store past KVM's log, to %#lx", (long)gpa);
    for (unsigned i = 0; i < VCPUS && gpa < STACKS; i++) {
        if (cpus[i].executing)
            broken("a store to the code that vCPU %u executes", i);
    }
    events++;
    if (gpa < STACKS)
        note("store", gpa, *(const uint8_t *)buffer);
    dawdle();
    memcpy((void *)(uintptr_t)hva, buffer, length);
    return true;
}

static const struct kvm_ops fake_kvm = {fake_ioctl, fake_kick, fake_load, fake_store};
const struct kvm_ops *kvm = &fake_kvm;

// What entry.c has for a real QEMU.
int entry_adopt(const struct agent_adopt *adopt, const struct agent_vcpu *vcpus,
                const struct agent_slot *slots)
{
    (void)adopt;
    (void)vcpus;
    (void)slots;
    return ENOTSUP;
}

void entry_release(void)
{
}

// QEMU: a thread for each vCPU, and one that stops and continues the VM as its monitor does.

static pthread_mutex_t bql = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t halt = PTHREAD_COND_INITIALIZER, paused = PTHREAD_COND_INITIALIZER;
static pthread_t main_loop;
static bool quit, quit_main_loop;
static _Thread_local struct cpu *current;

static void on_kick(int signal)
{
    (void)signal;
    if (current)
        __atomic_store_n(&current->run.immediate_exit, 1, __ATOMIC_SEQ_CST);
}

static bool wait_io_event(struct cpu *cpu)
{
    bool leave;

    pthread_mutex_lock(&bql);
    while (cpu->stop && !quit) {
        if (cpu->completing)
            broken("QEMU stops a vCPU whose I/O instruction is not complete");
        cpu->has_stopped = true;
        pthread_cond_broadcast(&paused);
        pthread_cond_wait(&halt, &bql);
    }
    cpu->has_stopped = false;
    if (cpu->dirty && !quit) {
        cpu->dirty = false;
        intercept((int)(cpu - cpus) + VCPU_FD, KVM_SET_REGS, (uintptr_t)&cpu->copy);
    }
    leave = quit;
    pthread_mutex_unlock(&bql);
    return !leave;
}

// A debug exit reaches QEMU only for the guest's own int3, which it gives back to the guest.
static void give_back(struct cpu *cpu)
{
    const unsigned index = (unsigned)(cpu - cpus);

    pthread_mutex_lock(&cpu->mutex);
    if (cpu->run.debug.arch.exception != 3 || cpu->rip - base_of(index) != SITE[OUR_OWN])
        broken("QEMU sees a debug exit at %#lx that is not the guest's", (long)cpu->rip);
    cpu->injected = true;
    pthread_mutex_unlock(&cpu->mutex);
}

static void *run_vcpu_thread(void *argument)
{
    struct cpu *cpu = argument;
    sigset_t kick;

    random_seed(*(unsigned *)&cpu->copy.rax);
    current = cpu;
    sigemptyset(&kick);
    sigaddset(&kick, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &kick, NULL);
    while (wait_io_event(cpu)) {
        for (;;) {
            dawdle();
            if (intercept((int)(cpu - cpus) + VCPU_FD, KVM_RUN, 0) < 0) {
                __atomic_store_n(&cpu->run.immediate_exit, 0, __ATOMIC_SEQ_CST);
                break;
            }
            events++;
            if (cpu->run.exit_reason == KVM_EXIT_DEBUG)
                give_back(cpu);
        }
    }
    return NULL;
}

static void stop_all(void)
{
    struct timespec limit;

    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 60;
    for (unsigned i = 0; i < VCPUS; i++) {
        cpus[i].stop = true;
        pthread_kill(cpus[i].thread, SIGUSR1);
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        while (!cpus[i].has_stopped) {
            if (pthread_cond_timedwait(&paused, &bql, &limit))
                broken("QEMU cannot stop vCPU %u", i);
        }
    }
    note("QEMU stopped", 0, 0);
    stopped = true;
}

static void continue_all(void)
{
    note("QEMU continues", 0, 0);
    stopped = false;
    for (unsigned i = 0; i < VCPUS; i++)
        cpus[i].stop = false;
    pthread_cond_broadcast(&halt);
}

// With the VM stopped: `info registers` makes QEMU write its copy back later.
static void info_registers(void)
{
    for (unsigned i = 0; i < VCPUS; i++) {
        if (cpus[i].dirty)
            continue;
        fake_ioctl((int)i + VCPU_FD, KVM_GET_REGS, (uintptr_t)&cpus[i].copy);
        cpus[i].dirty = true;
    }
}

// With the VM stopped, and as QEMU does: registers, then the run state, of one vCPU after the
// other.
static void reset(void)
{
    note("reset", 0, 0);
    for (unsigned i = 0; i < VCPUS; i++) {
        const struct kvm_regs regs = {.rax = cpus[i].rax,
                                      .rbx = FRESH,
                                      .rsp = STACKS + 0x1000 * (i + 1),
                                      .rip = base_of(i) + CODE,
                                      .rflags = 2};
        struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};
        struct cpu *cpu = &cpus[i];

        pthread_mutex_lock(&cpu->mutex);
        cpu->dirty = cpu->passed = cpu->faulted = cpu->excused = false;
        cpu->injected = cpu->asleep = cpu->halted = false;
        pthread_mutex_unlock(&cpu->mutex);
        // A step over the first instruction goes on.
        licence[i] = licence[i] % MAYBE == 0 ? MAYBE : NO_SITE;
        intercept((int)i + VCPU_FD, KVM_SET_REGS, (uintptr_t)&regs);
        intercept((int)i + VCPU_FD, KVM_SET_MP_STATE, (uintptr_t)&state);
        token[i] = FRESH;
    }
    resets++;
}

static void set_logging(bool on)
{
    struct kvm_userspace_memory_region region = {.slot = 0,
                                                 .flags = on ? KVM_MEM_LOG_DIRTY_PAGES : 0,
                                                 .guest_phys_addr = 0,
                                                 .memory_size = RAM_SIZE,
                                                 .userspace_addr = (uintptr_t)ram};

    intercept(VM_FD, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region);
}

static void *run_main_loop(void *argument)
{
    bool leave = false;

    random_seed(*(unsigned *)argument);
    while (!leave) {
        usleep(random_below(4) ? random_below(3000) : 0);
        events++;
        pthread_mutex_lock(&bql);
        leave = quit_main_loop;
        if (!leave) {
            stop_all();
            if (!random_below(3))
                info_registers();
            if (!random_below(10) && !pthread_mutex_trylock(&no_reset)) {
                reset();
                pthread_mutex_unlock(&no_reset);
            }
            if (!random_below(4)) {
                struct kvm_guest_debug none = {0};

                intercept(VCPU_FD, KVM_SET_GUEST_DEBUG, (uintptr_t)&none);
            }
            pthread_mutex_unlock(&bql);
            usleep(random_below(8) ? 0 : random_below(8000));
            pthread_mutex_lock(&bql);
            continue_all();
        }
        pthread_mutex_unlock(&bql);
        if (!random_below(20)) {
            logging_window = true;
            blur_licences(NO_SITE);
            set_logging(true);
            usleep(random_below(500));
            set_logging(false);
            blur_licences(NO_SITE);
            logging_window = false;
        }
    }
    return NULL;
}

static void make_page_tables(void)
{
    static const uint64_t POINTER = 0x2027, PAGE = 0xe7; // of 1 GiB

    memcpy(ram + 0x1000, &POINTER, 8);
    memcpy(ram + 0x2000, &PAGE, 8);
    memcpy(ram + 0x2008, &PAGE, 8); // ALIAS
}

void fake_setup(void)
{
    const struct agent_slot slot = {.slot = 0, .gpa = 0, .size = RAM_SIZE, .hva = (uintptr_t)ram};

    signal(SIGUSR1, on_kick);
    memcpy(ram + CODE, PROGRAM, sizeof(PROGRAM));
    make_page_tables();
    agent.vm_fd = VM_FD;
    agent.run_size = sizeof(struct kvm_run);
    arch_probe();
    slot_set(&slot);
    for (unsigned i = 0; i < VCPUS; i++) {
        cpus[i] = (struct cpu){.mutex = PTHREAD_MUTEX_INITIALIZER,
                               .rip = base_of(i) + CODE,
                               .rsp = STACKS + 0x1000 * (i + 1)};
        licence[i] = NO_SITE;
        vcpu_add(i, (int)i + VCPU_FD, &cpus[i].run, 0);
    }
}

void fake_run_qemu(unsigned seed)
{
    static unsigned main_seed;

    main_seed = seed;
    for (unsigned i = 0; i < VCPUS; i++) {
        cpus[i].copy.rax = seed + 100 + i;
        pthread_create(&cpus[i].thread, NULL, run_vcpu_thread, &cpus[i]);
    }
    pthread_create(&main_loop, NULL, run_main_loop, &main_seed);
}

void fake_end_qemu(void)
{
    pthread_mutex_lock(&bql);
    quit_main_loop = true;
    pthread_mutex_unlock(&bql);
    pthread_join(main_loop, NULL);
    pthread_mutex_lock(&bql);
    quit = true;
    pthread_cond_broadcast(&halt);
    pthread_mutex_unlock(&bql);
    for (unsigned i = 0; i < VCPUS; i++) {
        pthread_kill(cpus[i].thread, SIGUSR1);
        pthread_join(cpus[i].thread, NULL);
        if (cpus[i].debug.control)
            broken("vCPU %u is still debugged: %#x, a step left %#lx", i, cpus[i].debug.control,
                   (long)agent.vcpus[i]->left.pc);
    }
}

// Single cases of the agent, on the fake KVM of fake.c, whose vCPUs do not run. Usage: cases NAME.

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "agent.h"
#include "fake.h"

#define check(condition)                                                                           \
    do {                                                                                           \
        if (!(condition))                                                                          \
            broken("line %d: not %s", __LINE__, #condition);                                       \
    } while (0)

static const struct agent_point *insert(enum agent_kind kind, uint64_t address, uint32_t flags)
{
    const struct agent_point_request request = {
        .kind = kind, .address = address, .length = 1, .root = ~0ull, .flags = flags};
    struct point *point;

    exclude(NULL);
    check(!point_insert(agent.vcpus[0], &request, &point));
    readmit(NULL);
    return &point->info;
}

static void reset(unsigned vcpu)
{
    struct kvm_mp_state state = {.mp_state = KVM_MP_STATE_RUNNABLE};

    check(intercept(agent.vcpus[vcpu]->fd, KVM_SET_MP_STATE, (uintptr_t)&state) == 0);
}

// A reset while the guest patches code: the function that does so never returns.
static void reset_of_a_patching_guest(void)
{
    const uint64_t sp = STACKS + 0x800, caller = CODE + 0x100;
    const struct agent_point *before, *meanwhile;
    struct point *guard;

    memcpy(ram + sp, &caller, sizeof(caller));
    before = insert(AGENT_SOFTWARE, SITE[1], 0);
    insert(AGENT_SOFTWARE, SITE[0], AGENT_SILENT | AGENT_GUARD);
    exclude(NULL);
    guard = guard_at(&(struct location){SITE[0], sp}, software_point_at(SITE[0], SITE[0]));
    check(guard);
    check(guard_pass(agent.vcpus[0], guard, sp) == AGAIN);
    readmit(NULL);
    meanwhile = insert(AGENT_SOFTWARE, SITE[2], 0);
    check(before->state == AGENT_YIELDED && meanwhile->state == AGENT_YIELDED);
    check(hardware_point_at(caller));
    reset(1); // as when another vCPU is plugged in
    check(hardware_point_at(caller) && before->state == AGENT_YIELDED);
    reset(0);
    check(!hardware_point_at(caller));
    check(before->state == AGENT_ARMED && meanwhile->state == AGENT_ARMED);
}

// A write that KVM's log would miss is refused; breakpoints can be taken out all the same.
static void write_while_writes_are_logged(void)
{
    const struct agent_range range = {
        .space = AGENT_GPA, .address = CODE + 0x200, .length = 4, .root = ~0ull};
    const struct agent_point *point = insert(AGENT_SOFTWARE, SITE[1], 0);
    struct kvm_userspace_memory_region region = {.flags = KVM_MEM_LOG_DIRTY_PAGES,
                                                 .memory_size = agent.slots[0].size,
                                                 .userspace_addr = (uintptr_t)ram};

    check(intercept(agent.vm_fd, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region) == 0);
    check(point->state == AGENT_WITHDRAWN);
    exclude(NULL);
    check(memory_write(agent.vcpus[0], &range, (const uint8_t *)"\1\2\3") == EBUSY);
    check(!point_remove(point->id));
    readmit(NULL);
    region.flags = 0;
    check(intercept(agent.vm_fd, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region) == 0);
    exclude(NULL);
    check(memory_write(agent.vcpus[0], &range, (const uint8_t *)"\1\2\3") == 0);
    readmit(NULL);
    check(!memcmp(ram + CODE + 0x200, "\1\2\3", 4));
}

// QEMU begins to log writes to a slot that was adopted, whose number nobody has told.
static void log_of_an_adopted_slot(void)
{
    struct agent_slot adopted = agent.slots[0];
    struct kvm_userspace_memory_region region = {.slot = 3,
                                                 .flags = KVM_MEM_LOG_DIRTY_PAGES,
                                                 .memory_size = adopted.size,
                                                 .userspace_addr = (uintptr_t)ram};
    const struct agent_point *point;

    agent.slot_count = 0;
    adopted.slot = AGENT_UNNUMBERED;
    slot_set(&adopted);
    point = insert(AGENT_SOFTWARE, SITE[1], 0);
    check(point->state == AGENT_ARMED);
    check(intercept(agent.vm_fd, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region) == 0);
    check(point->state == AGENT_WITHDRAWN);
    check(agent.slot_count == 1 && agent.slots[0].slot == 3);
    region.flags = 0;
    check(intercept(agent.vm_fd, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region) == 0);
    check(point->state == AGENT_ARMED);
}

static bool emulates(uint64_t site)
{
    struct point *point;
    bool done;

    exclude(NULL);
    point = software_point_at(site, site);
    check(point);
    done = arch_emulate(agent.vcpus[0], point);
    readmit(NULL);
    return done;
}

// What a processor would note of a push in the guest's page tables, or look up for it, is its own.
static void push_is_left_to_the_processor(void)
{
    uint8_t *const pointer = ram + 0x1000, *const page = ram + 0x2000;

    insert(AGENT_SOFTWARE, SITE[1], 0);
    check(emulates(SITE[1]));
    *page &= (uint8_t)~0x40; // dirty
    check(!emulates(SITE[1]));
    *page |= 0x40;
    *pointer &= (uint8_t)~0x20; // accessed
    check(!emulates(SITE[1]));
    *pointer |= 0x20;
    fake_sregs.cr4 |= 0x400000; // PKE
    check(!emulates(SITE[1]));
    fake_sregs.ss.dpl = 0;
    check(!emulates(SITE[1])); // the kernel, to a user's page
    *page &= (uint8_t)~4;
    check(emulates(SITE[1]));
    fake_sregs.cr4 |= 0x1000000; // PKS
    check(!emulates(SITE[1]));
}

// No controller is there any more; the step that it asked for waits in a saved frame.
static void qemu_debugs_while_a_step_is_astray(void)
{
    struct vcpu *vcpu = agent.vcpus[0];
    struct kvm_guest_debug none = {0};

    agent.session = false;
    vcpu->astray = true;
    check(intercept(vcpu->fd, KVM_SET_GUEST_DEBUG, (uintptr_t)&none) == 0);
    check(vcpu->applied.control & KVM_GUESTDBG_USE_HW_BP); // the #DB is not for QEMU
    vcpu->astray = false;
    check(intercept(vcpu->fd, KVM_SET_GUEST_DEBUG, (uintptr_t)&none) == 0);
    check(!vcpu->applied.control);
}

// QEMU does not come back from a vCPU's I/O: nobody takes its registers for the guest's.
static void io_without_end(void)
{
    struct controller controller = {.greeted = true};
    const struct agent_action action = {.flags = AGENT_STEP_OVER};
    struct request request = {
        .payload = (const uint8_t *)&action, .length = sizeof(action), .controller = &controller};

    agent.vcpus[0]->incomplete = true;
    check(request_handle(AGENT_HOLD, &request) == ETIMEDOUT && !agent.held);
    check(request_handle(AGENT_RESUME, &request) == ETIMEDOUT);
    agent.vcpus[0]->incomplete = false;
    check(!request_handle(AGENT_HOLD, &request) && agent.held);
}

static double processor_time(void)
{
    struct rusage usage;

    getrusage(RUSAGE_SELF, &usage);
    return (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
           (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
}

// QEMU has no descriptor left: whoever connects waits, and nobody spins.
static void no_descriptor_for_a_connection(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof(address);
    struct agent_hello hello = {AGENT_MAGIC, AGENT_VERSION};
    struct agent_header header = {.length = sizeof(hello), .type = AGENT_HELLO, .id = 1};
    struct rlimit limit;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    double before;
    rlim_t enough;

    check(!bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)));
    check(!listen(listener, 1));
    getsockname(listener, (struct sockaddr *)&address, &length);
    agent.session = false;
    check(!service_start(listener, -1, -1));
    getrlimit(RLIMIT_NOFILE, &limit);
    enough = limit.rlim_cur;
    limit.rlim_cur = (rlim_t)fcntl(0, F_DUPFD, 0); // the lowest that is free
    setrlimit(RLIMIT_NOFILE, &limit);
    close((int)limit.rlim_cur);
    before = processor_time();
    check(!connect(client, (struct sockaddr *)&address, length));
    usleep(1000000);
    check(processor_time() - before < 0.3);
    limit.rlim_cur = enough;
    setrlimit(RLIMIT_NOFILE, &limit);
    check(write(client, &header, sizeof(header)) == sizeof(header));
    check(write(client, &hello, sizeof(hello)) == sizeof(hello));
    check(read(client, &header, sizeof(header)) == sizeof(header) && !header.status);
}

static const struct {
    const char *name;
    void (*run)(void);
} CASES[] = {
    {"reset-of-a-patching-guest", reset_of_a_patching_guest},
    {"no-descriptor-for-a-connection", no_descriptor_for_a_connection},
    {"qemu-debugs-while-a-step-is-astray", qemu_debugs_while_a_step_is_astray},
    {"io-without-end", io_without_end},
    {"log-of-an-adopted-slot", log_of_an_adopted_slot},
    {"push-is-left-to-the-processor", push_is_left_to_the_processor},
    {"write-while-writes-are-logged", write_while_writes_are_logged},
};

int main(int count, char **arguments)
{
    fake_setup();
    agent.session = true;
    for (unsigned i = 0; count == 2 && i < sizeof(CASES) / sizeof(*CASES); i++) {
        if (strcmp(arguments[1], CASES[i].name))
            continue;
        CASES[i].run();
        return 0;
    }
    fprintf(stderr, "usage: cases NAME\n");
    return 2;
}

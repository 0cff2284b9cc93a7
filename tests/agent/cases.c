// Single cases of the agent, on the fake KVM of fake.c, whose vCPUs do not run. Usage: cases NAME.

#include <stdio.h>
#include <string.h>

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

static const struct {
    const char *name;
    void (*run)(void);
} CASES[] = {
    {"reset-of-a-patching-guest", reset_of_a_patching_guest},
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

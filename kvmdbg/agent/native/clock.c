// The guest's TSC, kept still while the world is held. QEMU does that for its own clocks and for
// kvmclock; a guest that tells time by its TSC would find all that time gone at once, and complain
// of lockups or of an unstable clocksource.

#include "agent.h"

enum {
    JUDGED_FROM = 20000000, // nanoseconds
    SLOWEST = 4             // nanoseconds for a cycle, of a counter that runs on
};

static struct vcpu *measured; // NULL: nothing is to be kept
static uint64_t count_then;

// `vcpu` is out of KVM_RUN, or its thread is the caller.
void clock_stop(struct vcpu *vcpu)
{
    agent.held_since = now();
    measured = NULL;
    if (in_mode(AGENT_STILL_CLOCK) && agent.clock != AGENT_DEAF && !arch_counter(vcpu, &count_then))
        measured = vcpu;
}

// The vCPU was reset, or restored: so was its TSC.
void clock_forget(void)
{
    measured = NULL;
}

static int shift_all(int64_t cycles)
{
    for_each_vcpu(vcpu)
    {
        int error = arch_shift_clock(vcpu, cycles);

        if (error)
            return error;
    }
    return 0;
}

// A KVM may take the order and do nothing (PVM). What is small is not told from the time it takes,
// and where the counter stood still by itself (below) there is nothing to tell.
static void judge(int64_t wanted, int64_t moved, uint64_t took)
{
    const uint64_t held = now() - agent.held_since;

    if (held > JUDGED_FROM && wanted < -(int64_t)(held / SLOWEST) && took < held / 4)
        agent.clock = moved < wanted / 2 ? AGENT_STILL : AGENT_DEAF;
}

// Where this KVM's host has no TSC to rely on, KVM itself brings a vCPU's up to date when it is
// entered, from when its offset was set last: so it is set even to what it is.
void clock_go_on(void)
{
    const uint64_t began = now();
    uint64_t before, after;
    int64_t shift;

    if (!measured || arch_counter(measured, &before))
        return;
    shift = (int64_t)(count_then - before);
    if (shift_all(shift))
        agent.clock = AGENT_DEAF;
    else if (!arch_counter(measured, &after))
        judge(shift, (int64_t)(after - before), now() - began);
    agent.clock_shift += shift;
    measured = NULL;
}

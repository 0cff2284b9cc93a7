// Passing a breakpoint: executing the instruction under it without hitting it again. Cheapest
// first: emulate the instruction; let KVM suppress a debug register's hit; single-step, for a
// software breakpoint with the original byte lifted into place and every other vCPU out of KVM_RUN.
// The user's steps come by here too: some are made by hand, and none may keep interrupts away for
// long.

#include "agent.h"

#include <sys/timerfd.h>
#include <time.h>

enum { LOOK_AFTER = 5000000 }; // nanoseconds

uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void watch(bool on)
{
    const struct timespec interval = {.tv_nsec = on ? LOOK_AFTER : 0};
    struct itimerspec when = {.it_value = interval, .it_interval = interval};

    if (agent.watching != on)
        timerfd_settime(agent.watch, 0, &when, NULL);
    agent.watching = on;
}

void over_begin(struct vcpu *vcpu, uint64_t pc)
{
    vcpu->over = OVER_WANTED;
    vcpu->over_pc = pc;
    vcpu->attention = true;
}

static void put_back(struct vcpu *vcpu)
{
    if (agent.owner != vcpu)
        return;
    for_each_point(point)
    {
        if (point->lifted)
            point_put_back(point);
    }
    disown_the_world();
}

void over_done(struct vcpu *vcpu)
{
    put_back(vcpu);
    vcpu->over = OVER_NONE;
    vcpu->debug_stale = true;
    vcpu->attention = true;
}

// Others want the world. The instruction is tried again later.
void over_break_off(struct vcpu *vcpu)
{
    put_back(vcpu);
    if (vcpu->over != OVER_STEPPING)
        return;
    vcpu->over = OVER_WANTED;
    vcpu->debug_stale = true;
    vcpu->attention = true;
}

static enum readiness lift(struct vcpu *vcpu, struct point *point)
{
    if (!own_the_world(vcpu))
        return WAIT;
    if (!point_lift(point)) { // the guest has written other code there
        over_done(vcpu);
        return AGAIN;
    }
    agent.statistics.lifted++;
    return READY;
}

static void emulated(struct vcpu *vcpu)
{
    struct location location;

    vcpu->stepped = true;
    over_done(vcpu);
    if (vcpu->action == AGENT_STEP && !arch_location(vcpu, &location))
        latch(vcpu, &(struct agent_stop){.kind = AGENT_STEPPED, .pc = location.pc});
}

static bool emulate(struct vcpu *vcpu, struct point *point)
{
    if (in_mode(AGENT_NO_SKIP) || vcpu->incomplete || !point_is_intact(point) ||
        !(arch_emulate(vcpu, point) || arch_step(vcpu, point->info.original, point->valid)))
        return false;
    agent.statistics.emulated++;
    emulated(vcpu);
    return true;
}

// A step of the user's, from where there is no software breakpoint. One that is astray is where
// somebody else may be about to make such a step.
static bool step(struct vcpu *vcpu, uint64_t pc)
{
    const struct agent_range here = {.space = AGENT_GVA,
                                     .vcpu = vcpu->index,
                                     .address = pc,
                                     .length = INSTRUCTION,
                                     .root = ~0ull};
    uint8_t code[INSTRUCTION];
    int64_t valid;

    if (!is_to_step(vcpu) || vcpu->incomplete ||
        (vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP && !vcpu->stepped && pc != vcpu->step.pc))
        return false;
    valid = memory_read(vcpu, &here, code);
    if (valid <= 0 || !arch_step(vcpu, code, (unsigned)valid))
        return false;
    emulated(vcpu);
    return true;
}

enum readiness over_prepare(struct vcpu *vcpu)
{
    struct point *software, *hardware, *guard;
    struct location location;

    if ((vcpu->over == OVER_NONE && !is_to_step(vcpu)) || arch_location(vcpu, &location))
        return READY;
    // A handler was entered, or the controller set pc.
    if (vcpu->over != OVER_NONE && location.pc != vcpu->over_pc)
        over_done(vcpu);
    if (vcpu->over == OVER_STEPPING)
        return READY;
    software = software_point_of(vcpu, location.pc);
    hardware = hardware_point_at(location.pc);
    if (!software && !hardware) {
        if (vcpu->over != OVER_NONE)
            over_done(vcpu);
        return step(vcpu, location.pc) ? AGAIN : READY;
    }
    if (vcpu->over == OVER_NONE) // it will be hit
        return READY;
    guard = guard_at(&location, software);
    if (guard) {
        enum readiness readiness = guard_pass(vcpu, guard, location.sp);

        if (readiness != READY)
            return readiness;
    }
    if (software) {
        enum readiness readiness = emulate(vcpu, software) ? AGAIN : lift(vcpu, software);

        if (readiness != READY)
            return readiness;
    } else {
        if (step(vcpu, location.pc))
            return AGAIN;
        agent.statistics.resumed++;
        if (vcpu->action != AGENT_STEP && in_mode(AGENT_HONOURS_RF) && arch_resume_flag(vcpu)) {
            over_done(vcpu);
            return READY;
        }
    }
    vcpu->over = OVER_STEPPING;
    vcpu->debug_stale = true;
    return READY;
}

// An owner, or a vCPU that KVM steps with interrupts blocked: neither may take long.
static bool is_watched(const struct vcpu *vcpu)
{
    return agent.owner == vcpu ||
           (agent.session && !in_mode(AGENT_RAW_EXITS) && !gate_is_shut(vcpu) &&
            vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP);
}

void over_look_after(const struct vcpu *vcpu)
{
    if (is_watched(vcpu))
        watch(true);
}

// What takes long: an owner whose instruction faulted, or whose thread QEMU has; the others run
// meanwhile. A step whose instruction the guest's kernel completes when it can: it may sleep, and
// needs interrupts to wake up.
void over_watch(void)
{
    bool watched = false, owner_is_overdue = false;

    pthread_mutex_lock(&agent.lock);
    for_each_vcpu(vcpu)
    {
        const unsigned long long entries = vcpu->entries;
        const bool before = vcpu->watched && entries == vcpu->entries_then;

        vcpu->watched = is_watched(vcpu);
        vcpu->entries_then = entries;
        watched |= vcpu->watched;
        if (!before || !vcpu->watched)
            continue;
        vcpu->overdue = is_to_step(vcpu);
        owner_is_overdue |= agent.owner == vcpu;
        call_out(vcpu);
    }
    watch(watched);
    pthread_mutex_unlock(&agent.lock);
    if (owner_is_overdue) {
        exclude(NULL); // breaks it off
        readmit(NULL);
    }
}

// Passing a breakpoint: executing the instruction under it without hitting it again. Cheapest
// first: emulate the instruction; let KVM suppress a debug register's hit; single-step, for a
// software breakpoint with the original byte lifted into place and every other vCPU out of KVM_RUN.

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

static void watch(long nanoseconds)
{
    struct itimerspec when = {.it_value.tv_nsec = nanoseconds, .it_interval.tv_nsec = nanoseconds};

    timerfd_settime(agent.watch, 0, &when, NULL);
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
    watch(0);
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
    watch(LOOK_AFTER);
    agent.statistics.lifted++;
    return READY;
}

static bool emulate(struct vcpu *vcpu, struct point *point)
{
    struct location location;

    if (in_mode(AGENT_NO_SKIP) || vcpu->incomplete || !point_is_intact(point) ||
        !arch_emulate(vcpu, point))
        return false;
    agent.statistics.emulated++;
    vcpu->stepped = true;
    over_done(vcpu);
    if (vcpu->action == AGENT_STEP && !arch_location(vcpu, &location))
        latch(vcpu, &(struct agent_stop){.kind = AGENT_STEPPED, .pc = location.pc});
    return true;
}

enum readiness over_prepare(struct vcpu *vcpu)
{
    struct point *software, *hardware, *guard;
    struct location location;

    if (vcpu->over == OVER_NONE || arch_location(vcpu, &location))
        return READY;
    if (location.pc != vcpu->over_pc) { // a handler was entered, or the controller set pc
        over_done(vcpu);
        return READY;
    }
    if (vcpu->over == OVER_STEPPING)
        return READY;
    software = software_point_of(vcpu, location.pc);
    hardware = hardware_point_at(location.pc);
    if (!software && !hardware) {
        over_done(vcpu);
        return READY;
    }
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

// An owner takes long: its instruction faulted, or QEMU has its thread. The others run meanwhile.
void over_watch(void)
{
    bool owned;

    pthread_mutex_lock(&agent.lock);
    owned = agent.owner;
    pthread_mutex_unlock(&agent.lock);
    if (owned) {
        exclude(NULL); // breaks it off
        readmit(NULL);
    }
}

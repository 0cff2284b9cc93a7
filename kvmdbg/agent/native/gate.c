// The gate before KVM_RUN. A vCPU's thread passes it only while nobody wants the vCPU out; whoever
// does shuts the gate, kicks the vCPU out if it is in, and waits until it is not.

#include "agent.h"

#include <poll.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum { SETTLES_WITHIN = 3 }; // seconds

struct agent agent = {
    .lock = PTHREAD_MUTEX_INITIALIZER,
    .bell = -1,
    .watch = -1,
    .vm_fd = -1,
};

bool gate_is_shut(const struct vcpu *vcpu)
{
    return agent.excluded || vcpu->excluded || agent.held || agent.stops ||
           vcpu->action == AGENT_KEEP || (agent.owner && agent.owner != vcpu);
}

// settle() waits by a clock that nobody sets.
__attribute__((constructor)) static void choose_clock(void)
{
    pthread_condattr_t attributes;

    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&agent.left, &attributes);
    pthread_condattr_destroy(&attributes);
}

void poke(struct vcpu *vcpu)
{
    vcpu->attention = true;
    if (vcpu->waiting && write(vcpu->wake, &(uint64_t){1}, sizeof(uint64_t)) < 0)
        vcpu->waiting = false; // impossible: an eventfd takes 2^64 - 2 of these
}

static void poke_all(void)
{
    for_each_vcpu(vcpu) poke(vcpu);
}

// immediate_exit also reaches a thread that is on its way into KVM_RUN. Clearing it is QEMU's job,
// which does so when KVM_RUN fails with EINTR.
void call_out(struct vcpu *vcpu)
{
    vcpu->attention = true;
    if (vcpu->in_run) {
        __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
        kvm->kick(vcpu->thread);
    }
}

void call_out_others(const struct vcpu *except)
{
    for_each_vcpu(vcpu)
    {
        if (vcpu != except)
            call_out(vcpu);
    }
}

static bool all_out(const struct vcpu *except)
{
    for_each_vcpu(vcpu)
    {
        if (vcpu != except && vcpu->in_run)
            return false;
    }
    return true;
}

void exclude(struct vcpu *only)
{
    pthread_mutex_lock(&agent.lock);
    if (only) {
        only->excluded++;
        call_out(only);
        while (only->in_run)
            pthread_cond_wait(&agent.left, &agent.lock);
        return;
    }
    agent.excluded++;
    call_out_others(NULL);
    while (!all_out(NULL))
        pthread_cond_wait(&agent.left, &agent.lock);
    if (agent.owner)
        over_break_off(agent.owner);
    agent.statistics.exclusive++;
}

void readmit(struct vcpu *only)
{
    if (only)
        only->excluded--;
    else
        agent.excluded--;
    poke_all();
    pthread_mutex_unlock(&agent.lock);
}

// QEMU may be busy with the vCPU's I/O. It calls KVM_RUN right after, so waiting is short; but who
// holds QEMU's big lock must not wait for it. If QEMU is about to end, it is in vain: ETIMEDOUT.
int settle(struct vcpu *vcpu)
{
    struct timespec limit;
    int error = 0;

    clock_gettime(CLOCK_MONOTONIC, &limit);
    limit.tv_sec += SETTLES_WITHIN;
    while (vcpu->incomplete && !error)
        error = pthread_cond_timedwait(&agent.left, &agent.lock, &limit);
    return vcpu->incomplete ? error : 0;
}

bool own_the_world(struct vcpu *vcpu)
{
    if (agent.owner != vcpu) {
        agent.owner = vcpu;
        call_out_others(vcpu);
    }
    return all_out(vcpu);
}

void disown_the_world(void)
{
    agent.owner = NULL;
    poke_all();
}

void gate_left(struct vcpu *vcpu)
{
    vcpu->in_run = false;
    pthread_cond_broadcast(&agent.left);
    if (agent.owner)
        poke(agent.owner);
}

void gate_leave(struct vcpu *vcpu)
{
    vcpu->in_run = false;
    if (!vcpu->attention)
        return;
    pthread_mutex_lock(&agent.lock);
    gate_left(vcpu);
    pthread_mutex_unlock(&agent.lock);
}

static bool wanted_by_qemu(const struct vcpu *vcpu)
{
    return __atomic_load_n(&vcpu->run->immediate_exit, __ATOMIC_SEQ_CST);
}

// Waits for a poke, with the lock released; false: QEMU wants the thread. Its signal is blocked
// from before immediate_exit is looked at until ppoll sleeps, so it cannot slip in between.
static bool wait_at_gate(struct vcpu *vcpu)
{
    struct pollfd wake = {.fd = vcpu->wake, .events = POLLIN};
    sigset_t kick, before, during;
    uint64_t count;

    vcpu->waiting = true;
    pthread_mutex_unlock(&agent.lock);
    sigemptyset(&kick);
    sigaddset(&kick, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &kick, &before);
    during = before;
    sigdelset(&during, SIGUSR1);
    if (!wanted_by_qemu(vcpu))
        ppoll(&wake, 1, NULL, &during);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_mutex_lock(&agent.lock);
    vcpu->waiting = false;
    while (read(vcpu->wake, &count, sizeof(count)) > 0)
        continue;
    pthread_cond_broadcast(&agent.left);
    return !wanted_by_qemu(vcpu);
}

static bool pass(struct vcpu *vcpu)
{
    for (;;) {
        enum readiness readiness = WAIT;

        if (!gate_is_shut(vcpu))
            readiness = run_prepare(vcpu);
        else if (agent.owner == vcpu)
            over_break_off(vcpu);
        if (readiness == READY) {
            over_look_after(vcpu);
            vcpu->attention = false;
            vcpu->in_run = true;
            return true;
        }
        if (readiness == AGAIN)
            continue;
        // QEMU believes that an I/O instruction is complete once KVM_RUN was called again, and may
        // read registers, so that is never put off. With immediate_exit set KVM does no more.
        if (vcpu->incomplete) {
            __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
            vcpu->in_run = true;
            return true;
        }
        if (!wait_at_gate(vcpu))
            return false;
    }
}

bool gate_enter(struct vcpu *vcpu)
{
    bool enter;

    vcpu->in_run = true;
    if (!vcpu->attention)
        return true;
    pthread_mutex_lock(&agent.lock);
    gate_left(vcpu);
    enter = pass(vcpu);
    pthread_mutex_unlock(&agent.lock);
    return enter;
}

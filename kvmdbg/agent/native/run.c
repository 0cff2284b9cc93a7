// Running a vCPU: what QEMU's KVM_RUN becomes. An exit that is ours is latched as a stop, or passed
// over in silence; QEMU never sees it. What is not ours goes to QEMU, or back to the guest.

#include "agent.h"

enum { VANISHED_TOO_OFTEN = 1000 };

enum verdict { ENTER_AGAIN, TO_QEMU };

void latch(struct vcpu *vcpu, const struct agent_stop *stop)
{
    if (!agent.held && !agent.stops)
        clock_stop(vcpu);
    if (vcpu->stop.kind == AGENT_RUNNING)
        agent.stops++;
    vcpu->stop = *stop;
    vcpu->stop.vcpu = vcpu->index;
    vcpu->stop.sequence = ++agent.sequence;
    vcpu->overdue = false;
    vcpu->attention = true;
    call_out_others(vcpu);
    ring_bell();
}

// A hit that the user was not told of happens again, and is counted then.
static void uncount_hit(const struct agent_stop *stop)
{
    agent.statistics.hits--;
    for_each_point(point)
    {
        if (point->info.id == stop->point)
            point->info.hits--;
    }
}

// At a resume: the actions are the new ones already.
void forget_stops(void)
{
    for_each_vcpu(vcpu)
    {
        if (vcpu->stop.kind == AGENT_HIT && !(vcpu->action_flags & AGENT_STEP_OVER))
            uncount_hit(&vcpu->stop);
        vcpu->stop = (struct agent_stop){.vcpu = vcpu->index};
    }
    agent.stops = 0;
}

// In the code that a step began in: a handler's stack is another one, or further down on this one.
static bool is_back(const struct location *location, const struct location *step)
{
    enum { PUSHED = 16, DROPPED = 65536 }; // by one instruction, at most

    return location->sp - (step->sp - PUSHED) <= PUSHED + DROPPED;
}

// KVM is about to take its TF out of rflags, or to put it in anew. A step that has begun and is not
// done is in a saved frame instead, if its instruction faulted.
static void look_for_stray_step(struct vcpu *vcpu)
{
    struct location location;

    if (!(vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP) || arch_location(vcpu, &location))
        return;
    if (vcpu->astray && is_back(&location, &vcpu->left))
        vcpu->astray = false;
    if (!vcpu->stepped && location.pc != vcpu->step.pc && !is_back(&location, &vcpu->step)) {
        vcpu->astray = true;
        vcpu->left = vcpu->step;
    }
}

// QEMU has written registers, as it read them: without the TF that KVM hides. KVM adds it where the
// step began, but not where a frame with it was just returned to.
void run_registers_written(struct vcpu *vcpu)
{
    struct location location;

    if (!(vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP) || vcpu->stepped ||
        arch_location(vcpu, &location) || location.pc == vcpu->step.pc ||
        !is_back(&location, &vcpu->step))
        return;
    vcpu->debug_stale = true;
    vcpu->attention = true;
}

int run_apply_debug(struct vcpu *vcpu)
{
    struct kvm_guest_debug debug;
    long result;

    if (vcpu->overdue)
        look_for_stray_step(vcpu);
    arch_debug(vcpu, &debug);
    if (!vcpu->debug_stale && !memcmp(&debug, &vcpu->applied, sizeof(debug)))
        return 0;
    look_for_stray_step(vcpu);
    arch_debug(vcpu, &debug);
    if (debug.control & KVM_GUESTDBG_SINGLESTEP) {
        vcpu->stepped = false;
        arch_location(vcpu, &vcpu->step);
    }
    result = kvm->ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, (uintptr_t)&debug);
    if (result < 0)
        return (int)-result;
    vcpu->applied = debug;
    vcpu->debug_stale = false;
    return 0;
}

enum readiness run_prepare(struct vcpu *vcpu)
{
    enum readiness readiness;

    // KVM sets TF where pc is when it is told to step.
    if (registers_apply(vcpu))
        vcpu->debug_stale = true;
    readiness = over_prepare(vcpu);
    if (readiness == READY)
        run_apply_debug(vcpu);
    return readiness;
}

// The vCPU is back from the handler of its instruction's fault, at the instruction's breakpoint.
static bool is_retry(struct vcpu *vcpu, uint64_t pc)
{
    struct location location;

    if (!vcpu->astray || pc != vcpu->left.pc || arch_location(vcpu, &location) ||
        location.sp != vcpu->left.sp)
        return false;
    vcpu->astray = false;
    arch_clear_step(vcpu);
    over_begin(vcpu, pc);
    return true;
}

// A trap while astray: the frame was returned to, unless KVM steps through the handler. Where it
// does not, TF is the guest's to keep, and must go.
static bool is_end_of_stray_step(struct vcpu *vcpu)
{
    struct location location;

    if (vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP)
        return !arch_location(vcpu, &location) && is_back(&location, &vcpu->left);
    arch_clear_step(vcpu);
    return true;
}

static void hit(struct vcpu *vcpu, struct point *point, struct agent_stop *stop)
{
    point->info.hits++;
    if (point->info.flags) {
        over_begin(vcpu, stop->pc);
        return;
    }
    stop->kind = AGENT_HIT;
    stop->point = point->info.id;
    latch(vcpu, stop);
}

static enum verdict breakpoint_exit(struct vcpu *vcpu, struct debug_exit *exit)
{
    struct point *point;
    struct agent_translation page;
    struct paging paging;
    uint8_t bytes[4];

    if (arch_paging(vcpu, &paging) || arch_walk(&paging, exit->pc, &page) ||
        !guest_load(page.gpa, bytes, ARCH_BREAKPOINT_SIZE))
        return TO_QEMU;
    if (memcmp(bytes, ARCH_BREAKPOINT, ARCH_BREAKPOINT_SIZE)) {
        agent.statistics.vanished++;
        return ++vcpu->vanished_in_a_row < VANISHED_TOO_OFTEN ? ENTER_AGAIN : TO_QEMU;
    }
    vcpu->vanished_in_a_row = 0;
    point = software_point_at(page.gpa, exit->pc);
    if (!point || !point_is_intact(point)) {
        agent.statistics.foreign++;
        return TO_QEMU;
    }
    if (is_retry(vcpu, exit->pc))
        return ENTER_AGAIN;
    agent.statistics.hits++;
    if (point->info.address == exit->pc)
        hit(vcpu, point, &exit->stop);
    else // the same code, mapped elsewhere
        over_begin(vcpu, exit->pc);
    return ENTER_AGAIN;
}

// Several may have fired at once. What was accessed has been, and is not accessed again; a
// breakpoint is hit again, so it can wait.
static enum verdict register_exit(struct vcpu *vcpu, struct debug_exit *exit)
{
    struct point *code = NULL, *watched = NULL;

    for (unsigned number = 0; number < MAX_DEBUG_REGISTERS; number++) {
        struct point *point = exit->fired & 1u << number ? point_of_register(number) : NULL;

        if (!point)
            continue;
        if (point->info.kind == AGENT_HARDWARE) {
            code = code ? code : point;
            continue;
        }
        agent.statistics.hits++;
        point->info.hits++;
        if (!watched && !point->info.flags)
            watched = point;
    }
    if (watched) {
        exit->stop.kind = AGENT_WATCHED;
        exit->stop.point = watched->info.id;
        latch(vcpu, &exit->stop);
        return ENTER_AGAIN;
    }
    if (!code || is_retry(vcpu, exit->pc))
        return ENTER_AGAIN;
    agent.statistics.hits++;
    hit(vcpu, code, &exit->stop);
    return ENTER_AGAIN;
}

// A single step of ours is done: of the user's, or to pass a breakpoint.
static void step_exit(struct vcpu *vcpu, struct debug_exit *exit)
{
    if (vcpu->over == OVER_STEPPING) {
        struct point *point = software_point_of(vcpu, exit->pc);

        // One turn of a repeated instruction; to the user that is a step.
        if (exit->pc == vcpu->over_pc && vcpu->action != AGENT_STEP && point &&
            arch_repeats(point)) {
            vcpu->debug_stale = true;
            vcpu->attention = true;
            return;
        }
        over_done(vcpu);
    }
    if (vcpu->action == AGENT_STEP && !exit->fired) {
        exit->stop.kind = AGENT_STEPPED;
        latch(vcpu, &exit->stop);
    }
}

static enum verdict debug_exit(struct vcpu *vcpu)
{
    const bool stepping = vcpu->action == AGENT_STEP || vcpu->over == OVER_STEPPING;
    struct debug_exit exit;

    arch_read_exit(vcpu, &exit);
    if (exit.breakpoint)
        return breakpoint_exit(vcpu, &exit);
    vcpu->stepped |= exit.step;
    if (exit.step && vcpu->astray && is_end_of_stray_step(vcpu)) {
        vcpu->astray = false;
        vcpu->attention = true;
        if (!stepping && !exit.fired)
            return ENTER_AGAIN;
    }
    if (exit.step && stepping)
        step_exit(vcpu, &exit);
    if (exit.fired)
        return register_exit(vcpu, &exit);
    if (exit.step && stepping)
        return ENTER_AGAIN;
    if (vcpu->qemu_debug.control & ARCH_DEBUG_TRAPS)
        return TO_QEMU;
    // A step that was ours until just now.
    if (exit.step && vcpu->applied.control & KVM_GUESTDBG_SINGLESTEP)
        return ENTER_AGAIN;
    // QEMU takes any bit of a debug register for a breakpoint of its own, and stops the VM.
    agent.statistics.foreign++;
    arch_reinject(vcpu, &exit);
    return ENTER_AGAIN;
}

static enum verdict raw_exit(struct vcpu *vcpu, long result)
{
    struct debug_exit exit = {0};

    if (result == 0 && vcpu->run->exit_reason == KVM_EXIT_DEBUG)
        arch_read_exit(vcpu, &exit);
    exit.stop.kind = AGENT_RAW;
    if (result < 0)
        exit.stop.exception = (uint32_t)-result;
    latch(vcpu, &exit.stop);
    return ENTER_AGAIN;
}

static bool is_of_interest(const struct vcpu *vcpu, long result)
{
    if (in_mode(AGENT_RAW_EXITS))
        return result != -EINTR && result != -EAGAIN;
    return result == 0 && vcpu->run->exit_reason == KVM_EXIT_DEBUG;
}

// The vCPU counts as in KVM_RUN until its exit was judged: by then nothing has changed under it.
static enum verdict leave(struct vcpu *vcpu, long result)
{
    enum verdict verdict = TO_QEMU;

    if (!is_of_interest(vcpu, result)) {
        gate_leave(vcpu);
        return TO_QEMU;
    }
    pthread_mutex_lock(&agent.lock);
    if (in_mode(AGENT_RAW_EXITS))
        verdict = raw_exit(vcpu, result);
    else if (memcmp(&vcpu->applied, &vcpu->qemu_debug, sizeof(vcpu->applied)))
        verdict = debug_exit(vcpu);
    // Unless QEMU is debugging, it gives the exit back to the guest.
    vcpu->incomplete = verdict == TO_QEMU && !vcpu->qemu_debug.control;
    gate_left(vcpu);
    pthread_mutex_unlock(&agent.lock);
    return verdict;
}

// QEMU goes from these back to KVM_RUN in any case.
static bool is_to_be_completed(uint32_t reason)
{
    return !in_mode(AGENT_RAW_EXITS) &&
           (reason == KVM_EXIT_IO || reason == KVM_EXIT_MMIO || reason == KVM_EXIT_X86_RDMSR ||
            reason == KVM_EXIT_X86_WRMSR);
}

long run_vcpu(struct vcpu *vcpu)
{
    long result;

    do {
        if (!gate_enter(vcpu))
            return -EINTR;
        result = kvm->ioctl(vcpu->fd, KVM_RUN, 0);
        atomic_fetch_add_explicit(&vcpu->entries, 1, memory_order_relaxed);
        vcpu->incomplete = result == 0 && is_to_be_completed(vcpu->run->exit_reason);
    } while (leave(vcpu, result) == ENTER_AGAIN);
    return result;
}

// Nothing of the controller remains: not in the guest, not in KVM, and every vCPU runs. Registers
// that it set stay set.
void run_clean_up(void)
{
    exclude(NULL);
    points_clear();
    if (agent.held || agent.stops)
        clock_go_on();
    forget_stops();
    agent.held = false;
    agent.session = false;
    agent.flags = 0;
    for_each_vcpu(vcpu)
    {
        vcpu->action = AGENT_CONTINUE;
        vcpu->over = OVER_NONE;
        vcpu->overdue = false;
        vcpu->raw_debug = (struct kvm_guest_debug){0};
        run_apply_debug(vcpu);
    }
    readmit(NULL);
}

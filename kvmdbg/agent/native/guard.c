// A guest that patches its own code minds to find other bytes there than its own, and has int3s of
// its own there meanwhile. A breakpoint at the entry of a function that does so takes every
// software breakpoint out of the guest, itself included, until the function has returned: a debug
// register says when, so that no int3 is intercepted in between. With none to spare it is an int3
// after all.

#include "agent.h"

enum { RETURN_POINT = 1u << 31 };

static uint64_t expected_sp; // at the return, of the thread that patches: others may pass there
static const struct vcpu *patcher; // where it was at the entry

static bool is_at(const struct point *point, const struct location *here,
                  const struct point *software)
{
    if (point->info.state != AGENT_ARMED)
        return false;
    if (point->info.flags & RETURN_POINT && here->sp != expected_sp)
        return false;
    if (point->info.kind == AGENT_HARDWARE)
        return point->info.address == here->pc;
    return software && point->info.gpa == software->info.gpa;
}

struct point *guard_at(const struct location *here, const struct point *software)
{
    for_each_point(point)
    {
        if (point->info.flags & (AGENT_GUARD | RETURN_POINT) && is_at(point, here, software))
            return point;
    }
    return NULL;
}

static void enter(struct vcpu *vcpu, uint64_t sp)
{
    struct agent_point_request request = {.kind = AGENT_HARDWARE,
                                          .vcpu = vcpu->index,
                                          .length = 1,
                                          .root = ~0ull,
                                          .flags = AGENT_SILENT | RETURN_POINT};
    struct point *point;
    int error;

    if (arch_return(vcpu, sp, &request.address, &expected_sp))
        return;
    points_withdraw(0, ~0ull, AGENT_YIELDED);
    patcher = vcpu;
    error = point_insert(vcpu, &request, &point);
    if (error) {
        request.kind = AGENT_SOFTWARE;
        error = point_insert(vcpu, &request, &point);
    }
    if (error)
        points_renew(); // it could not be seen when to put them back
}

static struct point *return_point(void)
{
    for_each_point(point)
    {
        if (point->info.flags & RETURN_POINT)
            return point;
    }
    return NULL;
}

bool guard_forbids(const struct point *point)
{
    const struct point *found = return_point();

    return found && found != point;
}

bool guard_waits_for(const struct vcpu *vcpu)
{
    return patcher == vcpu && return_point();
}

void guard_forget(void)
{
    struct point *point = return_point();

    if (point)
        point_remove(point->info.id);
    points_restore();
}

enum readiness guard_pass(struct vcpu *vcpu, struct point *point, uint64_t sp)
{
    if (!own_the_world(vcpu))
        return WAIT;
    if (point->info.flags & RETURN_POINT) {
        point_remove(point->info.id);
        points_renew();
        over_done(vcpu);
    } else {
        enter(vcpu, sp);
        if (point->info.state == AGENT_ARMED) {
            disown_the_world();
            return READY; // passed like any other
        }
        over_done(vcpu);
    }
    return AGAIN;
}

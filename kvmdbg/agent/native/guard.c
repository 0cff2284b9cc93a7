// A guest that patches its own code minds to find other bytes there than its own. A breakpoint at
// the entry of a function that does so takes every software breakpoint out of the guest, itself
// included, and leaves one, where the function returns to, which puts them back.

#include "agent.h"

enum { RETURN_POINT = 1u << 31 };

static uint64_t expected_sp; // at the return, of the thread that patches: others may pass there

struct point *guard_at(uint64_t gpa, uint64_t sp)
{
    for_each_point(point)
    {
        const uint32_t flags = point->info.flags;

        if (flags & (AGENT_GUARD | RETURN_POINT) && point->info.gpa == gpa &&
            point->info.state == AGENT_ARMED && (sp == expected_sp || !(flags & RETURN_POINT)))
            return point;
    }
    return NULL;
}

static void enter(struct vcpu *vcpu, uint64_t sp)
{
    struct agent_point_request request = {.kind = AGENT_SOFTWARE,
                                          .vcpu = vcpu->index,
                                          .length = 1,
                                          .root = ~0ull,
                                          .flags = AGENT_SILENT | RETURN_POINT};
    struct point *point;

    if (arch_return(vcpu, sp, &request.address, &expected_sp))
        return;
    points_withdraw(0, ~0ull);
    if (point_insert(vcpu, &request, &point))
        points_renew(); // it could not be seen when to put them back
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

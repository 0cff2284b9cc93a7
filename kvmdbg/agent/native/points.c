// Breakpoints and watchpoints. A software breakpoint is known by the guest-physical address of its
// byte, so that it is found through any mapping; it is written, lifted, put back and removed only
// while every vCPU is out of KVM_RUN.

#include "agent.h"

static bool armed(const struct point *point)
{
    return point->info.id && point->info.kind == AGENT_SOFTWARE && point->info.state == AGENT_ARMED;
}

bool have_software_points(void)
{
    for_each_point(point)
    {
        if (armed(point))
            return true;
    }
    return false;
}

struct point *software_point_at(uint64_t gpa, uint64_t pc)
{
    struct point *found = NULL;

    for_each_point(point)
    {
        // The one that was asked for at this address, and of those the one that stops.
        if (armed(point) && point->info.gpa == gpa &&
            (!found || (point->info.address == pc && !point->info.flags) ||
             (point->info.address == pc && found->info.address != pc)))
            found = point;
    }
    return found;
}

struct point *software_point_of(struct vcpu *vcpu, uint64_t pc)
{
    struct agent_translation page;
    struct paging paging;

    if (arch_paging(vcpu, &paging) || arch_walk(&paging, pc, &page))
        return NULL;
    return software_point_at(page.gpa, pc);
}

struct point *point_of_register(unsigned number)
{
    for_each_point(point)
    {
        if (point->info.kind != AGENT_SOFTWARE && point->info.debug_register == number)
            return point;
    }
    return NULL;
}

struct point *hardware_point_at(uint64_t pc)
{
    for_each_point(point)
    {
        if (point->info.kind == AGENT_HARDWARE && point->info.address == pc)
            return point;
    }
    return NULL;
}

// The part of a buffer that a breakpoint's bytes are in.
static bool overlap(const struct point *point, uint64_t gpa, size_t length, size_t *first,
                    unsigned *skip, unsigned *count)
{
    const uint64_t start = point->info.gpa, end = start + ARCH_BREAKPOINT_SIZE;

    if (!armed(point) || point->lifted || end <= gpa || start >= gpa + length)
        return false;
    *skip = start < gpa ? (unsigned)(gpa - start) : 0;
    *first = start < gpa ? 0 : (size_t)(start - gpa);
    *count = ARCH_BREAKPOINT_SIZE - *skip;
    if (*count > length - *first)
        *count = (unsigned)(length - *first);
    return true;
}

void mask_points(uint64_t gpa, uint8_t *buffer, size_t length)
{
    for_each_point(point)
    {
        size_t first;
        unsigned skip, count;

        if (overlap(point, gpa, length, &first, &skip, &count) &&
            !memcmp(buffer + first, ARCH_BREAKPOINT + skip, count))
            memcpy(buffer + first, point->info.original + skip, count);
    }
}

void keep_points(uint64_t gpa, uint8_t *buffer, size_t length)
{
    for_each_point(point)
    {
        // The rest of the instruction may be written to as well.
        for (unsigned i = 0; i < point->valid; i++) {
            const uint64_t at = point->info.gpa + i;

            if (armed(point) && at >= gpa && at < gpa + length)
                point->info.original[i] = buffer[at - gpa];
        }
    }
    for_each_point(point)
    {
        size_t first;
        unsigned skip, count;

        if (overlap(point, gpa, length, &first, &skip, &count))
            memcpy(buffer + first, ARCH_BREAKPOINT + skip, count);
    }
}

static bool load_masked(uint64_t gpa, uint8_t *buffer, size_t length)
{
    if (!guest_load(gpa, buffer, length))
        return false;
    mask_points(gpa, buffer, length);
    return true;
}

bool point_is_intact(struct point *point)
{
    uint8_t bytes[INSTRUCTION];

    return guest_load(point->info.gpa, bytes, ARCH_BREAKPOINT_SIZE) &&
           !memcmp(bytes, ARCH_BREAKPOINT, ARCH_BREAKPOINT_SIZE) &&
           load_masked(point->info.gpa, bytes, point->valid) &&
           !memcmp(bytes, point->info.original, arch_length(point));
}

bool point_lift(struct point *point)
{
    if (!point_is_intact(point) ||
        !guest_store(point->info.gpa, point->info.original, ARCH_BREAKPOINT_SIZE)) {
        point->info.state = AGENT_OVERWRITTEN;
        return false;
    }
    // Every breakpoint on that byte.
    for_each_point(other)
    {
        if (armed(other) && other->info.gpa == point->info.gpa)
            other->lifted = true;
    }
    return true;
}

static bool arm(struct point *point)
{
    const struct agent_slot *slot = slot_at(point->info.gpa);
    uint8_t bytes[INSTRUCTION];

    // KVM would not see the write, so who copies the slot would miss it: or copy our byte.
    if (!slot || slot->flags & KVM_MEM_LOG_DIRTY_PAGES) {
        point->info.state = AGENT_WITHDRAWN;
        return false;
    }
    if (guard_forbids(point)) {
        point->info.state = AGENT_YIELDED;
        return false;
    }
    point->info.state = AGENT_OVERWRITTEN;
    if (!load_masked(point->info.gpa, bytes, point->valid) ||
        memcmp(bytes, point->info.original, arch_length(point)) ||
        !guest_store(point->info.gpa, ARCH_BREAKPOINT, ARCH_BREAKPOINT_SIZE))
        return false;
    point->info.state = AGENT_ARMED;
    return true;
}

void point_put_back(struct point *point)
{
    point->lifted = false;
    arm(point);
}

static void disarm(struct point *point, enum agent_point_state state)
{
    const bool was_intact = point_is_intact(point);

    point->lifted = false;
    point->info.state = was_intact ? state : AGENT_OVERWRITTEN;
    if (was_intact && !software_point_at(point->info.gpa, point->info.address))
        guest_store(point->info.gpa, point->info.original, ARCH_BREAKPOINT_SIZE);
}

static int apply_to_all(void)
{
    for_each_vcpu(vcpu)
    {
        int error = run_apply_debug(vcpu);

        if (error)
            return error;
    }
    return 0;
}

static void discard(struct point *point)
{
    if (armed(point))
        disarm(point, AGENT_WITHDRAWN);
    point->info.id = 0;
    apply_to_all();
}

static int insert_software(struct vcpu *vcpu, uint64_t root, struct point *point)
{
    const uint64_t mask = 4095;
    struct agent_translation page;
    struct paging paging;
    uint32_t room;
    int error = arch_paging(vcpu, &paging);

    if (error)
        return error;
    if (root != ~0ull)
        paging.root = root;
    if (arch_walk(&paging, point->info.address, &page))
        return EFAULT;
    for_each_point(other)
    {
        if (other != point && other->info.kind == AGENT_SOFTWARE && other->info.gpa == page.gpa &&
            other->info.address == point->info.address && other->info.flags == point->info.flags)
            return EEXIST;
    }
    room = (uint32_t)(mask + 1 - (page.gpa & mask));
    point->info.gpa = page.gpa;
    point->info.debug_register = ~0u;
    point->valid = room < INSTRUCTION ? room : INSTRUCTION;
    if (point->valid < ARCH_BREAKPOINT_SIZE ||
        !load_masked(page.gpa, point->info.original, point->valid))
        return EFAULT;
    // Before the breakpoint is in memory, lest the guest gets its exception.
    point->info.state = AGENT_ARMED;
    point->lifted = true;
    error = apply_to_all();
    if (error)
        return error;
    point_put_back(point);
    return point->info.state == AGENT_OVERWRITTEN ? EFAULT : 0;
}

static int insert_hardware(struct point *point)
{
    unsigned number = 0;

    for_each_point(other)
    {
        if (other != point && other->info.kind == point->info.kind &&
            other->info.address == point->info.address && other->info.flags == point->info.flags)
            return EEXIST;
    }
    while (number < arch_debug_registers() && point_of_register(number))
        number++;
    if (number == arch_debug_registers())
        return ENOSPC;
    point->info.debug_register = number;
    point->info.state = AGENT_ARMED;
    return apply_to_all();
}

int point_insert(struct vcpu *vcpu, const struct agent_point_request *request, struct point **new)
{
    struct point *point = agent.points;
    int error;

    if (request->kind > AGENT_WATCH_ACCESS)
        return EINVAL;
    if (request->kind != AGENT_SOFTWARE && !arch_can_watch(request))
        return EINVAL;
    while (point->info.id && point < agent.points + MAX_POINTS - 1)
        point++;
    if (point->info.id)
        return ENOMEM;
    if (point >= agent.points + agent.point_limit)
        agent.point_limit = (unsigned)(point - agent.points) + 1;
    *point = (struct point){.info = {.id = ++agent.last_point,
                                     .kind = request->kind,
                                     .address = request->address,
                                     .length = request->length,
                                     .flags = request->flags,
                                     .debug_register = ~0u}};
    error = request->kind == AGENT_SOFTWARE ? insert_software(vcpu, request->root, point)
                                            : insert_hardware(point);
    if (error) {
        point->info.state = AGENT_WITHDRAWN; // nothing is in memory
        discard(point);
    }
    *new = point;
    return error;
}

int point_remove(uint32_t id)
{
    for_each_point(point)
    {
        if (point->info.id == id) {
            discard(point);
            return 0;
        }
    }
    return ENOENT;
}

void points_clear(void)
{
    for_each_point(point) discard(point);
}

static bool is_in(const struct point *point, uint64_t gpa, uint64_t size)
{
    return point->info.kind == AGENT_SOFTWARE && point->info.gpa - gpa < size;
}

bool points_in(uint64_t gpa, uint64_t size)
{
    for_each_point(point)
    {
        if (is_in(point, gpa, size))
            return true;
    }
    return false;
}

void points_withdraw(uint64_t gpa, uint64_t size, enum agent_point_state why)
{
    for_each_point(point)
    {
        if (armed(point) && is_in(point, gpa, size))
            disarm(point, why);
    }
}

static bool is_out(const struct point *point)
{
    return point->info.kind == AGENT_SOFTWARE &&
           (point->info.state == AGENT_WITHDRAWN || point->info.state == AGENT_YIELDED);
}

// Where memory is not as it was, it stays out.
static void arm_again(struct point *point)
{
    const uint32_t before = point->info.state;

    if (!arm(point) && !is_out(point))
        point->info.state = before;
}

void points_renew(void)
{
    for_each_point(point)
    {
        if (is_out(point) && load_masked(point->info.gpa, point->info.original, point->valid))
            arm_again(point);
    }
}

// Wherever memory is as it was when the breakpoint was inserted.
void points_restore(void)
{
    for_each_point(point)
    {
        if (is_out(point))
            arm_again(point);
    }
}

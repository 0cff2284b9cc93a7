// What the controller can ask for: one function for each type of request. Its answer is written
// where the connection will send it from; what it returns is 0 or an errno.

#include "agent.h"

#include <unistd.h>

static void *answer(struct request *request, size_t size)
{
    void *place = request->answer + request->answered;

    request->answered += (uint32_t)size;
    return memset(place, 0, size);
}

static int hello(struct request *request)
{
    const struct agent_hello *hello = (const void *)request->payload;
    struct agent_welcome *welcome;

    if (hello->magic != AGENT_MAGIC || hello->version != AGENT_VERSION)
        return EPROTO;
    exclude(NULL);
    welcome = answer(request, sizeof(*welcome));
    *welcome = (struct agent_welcome){
        .magic = AGENT_MAGIC,
        .version = AGENT_VERSION,
        .pid = (uint32_t)getpid(),
        .machine = ARCH_MACHINE,
        .vcpus = agent.vcpu_count,
        .slots = agent.slot_count,
        .run_size = (uint32_t)agent.run_size,
        .features = (agent.blockirq ? AGENT_BLOCKIRQ : 0) | (agent.adopting ? AGENT_ADOPTION : 0),
        .debug_registers = arch_debug_registers(),
        .sessions = agent.sessions,
    };
    agent.sessions += !agent.session;
    agent.session = true;
    request->controller->greeted = true;
    request->controller->told = agent.sequence;
    readmit(NULL);
    return 0;
}

static int adopt(struct request *request)
{
    const struct agent_adopt *adopt = (const void *)request->payload;
    const struct agent_vcpu *vcpus = (const void *)(adopt + 1);
    const struct agent_slot *slots;
    uint64_t size;

    if (!agent.adopting)
        return EPERM;
    size = sizeof(*adopt) + (uint64_t)adopt->vcpus * sizeof(*vcpus) +
           (uint64_t)adopt->slots * sizeof(*slots);
    if (size != request->length)
        return EINVAL;
    slots = (const void *)(vcpus + adopt->vcpus);
    return entry_adopt(adopt, vcpus, slots);
}

static int list_vcpus(struct request *request)
{
    for_each_vcpu(vcpu)
    {
        struct agent_vcpu *entry = answer(request, sizeof(*entry));

        *entry = (struct agent_vcpu){vcpu->index, vcpu->fd, vcpu->thread, vcpu->in_run};
    }
    return 0;
}

static int list_slots(struct request *request)
{
    for (unsigned i = 0; i < agent.slot_count && i < AGENT_MAX_PAYLOAD / sizeof(*agent.slots); i++)
        memcpy(answer(request, sizeof(*agent.slots)), &agent.slots[i], sizeof(*agent.slots));
    return 0;
}

static int do_ioctl(struct request *request)
{
    const struct agent_ioctl *call = (const void *)request->payload;
    struct vcpu *vcpu = call->scope == AGENT_VCPU ? vcpu_find(call->vcpu) : NULL;
    const unsigned number = (unsigned)call->request;
    struct agent_result *result;
    uint8_t *payload;

    if (request->length != sizeof(*call) + (uint64_t)call->size ||
        call->size > AGENT_MAX_PAYLOAD - sizeof(*result) || call->size < _IOC_SIZE(number) ||
        (call->pointee && call->size < call->pointee + 8ull) || (!vcpu && call->scope != AGENT_VM))
        return EINVAL;
    result = answer(request, sizeof(*result));
    payload = answer(request, call->size);
    memcpy(payload, call + 1, call->size);
    if (call->pointee) {
        const uint64_t address = (uintptr_t)(payload + call->size - call->pointee);

        memcpy(payload + call->size - call->pointee - 8, &address, 8);
    }
    if (vcpu) {
        exclude(vcpu);
        result->result = -settle(vcpu);
        if (!result->result)
            result->result =
                vcpu_ioctl(vcpu, number, (uintptr_t)call->argument, payload, call->size);
        readmit(vcpu);
    } else {
        result->result = kvm->ioctl(agent.vm_fd, number,
                                    call->size ? (uintptr_t)payload : (uintptr_t)call->argument);
    }
    return result->result < 0 ? (int)-result->result : 0;
}

static int read_memory(struct request *request)
{
    const struct agent_range *range = (const void *)request->payload;
    struct vcpu *vcpu = vcpu_find(range->vcpu);
    int64_t count;

    if (range->length > AGENT_MAX_PAYLOAD || range->space > AGENT_GPA || !vcpu)
        return EINVAL;
    if (range->space == AGENT_GVA) {
        exclude(vcpu);
        count = memory_read(vcpu, range, request->answer);
        readmit(vcpu);
    } else {
        pthread_mutex_lock(&agent.lock);
        count = memory_read(vcpu, range, request->answer);
        pthread_mutex_unlock(&agent.lock);
    }
    if (count < 0)
        return (int)-count;
    request->answered = (uint32_t)count;
    return 0;
}

static int write_memory(struct request *request)
{
    const struct agent_range *range = (const void *)request->payload;
    struct vcpu *vcpu = vcpu_find(range->vcpu);
    int error;

    if (range->length != request->length - sizeof(*range) || range->space > AGENT_GPA || !vcpu)
        return EINVAL;
    exclude(NULL);
    error = memory_write(vcpu, range, (const uint8_t *)(range + 1));
    readmit(NULL);
    return error;
}

static int translate(struct request *request)
{
    const struct agent_range *range = (const void *)request->payload;
    struct vcpu *vcpu = vcpu_find(range->vcpu);
    struct paging paging;
    int error;

    if (!vcpu)
        return EINVAL;
    exclude(vcpu);
    error = arch_paging(vcpu, &paging);
    if (range->root != ~0ull)
        paging.root = range->root;
    if (!error)
        error =
            arch_walk(&paging, range->address, answer(request, sizeof(struct agent_translation)));
    readmit(vcpu);
    return error;
}

static int insert(struct request *request)
{
    const struct agent_point_request *wanted = (const void *)request->payload;
    struct vcpu *vcpu = vcpu_find(wanted->vcpu);
    struct point *point;
    int error;

    if (!vcpu)
        return EINVAL;
    exclude(NULL);
    error = point_insert(vcpu, wanted, &point);
    if (!error)
        memcpy(answer(request, sizeof(point->info)), &point->info, sizeof(point->info));
    readmit(NULL);
    return error;
}

static int remove_point(struct request *request)
{
    uint32_t id;
    int error;

    memcpy(&id, request->payload, sizeof(id));
    exclude(NULL);
    error = point_remove(id);
    readmit(NULL);
    return error;
}

static int list_points(struct request *request)
{
    for_each_point(point)
    {
        struct agent_point *entry = answer(request, sizeof(*entry));

        *entry = point->info;
        if (entry->kind == AGENT_SOFTWARE && entry->state == AGENT_ARMED && !point->lifted &&
            !point_is_intact(point))
            entry->state = AGENT_OVERWRITTEN;
    }
    return 0;
}

static int hold(struct request *request)
{
    int error = 0;

    (void)request;
    exclude(NULL);
    for_each_vcpu(vcpu) error = error ? error : settle(vcpu);
    if (!error) {
        if (!agent.held && !agent.stops && agent.vcpu_count)
            clock_stop(agent.vcpus[0]);
        agent.held = true;
    }
    readmit(NULL);
    return error;
}

// Whatever breakpoint is at the vCPU's pc was told to the user.
static void step_over(struct vcpu *vcpu)
{
    struct location location;

    registers_set(vcpu);
    if (!arch_location(vcpu, &location) &&
        (software_point_of(vcpu, location.pc) || hardware_point_at(location.pc)))
        over_begin(vcpu, location.pc);
}

static int resume(struct request *request)
{
    const struct agent_action *actions = (const void *)request->payload;
    const size_t count = request->length / sizeof(*actions);
    int error = 0;

    for (size_t i = 0; i < count; i++) {
        if (actions[i].kind > AGENT_KEEP || !vcpu_find(actions[i].vcpu))
            return EINVAL;
    }
    exclude(NULL);
    for (size_t i = 0; i < count && !error; i++) {
        if (actions[i].flags & AGENT_STEP_OVER)
            error = settle(vcpu_find(actions[i].vcpu));
    }
    if (error) {
        readmit(NULL);
        return error;
    }
    for_each_vcpu(vcpu)
    {
        vcpu->action = AGENT_CONTINUE;
        vcpu->action_flags = 0;
        vcpu->overdue = false;
        vcpu->debug_stale = true;
    }
    for (size_t i = 0; i < count; i++) {
        struct vcpu *vcpu = vcpu_find(actions[i].vcpu);

        vcpu->action = actions[i].kind;
        vcpu->action_flags = actions[i].flags;
    }
    if (agent.held || agent.stops)
        clock_go_on();
    forget_stops();
    agent.held = false;
    for_each_vcpu(vcpu)
    {
        if (vcpu->action_flags & AGENT_STEP_OVER)
            step_over(vcpu);
    }
    readmit(NULL);
    return 0;
}

static int list_stops(struct request *request)
{
    for_each_vcpu(vcpu)
    {
        memcpy(answer(request, sizeof(vcpu->stop)), &vcpu->stop, sizeof(vcpu->stop));
    }
    request->controller->rung = false;
    request->controller->told = agent.sequence;
    return 0;
}

static int run_page(struct request *request)
{
    struct vcpu *vcpu;
    uint32_t index;
    int error;

    memcpy(&index, request->payload, sizeof(index));
    vcpu = vcpu_find(index);
    if (!vcpu)
        return EINVAL;
    exclude(vcpu);
    error = settle(vcpu);
    if (!error)
        memcpy(answer(request, agent.run_size), vcpu->run, agent.run_size);
    readmit(vcpu);
    return error;
}

static int configure(struct request *request)
{
    const struct agent_configuration *configuration = (const void *)request->payload;

    exclude(NULL);
    agent.flags = configuration->flags;
    for_each_vcpu(vcpu)
    {
        if (!in_mode(AGENT_RAW_EXITS))
            vcpu->raw_debug = (struct kvm_guest_debug){0};
        run_apply_debug(vcpu);
    }
    readmit(NULL);
    return 0;
}

static int statistics(struct request *request)
{
    struct agent_statistics *all = answer(request, sizeof(*all));

    *all = agent.statistics;
    for_each_vcpu(vcpu)
    {
        all->entries += vcpu->entries;
    }
    return 0;
}

static int show_clock(struct request *request)
{
    struct agent_clock *clock = answer(request, sizeof(*clock));

    clock->held = agent.held || agent.stops ? now() - agent.held_since : 0;
    clock->shift = agent.clock_shift;
    clock->state = agent.clock;
    return 0;
}

// Cleaning up comes before the answer, hanging up after it.
static int detach(struct request *request)
{
    (void)request;
    run_clean_up();
    request->controller->leaving = true;
    return 0;
}

struct handler {
    int (*handle)(struct request *);
    uint32_t least; // payload
    bool locked;    // called with agent.lock taken
};

static const struct handler HANDLERS[] = {
    [AGENT_HELLO] = {hello, sizeof(struct agent_hello), false},
    [AGENT_ADOPT] = {adopt, sizeof(struct agent_adopt), false},
    [AGENT_VCPUS] = {list_vcpus, 0, true},
    [AGENT_SLOTS] = {list_slots, 0, true},
    [AGENT_IOCTL] = {do_ioctl, sizeof(struct agent_ioctl), false},
    [AGENT_READ] = {read_memory, sizeof(struct agent_range), false},
    [AGENT_WRITE] = {write_memory, sizeof(struct agent_range), false},
    [AGENT_TRANSLATE] = {translate, sizeof(struct agent_range), false},
    [AGENT_INSERT] = {insert, sizeof(struct agent_point_request), false},
    [AGENT_REMOVE] = {remove_point, sizeof(uint32_t), false},
    [AGENT_POINTS] = {list_points, 0, true},
    [AGENT_HOLD] = {hold, 0, false},
    [AGENT_RESUME] = {resume, 0, false},
    [AGENT_STOPS] = {list_stops, 0, true},
    [AGENT_RUN_PAGE] = {run_page, sizeof(uint32_t), false},
    [AGENT_CONFIGURE] = {configure, sizeof(struct agent_configuration), false},
    [AGENT_STATISTICS] = {statistics, 0, true},
    [AGENT_CLOCK] = {show_clock, 0, true},
    [AGENT_DETACH] = {detach, 0, false},
};

int request_handle(uint16_t type, struct request *request)
{
    const struct handler *handler;
    int error;

    if (type >= sizeof(HANDLERS) / sizeof(*HANDLERS) || !HANDLERS[type].handle)
        return ENOSYS;
    handler = &HANDLERS[type];
    if (request->length < handler->least)
        return EINVAL;
    if (!request->controller->greeted && type != AGENT_HELLO)
        return EPROTO;
    if (handler->locked)
        pthread_mutex_lock(&agent.lock);
    error = handler->handle(request);
    if (handler->locked)
        pthread_mutex_unlock(&agent.lock);
    return error;
}

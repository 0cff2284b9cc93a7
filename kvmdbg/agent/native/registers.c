// The controller's vCPU ioctls. QEMU keeps a copy of registers and writes it back at moments of its
// own (after `info registers`, say), so what the controller set is set once more right before the
// vCPU enters the guest. Until then a getter is answered with it.

#include "agent.h"

#include <stdlib.h>

struct pending {
    struct pending *next;
    unsigned request;
    uint64_t number; // of a listed register
    uint32_t size;
    _Alignas(8) uint8_t payload[];
};

static const struct register_ioctl *find(unsigned request)
{
    for (const struct register_ioctl *found = ARCH_REGISTERS; found->set; found++) {
        if (found->set == request || found->get == request)
            return found;
    }
    return NULL;
}

static struct pending **find_pending(struct vcpu *vcpu, unsigned set, uint64_t number)
{
    struct pending **place = &vcpu->pending;

    while (*place && ((*place)->request != set || (*place)->number != number))
        place = &(*place)->next;
    return place;
}

// The order is that of the last setting: KVM_SET_REGS, for one, drops a pending exception.
static void remember(struct vcpu *vcpu, unsigned set, uint64_t number, const void *payload,
                     uint32_t size)
{
    struct pending **place = find_pending(vcpu, set, number), *new = *place;

    if (new)
        *place = new->next;
    free(new);
    new = malloc(sizeof(*new) + size);
    if (!new)
        return; // QEMU's copy may win
    new->request = set;
    new->number = number;
    new->size = size;
    new->next = NULL;
    memcpy(new->payload, payload, size);
    for (place = &vcpu->pending; *place; place = &(*place)->next)
        continue;
    *place = new;
    vcpu->attention = true;
}

static void set_again(struct vcpu *vcpu, struct pending *pending)
{
    const struct register_ioctl *kind = find(pending->request);

    if (kind->listed)
        arch_set_listed(vcpu, pending->number, pending->payload);
    else
        kvm->ioctl(vcpu->fd, pending->request, (uintptr_t)pending->payload);
}

void registers_set(struct vcpu *vcpu)
{
    for (struct pending *pending = vcpu->pending; pending; pending = pending->next)
        set_again(vcpu, pending);
}

bool registers_apply(struct vcpu *vcpu)
{
    if (!vcpu->pending)
        return false;
    registers_set(vcpu);
    registers_forget(vcpu);
    return true;
}

void registers_forget(struct vcpu *vcpu)
{
    while (vcpu->pending) {
        struct pending *first = vcpu->pending;

        vcpu->pending = first->next;
        free(first);
    }
}

// Registers that come by number: `set` remembers them, else they are answered.
static void listed(struct vcpu *vcpu, unsigned request, bool set, uint8_t *payload, uint32_t size)
{
    struct listed one;

    for (unsigned i = 0; arch_listed(payload, size, i, &one); i++) {
        const struct pending *pending = *find_pending(vcpu, request, one.number);

        if (set)
            remember(vcpu, request, one.number, one.value, one.size);
        else if (pending && pending->size <= one.size)
            memcpy(one.value, pending->payload, pending->size);
    }
}

// A step that was going on is over when the controller moves pc.
static int64_t set_registers(struct vcpu *vcpu, const struct register_ioctl *kind, uint8_t *payload,
                             uint32_t size)
{
    struct location before = {0}, after = {0};
    int64_t result;

    arch_location(vcpu, &before);
    result = kvm->ioctl(vcpu->fd, kind->set, (uintptr_t)payload);
    arch_location(vcpu, &after);
    vcpu->stepped |= before.pc != after.pc;
    if (result >= 0 && kind->listed)
        listed(vcpu, kind->set, true, payload, size);
    else if (result >= 0)
        remember(vcpu, kind->set, 0, payload, size);
    return result;
}

static int64_t get_registers(struct vcpu *vcpu, const struct register_ioctl *kind, unsigned request,
                             uint8_t *payload, uint32_t size)
{
    const struct pending *pending = *find_pending(vcpu, kind->set, 0);
    int64_t result = kvm->ioctl(vcpu->fd, request, (uintptr_t)payload);

    if (result >= 0 && kind->listed)
        listed(vcpu, kind->set, false, payload, size);
    else if (result >= 0 && pending)
        memcpy(payload, pending->payload, pending->size < size ? pending->size : size);
    return result;
}

int64_t vcpu_ioctl(struct vcpu *vcpu, unsigned request, uintptr_t argument, uint8_t *payload,
                   uint32_t size)
{
    const struct register_ioctl *kind = find(request);

    if (request == KVM_RUN)
        return -EPERM;
    if (request == KVM_SET_GUEST_DEBUG) { // otherwise the points' business
        if (!in_mode(AGENT_RAW_EXITS) || size < sizeof(vcpu->raw_debug))
            return -EPERM;
        memcpy(&vcpu->raw_debug, payload, sizeof(vcpu->raw_debug));
        vcpu->debug_stale = true;
        return -run_apply_debug(vcpu);
    }
    if (kind && size && request == kind->set)
        return set_registers(vcpu, kind, payload, size);
    if (kind && size)
        return get_registers(vcpu, kind, request, payload, size);
    return kvm->ioctl(vcpu->fd, request, size ? (uintptr_t)payload : argument);
}

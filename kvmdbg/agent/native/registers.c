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
    uintptr_t argument = (uintptr_t)pending->payload;
    struct kvm_one_reg one = {.id = pending->number, .addr = argument};
#ifdef KVM_SET_MSRS
    struct {
        struct kvm_msrs list;
        struct kvm_msr_entry entry;
    } msr = {.list.nmsrs = 1};

    if (pending->request == KVM_SET_MSRS) {
        memcpy(&msr.entry, pending->payload, sizeof(msr.entry));
        argument = (uintptr_t)&msr;
    }
#endif
    if (pending->request == KVM_SET_ONE_REG)
        argument = (uintptr_t)&one;
    kvm->ioctl(vcpu->fd, pending->request, argument);
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

// MSRs and arm64's registers come by number: `set` remembers them, else they are answered.
static void listed(struct vcpu *vcpu, const struct register_ioctl *kind, bool set, uint8_t *payload,
                   uint32_t size)
{
#ifdef KVM_SET_MSRS
    if (kind->set == KVM_SET_MSRS) {
        struct kvm_msrs *msrs = (struct kvm_msrs *)payload;

        for (uint32_t i = 0;
             i < msrs->nmsrs && size >= sizeof(*msrs) + (i + 1) * sizeof(msrs->entries[0]); i++) {
            struct kvm_msr_entry *entry = &msrs->entries[i];
            struct pending *pending = *find_pending(vcpu, kind->set, entry->index);

            if (set)
                remember(vcpu, kind->set, entry->index, entry, sizeof(*entry));
            else if (pending)
                memcpy(entry, pending->payload, sizeof(*entry));
        }
        return;
    }
#endif
    struct kvm_one_reg *one = (struct kvm_one_reg *)payload;
    struct pending *pending = *find_pending(vcpu, kind->set, one->id);
    uint32_t width = size - sizeof(*one);

    if (set)
        remember(vcpu, kind->set, one->id, (void *)(uintptr_t)one->addr, width);
    else if (pending && pending->size <= width)
        memcpy((void *)(uintptr_t)one->addr, pending->payload, pending->size);
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
        listed(vcpu, kind, true, payload, size);
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
        listed(vcpu, kind, false, payload, size);
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

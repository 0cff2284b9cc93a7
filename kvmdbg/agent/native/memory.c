// Guest memory, through QEMU's own mapping of it. Read and written by system calls, so that a slot
// which QEMU just unmapped is an error and not a fault.

#include "agent.h"

#include <stdlib.h>

static struct agent_slot *find_slot(uint32_t number)
{
    for (unsigned i = 0; i < agent.slot_count; i++) {
        if (agent.slots[i].slot == number)
            return &agent.slots[i];
    }
    return NULL;
}

const struct agent_slot *slot_of(uint32_t number)
{
    return find_slot(number);
}

// Who attaches late does not know KVM's numbers: QEMU has to use them, sooner or later.
void slot_learn(uint32_t number, uint64_t gpa)
{
    for (unsigned i = 0; i < agent.slot_count; i++) {
        struct agent_slot *slot = &agent.slots[i];

        if (slot->slot >= AGENT_UNNUMBERED && number < AGENT_UNNUMBERED && slot->gpa == gpa &&
            !(slot->slot >> 16))
            slot->slot = number;
    }
}

void slot_set(const struct agent_slot *slot)
{
    struct agent_slot *old = find_slot(slot->slot);

    if (!slot->size) {
        if (old)
            *old = agent.slots[--agent.slot_count];
        return;
    }
    if (!old) {
        if (agent.slot_count == agent.slot_room) {
            unsigned room = agent.slot_room ? 2 * agent.slot_room : 64;
            struct agent_slot *slots = realloc(agent.slots, room * sizeof(*slots));

            if (!slots)
                return; // that slot's memory is not RAM to us
            agent.slots = slots;
            agent.slot_room = room;
        }
        old = &agent.slots[agent.slot_count++];
    }
    *old = *slot;
}

// Address space 0: the others are variants of it (SMM).
const struct agent_slot *slot_at(uint64_t gpa)
{
    for (unsigned i = 0; i < agent.slot_count; i++) {
        const struct agent_slot *slot = &agent.slots[i];

        if (!(slot->slot >> 16) && gpa - slot->gpa < slot->size)
            return slot;
    }
    return NULL;
}

// How much of `length` bytes from `gpa` on is in one slot; 0: it is not RAM.
static size_t contiguous(uint64_t gpa, size_t length, uint64_t *hva)
{
    const struct agent_slot *slot = slot_at(gpa);
    uint64_t left;

    if (!slot)
        return 0;
    *hva = slot->hva + (gpa - slot->gpa);
    left = slot->gpa + slot->size - gpa;
    return left < length ? (size_t)left : length;
}

bool guest_load(uint64_t gpa, void *buffer, size_t length)
{
    while (length) {
        uint64_t hva;
        size_t part = contiguous(gpa, length, &hva);

        if (!part || !kvm->load(hva, buffer, part))
            return false;
        gpa += part;
        buffer = (uint8_t *)buffer + part;
        length -= part;
    }
    return true;
}

bool guest_store(uint64_t gpa, const void *buffer, size_t length)
{
    while (length) {
        uint64_t hva;
        size_t part = contiguous(gpa, length, &hva);

        if (!part || !kvm->store(hva, buffer, part))
            return false;
        gpa += part;
        buffer = (const uint8_t *)buffer + part;
        length -= part;
    }
    return true;
}

// The next stretch of a range that is contiguous in physical memory: to the end of a page.
static int next_stretch(const struct paging *paging, const struct agent_range *range, uint64_t done,
                        uint64_t *gpa, size_t *length)
{
    const uint64_t address = range->address + done, left = range->length - done;
    const uint64_t in_page = 4096 - (address & 4095);
    struct agent_translation page;

    *gpa = address;
    *length = (size_t)(left < in_page ? left : in_page);
    if (range->space == AGENT_GPA)
        return 0;
    if (arch_walk(paging, address, &page))
        return EFAULT;
    *gpa = page.gpa;
    return 0;
}

static int find_tables(struct vcpu *vcpu, const struct agent_range *range, struct paging *paging)
{
    int error = 0;

    if (range->space == AGENT_GVA)
        error = arch_paging(vcpu, paging);
    if (range->root != ~0ull)
        paging->root = range->root;
    return error;
}

int64_t memory_read(struct vcpu *vcpu, const struct agent_range *range, uint8_t *buffer)
{
    struct paging paging = {0};
    uint64_t done = 0, gpa;
    size_t length;
    int error = find_tables(vcpu, range, &paging);

    if (error)
        return -error;
    while (done < range->length && !next_stretch(&paging, range, done, &gpa, &length)) {
        uint8_t *here = buffer + done;

        if (!guest_load(gpa, here, length))
            break;
        mask_points(gpa, here, length);
        done += length;
    }
    return done || !range->length ? (int64_t)done : -EFAULT;
}

// KVM would not see a store of ours, and who copies the memory by that log would miss it.
static bool is_logged(uint64_t gpa)
{
    const struct agent_slot *slot = slot_at(gpa);

    return slot && slot->flags & KVM_MEM_LOG_DIRTY_PAGES;
}

int memory_write(struct vcpu *vcpu, const struct agent_range *range, const uint8_t *buffer)
{
    struct paging paging = {0};
    uint64_t done, gpa;
    size_t length;
    uint8_t page[4096];
    int error = find_tables(vcpu, range, &paging);

    // All or nothing: look first.
    for (done = 0; done < range->length && !error; done += length) {
        error = next_stretch(&paging, range, done, &gpa, &length);
        if (!error && !guest_load(gpa, page, length))
            error = EFAULT;
        if (!error && is_logged(gpa))
            error = EBUSY;
    }
    for (done = 0; done < range->length && !error; done += length) {
        error = next_stretch(&paging, range, done, &gpa, &length);
        if (error)
            break;
        memcpy(page, buffer + done, length);
        keep_points(gpa, page, length);
        if (!guest_store(gpa, page, length))
            error = EFAULT;
    }
    return error;
}

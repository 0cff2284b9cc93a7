// QEMU's ioctls, as far as the agent has to know or to change them.

#include "agent.h"

#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef KVM_SET_USER_MEMORY_REGION2 // begins like struct kvm_userspace_memory_region
#define KVM_SET_USER_MEMORY_REGION2 0x40a0ae49
#endif

struct vcpu *vcpu_find(uint32_t index)
{
    for_each_vcpu(vcpu)
    {
        if (vcpu->index == index)
            return vcpu;
    }
    return NULL;
}

// A vCPU that is known already is known anew, to a second late attach. Its thread may be in KVM_RUN
// through us since the first, so that the mapping stays.
int vcpu_add(uint32_t index, int fd, struct kvm_run *run, pid_t thread)
{
    struct vcpu *vcpu = vcpu_find(index);

    if (!vcpu) {
        vcpu = agent.vcpu_count < MAX_VCPUS ? calloc(1, sizeof(*vcpu)) : NULL;
        if (!vcpu)
            return ENOMEM;
        vcpu->wake = -1;
        agent.vcpus[agent.vcpu_count++] = vcpu;
    }
    if (vcpu->wake < 0)
        vcpu->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (vcpu->wake < 0)
        return errno;
    if (vcpu->run && vcpu->run != run)
        munmap(run, agent.run_size);
    else
        vcpu->run = run;
    vcpu->index = index;
    vcpu->fd = fd;
    vcpu->thread = thread;
    vcpu->stop = (struct agent_stop){.vcpu = index};
    vcpu->attention = true;
    return 0;
}

struct kvm_run *vcpu_map(int fd)
{
    void *run = mmap(NULL, agent.run_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

    return run == MAP_FAILED ? NULL : run;
}

// QEMU makes VMs to look at KVM, too (arm64's scratch VMs); ours is the first that stays open.
static void vm_created(int kvm_fd, int vm_fd)
{
    long size = kvm->ioctl(kvm_fd, KVM_GET_VCPU_MMAP_SIZE, 0);
    bool first;

    pthread_mutex_lock(&agent.lock);
    first = agent.vm_fd < 0 || agent.vm_fd == vm_fd ||
            kvm->ioctl(agent.vm_fd, KVM_CHECK_EXTENSION, 0) < 0;
    if (first && size > 0) {
        agent.vm_fd = vm_fd;
        agent.run_size = (size_t)size;
        agent.vcpu_count = 0;
        agent.slot_count = 0;
        arch_probe();
    }
    pthread_mutex_unlock(&agent.lock);
}

static void vcpu_created(uint32_t index, int fd)
{
    struct kvm_run *run = vcpu_map(fd);

    pthread_mutex_lock(&agent.lock);
    if (run)
        vcpu_add(index, fd, run, 0);
    pthread_mutex_unlock(&agent.lock);
}

// Breakpoints leave a slot's memory before KVM begins to log writes to it, or takes it away.
static long set_region(int fd, unsigned request, const struct kvm_userspace_memory_region *region)
{
    const struct agent_slot slot = {.slot = region->slot,
                                    .flags = region->flags,
                                    .gpa = region->guest_phys_addr,
                                    .size = region->memory_size,
                                    .hva = region->userspace_addr};
    const struct agent_slot *old;
    bool affected;
    long result;

    pthread_mutex_lock(&agent.lock);
    affected = points_in(0, UINT64_MAX);
    if (affected) {
        pthread_mutex_unlock(&agent.lock);
        exclude(NULL);
    }
    slot_learn(slot.slot, slot.gpa);
    old = slot_of(slot.slot);
    if (affected && old)
        points_withdraw(old->gpa, old->size, AGENT_WITHDRAWN);
    result = kvm->ioctl(fd, request, (uintptr_t)region);
    if (result >= 0)
        slot_set(&slot);
    points_restore();
    if (affected)
        readmit(NULL);
    else
        pthread_mutex_unlock(&agent.lock);
    return result;
}

// QEMU's guest debugging is merged into ours, and is all there is once we are gone. An exception to
// inject is passed on at once, as it is not a state.
static long set_guest_debug(struct vcpu *vcpu, const struct kvm_guest_debug *debug)
{
    const uint32_t inject = debug->control & ARCH_DEBUG_INJECT;
    struct kvm_guest_debug merged;
    long result = 0;

    pthread_mutex_lock(&agent.lock);
    vcpu->qemu_debug = *debug;
    vcpu->qemu_debug.control &= ~inject;
    arch_debug(vcpu, &merged);
    merged.control |= inject;
    if (inject || !agent.session)
        result = kvm->ioctl(vcpu->fd, KVM_SET_GUEST_DEBUG, (uintptr_t)&merged);
    vcpu->debug_stale = agent.session;
    vcpu->attention = true;
    if (!agent.session && result >= 0) { // a step that is astray is ours still
        vcpu->applied = merged;
        vcpu->applied.control &= ~inject;
    }
    pthread_mutex_unlock(&agent.lock);
    return result;
}

static struct vcpu *find_by_fd(int fd)
{
    for_each_vcpu(vcpu)
    {
        if (vcpu->fd == fd)
            return vcpu;
    }
    return NULL;
}

static struct vcpu *vcpu_of(int fd)
{
    struct vcpu *vcpu;

    pthread_mutex_lock(&agent.lock);
    vcpu = find_by_fd(fd);
    pthread_mutex_unlock(&agent.lock);
    return vcpu;
}

// The vCPU that the calling thread runs; it runs no other, but may have run none so far.
static struct vcpu *my_vcpu(int fd)
{
    static _Thread_local struct vcpu *mine;

    if (mine && mine->fd == fd)
        return mine;
    pthread_mutex_lock(&agent.lock);
    mine = find_by_fd(fd);
    if (mine)
        mine->thread = gettid();
    pthread_mutex_unlock(&agent.lock);
    return mine;
}

// QEMU sets the run state only with all the others, of a vCPU that it resets or restores: registers
// that the controller set before are past, as is whatever instruction it was at.
static void set_run_state(struct vcpu *vcpu)
{
    pthread_mutex_lock(&agent.lock);
    if (guard_waits_for(vcpu)) {
        pthread_mutex_unlock(&agent.lock);
        exclude(NULL);
        guard_forget();
        readmit(NULL);
        pthread_mutex_lock(&agent.lock);
    }
    registers_forget(vcpu);
    clock_forget();
    vcpu->astray = false;
    vcpu->stepped = true;
    vcpu->overdue = false;
    vcpu->attention = true;
    pthread_mutex_unlock(&agent.lock);
}

static long set_registers(struct vcpu *vcpu, uintptr_t argument)
{
    long result = kvm->ioctl(vcpu->fd, KVM_SET_REGS, argument);

    pthread_mutex_lock(&agent.lock);
    run_registers_written(vcpu);
    pthread_mutex_unlock(&agent.lock);
    return result;
}

long intercept(int fd, unsigned request, uintptr_t argument)
{
    struct vcpu *vcpu;
    long result;

    switch (request) {
    case KVM_RUN:
        vcpu = my_vcpu(fd);
        return vcpu ? run_vcpu(vcpu) : kvm->ioctl(fd, request, argument);
    case KVM_SET_GUEST_DEBUG:
        vcpu = vcpu_of(fd);
        return vcpu ? set_guest_debug(vcpu, (const void *)argument)
                    : kvm->ioctl(fd, request, argument);
    case KVM_SET_USER_MEMORY_REGION:
    case KVM_SET_USER_MEMORY_REGION2:
        if (fd == agent.vm_fd)
            return set_region(fd, request, (const void *)argument);
        return kvm->ioctl(fd, request, argument);
    case KVM_SET_REGS:
        vcpu = vcpu_of(fd);
        return vcpu ? set_registers(vcpu, argument) : kvm->ioctl(fd, request, argument);
    case KVM_SET_MP_STATE:
        vcpu = vcpu_of(fd);
        if (vcpu)
            set_run_state(vcpu);
        break;
    default:
        break;
    }
    result = kvm->ioctl(fd, request, argument);
    if (request == KVM_CREATE_VM && result >= 0)
        vm_created(fd, (int)result);
    if (request == KVM_CREATE_VCPU && result >= 0 && fd == agent.vm_fd)
        vcpu_created((uint32_t)argument, (int)result);
    return result;
}

// What differs on arm64. Breakpoints are not built yet: inserting one answers ENOTSUP.

#include "agent.h"

const uint8_t ARCH_BREAKPOINT[] = {0x00, 0x00, 0x20, 0xd4}; // brk #0
const unsigned ARCH_BREAKPOINT_SIZE = 4;
const uint32_t ARCH_MACHINE = 183;
const uint32_t ARCH_DEBUG_INJECT = 0;
const uint32_t ARCH_DEBUG_TRAPS = KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW;

const struct register_ioctl ARCH_REGISTERS[] = {
    {KVM_SET_ONE_REG, KVM_GET_ONE_REG, true},
    {KVM_SET_VCPU_EVENTS, KVM_GET_VCPU_EVENTS, false},
    {0},
};

bool arch_listed(uint8_t *payload, uint32_t size, unsigned i, struct listed *listed)
{
    struct kvm_one_reg *one = (struct kvm_one_reg *)payload;

    if (i || size < sizeof(*one))
        return false;
    *listed = (struct listed){one->id, (void *)(uintptr_t)one->addr, size - sizeof(*one)};
    return true;
}

long arch_set_listed(struct vcpu *vcpu, uint64_t number, void *value)
{
    struct kvm_one_reg one = {.id = number, .addr = (uintptr_t)value};

    return kvm->ioctl(vcpu->fd, KVM_SET_ONE_REG, (uintptr_t)&one);
}

unsigned arch_debug_registers(void)
{
    long count = kvm->ioctl(agent.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_GUEST_DEBUG_HW_BPS);

    return count > 0 ? (unsigned)count : 0;
}

bool arch_can_watch(const struct agent_point_request *request)
{
    (void)request;
    return false;
}

void arch_probe(void)
{
}

int arch_location(struct vcpu *vcpu, struct location *location)
{
    const uint64_t core = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE;
    struct kvm_one_reg get_pc = {core | KVM_REG_ARM_CORE_REG(regs.pc), (uintptr_t)&location->pc};
    struct kvm_one_reg get_sp = {core | KVM_REG_ARM_CORE_REG(regs.sp), (uintptr_t)&location->sp};

    if (kvm->ioctl(vcpu->fd, KVM_GET_ONE_REG, (uintptr_t)&get_pc) < 0 ||
        kvm->ioctl(vcpu->fd, KVM_GET_ONE_REG, (uintptr_t)&get_sp) < 0)
        return EIO;
    return 0;
}

int arch_paging(struct vcpu *vcpu, struct paging *paging)
{
    (void)vcpu;
    (void)paging;
    return ENOTSUP;
}

int arch_walk(const struct paging *paging, uint64_t gva, struct agent_translation *translation)
{
    (void)paging;
    (void)gva;
    (void)translation;
    return EFAULT;
}

void arch_debug(const struct vcpu *vcpu, struct kvm_guest_debug *debug)
{
    *debug = in_mode(AGENT_RAW_EXITS) ? vcpu->raw_debug : vcpu->qemu_debug;
    if (agent.session && is_to_step(vcpu))
        debug->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
}

void arch_read_exit(const struct vcpu *vcpu, struct debug_exit *exit)
{
    const uint32_t class = vcpu->run->debug.arch.hsr >> 26;
    struct location location = {0};

    *exit = (struct debug_exit){.step = class == 0x32, .breakpoint = class == 0x3c};
    arch_location((struct vcpu *)vcpu, &location);
    exit->pc = location.pc;
    exit->stop.pc = exit->pc;
    exit->stop.exception = vcpu->run->debug.arch.hsr;
}

void arch_reinject(struct vcpu *vcpu, const struct debug_exit *exit)
{
    (void)vcpu;
    (void)exit;
}

bool arch_emulate(struct vcpu *vcpu, const struct point *point)
{
    (void)vcpu;
    (void)point;
    return false;
}

bool arch_step(struct vcpu *vcpu, const uint8_t *code, unsigned valid)
{
    (void)vcpu, (void)code, (void)valid;
    return false;
}

bool arch_resume_flag(struct vcpu *vcpu)
{
    (void)vcpu;
    return false;
}

void arch_clear_step(struct vcpu *vcpu)
{
    (void)vcpu;
}

unsigned arch_length(const struct point *point)
{
    (void)point;
    return ARCH_BREAKPOINT_SIZE;
}

bool arch_repeats(const struct point *point)
{
    (void)point;
    return false;
}

// KVM's timers stand still for a guest that QEMU has stopped.
int arch_counter(struct vcpu *vcpu, uint64_t *cycles)
{
    (void)vcpu, (void)cycles;
    return ENOTSUP;
}

int arch_shift_clock(struct vcpu *vcpu, int64_t cycles)
{
    (void)vcpu;
    (void)cycles;
    return ENOTSUP;
}

int arch_return(struct vcpu *vcpu, uint64_t sp, uint64_t *address, uint64_t *sp_then)
{
    (void)vcpu, (void)sp, (void)address, (void)sp_then;
    return ENOTSUP;
}

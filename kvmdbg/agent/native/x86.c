// What differs on x86-64: registers, debug registers, debug exits, and the instructions that
// functions begin with, which are cheaper to emulate than to step. Page tables are in x86_paging.c.

#include "agent.h"

#include "decode.h"

#define RFLAGS_TF 0x100ull
#define RFLAGS_RF 0x10000ull
#define CR4_FRED_CET 0x100800000ull
#define CR4_PKE 0x400000ull
#define CR4_PKS 0x1000000ull
#define EFER_SCE 1ull
#define EFER_LMA 0x400ull
#define MSR_TSC 0x10
#define MSR_STAR 0xc0000081
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define DR6_BS 0x4000ull
#define DR6_FIXED 0xffff0ff0ull
#define DR7_FIXED 0x400ull

const uint8_t ARCH_BREAKPOINT[] = {0xcc};
const unsigned ARCH_BREAKPOINT_SIZE = 1;
const uint32_t ARCH_MACHINE = 62;
const uint32_t ARCH_DEBUG_INJECT = KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP;
const uint32_t ARCH_DEBUG_TRAPS = KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP;

const struct register_ioctl ARCH_REGISTERS[] = {
    {KVM_SET_REGS, KVM_GET_REGS, false},
    {KVM_SET_SREGS, KVM_GET_SREGS, false},
    {KVM_SET_SREGS2, KVM_GET_SREGS2, false},
    {KVM_SET_FPU, KVM_GET_FPU, false},
    {KVM_SET_XSAVE, KVM_GET_XSAVE, false},
    {KVM_SET_XSAVE, KVM_GET_XSAVE2, false},
    {KVM_SET_XCRS, KVM_GET_XCRS, false},
    {KVM_SET_DEBUGREGS, KVM_GET_DEBUGREGS, false},
    {KVM_SET_VCPU_EVENTS, KVM_GET_VCPU_EVENTS, false},
    {KVM_SET_MSRS, KVM_GET_MSRS, true},
    {0},
};

bool arch_listed(uint8_t *payload, uint32_t size, unsigned i, struct listed *listed)
{
    struct kvm_msrs *msrs = (struct kvm_msrs *)payload;
    struct kvm_msr_entry *entry = &msrs->entries[i];

    if (size < sizeof(*msrs) || i >= msrs->nmsrs || (uint8_t *)(entry + 1) > payload + size)
        return false;
    *listed = (struct listed){entry->index, entry, sizeof(*entry)};
    return true;
}

long arch_set_listed(struct vcpu *vcpu, uint64_t number, void *value)
{
    struct {
        struct kvm_msrs list;
        struct kvm_msr_entry entry;
    } msr = {.list.nmsrs = 1};

    (void)number; // it is in the entry
    memcpy(&msr.entry, value, sizeof(msr.entry));
    return kvm->ioctl(vcpu->fd, KVM_SET_MSRS, (uintptr_t)&msr);
}

unsigned arch_debug_registers(void)
{
    return 4;
}

bool arch_can_watch(const struct agent_point_request *request)
{
    const uint64_t length = request->length;

    if (request->kind == AGENT_HARDWARE)
        return length <= 1;
    return request->kind != AGENT_WATCH_READ &&
           (length == 1 || length == 2 || length == 4 || length == 8) &&
           !(request->address & (length - 1));
}

void arch_probe(void)
{
    long flags = kvm->ioctl(agent.vm_fd, KVM_CHECK_EXTENSION, KVM_CAP_SET_GUEST_DEBUG2);

    agent.blockirq = flags > 0 && flags & KVM_GUESTDBG_BLOCKIRQ;
}

static long get(const struct vcpu *vcpu, unsigned request, void *value)
{
    return kvm->ioctl(vcpu->fd, request, (uintptr_t)value);
}

static bool is_64bit(const struct kvm_sregs *sregs)
{
    return sregs->efer & EFER_LMA && sregs->cs.l;
}

int arch_location(struct vcpu *vcpu, struct location *location)
{
    struct kvm_regs regs;
    struct kvm_sregs sregs;

    if (get(vcpu, KVM_GET_REGS, &regs) < 0 || get(vcpu, KVM_GET_SREGS, &sregs) < 0)
        return EIO;
    location->pc = is_64bit(&sregs) ? regs.rip : (uint32_t)(regs.rip + sregs.cs.base);
    location->sp = regs.rsp;
    return 0;
}

// Debug registers.

static uint64_t dr7_of(const struct point *point)
{
    static const unsigned LENGTHS[] = {[1] = 0, [2] = 1, [4] = 3, [8] = 2};
    const unsigned number = point->info.debug_register;
    uint64_t type = 0;

    if (point->info.kind == AGENT_WATCH_WRITE)
        type = 1 | LENGTHS[point->info.length] << 2;
    if (point->info.kind == AGENT_WATCH_ACCESS)
        type = 3 | LENGTHS[point->info.length] << 2;
    return 2ull << (2 * number) | type << (16 + 4 * number);
}

static void arm_registers(const struct vcpu *vcpu, struct kvm_guest_debug *debug)
{
    uint64_t dr7 = 0;

    for_each_point(point)
    {
        if (point->info.kind == AGENT_SOFTWARE || point->info.state != AGENT_ARMED)
            continue;
        if (vcpu->over == OVER_STEPPING && point->info.kind == AGENT_HARDWARE &&
            point->info.address == vcpu->over_pc)
            continue;
        debug->arch.debugreg[point->info.debug_register] = point->info.address;
        dr7 |= dr7_of(point);
    }
    // Astray: no register, only to see #DB. KVM_GUESTDBG_SINGLESTEP would set TF anew, here.
    if (dr7 || vcpu->astray) {
        debug->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
        debug->arch.debugreg[7] = dr7 | DR7_FIXED;
    } else if (vcpu->qemu_debug.control & KVM_GUESTDBG_USE_HW_BP) {
        debug->control |= KVM_GUESTDBG_USE_HW_BP;
        debug->arch = vcpu->qemu_debug.arch;
    }
}

void arch_debug(const struct vcpu *vcpu, struct kvm_guest_debug *debug)
{
    const uint32_t merged = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_SINGLESTEP;
    *debug = vcpu->qemu_debug;
    if (in_mode(AGENT_RAW_EXITS))
        *debug = vcpu->raw_debug;
    // A step's TF outlives the session that asked for it.
    if (in_mode(AGENT_RAW_EXITS) || (!agent.session && !vcpu->astray))
        return;
    *debug = (struct kvm_guest_debug){.control = vcpu->qemu_debug.control & merged};
    if (have_software_points())
        debug->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
    arm_registers(vcpu, debug);
    if (!is_to_step(vcpu) && vcpu->over != OVER_STEPPING)
        return;
    debug->control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
    if (agent.blockirq && !(vcpu->action_flags & AGENT_LET_IRQ))
        debug->control |= KVM_GUESTDBG_BLOCKIRQ;
}

void arch_read_exit(const struct vcpu *vcpu, struct debug_exit *exit)
{
    const struct kvm_debug_exit_arch *facts = &vcpu->run->debug.arch;
    const bool ours = agent.session && vcpu->applied.control & KVM_GUESTDBG_USE_HW_BP;
    const uint64_t dr7 = vcpu->applied.arch.debugreg[7];

    *exit = (struct debug_exit){.pc = facts->pc, .breakpoint = facts->exception == 3};
    exit->stop = (struct agent_stop){.exception = facts->exception, .pc = facts->pc};
    if (exit->breakpoint) // the debug registers' fields mean nothing
        return;
    exit->stop.dr6 = facts->dr6;
    exit->stop.dr7 = facts->dr7;
    exit->step = facts->dr6 & DR6_BS;
    for (unsigned number = 0; number < arch_debug_registers() && ours; number++) {
        if (facts->dr6 & 1u << number && dr7 & 3ull << 2 * number && point_of_register(number))
            exit->fired |= 1u << number;
    }
}

// The guest's own #DB, with its DR6, as the processor would have delivered it.
void arch_reinject(struct vcpu *vcpu, const struct debug_exit *exit)
{
    struct kvm_vcpu_events events;
    struct kvm_debugregs registers;

    if (get(vcpu, KVM_GET_VCPU_EVENTS, &events) < 0 || get(vcpu, KVM_GET_DEBUGREGS, &registers) < 0)
        return;
    registers.dr6 = exit->stop.dr6 | DR6_FIXED;
    events.exception.injected = 1;
    events.exception.nr = 1;
    events.exception.has_error_code = 0;
    events.exception.error_code = 0;
    get(vcpu, KVM_SET_DEBUGREGS, &registers);
    get(vcpu, KVM_SET_VCPU_EVENTS, &events);
}

static bool change_flags(struct vcpu *vcpu, uint64_t set, uint64_t clear)
{
    struct kvm_regs regs;

    if (get(vcpu, KVM_GET_REGS, &regs) < 0)
        return false;
    regs.rflags = (regs.rflags | set) & ~clear;
    return get(vcpu, KVM_SET_REGS, &regs) >= 0;
}

bool arch_resume_flag(struct vcpu *vcpu)
{
    return change_flags(vcpu, RFLAGS_RF, 0);
}

void arch_clear_step(struct vcpu *vcpu)
{
    change_flags(vcpu, 0, RFLAGS_TF);
}

// Emulation.

static bool is_watched(uint64_t address, uint64_t length)
{
    for_each_point(point)
    {
        if (point->info.kind >= AGENT_WATCH_WRITE && point->info.address < address + length &&
            address < point->info.address + point->info.length)
            return true;
    }
    return false;
}

// A push that does no more than to store: no fault, nothing to be noted in page tables, no
// protection key to be looked up.
static bool is_simple_push(const struct kvm_sregs *sregs, const struct agent_translation *page)
{
    const bool user = sregs->ss.dpl == 3;

    return page->access & AGENT_WRITABLE && page->access & AGENT_DIRTY &&
           user == !!(page->access & AGENT_USER) && !(sregs->cr4 & (user ? CR4_PKE : CR4_PKS));
}

static bool push(struct vcpu *vcpu, const struct kvm_sregs *sregs, struct kvm_regs *regs,
                 uint64_t value)
{
    const uint64_t sp = regs->rsp - 8;
    struct agent_translation page;
    const struct agent_slot *slot;
    struct paging paging;

    if (arch_paging(vcpu, &paging))
        return false;
    if ((sp & 4095) > 4088 || is_watched(sp, 8) || arch_walk(&paging, sp, &page) ||
        !is_simple_push(sregs, &page))
        return false;
    slot = slot_at(page.gpa);
    if (!slot || slot->flags || points_in(page.gpa, 8) || !guest_store(page.gpa, &value, 8))
        return false;
    regs->rsp = sp;
    return true;
}

static uint64_t *general_register(struct kvm_regs *regs, unsigned number)
{
    // In the order of their encoding.
    uint64_t *const registers[] = {
        (uint64_t *)&regs->rax, (uint64_t *)&regs->rcx, (uint64_t *)&regs->rdx,
        (uint64_t *)&regs->rbx, (uint64_t *)&regs->rsp, (uint64_t *)&regs->rbp,
        (uint64_t *)&regs->rsi, (uint64_t *)&regs->rdi, (uint64_t *)&regs->r8,
        (uint64_t *)&regs->r9,  (uint64_t *)&regs->r10, (uint64_t *)&regs->r11,
        (uint64_t *)&regs->r12, (uint64_t *)&regs->r13, (uint64_t *)&regs->r14,
        (uint64_t *)&regs->r15,
    };

    return registers[number];
}

bool arch_emulate(struct vcpu *vcpu, const struct point *point)
{
    struct kvm_vcpu_events events;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    struct simple simple;

    if (!decode_simple(point->info.original, point->valid, &simple) ||
        get(vcpu, KVM_GET_SREGS, &sregs) < 0 || !is_64bit(&sregs) ||
        get(vcpu, KVM_GET_REGS, &regs) < 0 || regs.rflags & RFLAGS_TF)
        return false;
    // Something is to be delivered before the instruction, or interrupts are off for this one only.
    if (get(vcpu, KVM_GET_VCPU_EVENTS, &events) < 0 || events.exception.injected ||
        events.exception.pending || events.interrupt.shadow)
        return false;
    switch (simple.kind) {
    case SIMPLE_NOP:
        break;
    case SIMPLE_PUSH:
        if (!push(vcpu, &sregs, &regs, *general_register(&regs, simple.source)))
            return false;
        break;
    case SIMPLE_MOVE:
        *general_register(&regs, simple.target) = *general_register(&regs, simple.source);
        break;
    }
    regs.rip += simple.length;
    regs.rflags &= ~RFLAGS_RF;
    return get(vcpu, KVM_SET_REGS, &regs) >= 0;
}

// SYSCALL, as it takes TF away: KVM's step would end where the guest comes back from it. Under
// shadow stacks and FRED it does more, and is left to do that. AMD64 manual 3, SYSCALL.
bool arch_step(struct vcpu *vcpu, const uint8_t *code, unsigned valid)
{
    static const uint8_t SYSCALL[] = {0x0f, 0x05};
    struct {
        struct kvm_msrs list;
        struct kvm_msr_entry entries[3];
    } msrs = {.list.nmsrs = 3,
              .entries = {{.index = MSR_STAR}, {.index = MSR_LSTAR}, {.index = MSR_SFMASK}}};
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    uint16_t selector;

    if (valid < sizeof(SYSCALL) || memcmp(code, SYSCALL, sizeof(SYSCALL)) ||
        get(vcpu, KVM_GET_REGS, &regs) < 0 || regs.rflags & RFLAGS_TF ||
        get(vcpu, KVM_GET_SREGS, &sregs) < 0 || !is_64bit(&sregs) || !(sregs.efer & EFER_SCE) ||
        sregs.cr4 & CR4_FRED_CET || get(vcpu, KVM_GET_MSRS, &msrs) != 3)
        return false;
    selector = msrs.entries[0].data >> 32 & 0xfffc;
    sregs.cs = (struct kvm_segment){
        .limit = ~0u, .selector = selector, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1};
    sregs.ss = (struct kvm_segment){.limit = ~0u,
                                    .selector = (uint16_t)(selector + 8),
                                    .type = 3,
                                    .present = 1,
                                    .db = 1,
                                    .s = 1,
                                    .g = 1};
    regs.rcx = regs.rip + sizeof(SYSCALL);
    regs.r11 = regs.rflags & ~RFLAGS_RF;
    regs.rip = msrs.entries[1].data;
    regs.rflags = (regs.r11 & ~msrs.entries[2].data) | 2;
    return get(vcpu, KVM_SET_SREGS, &sregs) >= 0 && get(vcpu, KVM_SET_REGS, &regs) >= 0;
}

unsigned arch_length(const struct point *point)
{
    return decode_length(point->info.original, point->valid);
}

bool arch_repeats(const struct point *point)
{
    return decode_repeats(point->info.original, point->valid);
}

int arch_counter(struct vcpu *vcpu, uint64_t *cycles)
{
    struct {
        struct kvm_msrs list;
        struct kvm_msr_entry entry;
    } msr = {.list.nmsrs = 1, .entry.index = MSR_TSC};
    long result = get(vcpu, KVM_GET_MSRS, &msr);

    *cycles = msr.entry.data;
    return result == 1 ? 0 : EIO;
}

int arch_shift_clock(struct vcpu *vcpu, int64_t cycles)
{
    uint64_t offset;
    struct kvm_device_attr attribute = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};
    long result = get(vcpu, KVM_GET_DEVICE_ATTR, &attribute);

    if (result >= 0) {
        offset += (uint64_t)cycles;
        result = get(vcpu, KVM_SET_DEVICE_ATTR, &attribute);
    }
    return result < 0 ? (int)-result : 0;
}

int arch_return(struct vcpu *vcpu, uint64_t sp, uint64_t *address, uint64_t *sp_then)
{
    const struct agent_range top = {
        .space = AGENT_GVA, .vcpu = vcpu->index, .address = sp, .length = 8, .root = ~0ull};

    *sp_then = sp + 8;
    return memory_read(vcpu, &top, (uint8_t *)address) == 8 ? 0 : EFAULT;
}

// x86 page tables, in every mode: how many levels, how wide an entry.

#include "agent.h"

#define CR0_PG 0x80000000ull
#define CR4_PSE 0x10ull
#define CR4_PAE 0x20ull
#define CR4_LA57 0x1000ull
#define EFER_LMA 0x400ull
#define EFER_NX 0x800ull
#define PTE_PRESENT 1ull
#define PTE_WRITABLE 2ull
#define PTE_USER 4ull
#define PTE_ACCESSED 0x20ull
#define PTE_DIRTY 0x40ull
#define PTE_LARGE 0x80ull
#define PTE_NX (1ull << 63)
#define PTE_ADDRESS 0xffffffffff000ull

static void read_paging(const struct kvm_sregs *sregs, struct paging *paging)
{
    *paging = (struct paging){.entry = 8, .root = sregs->cr3 & PTE_ADDRESS};
    if (!(sregs->cr0 & CR0_PG))
        return;
    paging->nx = sregs->efer & EFER_NX;
    if (sregs->efer & EFER_LMA) {
        paging->levels = sregs->cr4 & CR4_LA57 ? 5 : 4;
    } else if (sregs->cr4 & CR4_PAE) {
        paging->levels = 3;
        paging->root = sregs->cr3 & 0xffffffe0;
    } else {
        paging->levels = 2;
        paging->entry = 4;
        paging->large = sregs->cr4 & CR4_PSE;
    }
}

int arch_paging(struct vcpu *vcpu, struct paging *paging)
{
    struct kvm_sregs sregs;
    long result = kvm->ioctl(vcpu->fd, KVM_GET_SREGS, (uintptr_t)&sregs);

    if (result < 0)
        return (int)-result;
    read_paging(&sregs, paging);
    return 0;
}

static bool is_canonical(uint64_t gva, unsigned levels)
{
    const unsigned unused = levels == 5 ? 7 : 16;

    return levels < 4 || (uint64_t)((int64_t)(gva << unused) >> unused) == gva;
}

int arch_walk(const struct paging *paging, uint64_t gva, struct agent_translation *translation)
{
    const unsigned bits = paging->entry == 8 ? 9 : 10;
    uint64_t table = paging->root, access = PTE_WRITABLE | PTE_USER, entry = 0;
    bool nx = false, accessed = true;

    *translation = (struct agent_translation){
        .gpa = gva, .page = 4096, .access = AGENT_WRITABLE | AGENT_USER | AGENT_DIRTY};
    if (!paging->levels)
        return 0;
    if (!is_canonical(gva, paging->levels))
        return EFAULT;
    for (unsigned level = paging->levels; level; level--) {
        const unsigned shift = 12 + (level - 1) * bits;
        const uint64_t index = gva >> shift & ((1ull << bits) - 1);
        const bool pdpte = paging->levels == 3 && level == 3; // has no access bits, is no page
        const bool may_be_large =
            paging->entry == 8 ? level == 2 || (level == 3 && !pdpte) : level == 2 && paging->large;

        entry = 0;
        if (!guest_load(table + index * paging->entry, &entry, paging->entry) ||
            !(entry & PTE_PRESENT))
            return EFAULT;
        if (!pdpte) {
            access &= entry;
            accessed &= !!(entry & PTE_ACCESSED);
        }
        nx |= paging->nx && entry & PTE_NX;
        table = entry & PTE_ADDRESS;
        if (level == 1 || (may_be_large && entry & PTE_LARGE)) {
            translation->page = 1ull << shift;
            break;
        }
    }
    translation->gpa = (table & ~(translation->page - 1)) | (gva & (translation->page - 1));
    translation->access = (access & PTE_WRITABLE ? AGENT_WRITABLE : 0) |
                          (access & PTE_USER ? AGENT_USER : 0) | (nx ? AGENT_NX : 0) |
                          (accessed && entry & PTE_DIRTY ? AGENT_DIRTY : 0);
    return 0;
}

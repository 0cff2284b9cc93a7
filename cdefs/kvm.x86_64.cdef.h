// x86: asm/kvm.h, and the x86 part of linux/kvm.h.

#define KVM_CAP_DEBUGREGS ...
#define KVM_CAP_XSAVE ...
#define KVM_CAP_XCRS ...
#define KVM_CAP_VCPU_EVENTS ...
#define KVM_CAP_TSC_CONTROL ...
#define KVM_CAP_TSC_DEADLINE_TIMER ...
#define KVM_CAP_NESTED_STATE ...
#define KVM_CAP_X86_MSR_FILTER ...

#define KVM_GET_SUPPORTED_CPUID ...

#define KVM_SET_TSS_ADDR ...
#define KVM_SET_IDENTITY_MAP_ADDR ...

#define KVM_GET_REGS ...
#define KVM_SET_REGS ...
#define KVM_GET_SREGS ...
#define KVM_SET_SREGS ...
#define KVM_GET_DEBUGREGS ...
#define KVM_SET_DEBUGREGS ...
#define KVM_GET_VCPU_EVENTS ...
#define KVM_SET_VCPU_EVENTS ...
#define KVM_GET_MSRS ...
#define KVM_SET_MSRS ...
#define KVM_GET_XSAVE ...
#define KVM_SET_XSAVE ...
#define KVM_SET_CPUID2 ...
#define KVM_TRANSLATE ...
#define KVM_GET_TSC_KHZ ...
#define KVM_GET_DEVICE_ATTR ...
#define KVM_SET_DEVICE_ATTR ...
#define KVM_VCPU_TSC_CTRL ...
#define KVM_VCPU_TSC_OFFSET ...

#define KVM_GUESTDBG_USE_SW_BP ...
#define KVM_GUESTDBG_USE_HW_BP ...
#define KVM_GUESTDBG_INJECT_DB ...
#define KVM_GUESTDBG_INJECT_BP ...
#define KVM_GUESTDBG_BLOCKIRQ ...

#define KVM_SYNC_X86_REGS ...
#define KVM_SYNC_X86_SREGS ...
#define KVM_SYNC_X86_EVENTS ...

struct kvm_guest_debug_arch {
    unsigned long long debugreg[8];
};

struct kvm_guest_debug {
    unsigned int control;
    unsigned int pad;
    struct kvm_guest_debug_arch arch;
};

struct kvm_debug_exit_arch {
    unsigned int exception;
    unsigned int pad;
    unsigned long long pc;
    unsigned long long dr6;
    unsigned long long dr7;
};

struct kvm_regs {
    unsigned long long rax, rbx, rcx, rdx;
    unsigned long long rsi, rdi, rsp, rbp;
    unsigned long long r8, r9, r10, r11;
    unsigned long long r12, r13, r14, r15;
    unsigned long long rip, rflags;
};

struct kvm_segment {
    unsigned long long base;
    unsigned int limit;
    unsigned short selector;
    unsigned char type;
    unsigned char present, dpl, db, s, l, g, avl;
    unsigned char unusable;
    unsigned char padding;
};

struct kvm_dtable {
    unsigned long long base;
    unsigned short limit;
    unsigned short padding[3];
};

struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss;
    struct kvm_segment tr, ldt;
    struct kvm_dtable gdt, idt;
    unsigned long long cr0, cr2, cr3, cr4, cr8;
    unsigned long long efer;
    unsigned long long apic_base;
    unsigned long long interrupt_bitmap[4];
};

struct kvm_debugregs {
    unsigned long long db[4];
    unsigned long long dr6;
    unsigned long long dr7;
    unsigned long long flags;
    unsigned long long reserved[9];
};

struct kvm_vcpu_events {
    struct {
        unsigned char injected;
        unsigned char nr;
        unsigned char has_error_code;
        unsigned char pending;
        unsigned int error_code;
    } exception;
    struct {
        unsigned char injected;
        unsigned char nr;
        unsigned char soft;
        unsigned char shadow;
    } interrupt;
    struct {
        unsigned char injected;
        unsigned char pending;
        unsigned char masked;
        unsigned char pad;
    } nmi;
    unsigned int sipi_vector;
    unsigned int flags;
    struct {
        unsigned char smm;
        unsigned char pending;
        unsigned char smm_inside_nmi;
        unsigned char latched_init;
    } smi;
    unsigned char exception_has_payload;
    unsigned long long exception_payload;
    ...;
};

struct kvm_msr_entry {
    unsigned int index;
    unsigned int reserved;
    unsigned long long data;
};

struct kvm_msrs {
    unsigned int nmsrs;
    unsigned int pad;
    struct kvm_msr_entry entries[];
};

struct kvm_xsave {
    unsigned int region[1024];
    ...; // newer headers: extra[], the rest of what KVM_GET_XSAVE2 fills
};

struct kvm_translation {
    unsigned long long linear_address;
    unsigned long long physical_address;
    unsigned char valid;
    unsigned char writeable;
    unsigned char usermode;
    unsigned char pad[5];
};

struct kvm_device_attr {
    unsigned int flags;
    unsigned int group;
    unsigned long long attr;
    unsigned long long addr;
};

struct kvm_cpuid_entry2 {
    unsigned int function;
    unsigned int index;
    unsigned int flags;
    unsigned int eax;
    unsigned int ebx;
    unsigned int ecx;
    unsigned int edx;
    unsigned int padding[3];
};

struct kvm_cpuid2 {
    unsigned int nent;
    unsigned int padding;
    struct kvm_cpuid_entry2 entries[];
};

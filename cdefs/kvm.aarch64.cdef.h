// arm64: asm/kvm.h, and the arm64 part of linux/kvm.h. Registers go through KVM_GET_ONE_REG.

#define KVM_CAP_GUEST_DEBUG_HW_BPS ...
#define KVM_CAP_GUEST_DEBUG_HW_WPS ...

#define KVM_ARM_PREFERRED_TARGET ...
#define KVM_ARM_VCPU_INIT ...
#define KVM_GET_REG_LIST ...

#define KVM_GUESTDBG_USE_SW_BP ...
#define KVM_GUESTDBG_USE_HW ...

#define KVM_REG_ARM64 ...
#define KVM_REG_ARM_CORE ...
#define KVM_REG_SIZE_U64 ...

struct kvm_guest_debug_arch {
    unsigned long long dbg_bcr[16];
    unsigned long long dbg_bvr[16];
    unsigned long long dbg_wcr[16];
    unsigned long long dbg_wvr[16];
};

struct kvm_guest_debug {
    unsigned int control;
    unsigned int pad;
    struct kvm_guest_debug_arch arch;
};

struct kvm_debug_exit_arch {
    unsigned int hsr;
    unsigned long long far;
    ...; // newer headers: hsr_high
};

struct kvm_vcpu_init {
    unsigned int target;
    unsigned int features[7];
};

// What kvmdbg.kvm._abi is made of: the prelude of the source that cffi generates from kvm.cdef.h.
#include <linux/kvm.h>
#include <stddef.h>

// Declared again, and checked against this, in kvm.cdef.h.
struct exit_facts {
    unsigned int reason;
    unsigned long long hardware_reason;
    unsigned int cpu;
    struct {
        unsigned char direction;
        unsigned char size;
        unsigned short port;
        unsigned int count;
        unsigned long long data_offset;
    } io;
    struct {
        unsigned long long phys_addr;
        unsigned char data[8];
        unsigned int len;
        unsigned char is_write;
    } mmio;
    struct {
        unsigned int suberror;
        unsigned int ndata;
        unsigned long long data[16];
    } internal;
    unsigned int system_event;
    struct kvm_debug_exit_arch debug;
};

void read_exit(const struct kvm_run *run, struct exit_facts *facts);

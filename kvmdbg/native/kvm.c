// cffi has no name for the members of kvm_run's anonymous union; C has.

#include "kvm.h"

#include <string.h>

void read_exit(const struct kvm_run *run, struct exit_facts *facts)
{
    memset(facts, 0, sizeof(*facts));
    facts->reason = run->exit_reason;
    switch (run->exit_reason) {
    case KVM_EXIT_UNKNOWN:
        facts->hardware_reason = run->hw.hardware_exit_reason;
        break;
    case KVM_EXIT_FAIL_ENTRY:
        facts->hardware_reason = run->fail_entry.hardware_entry_failure_reason;
        facts->cpu = run->fail_entry.cpu;
        break;
    case KVM_EXIT_IO:
        facts->io.direction = run->io.direction;
        facts->io.size = run->io.size;
        facts->io.port = run->io.port;
        facts->io.count = run->io.count;
        facts->io.data_offset = run->io.data_offset;
        break;
    case KVM_EXIT_MMIO:
        facts->mmio.phys_addr = run->mmio.phys_addr;
        memcpy(facts->mmio.data, run->mmio.data, sizeof(facts->mmio.data));
        facts->mmio.len = run->mmio.len;
        facts->mmio.is_write = run->mmio.is_write;
        break;
    case KVM_EXIT_INTERNAL_ERROR:
        facts->internal.suberror = run->internal.suberror;
        facts->internal.ndata = run->internal.ndata;
        memcpy(facts->internal.data, run->internal.data, sizeof(facts->internal.data));
        break;
    case KVM_EXIT_SYSTEM_EVENT:
        facts->system_event = run->system_event.type;
        break;
    case KVM_EXIT_DEBUG:
        facts->debug = run->debug.arch;
        break;
    default:
        break;
    }
}

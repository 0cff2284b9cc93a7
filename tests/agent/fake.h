// A fake KVM, a fake guest and a fake QEMU around the agent, which is the real one. Every
// assumption that the agent's threads make about each other is an invariant here; a broken one ends
// the process.
#pragma once

#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    VCPUS = 3,
    CODE = 0x10000, // GPA and GVA
    HANDLER = 0x10800,
    STACKS = 0x20000,
    SITES = 9, // instructions that a breakpoint may be put on
    ALIASED = VCPUS - 1,
    NO_SITE = -1,
    MAYBE = 100,
    OUR_OWN = 7 // the site with the guest's own int3
};

#define WATCHED (STACKS + 0x1000 - 8) // GPA and GVA: where vCPU 0 pushes to
#define FRESH 7                       // in rbx after a reset

#define ALIAS 0x40000000ull // the last vCPU executes the same code, mapped here

extern uint8_t ram[];
extern const uint64_t SITE[SITES];

// What the controller and the guest agree on.
extern atomic_bool armed[SITES]; // no vCPU may pass that site without a licence
// The site that the vCPU was told to pass; NO_SITE; or MAYBE added to the site, if its breakpoint
// was gone meanwhile, so that the vCPU may hit it again.
extern atomic_int licence[VCPUS];
extern atomic_bool logging_window;    // the breakpoints may be gone
extern atomic_bool logging;           // KVM logs writes to the guest's memory
extern atomic_ullong token[VCPUS];    // what the guest must find in rbx
extern atomic_ullong progress[VCPUS]; // instructions
extern atomic_ullong passed[SITES];   // by vCPUs that are not aliased
extern atomic_ullong events;          // whatever makes an interleaving
extern atomic_bool stopped;           // QEMU's idea of the VM
extern atomic_bool hurried;           // end now
extern atomic_bool watching;          // no write to WATCHED may go unseen
extern atomic_ullong writes;          // to WATCHED, that a debug register saw
extern atomic_ullong resets;          // of the machine
extern pthread_mutex_t no_reset;      // recursive; whoever has it keeps QEMU from resetting it
extern struct kvm_sregs fake_sregs;   // of every vCPU

void fake_setup(void);
void fake_run_qemu(unsigned seed); // threads: vCPUs and main loop
void fake_end_qemu(void);          // with no controller connected

void broken(const char *invariant, ...) __attribute__((format(printf, 1, 2), noreturn));
void note(const char *what, uint64_t who, uint64_t more); // printed if something breaks
unsigned random_below(unsigned bound);                    // the thread's own sequence
void random_seed(unsigned seed);
void dawdle(void);            // sometimes
void blur_licences(int site); // NO_SITE: all

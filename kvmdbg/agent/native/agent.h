// What the agent's files share. The agent runs inside a QEMU process: `entry.c` puts it between
// QEMU and ioctl(2), `run.c` runs vCPUs, `gate.c` keeps them out of KVM_RUN, `over.c` steps them
// over breakpoints, `points.c` holds the breakpoints, `guard.c` takes them out while the guest
// patches itself, `clock.c` keeps its TSC still, `memory.c` is guest memory, `registers.c` register
// ioctls, `x86.c` or `arm64.c` what differs, `service.c` the controller's connection,
// `requests.c` what it asks for.
#pragma once

#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#include "agent.cdef.h"

enum { MAX_VCPUS = 1024, MAX_POINTS = 1024, MAX_DEBUG_REGISTERS = 16, INSTRUCTION = 16 };

// Everything that the agent wants of KVM and the kernel, so that a test can be both.
struct kvm_ops {
    long (*ioctl)(int fd, unsigned request, uintptr_t argument); // result, or -errno
    void (*kick)(pid_t thread);                                  // SIGUSR1, as QEMU does
    bool (*load)(uint64_t hva, void *buffer, size_t length);     // all, or nothing
    bool (*store)(uint64_t hva, const void *buffer, size_t length);
};
extern const struct kvm_ops *kvm;

// Where a vCPU is with the breakpoint that it is about to pass.
enum over {
    OVER_NONE,
    OVER_WANTED,  // at `over_pc`; to be passed before anything else is executed
    OVER_STEPPING // KVM single-steps it; a software breakpoint is lifted
};

// A place in the guest's execution.
struct location {
    uint64_t pc; // linear
    uint64_t sp;
};

struct vcpu {
    uint32_t index;
    int fd;
    pid_t thread; // 0: has not run yet
    struct kvm_run *run;
    int wake; // an eventfd, for a thread that waits at the gate

    // Whoever wants the vCPU out sets `attention`, then looks at `in_run`; the vCPU's thread sets
    // `in_run`, then looks at `attention`. So one of the two sees the other.
    atomic_bool in_run;
    atomic_bool attention;
    atomic_ullong entries;

    atomic_bool incomplete;     // QEMU has an exit to deal with, and then to call KVM_RUN
    unsigned vanished_in_a_row; // the vCPU's own thread only

    // The rest is under agent.lock.
    bool waiting;
    unsigned excluded; // how many want this vCPU alone out
    enum agent_action_kind action;
    uint32_t action_flags;
    struct agent_stop stop;
    enum over over;
    uint64_t over_pc;
    bool stepped;         // the step that KVM was told to do is done
    struct location step; // where it began
    // It began, and the guest's handler of a fault or interrupt was entered instead: TF waits in a
    // saved frame, and is not the guest's when it comes back.
    bool astray;
    struct location left; // the instruction that it will come back to
    // A step of the user's takes so long that its handler waits for an interrupt, perhaps. Once it
    // is astray, it is left alone until it comes back.
    bool overdue;
    bool watched;                    // over.c: at its last look it was
    unsigned long long entries_then; // in its KVM_RUN of that number
    bool debug_stale;                // to be told to KVM again, even if nothing changed
    struct kvm_guest_debug applied;
    struct kvm_guest_debug qemu_debug; // what QEMU asked for
    struct kvm_guest_debug raw_debug;  // what the controller asked for, in raw mode
    struct pending *pending;           // registers.c
};

struct point {
    struct agent_point info; // id 0: free
    uint32_t valid;          // how many bytes of `original` are the guest's
    bool lifted;
};

struct agent {
    pthread_mutex_t lock;
    pthread_cond_t left; // a vCPU left KVM_RUN
    bool session;        // a controller said hello
    uint32_t sessions;
    atomic_uint flags; // enum agent_flags
    bool held;         // AGENT_HOLD
    uint64_t held_since;
    unsigned stops;     // vCPUs with a latched stop
    uint64_t sequence;  // of the newest one
    unsigned excluded;  // how many want every vCPU out
    struct vcpu *owner; // the vCPU that has, or is about to have, KVM_RUN for itself
    int bell;           // an eventfd: a stop was latched
    int watch;          // a timerfd: an owner, or a step, takes long
    bool watching;      // it ticks
    uint32_t clock;     // enum agent_clock_state
    int64_t clock_shift;
    bool adopting; // loaded into a running QEMU
    struct agent_statistics statistics;

    int vm_fd;
    size_t run_size;
    bool blockirq;
    unsigned vcpu_count;
    struct vcpu *vcpus[MAX_VCPUS];
    unsigned slot_count, slot_room;
    struct agent_slot *slots;
    uint32_t last_point;
    unsigned point_limit; // none is in use from here on
    struct point points[MAX_POINTS];
};
extern struct agent agent;

#define for_each_vcpu(each)                                                                        \
    for (struct vcpu **each##_at = agent.vcpus, *each;                                             \
         each##_at < agent.vcpus + agent.vcpu_count && (each = *each##_at, true); each##_at++)

#define for_each_point(each)                                                                       \
    for (struct point *each = agent.points; each < agent.points + agent.point_limit; each++)       \
        if (each->info.id)

static inline bool in_mode(uint32_t flag)
{
    return atomic_load_explicit(&agent.flags, memory_order_relaxed) & flag;
}

// The user's step, which KVM is to be told of.
static inline bool is_to_step(const struct vcpu *vcpu)
{
    return vcpu->action == AGENT_STEP && vcpu->stop.kind == AGENT_RUNNING &&
           !(vcpu->overdue && vcpu->astray);
}

uint64_t now(void); // CLOCK_MONOTONIC, in nanoseconds

// gate.c. exclude() returns with agent.lock taken and every vCPU, or `only` that one, out of
// KVM_RUN; readmit() undoes both.
bool gate_enter(struct vcpu *vcpu); // false: QEMU wants the thread
void gate_leave(struct vcpu *vcpu);
void gate_left(struct vcpu *vcpu); // the same, with the lock taken
bool gate_is_shut(const struct vcpu *vcpu);
void exclude(struct vcpu *only);
void readmit(struct vcpu *only);
int settle(struct vcpu *vcpu); // while excluded: its registers become those between instructions
bool own_the_world(struct vcpu *vcpu); // false: some vCPU is still in KVM_RUN
void disown_the_world(void);
void call_out(struct vcpu *vcpu);
void call_out_others(const struct vcpu *except);
void poke(struct vcpu *vcpu);

// run.c
enum readiness { READY, AGAIN, WAIT };

long run_vcpu(struct vcpu *vcpu);
enum readiness run_prepare(struct vcpu *vcpu);
int run_apply_debug(struct vcpu *vcpu);
void run_registers_written(struct vcpu *vcpu); // by QEMU
void latch(struct vcpu *vcpu, const struct agent_stop *stop);
void forget_stops(void);
void run_clean_up(void);

// over.c
void over_begin(struct vcpu *vcpu, uint64_t pc);
enum readiness over_prepare(struct vcpu *vcpu);
void over_done(struct vcpu *vcpu);
void over_break_off(struct vcpu *vcpu);
void over_look_after(const struct vcpu *vcpu); // it is about to run
void over_watch(void);

// clock.c, with every vCPU out but for what is said there
void clock_stop(struct vcpu *vcpu);
void clock_forget(void);
void clock_go_on(void);

// guard.c
struct point *guard_at(const struct location *here, const struct point *software);
bool guard_forbids(const struct point *point); // to arm it now: the guest patches itself
bool guard_waits_for(const struct vcpu *vcpu); // it is patching
void guard_forget(void);                       // it never returns
enum readiness guard_pass(struct vcpu *vcpu, struct point *point, uint64_t sp); // READY: as others

// points.c. All but the finders between exclude() and readmit().
int point_insert(struct vcpu *vcpu, const struct agent_point_request *request, struct point **new);
int point_remove(uint32_t id);
void points_clear(void);
bool points_in(uint64_t gpa, uint64_t size);
void points_withdraw(uint64_t gpa, uint64_t size, enum agent_point_state why);
void points_restore(void); // where memory is as it was
void points_renew(void);   // where it is as the guest has made it since
bool point_lift(struct point *point);
void point_put_back(struct point *point);
bool point_is_intact(struct point *point); // the breakpoint is in memory, the instruction as it was
struct point *software_point_at(uint64_t gpa, uint64_t pc);
struct point *software_point_of(struct vcpu *vcpu, uint64_t pc); // by the vCPU's page tables
struct point *hardware_point_at(uint64_t pc);
struct point *point_of_register(unsigned number);
bool have_software_points(void);
void mask_points(uint64_t gpa, uint8_t *buffer, size_t length); // hide our bytes
void keep_points(uint64_t gpa, uint8_t *buffer, size_t length); // write around our bytes

// memory.c. What holds a breakpoint is shown, and written, as if there was none.
void slot_learn(uint32_t number, uint64_t gpa);
void slot_set(const struct agent_slot *slot); // of size 0: deleted
const struct agent_slot *slot_at(uint64_t gpa);
const struct agent_slot *slot_of(uint32_t number);
bool guest_load(uint64_t gpa, void *buffer, size_t length); // as it is, breakpoints and all
bool guest_store(uint64_t gpa, const void *buffer, size_t length);
int64_t memory_read(struct vcpu *vcpu, const struct agent_range *range, uint8_t *buffer);
int memory_write(struct vcpu *vcpu, const struct agent_range *range, const uint8_t *buffer);

// registers.c
int64_t vcpu_ioctl(struct vcpu *vcpu, unsigned request, uintptr_t argument, uint8_t *payload,
                   uint32_t size);
void registers_set(struct vcpu *vcpu);
bool registers_apply(struct vcpu *vcpu); // sets and forgets them; true: there were some
void registers_forget(struct vcpu *vcpu);

// requests.c
struct controller {
    bool greeted, leaving;
    bool rung;     // a doorbell was sent, and stops were not asked for since
    uint64_t told; // the newest stop that it knows
};

struct request {
    const uint8_t *payload;
    uint32_t length;
    uint8_t *answer; // AGENT_MAX_PAYLOAD bytes
    uint32_t answered;
    struct controller *controller;
};

int request_handle(uint16_t type, struct request *request);

// service.c
int service_start(int listener, int connection, int far_end);
void ring_bell(void);

// intercept.c
long intercept(int fd, unsigned request, uintptr_t argument); // as kvm_ops.ioctl
struct vcpu *vcpu_find(uint32_t index);
int vcpu_add(uint32_t index, int fd, struct kvm_run *run, pid_t thread);
struct kvm_run *vcpu_map(int fd);

// entry.c
int entry_adopt(const struct agent_adopt *adopt, const struct agent_vcpu *vcpus,
                const struct agent_slot *slots);
void entry_release(void);

// What differs by architecture: x86.c, arm64.c
struct paging {
    unsigned levels; // 0: off
    unsigned entry;  // bytes
    bool nx;
    bool large; // 4 MiB pages
    uint64_t root;
};

struct debug_exit {
    uint64_t pc;
    bool breakpoint;        // a breakpoint instruction
    bool step;              // a single step is done
    uint32_t fired;         // bit n: debug register n, among those that are ours
    struct agent_stop stop; // what is to be said of it
};

extern const uint8_t ARCH_BREAKPOINT[];
extern const unsigned ARCH_BREAKPOINT_SIZE;
extern const uint32_t ARCH_MACHINE;
extern const uint32_t ARCH_DEBUG_INJECT; // control bits: to be done once
extern const uint32_t ARCH_DEBUG_TRAPS;  // control bits: steps and debug registers
unsigned arch_debug_registers(void);
bool arch_can_watch(const struct agent_point_request *request);
void arch_probe(void); // what this KVM offers
int arch_location(struct vcpu *vcpu, struct location *location);
int arch_paging(struct vcpu *vcpu, struct paging *paging);
int arch_walk(const struct paging *paging, uint64_t gva, struct agent_translation *translation);
void arch_debug(const struct vcpu *vcpu, struct kvm_guest_debug *debug);
void arch_read_exit(const struct vcpu *vcpu, struct debug_exit *exit);
void arch_reinject(struct vcpu *vcpu, const struct debug_exit *exit);
bool arch_emulate(struct vcpu *vcpu, const struct point *point);
// By hand, what KVM cannot step; false: it is something else. `code` is what is at pc.
bool arch_step(struct vcpu *vcpu, const uint8_t *code, unsigned valid);
bool arch_resume_flag(struct vcpu *vcpu);
void arch_clear_step(struct vcpu *vcpu); // a single-step flag that came back from a saved frame
unsigned arch_length(const struct point *point); // of the instruction, as far as it is known
bool arch_repeats(const struct point *point);    // may stay at its own pc without a jump
int arch_return(struct vcpu *vcpu, uint64_t sp, uint64_t *address,
                uint64_t *sp_then);                    // at a function's entry
int arch_counter(struct vcpu *vcpu, uint64_t *cycles); // that QEMU does not keep still
int arch_shift_clock(struct vcpu *vcpu, int64_t cycles);

// Ioctls that set registers, and those that get the same.
struct register_ioctl {
    unsigned set;
    unsigned get;
    bool listed; // one by one, by number
};
extern const struct register_ioctl ARCH_REGISTERS[]; // up to set = 0

struct listed {
    uint64_t number;
    void *value; // as it is passed to KVM
    uint32_t size;
};
bool arch_listed(uint8_t *payload, uint32_t size, unsigned i, struct listed *listed); // the i-th
long arch_set_listed(struct vcpu *vcpu, uint64_t number, void *value);

// The protocol between kvmdbg and the agent inside QEMU. Read by cffi (no #include, no conditionals
// here) and included by the agent: both sides are compiled from this one file.
//
// A stream socket carries messages: a header, then `length` bytes of payload, all in host byte order
// (both ends are on one machine), every struct without holes. The controller sends requests, one at a
// time or many; the agent answers each in order, with the request's type and id, and `status` 0 or an
// errno; a payload follows only where status is 0. Between answers it may send one AGENT_DOORBELL, and
// sends no other until AGENT_STOPS was asked: stops are state, kept by the agent, and cannot be lost.
// What has to do with a vCPU's registers waits until QEMU is done with the vCPU's I/O; ETIMEDOUT, and
// nothing has happened, where that takes too long.
//
// Words. A vCPU is *out* when it is not inside KVM_RUN. The world is *held* when every vCPU is kept
// out by the agent (a vCPU that QEMU wants goes back to QEMU, but not into KVM_RUN). A *stop* is
// latched by a vCPU whose breakpoint was hit or whose step is done, and holds the world.

#define AGENT_MAGIC 0x67644d56
#define AGENT_VERSION 1
#define AGENT_MAX_PAYLOAD 1052672 // 1 MiB of memory, and a page for what describes it

struct agent_header {
  uint32_t length; // of the payload, in bytes
  uint16_t type;   // enum agent_type
  uint16_t zero;
  uint32_t id;     // the controller's; in a doorbell 0
  int32_t status;  // in answers: 0, or an errno
};

enum agent_type {
  AGENT_HELLO = 1,   // agent_hello -> agent_welcome; must come first
  AGENT_ADOPT = 2,   // agent_adopt, agent_vcpu[], agent_slot[] -> nothing: what a late attach found
  AGENT_VCPUS = 3,   // nothing -> agent_vcpu[]
  AGENT_SLOTS = 4,   // nothing -> agent_slot[]
  AGENT_IOCTL = 5,   // agent_ioctl, payload -> agent_result, payload
  AGENT_READ = 6,    // agent_range -> bytes, cut at the first unreadable one; EFAULT for none at all
  AGENT_WRITE = 7,   // agent_range, bytes -> nothing; all or EFAULT, or EBUSY: KVM logs writes there
  AGENT_TRANSLATE = 8, // agent_range -> agent_translation
  AGENT_INSERT = 9,  // agent_point_request -> agent_point
  AGENT_REMOVE = 10, // uint32_t id -> nothing
  AGENT_POINTS = 11, // nothing -> agent_point[]
  AGENT_HOLD = 12,   // nothing -> nothing: the world is held when the answer comes
  AGENT_RESUME = 13, // agent_action[], one for each vCPU -> nothing: latched stops are forgotten
  AGENT_STOPS = 14,  // nothing -> agent_stop[], one for each vCPU
  AGENT_RUN_PAGE = 15, // uint32_t vcpu -> the vCPU's struct kvm_run, as its last exit left it
  AGENT_CONFIGURE = 16, // agent_configuration -> nothing
  AGENT_STATISTICS = 17, // nothing -> agent_statistics
  AGENT_CLOCK = 18,  // nothing -> agent_clock: how AGENT_STILL_CLOCK fares
  AGENT_DETACH = 19, // nothing -> nothing: cleans up as when the controller dies, then hangs up
  AGENT_DOORBELL = 64 // from the agent: agent_doorbell
};

struct agent_hello {
  uint32_t magic;
  uint32_t version;
};

enum agent_features {
  AGENT_BLOCKIRQ = 1,      // KVM masks interrupts while single-stepping
  AGENT_ADOPTION = 2       // loaded into a running QEMU: AGENT_ADOPT is wanted
};

struct agent_welcome {
  uint32_t magic;
  uint32_t version;
  uint32_t pid;
  uint32_t machine;   // e_machine of the ELF format: 62 x86-64, 183 arm64
  uint32_t vcpus;
  uint32_t slots;
  uint32_t run_size;  // of struct kvm_run's mapping, in bytes
  uint32_t features;  // enum agent_features
  uint32_t debug_registers; // for breakpoints and watchpoints together (x86), or for breakpoints (arm64)
  uint32_t sessions;  // controllers that came before
};

struct agent_vcpu {
  uint32_t index; // KVM's vcpu_id
  int32_t fd;
  int32_t tid;    // the thread that runs it; 0 where it has not run yet
  uint32_t in_run; // 1: inside KVM_RUN
};

enum agent_slot_number { AGENT_UNNUMBERED = 0x8000 }; // from here on: KVM's is not known

struct agent_slot {
  uint32_t slot;  // KVM's, with the address space in bits 16 to 31
  uint32_t flags; // KVM_MEM_*
  uint64_t gpa;
  uint64_t size;
  uint64_t hva;
};

struct agent_adopt {
  int32_t vm_fd;
  uint32_t run_size;
  uint32_t vcpus; // how many agent_vcpu follow
  uint32_t slots; // and then agent_slot
};

enum agent_scope { AGENT_VM = 1, AGENT_VCPU = 2 };

// The vCPU is out meanwhile. What sets a vCPU's registers is remembered and done once more right
// before it next enters the guest, because QEMU may write its own, older copy back in between; until
// then the getter of the same registers is answered from it.
struct agent_ioctl {
  uint32_t scope; // enum agent_scope
  uint32_t vcpu;
  uint64_t request;
  uint64_t argument; // what KVM gets if `size` is 0; otherwise it gets the address of the payload
  uint32_t size;
  uint32_t pointee;  // of the payload's last bytes: their address goes into the 8 bytes before them
};

struct agent_result {
  int64_t result; // ioctl(2)'s, not negative: an error is the answer's status
};

enum agent_space { AGENT_GVA = 0, AGENT_GPA = 1 };

struct agent_range {
  uint32_t space; // enum agent_space
  uint32_t vcpu;  // whose page tables
  uint64_t address;
  uint64_t length;
  uint64_t root;  // physical address of the page table to walk; ~0: the vCPU's own
};

enum agent_access {
  AGENT_WRITABLE = 1,
  AGENT_USER = 2,
  AGENT_NX = 4,
  AGENT_DIRTY = 8 // x86: the page tables say already that the page was written to
};

struct agent_translation {
  uint64_t gpa;
  uint64_t page; // size of the page, in bytes
  uint32_t access; // enum agent_access
  uint32_t zero;
};

enum agent_kind {
  AGENT_SOFTWARE = 0, // int3
  AGENT_HARDWARE = 1, // a debug register, on execution
  AGENT_WATCH_WRITE = 2,
  AGENT_WATCH_READ = 3, // not on x86
  AGENT_WATCH_ACCESS = 4
};

enum agent_point_flags {
  AGENT_SILENT = 1, // its hits are counted, and the vCPU goes on
  // Software, at the entry of a function of the guest's that patches code and minds to find other
  // bytes there than its own: every int3 is out until it has returned, which a debug register shows
  // if there is one to spare. Silent.
  AGENT_GUARD = 2
};

// EEXIST: there is one of that kind at that address. EFAULT: not mapped, or not RAM. ENOSPC: every
// debug register is taken. EINVAL: an alignment or a length that debug registers do not have.
struct agent_point_request {
  uint32_t kind;
  uint32_t vcpu;    // whose page tables
  uint64_t address; // GVA
  uint64_t length;
  uint64_t root;    // as in agent_range
  uint32_t flags;   // enum agent_point_flags
  uint32_t zero;
};

enum agent_point_state {
  AGENT_ARMED = 1,
  AGENT_OVERWRITTEN = 2, // the guest wrote other bytes there; ours is gone
  AGENT_WITHDRAWN = 3,   // taken out while KVM logs writes to its memory slot
  AGENT_YIELDED = 4      // taken out for a guard: the guest patches its code
};

struct agent_point {
  uint32_t id;
  uint32_t kind;
  uint64_t address; // GVA
  uint64_t length;
  uint64_t gpa;     // software only
  uint64_t hits;    // latched as a stop, and not forgotten without AGENT_STEP_OVER
  uint32_t state;   // enum agent_point_state
  uint32_t debug_register; // its number; ~0 for software
  uint32_t flags;   // enum agent_point_flags
  uint32_t zero;
  uint8_t original[16]; // software: the instruction's bytes
};

enum agent_action_kind { AGENT_CONTINUE = 0, AGENT_STEP = 1, AGENT_KEEP = 2 };

enum agent_action_flags {
  AGENT_STEP_OVER = 1, // it was told to the user that the breakpoint at pc was hit: execute it first
  AGENT_LET_IRQ = 2    // a step may end in an interrupt handler
};

struct agent_action {
  uint32_t vcpu;
  uint32_t kind;  // enum agent_action_kind
  uint32_t flags; // enum agent_action_flags
  uint32_t zero;
};

enum agent_stop_kind {
  AGENT_RUNNING = 0, // no stop
  AGENT_STEPPED = 1,
  AGENT_HIT = 2,     // about to execute the instruction at a breakpoint
  AGENT_WATCHED = 3, // the instruction before pc did it
  AGENT_RAW = 4      // raw mode: any return of KVM_RUN; its errno is in `exception` if it failed
};

struct agent_stop {
  uint32_t vcpu;
  uint32_t kind;
  uint32_t point;  // id of the breakpoint or watchpoint; of several watchpoints one, see dr6
  uint32_t exception; // of KVM's debug exit: 1 #DB, 3 #BP
  uint64_t sequence; // counts stops of this session; orders those of several vCPUs
  uint64_t pc;
  uint64_t dr6;     // x86: bit n is set where debug register n fired
  uint64_t dr7;
};

enum agent_flags {
  AGENT_RAW_EXITS = 1, // every return of KVM_RUN is a stop; KVM_SET_GUEST_DEBUG goes through as it is
  AGENT_HONOURS_RF = 2, // this KVM lets RF in rflags suppress a debug register's hit
  AGENT_NO_SKIP = 4, // do not emulate instructions under breakpoints: lift, step, put back
  AGENT_STILL_CLOCK = 8 // the guest's TSC goes on where it was when the world was held
};

struct agent_configuration {
  uint32_t flags; // enum agent_flags
  uint32_t zero;
};

struct agent_statistics {
  uint64_t entries;   // into KVM_RUN
  uint64_t hits;      // of our breakpoints and watchpoints, latched or not
  uint64_t emulated;  // step-overs by emulating the instruction
  uint64_t lifted;    // step-overs by lift and step
  uint64_t resumed;   // step-overs by RF, or with the debug register off
  uint64_t foreign;   // debug exits that were given back to the guest
  uint64_t vanished;  // int3 exits whose int3 was gone when we looked
  uint64_t exclusive; // sections with every vCPU out
};

enum agent_clock_state {
  AGENT_UNSEEN = 0, // no stop was long enough to see, or the TSC stands still by itself
  AGENT_STILL = 1,
  AGENT_DEAF = 2 // KVM refuses to move the TSC, or does nothing: it is not tried again
};

struct agent_clock {
  uint64_t held; // nanoseconds since the world was held, 0: it is not
  int64_t shift; // by how many cycles every vCPU's TSC was moved so far
  uint32_t state; // enum agent_clock_state
  uint32_t zero;
};

struct agent_doorbell {
  uint64_t sequence; // of the newest stop
};

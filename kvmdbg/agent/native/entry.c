// How the agent gets into a QEMU: preloaded, its `ioctl` comes before libc's; injected into a
// running one, it puts itself into the main program's table of imported functions.

#include "agent.h"

#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

EXPORT const unsigned kvmdbg_agent_abi = AGENT_VERSION;

static int listener = -1;
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

// Linux, as struct kvm_ops wants it.

static long raw_ioctl(int fd, unsigned request, uintptr_t argument)
{
    long result = syscall(SYS_ioctl, fd, request, argument);

    return result < 0 ? -errno : result;
}

static void raw_kick(pid_t thread)
{
    syscall(SYS_tgkill, getpid(), thread, SIGUSR1);
}

static bool raw_load(uint64_t hva, void *buffer, size_t length)
{
    struct iovec to = {buffer, length}, from = {(void *)(uintptr_t)hva, length};

    return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)length;
}

static bool raw_store(uint64_t hva, const void *buffer, size_t length)
{
    struct iovec from = {(void *)(uintptr_t)buffer, length}, to = {(void *)(uintptr_t)hva, length};

    return process_vm_writev(getpid(), &from, 1, &to, 1, 0) == (ssize_t)length;
}

#ifdef __aarch64__
enum { GOT_JUMP_SLOT = R_AARCH64_JUMP_SLOT, GOT_GLOB_DAT = R_AARCH64_GLOB_DAT };
#else
enum { GOT_JUMP_SLOT = R_X86_64_JUMP_SLOT, GOT_GLOB_DAT = R_X86_64_GLOB_DAT };
#endif

static const struct kvm_ops linux_kvm = {raw_ioctl, raw_kick, raw_load, raw_store};
const struct kvm_ops *kvm = &linux_kvm;

// glibc's ioctl() takes one argument, whatever the request is. QEMU's requests come through an int,
// hence with their sign extended.
EXPORT int ioctl(int fd, unsigned long request, ...)
{
    uintptr_t argument;
    va_list arguments;
    long result;

    va_start(arguments, request);
    argument = (uintptr_t)va_arg(arguments, void *);
    va_end(arguments);
    if (((unsigned)request >> 8 & 0xff) != KVMIO) {
        result = raw_ioctl(fd, (unsigned)request, argument);
    } else {
        result = intercept(fd, (unsigned)request, argument);
        // Not earlier: with -daemonize QEMU has forked by now.
        if ((unsigned)request == KVM_CREATE_VM && result >= 0 && listener >= 0) {
            pthread_mutex_lock(&starting);
            if (listener >= 0)
                service_start(listener, -1, -1);
            listener = -1;
            pthread_mutex_unlock(&starting);
        }
    }
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    return (int)result;
}

// Programs that QEMU starts are none of our business.
static void leave_environment(void)
{
    const char *preload = getenv("LD_PRELOAD");
    char *entries = preload ? strdup(preload) : NULL;
    char *rest = preload ? calloc(1, strlen(preload) + 1) : NULL;
    Dl_info self;

    unsetenv("KVMDBG_AGENT_FD");
    if (entries && rest && dladdr(&agent, &self)) {
        char *save;

        for (char *entry = strtok_r(entries, ": ", &save); entry;
             entry = strtok_r(NULL, ": ", &save)) {
            if (!strcmp(entry, self.dli_fname))
                continue;
            strcat(rest, *rest ? ":" : "");
            strcat(rest, entry);
        }
        if (*rest)
            setenv("LD_PRELOAD", rest, 1);
        else
            unsetenv("LD_PRELOAD");
    }
    free(entries);
    free(rest);
}

__attribute__((constructor)) static void preloaded(void)
{
    const char *inherited = getenv("KVMDBG_AGENT_FD");

    if (!inherited)
        return;
    listener = atoi(inherited);
    fcntl(listener, F_SETFD, FD_CLOEXEC);
    leave_environment();
}

// The main program's slots for `ioctl`.

struct import {
    void *target; // to be put there
    void *previous;
    unsigned found;
};

static int protect(void **slot, int protection)
{
    const size_t size = (size_t)sysconf(_SC_PAGESIZE);
    const uintptr_t page = (uintptr_t)slot & ~(size - 1);

    return mprotect((void *)page, size, protection) ? errno : 0;
}

static void patch_slot(void **slot, bool read_only, struct import *import)
{
    if (protect(slot, PROT_READ | PROT_WRITE))
        return;
    import->previous = __atomic_exchange_n(slot, import->target, __ATOMIC_SEQ_CST);
    import->found++;
    if (read_only)
        protect(slot, PROT_READ);
}

static void patch_relocations(const struct dl_phdr_info *program, const ElfW(Rela) * relocation,
                              size_t size, const ElfW(Sym) * symbols, const char *names,
                              struct import *import)
{
    for (size_t i = 0; i < size / sizeof(*relocation); i++) {
        const unsigned type = ELF64_R_TYPE(relocation[i].r_info);
        const ElfW(Sym) *symbol = &symbols[ELF64_R_SYM(relocation[i].r_info)];
        const uintptr_t place = program->dlpi_addr + relocation[i].r_offset;
        bool read_only = false;

        if ((type != GOT_JUMP_SLOT && type != GOT_GLOB_DAT) ||
            strcmp(names + symbol->st_name, "ioctl"))
            continue;
        for (unsigned j = 0; j < program->dlpi_phnum; j++) {
            const ElfW(Phdr) *header = &program->dlpi_phdr[j];

            read_only |= header->p_type == PT_GNU_RELRO &&
                         place - program->dlpi_addr - header->p_vaddr < header->p_memsz;
        }
        patch_slot((void **)place, read_only, import);
    }
}

static int patch_program(struct dl_phdr_info *program, size_t size, void *import)
{
    const ElfW(Dyn) *dynamic = NULL;
    const ElfW(Rela) *jumps = NULL, *others = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    size_t jumps_size = 0, others_size = 0;

    (void)size;
    for (unsigned i = 0; i < program->dlpi_phnum; i++) {
        if (program->dlpi_phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const void *)(program->dlpi_addr + program->dlpi_phdr[i].p_vaddr);
    }
    for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
        switch (dynamic->d_tag) { // ld.so has made addresses of these
        case DT_SYMTAB:
            symbols = (const void *)dynamic->d_un.d_ptr;
            break;
        case DT_STRTAB:
            names = (const void *)dynamic->d_un.d_ptr;
            break;
        case DT_JMPREL:
            jumps = (const void *)dynamic->d_un.d_ptr;
            break;
        case DT_PLTRELSZ:
            jumps_size = dynamic->d_un.d_val;
            break;
        case DT_RELA:
            others = (const void *)dynamic->d_un.d_ptr;
            break;
        case DT_RELASZ:
            others_size = dynamic->d_un.d_val;
            break;
        }
    }
    if (symbols && names) {
        patch_relocations(program, jumps, jumps_size, symbols, names, import);
        patch_relocations(program, others, others_size, symbols, names, import);
    }
    return 1; // the first one is the main program
}

static struct import patched; // by an attach; `previous` is what it found

static unsigned patch(void *target)
{
    patched = (struct import){.target = target, .previous = patched.previous};
    dl_iterate_phdr(patch_program, &patched);
    return patched.found;
}

// Called by the injector, in a QEMU that is stopped by ptrace. Returns the controller's end of the
// connection, or -errno.
EXPORT int kvmdbg_agent_attach(void)
{
    int ends[2], error;

    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends))
        return -errno;
    error = service_start(-1, ends[0], ends[1]);
    if (!error)
        return ends[1];
    close(ends[0]);
    close(ends[1]);
    return -error;
}

// The vCPUs' threads may be in a KVM_RUN that went past us. Each is kicked out of it; an ioctl of
// ours that KVM has to serve on the vCPU comes back when it is.
static void call_through(struct vcpu *vcpu)
{
    struct kvm_mp_state state;

    __atomic_store_n(&vcpu->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
    kvm->kick(vcpu->thread);
    kvm->ioctl(vcpu->fd, KVM_GET_MP_STATE, (uintptr_t)&state);
}

int entry_adopt(const struct agent_adopt *adopt, const struct agent_vcpu *vcpus,
                const struct agent_slot *slots)
{
    int error = 0;

    // With the gate shut: a vCPU that was called out must not be back in before KVM has served us.
    exclude(NULL);
    agent.vm_fd = adopt->vm_fd;
    agent.run_size = adopt->run_size;
    agent.slot_count = 0;
    arch_probe();
    for (uint32_t i = 0; i < adopt->slots; i++)
        slot_set(&slots[i]);
    for (uint32_t i = 0; i < adopt->vcpus && !error; i++) {
        struct kvm_run *run = vcpu_map(vcpus[i].fd);

        error = !run ? errno : vcpu_add(vcpus[i].index, vcpus[i].fd, run, vcpus[i].tid);
    }
    if (!error && !patch((void *)ioctl))
        error = ENOENT;
    for_each_vcpu(vcpu)
    {
        if (!error)
            call_through(vcpu);
    }
    readmit(NULL);
    return error;
}

// After this, QEMU's ioctls are libc's again, and nothing of ours is open.
void entry_release(void)
{
    if (patched.found)
        patch(patched.previous);
    patched.found = 0;
    pthread_mutex_lock(&agent.lock);
    for_each_vcpu(vcpu)
    {
        while (vcpu->waiting) {
            poke(vcpu);
            pthread_cond_wait(&agent.left, &agent.lock);
        }
        close(vcpu->wake);
        vcpu->wake = -1;
    }
    pthread_mutex_unlock(&agent.lock);
}

// The functions of kvmdbg._native. Read by cffi (no #include, no conditionals here) and included by
// native.h.

// RSP checksum: the sum of the bytes modulo 256 (gdb manual, "Overview" of the remote protocol).
unsigned char rsp_checksum(const unsigned char *data, size_t length);

// Writes 2 * length lower-case hex digits to `digits`, without a terminating NUL.
void hex_encode(const unsigned char *data, size_t length, char *digits);

// Reads 2 * length hex digits of either case. Returns 0, or -1 at the first character that is not one.
int hex_decode(const char *digits, size_t length, unsigned char *data);

// process_vm_readv(2) of `length` bytes at `address` (an HVA) of process `pid`. Returns the number of
// bytes read, which is short where the range runs into an unmapped page, or -errno.
ptrdiff_t read_process_memory(int pid, unsigned long long address, void *buffer, size_t length);

// pidfd_getfd(2): our own copy, close-on-exec, of a descriptor of another process; or -errno.
int copy_descriptor(int pidfd, int descriptor);

// A thread of another process that we have stopped, to call functions in its process. The calls, from
// remote_stop to remote_release, come from one thread of ours; if that ends, the other one runs on.
struct remote_thread;

// Stops thread `tid` with ptrace(2). Returns 0 and sets *thread, or -errno: EPERM, ESRCH, ETIMEDOUT,
// EAGAIN where a signal (SIGSTOP) has stopped it already, ENOTSUP for one of a 32-bit process.
int remote_stop(int tid, int milliseconds, struct remote_thread **thread);

// The system call that it waits in and will go on with, or -1.
long remote_system_call(const struct remote_thread *thread);

// Where its stack has room, growing down from there.
unsigned long long remote_stack(const struct remote_thread *thread);

// process_vm_writev(2) of all bytes. Returns 0 or -errno.
int remote_write(const struct remote_thread *thread, unsigned long long address, const void *data,
                 size_t length);

// Lets it call function(a, b) on `stack`, and waits. Returns 0 and sets *result, or -errno: EFAULT
// where the function crashed (the thread is put back as if it had not been called), ETIMEDOUT.
int remote_call(struct remote_thread *thread, unsigned long long function, unsigned long long a,
                unsigned long long b, unsigned long long stack, int milliseconds,
                unsigned long long *result);

// Puts every register back, lets it run on as if nothing had been, and frees `thread`.
void remote_release(struct remote_thread *thread);

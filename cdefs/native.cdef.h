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

// Bulk byte work and system calls that Python has no binding for. Declared in cdefs/native.cdef.h.

#include "native.h"

#include <errno.h>
#include <stdint.h>
#include <sys/uio.h>

unsigned char rsp_checksum(const unsigned char *data, size_t length)
{
    unsigned char sum = 0;

    for (size_t i = 0; i < length; i++)
        sum += data[i];
    return sum;
}

void hex_encode(const unsigned char *data, size_t length, char *digits)
{
    static const char DIGITS[] = "0123456789abcdef";

    for (size_t i = 0; i < length; i++) {
        digits[2 * i] = DIGITS[data[i] >> 4];
        digits[2 * i + 1] = DIGITS[data[i] & 0xf];
    }
}

static int hex_value(char digit)
{
    if (digit >= '0' && digit <= '9')
        return digit - '0';
    if (digit >= 'a' && digit <= 'f')
        return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F')
        return digit - 'A' + 10;
    return -1;
}

int hex_decode(const char *digits, size_t length, unsigned char *data)
{
    for (size_t i = 0; i < length; i++) {
        int high = hex_value(digits[2 * i]);
        int low = hex_value(digits[2 * i + 1]);

        if (high < 0 || low < 0)
            return -1;
        data[i] = (unsigned char)(high << 4 | low);
    }
    return 0;
}

ptrdiff_t read_process_memory(int pid, unsigned long long address, void *buffer, size_t length)
{
    struct iovec local = {.iov_base = buffer, .iov_len = length};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = length};
    ssize_t count = process_vm_readv(pid, &local, 1, &remote, 1, 0);

    return count < 0 ? -errno : count;
}

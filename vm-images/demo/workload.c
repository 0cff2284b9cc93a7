/*
 * The demo VM's workload: a program that keeps making the same few system calls, and that a
 * debugger can steer. No libc, linked at a fixed address, so every name below has one address.
 */
#include "sys.h" /* each image has one for its architecture */

#define NOINLINE __attribute__((noinline))

enum { AT_FDCWD = -100, O_RDONLY = 0, O_WRONLY = 1, O_CREAT = 0100, O_TRUNC = 01000 };
enum { TICK_NS = 10 * 1000 * 1000 };

struct timespec {
    long tv_sec;
    long tv_nsec;
};

/* Volatile: the debugger reads and writes them behind the compiler's back. */
volatile unsigned long workload_iterations; /* ticks so far */
volatile unsigned long workload_checksum;   /* folds in every tick's number */
volatile long workload_pid;
volatile unsigned long workload_errors; /* ticks whose record was not read back */
volatile unsigned long workload_mode;   /* write N != 0: "workload: mode N" on the console */

static const char record_path[] = "/tmp/workload";

NOINLINE unsigned long workload_compute(unsigned long a, unsigned long b)
{
    return a * 31 + b;
}

/* What a tick adds to workload_iterations: a constant in the code, easy to patch. */
NOINLINE unsigned long workload_increment(void)
{
    return 1;
}

NOINLINE void workload_write(unsigned long value)
{
    long fd = sys4(NR_OPENAT, AT_FDCWD, (long)record_path, O_WRONLY | O_CREAT | O_TRUNC, 0644);

    sys4(NR_WRITE, fd, (long)&value, sizeof(value), 0);
    sys4(NR_CLOSE, fd, 0, 0, 0);
}

NOINLINE unsigned long workload_read(void)
{
    unsigned long value = 0;
    long fd = sys4(NR_OPENAT, AT_FDCWD, (long)record_path, O_RDONLY, 0);

    sys4(NR_READ, fd, (long)&value, sizeof(value), 0);
    sys4(NR_CLOSE, fd, 0, 0, 0);
    return value;
}

NOINLINE void workload_report(unsigned long mode)
{
    static const char prefix[] = "workload: mode ";
    char line[sizeof(prefix) + 21];
    char digits[20];
    unsigned int length = 0, count = 0;

    for (; prefix[length]; length++)
        line[length] = prefix[length];
    do
        digits[count++] = (char)('0' + mode % 10);
    while (mode /= 10);
    while (count)
        line[length++] = digits[--count];
    line[length++] = '\n';
    sys4(NR_WRITE, 1, (long)line, length, 0);
}

NOINLINE void workload_tick(void)
{
    unsigned long mode = workload_mode;

    workload_pid = sys4(NR_GETPID, 0, 0, 0, 0);
    workload_iterations += workload_increment();
    workload_checksum = workload_compute(workload_checksum, workload_iterations);
    workload_write(workload_checksum);
    if (workload_read() != workload_checksum)
        workload_errors++;
    if (mode) {
        workload_mode = 0;
        workload_report(mode);
    }
}

void workload_main(void)
{
    static const struct timespec tick = {0, TICK_NS};

    for (;;) {
        workload_tick();
        sys4(NR_NANOSLEEP, (long)&tick, 0, 0, 0);
    }
}

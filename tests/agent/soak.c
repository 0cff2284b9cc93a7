// Drives the agent through random interleavings: a controller that inserts, removes, holds,
// resumes, steps and disappears, over the real protocol, while the fake QEMU of fake.c does as it
// likes. Usage: soak EVENTS SECONDS [SEED]: until there were that many events, or that much time
// has passed.

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "agent.h"
#include "fake.h"

enum { PATIENCE = 60000 }; // milliseconds

static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_length;
static int controller;
static bool rang;
static uint8_t payload[1 << 16];
static uint32_t payload_length;
static uint64_t reported[SITES], sessions, requests, steps, stops;
static uint32_t point_at[SITES]; // id, 0: none
static uint8_t pristine[64];
static uint32_t watch_at[2]; // ids: for writes, and for all accesses
static uint64_t writes_before[2], watched;
static uint64_t resets_seen;
static uint32_t flags; // of the session

static void receive(void *buffer, size_t length)
{
    struct pollfd polled = {.fd = controller, .events = POLLIN};

    while (length) {
        ssize_t count;

        if (poll(&polled, 1, PATIENCE) == 0)
            broken("no answer from the agent");
        count = read(controller, buffer, length);
        if (count <= 0)
            broken("the agent hung up: %s", strerror(errno));
        buffer = (uint8_t *)buffer + count;
        length -= (size_t)count;
    }
}

static struct agent_header receive_message(void)
{
    struct agent_header header;

    receive(&header, sizeof(header));
    if (header.length > sizeof(payload))
        broken("an answer of %u bytes", header.length);
    receive(payload, header.length);
    payload_length = header.length;
    return header;
}

// The answer's status; its payload is in `payload`.
static int request(unsigned type, const void *data, size_t length)
{
    static uint32_t id;
    struct agent_header header = {.length = (uint32_t)length, .type = (uint16_t)type, .id = ++id};

    dawdle();
    note("request", type, length >= 4 ? *(const uint32_t *)data : 0);
    requests++;
    events++;
    if (write(controller, &header, sizeof(header)) != sizeof(header) ||
        (length && write(controller, data, length) != (ssize_t)length))
        broken("cannot write to the agent");
    for (;;) {
        struct agent_header answer = receive_message();

        if (answer.type == AGENT_DOORBELL) {
            rang = true;
            continue;
        }
        if (answer.type != type || answer.id != id)
            broken("answer %u to request %u", answer.id, id);
        note("answered", type, (uint64_t)answer.status);
        return answer.status;
    }
}

static void must(int status, const char *what)
{
    if (status)
        broken("%s: %s", what, strerror(status));
}

static void await_progress(void)
{
    uint64_t before[VCPUS];
    unsigned waited = 0;

    for (unsigned i = 0; i < VCPUS; i++)
        before[i] = progress[i];
    for (unsigned i = 0; i < VCPUS; i++) {
        for (; progress[i] == before[i]; waited++) {
            if (waited > PATIENCE)
                broken("vCPU %u does not run on its own", i);
            usleep(1000);
        }
    }
}

static void check_pristine(void)
{
    struct agent_range range = {.space = AGENT_GPA, .address = CODE, .length = sizeof(pristine)};

    if (memcmp(ram + CODE, pristine, sizeof(pristine)))
        broken("the guest's code is not as it was");
    must(request(AGENT_READ, &range, sizeof(range)), "read");
}

static void connect_session(void)
{
    const struct agent_hello hello = {AGENT_MAGIC, AGENT_VERSION};
    struct agent_configuration configuration = {0};

    flags = (random_below(2) ? AGENT_NO_SKIP : 0) | (random_below(2) ? AGENT_HONOURS_RF : 0) |
            (random_below(2) ? AGENT_STILL_CLOCK : 0);
    configuration.flags = flags;
    controller = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(controller, (struct sockaddr *)&address, address_length))
        broken("connect: %s", strerror(errno));
    rang = false;
    memset(point_at, 0, sizeof(point_at));
    memset(watch_at, 0, sizeof(watch_at));
    must(request(AGENT_HELLO, &hello, sizeof(hello)), "hello");
    check_pristine();
    must(request(AGENT_CONFIGURE, &configuration, sizeof(configuration)), "configure");
    sessions++;
}

static void insert(unsigned site)
{
    const struct agent_point_request wanted = {
        .kind = random_below(3) || site == OUR_OWN ? AGENT_SOFTWARE : AGENT_HARDWARE,
        .vcpu = random_below(VCPUS),
        .address = SITE[site],
        .length = 1,
        .root = ~0ull};
    struct agent_point point;
    int status;

    if (point_at[site] || site == OUR_OWN)
        return;
    status = request(AGENT_INSERT, &wanted, sizeof(wanted));
    if (status == ENOSPC && wanted.kind == AGENT_HARDWARE)
        return;
    must(status, "insert");
    memcpy(&point, payload, sizeof(point));
    point_at[site] = point.id;
    // Withdrawn is withdrawn: it may be armed later, at some time.
    armed[site] = point.state == AGENT_ARMED;
}

static void remove_point(unsigned site)
{
    if (!point_at[site])
        return;
    armed[site] = false;
    blur_licences((int)site);
    must(request(AGENT_REMOVE, &point_at[site], sizeof(point_at[site])), "remove");
    point_at[site] = 0;
}

static int site_of_point(uint32_t id)
{
    for (int site = 0; site < SITES; site++) {
        if (point_at[site] == id)
            return site;
    }
    return -1;
}

static void judge_stop(const struct agent_stop *stop)
{
    const int site = site_of_point(stop->point);

    if (stop->kind == AGENT_STEPPED) {
        steps++;
        return;
    }
    if (stop->kind == AGENT_WATCHED) {
        watched++;
        if (stop->vcpu != 0 || stop->pc != CODE + 2 || !(stop->dr6 & 0xf))
            broken("vCPU %u wrote to what is watched at %#lx", stop->vcpu, (long)stop->pc);
        return;
    }
    if (stop->kind != AGENT_HIT)
        broken("a stop of kind %u", stop->kind);
    if (stop->vcpu == ALIASED)
        broken("a hit at an address that has no breakpoint");
    // A point that was removed after its hit.
    if (site >= 0 && stop->pc != SITE[site])
        broken("a hit of site %d at %#lx", site, (long)stop->pc);
    if (site >= 0 && licence[stop->vcpu] == site)
        broken("vCPU %u hit site %d a second time before it passed it", stop->vcpu, site);
}

// A step that ended where it began, by way of a fault's handler: the breakpoint there was told of
// before it, and is to be passed still.
static bool is_where_told(const struct agent_stop *stop)
{
    const int site = licence[stop->vcpu];

    return stop->kind == AGENT_STEPPED && site != NO_SITE && stop->pc == SITE[site % MAYBE];
}

// Reports some of the latched stops to "the user", who wants them passed.
static void resume(void)
{
    struct agent_action actions[VCPUS] = {0};
    struct agent_stop latched[VCPUS];
    bool stepping = false;

    pthread_mutex_lock(&no_reset);
    must(request(AGENT_STOPS, NULL, 0), "stops");
    rang = false;
    memcpy(latched, payload, sizeof(latched));
    for (unsigned i = 0; i < VCPUS; i++) {
        const int site = latched[i].kind == AGENT_HIT ? site_of_point(latched[i].point) : -1;

        if (latched[i].kind)
            judge_stop(&latched[i]);
        actions[i].vcpu = i;
        if (site >= 0 && resets == resets_seen && random_below(4)) {
            stops++;
            reported[site]++;
            note("licence", i, (uint64_t)site);
            licence[i] = site;
            if (logging_window)
                licence[i] = site + MAYBE;
            actions[i].flags = AGENT_STEP_OVER;
        }
        if (resets == resets_seen && is_where_told(&latched[i]))
            actions[i].flags = AGENT_STEP_OVER;
        if (!stepping && !random_below(6)) {
            actions[i].kind = AGENT_STEP;
            stepping = true;
        }
    }
    for (unsigned i = 0; i < VCPUS; i++) {
        if (stepping && actions[i].kind == AGENT_CONTINUE && random_below(2))
            actions[i].kind = AGENT_KEEP;
    }
    resets_seen = resets;
    must(request(AGENT_RESUME, actions, sizeof(actions)), "resume");
    pthread_mutex_unlock(&no_reset);
}

// Watches WATCHED, or no longer, for writes or for all accesses.
static void change_watch(unsigned which)
{
    const struct agent_point_request wanted = {.kind =
                                                   which ? AGENT_WATCH_ACCESS : AGENT_WATCH_WRITE,
                                               .address = WATCHED,
                                               .length = 8,
                                               .root = ~0ull};
    struct agent_point point;
    int status;

    must(request(AGENT_HOLD, NULL, 0), "hold"); // so that writes can be counted
    if (watch_at[which]) {
        must(request(AGENT_POINTS, NULL, 0), "points");
        for (uint32_t at = 0; at < payload_length; at += sizeof(point)) {
            memcpy(&point, payload + at, sizeof(point));
            if (point.id == watch_at[which] && point.hits != writes - writes_before[which])
                broken("%llu writes are %lu hits", writes - writes_before[which], point.hits);
        }
        watching = watch_at[!which];
        must(request(AGENT_REMOVE, &watch_at[which], sizeof(watch_at[which])), "remove");
        watch_at[which] = 0;
    } else {
        status = request(AGENT_INSERT, &wanted, sizeof(wanted));
        if (status != ENOSPC) {
            must(status, "insert");
            memcpy(&point, payload, sizeof(point));
            watch_at[which] = point.id;
            writes_before[which] = writes;
            watching = true;
        }
    }
    resume();
}

static void set_register_at_rest(unsigned vcpu)
{
    struct {
        struct agent_ioctl call;
        struct kvm_regs regs;
    } get = {
        .call = {
            .scope = AGENT_VCPU, .vcpu = vcpu, .request = KVM_GET_REGS, .size = sizeof(get.regs)}};

    must(request(AGENT_IOCTL, &get, sizeof(get)), "KVM_GET_REGS");
    memcpy(&get.regs, payload + sizeof(struct agent_result), sizeof(get.regs));
    if (token[vcpu] && get.regs.rbx != token[vcpu])
        broken("a register that was set reads otherwise");
    get.regs.rbx = 1 + random_below(1u << 30);
    get.call.request = KVM_SET_REGS;
    token[vcpu] = 0;
    must(request(AGENT_IOCTL, &get, sizeof(get)), "KVM_SET_REGS");
    token[vcpu] = get.regs.rbx;
}

static void set_register(unsigned vcpu)
{
    pthread_mutex_lock(&no_reset);
    set_register_at_rest(vcpu);
    pthread_mutex_unlock(&no_reset);
}

static uint64_t read_tsc(unsigned vcpu)
{
    struct {
        struct agent_ioctl call;
        struct kvm_msrs list;
        struct kvm_msr_entry entry;
    } get = {.call = {.scope = AGENT_VCPU,
                      .vcpu = vcpu,
                      .request = KVM_GET_MSRS,
                      .size = sizeof(get) - sizeof(get.call)},
             .list.nmsrs = 1,
             .entry.index = 0x10};

    must(request(AGENT_IOCTL, &get, sizeof(get)), "KVM_GET_MSRS");
    memcpy(&get.entry, payload + payload_length - sizeof(get.entry), sizeof(get.entry));
    return get.entry.data;
}

static void hold_at_rest(void)
{
    const bool was_reset = resets != resets_seen; // the TSC, too, in the midst of a stop perhaps
    uint64_t before[VCPUS], tsc, resumed;
    int64_t passed;

    must(request(AGENT_HOLD, NULL, 0), "hold");
    tsc = read_tsc(0);
    for (unsigned i = 0; i < VCPUS; i++)
        before[i] = progress[i];
    dawdle();
    if (!random_below(4))
        set_register(random_below(VCPUS));
    if (!random_below(3))
        usleep(random_below(2000));
    for (unsigned i = 0; i < VCPUS; i++) {
        if (progress[i] > before[i] + 1) // an OUT may be completed
            broken("vCPU %u runs while the world is held", i);
    }
    resumed = now();
    resume();
    passed = (int64_t)(read_tsc(0) - tsc);
    if (flags & AGENT_STILL_CLOCK && !was_reset && passed > (int64_t)(now() - resumed))
        broken("the guest's TSC ran on while the world was held");
}

static void hold(void)
{
    pthread_mutex_lock(&no_reset);
    hold_at_rest();
    pthread_mutex_unlock(&no_reset);
}

static void read_code(void)
{
    const struct agent_range range = {.space = random_below(2) ? AGENT_GPA : AGENT_GVA,
                                      .vcpu = random_below(VCPUS),
                                      .address = CODE,
                                      .length = sizeof(pristine),
                                      .root = ~0ull};

    must(request(AGENT_READ, &range, sizeof(range)), "read");
    if (payload_length != sizeof(pristine) || memcmp(payload, pristine, sizeof(pristine)))
        broken("a breakpoint shows in what is read");
}

static bool wait_for_doorbell(int timeout)
{
    struct pollfd polled = {.fd = controller, .events = POLLIN};

    if (!rang && poll(&polled, 1, timeout) > 0)
        rang = receive_message().type == AGENT_DOORBELL;
    return rang;
}

static void session(void)
{
    const unsigned length = 1 + random_below(300);

    connect_session();
    for (unsigned turn = 0; turn < length && !hurried; turn++) {
        const unsigned what = random_below(16);

        if (wait_for_doorbell(random_below(3))) {
            if (random_below(8))
                resume();
        }
        if (what < 3)
            insert(random_below(SITES));
        else if (what < 5)
            remove_point(random_below(SITES));
        else if (what < 7)
            hold();
        else if (what == 9)
            change_watch(random_below(2));
        else if (what == 7)
            read_code();
        else if (what == 8)
            must(request(AGENT_POINTS, NULL, 0), "points");
    }
    watching = false;
    for (unsigned site = 0; site < SITES; site++)
        armed[site] = false;
    if (random_below(2))
        must(request(AGENT_DETACH, NULL, 0), "detach");
    blur_licences(NO_SITE);
    for (unsigned i = 0; i < VCPUS; i++) {
        if (!(flags & AGENT_HONOURS_RF)) // a vCPU may be about to use its RF
            licence[i] = NO_SITE;
        note("licence left", i, (uint64_t)licence[i]);
    }
    note("session ends, flags", flags, 0);
    close(controller);
}

static int listen_somewhere(void)
{
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    // An abstract name, of the kernel's choice.
    if (bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)) || listen(listener, 1))
        broken("listen: %s", strerror(errno));
    address_length = sizeof(address);
    getsockname(listener, (struct sockaddr *)&address, &address_length);
    return listener;
}

int main(int count, char **arguments)
{
    const uint64_t wanted = count > 1 ? strtoull(arguments[1], NULL, 0) : 1000000;
    const long seconds = count > 2 ? strtol(arguments[2], NULL, 0) : 20;
    const unsigned seed =
        count > 3 ? (unsigned)strtoul(arguments[3], NULL, 0) : (unsigned)time(NULL);
    const time_t began = time(NULL);

    printf("seed %u\n", seed);
    fflush(stdout);
    random_seed(seed);
    fake_setup();
    memcpy(pristine, ram + CODE, sizeof(pristine));
    must(service_start(listen_somewhere(), -1, -1), "service");
    fake_run_qemu(seed);
    while (events < wanted && time(NULL) - began < seconds) {
        session();
        if (!random_below(4)) {
            connect_session(); // what was there before has been cleaned up
            close(controller);
            await_progress();
        }
    }
    connect_session();
    close(controller);
    await_progress();
    usleep(200000); // handlers come to their end
    await_progress();
    fake_end_qemu();
    printf("%llu events, %lu sessions, %lu requests, %lu hits reported, %lu steps, "
           "%lu emulated, %lu lifted, %lu by debug register, %lu watched, %llu resets, %lu given "
           "back, %lu exclusive\n",
           (unsigned long long)events, sessions, requests, stops, steps, agent.statistics.emulated,
           agent.statistics.lifted, agent.statistics.resumed, watched, (unsigned long long)resets,
           agent.statistics.foreign, agent.statistics.exclusive);
    return 0;
}

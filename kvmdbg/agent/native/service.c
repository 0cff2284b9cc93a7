// The thread that serves the controller: requests in, answers and doorbells out. It never blocks on
// the socket, because it also looks after vCPUs that take long, and cleans up when the controller
// is gone.

#include "agent.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum {
    RETRY_AFTER = 100, // milliseconds
    HEADER = sizeof(struct agent_header),
    ROOM = HEADER + AGENT_MAX_PAYLOAD,
    HELLO_WITHIN = 10000
};

// One controller's connection.
struct connection {
    int fd;
    uint8_t *in, *out;
    size_t received, queued, sent;
    struct controller controller;
};

static struct {
    int listener; // -1: a late attach
    int offered;  // the next connection, from kvmdbg_agent_attach()
    int far_end;  // of a late attach's socket pair
    bool running;
    bool leaving; // the thread ends, and takes no more connections
    struct connection connection;
} service = {.listener = -1, .offered = -1, .far_end = -1};

void ring_bell(void)
{
    if (write(agent.bell, &(uint64_t){1}, sizeof(uint64_t)) < 0)
        return; // it is ringing
}

static void close_far_end(void)
{
    if (service.far_end >= 0)
        close(service.far_end);
    service.far_end = -1;
}

static void serve(struct connection *connection, const struct agent_header *header)
{
    struct agent_header reply = {.type = header->type, .id = header->id};
    struct request request = {.payload = connection->in + HEADER,
                              .length = header->length,
                              .answer = connection->out + HEADER,
                              .controller = &connection->controller};

    reply.status = request_handle(header->type, &request);
    if (connection->controller.greeted)
        close_far_end();
    reply.length = reply.status ? 0 : request.answered;
    memcpy(connection->out, &reply, HEADER);
    connection->queued = HEADER + reply.length;
}

static void ring(struct connection *connection)
{
    const struct agent_header header = {.length = sizeof(struct agent_doorbell),
                                        .type = AGENT_DOORBELL};
    struct agent_doorbell doorbell;
    uint64_t count;

    while (read(agent.bell, &count, sizeof(count)) > 0)
        continue;
    pthread_mutex_lock(&agent.lock);
    doorbell.sequence = agent.sequence;
    pthread_mutex_unlock(&agent.lock);
    if (!connection->controller.greeted || connection->controller.rung ||
        doorbell.sequence <= connection->controller.told)
        return;
    connection->controller.rung = true;
    memcpy(connection->out, &header, HEADER);
    memcpy(connection->out + HEADER, &doorbell, sizeof(doorbell));
    connection->queued = HEADER + sizeof(doorbell);
}

// false: the controller is gone, or does not speak our language.
static bool flush(struct connection *connection)
{
    while (connection->sent < connection->queued) {
        ssize_t count = send(connection->fd, connection->out + connection->sent,
                             connection->queued - connection->sent, MSG_DONTWAIT | MSG_NOSIGNAL);

        if (count < 0)
            return errno == EAGAIN || errno == EINTR;
        connection->sent += (size_t)count;
    }
    connection->sent = connection->queued = 0;
    return !connection->controller.leaving;
}

static bool serve_next(struct connection *connection)
{
    struct agent_header header;
    size_t whole;

    if (connection->received < HEADER)
        return true;
    memcpy(&header, connection->in, HEADER);
    if (header.length > AGENT_MAX_PAYLOAD)
        return false;
    whole = HEADER + header.length;
    if (connection->received < whole)
        return true;
    serve(connection, &header);
    connection->received -= whole;
    memmove(connection->in, connection->in + whole, connection->received);
    return flush(connection);
}

static bool receive(struct connection *connection)
{
    ssize_t count = recv(connection->fd, connection->in + connection->received,
                         ROOM - connection->received, MSG_DONTWAIT);

    if (count <= 0)
        return count < 0 && (errno == EAGAIN || errno == EINTR);
    connection->received += (size_t)count;
    return true;
}

static bool has_message(const struct connection *connection)
{
    struct agent_header header;

    if (connection->received < HEADER)
        return false;
    memcpy(&header, connection->in, HEADER);
    return header.length > AGENT_MAX_PAYLOAD || connection->received >= HEADER + header.length;
}

static void look_after_vcpus(void)
{
    uint64_t count;

    if (read(agent.watch, &count, sizeof(count)) > 0)
        over_watch();
}

static void converse(struct connection *connection)
{
    bool connected = true;

    while (connected) {
        const bool busy = connection->sent < connection->queued;
        const bool ready = !busy && has_message(connection);
        struct pollfd polled[] = {
            {.fd = connection->fd, .events = busy ? POLLOUT : POLLIN},
            {.fd = agent.watch, .events = POLLIN},
            {.fd = busy ? -1 : agent.bell, .events = POLLIN},
        };

        if (poll(polled, 3,
                 ready                            ? 0
                 : connection->controller.greeted ? -1
                                                  : HELLO_WITHIN) == 0 &&
            !ready && !connection->controller.greeted)
            return;
        if (polled[1].revents)
            look_after_vcpus();
        if (ready) {
            connected = serve_next(connection);
            continue;
        }
        if (polled[2].revents)
            ring(connection);
        else if (polled[0].revents && !busy)
            connected = receive(connection);
        if (connected)
            connected = flush(connection);
    }
}

static void serve_connection(int fd)
{
    struct connection *connection = &service.connection;

    *connection = (struct connection){.fd = fd, .in = malloc(ROOM), .out = malloc(ROOM)};
    if (connection->in && connection->out)
        converse(connection);
    run_clean_up();
    free(connection->in);
    free(connection->out);
    close(fd);
}

static bool may_control(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof(peer);

    return !getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) &&
           (peer.uid == geteuid() || peer.uid == 0);
}

static int take_offered(void)
{
    int fd;

    pthread_mutex_lock(&agent.lock);
    fd = service.offered;
    service.offered = -1;
    service.leaving = fd < 0 && service.listener < 0;
    pthread_mutex_unlock(&agent.lock);
    return fd;
}

// Waits for a controller to connect, or to be brought by kvmdbg_agent_attach().
static int next_connection(void)
{
    struct pollfd polled[] = {{.fd = service.listener, .events = POLLIN},
                              {.fd = agent.bell, .events = POLLIN}};
    int fd = take_offered();
    uint64_t count;

    while (fd < 0 && service.listener >= 0) {
        poll(polled, 2, -1);
        while (read(agent.bell, &count, sizeof(count)) > 0)
            continue;
        fd = take_offered();
        if (fd >= 0 || !polled[0].revents)
            continue;
        fd = accept4(service.listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) // QEMU has no descriptor left, perhaps, and the listener stays ready
            poll(&polled[1], 1, RETRY_AFTER);
        if (fd >= 0 && !may_control(fd)) {
            close(fd);
            fd = -1;
        }
    }
    return fd;
}

static void *serve_forever(void *unused)
{
    int fd;

    (void)unused;
    while ((fd = next_connection()) >= 0)
        serve_connection(fd);
    // A late attach leaves nothing open, and no thread.
    close_far_end();
    entry_release();
    pthread_mutex_lock(&agent.lock);
    close(agent.bell);
    close(agent.watch);
    service.running = service.leaving = false;
    pthread_mutex_unlock(&agent.lock);
    return NULL;
}

static int start_thread(void)
{
    sigset_t all, before;
    pthread_attr_t attributes;
    pthread_t thread;
    int error;

    agent.bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    agent.watch = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (agent.bell < 0 || agent.watch < 0)
        return errno;
    sigfillset(&all);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(&thread, &attributes, serve_forever, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error;
}

// A socket that listens, or (else -1) a connection with its far end, which is closed when the
// controller has said hello through its own copy.
int service_start(int listener, int connection, int far_end)
{
    int error = 0;

    pthread_mutex_lock(&agent.lock);
    if (service.leaving) {
        error = EAGAIN; // in a moment
    } else if (service.running && (listener >= 0 || agent.session || service.offered >= 0)) {
        error = EBUSY;
    } else {
        service.offered = connection;
        service.far_end = far_end;
        if (service.running) {
            ring_bell();
        } else {
            service.listener = listener;
            agent.adopting = listener < 0;
            error = start_thread();
            service.running = !error;
        }
    }
    pthread_mutex_unlock(&agent.lock);
    return error;
}

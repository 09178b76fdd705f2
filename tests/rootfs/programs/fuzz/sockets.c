/* Sockets inside one machine: pairs, Unix names, TCP and UDP over loopback, options, passed descriptors. */
#include "fuzz.h"
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static const struct named domains[] = {NAMED(AF_UNIX), NAMED(AF_UNIX), NAMED(AF_INET), NAMED(AF_INET), NAMED(AF_INET6), {"99", 99}};
static const struct named types[] = {NAMED(SOCK_STREAM), NAMED(SOCK_STREAM), NAMED(SOCK_DGRAM), NAMED(SOCK_SEQPACKET), {"77", 77}};

static void make(void) {
    struct named domain = PICK(domains), type = PICK(types);
    int protocol = one_in(8) ? (int)below(20) : 0;
    if (domain.value == AF_INET6 && type.value == SOCK_DGRAM && protocol == IPPROTO_ICMPV6)
        protocol = 0;
    if (protocol == 1 || type.value == SOCK_SEQPACKET) /* ICMP; SCTP by module */
        protocol = 0;
    if (type.value == SOCK_SEQPACKET && domain.value != AF_UNIX)
        domain = (struct named)NAMED(AF_UNIX);
    say("socket(%s, %s, %d)", domain.name, type.name, protocol);
    keep(result(socket(domain.value, type.value | SOCK_NONBLOCK, protocol)));
}

static void make_pair(void) {
    struct named type = PICK(types);
    int ends[2] = {-1, -1};
    say("socketpair(%s)", type.name);
    if (result(socketpair(one_in(9) ? AF_INET : AF_UNIX, type.value | SOCK_NONBLOCK, 0, ends)) == 0)
        say(" %d %d", keep(ends[0]), keep(ends[1]));
}

union address {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
    struct sockaddr_storage storage;
};

static void say_address(const union address *address, socklen_t size) {
    bool abstract = address->any.sa_family == AF_UNIX && size > 2 && address->un.sun_path[0] == 0;
    if (!abstract) /* abstract names hold the session's number */
        say(" size %u", size);
    if (size < sizeof(sa_family_t))
        return;
    say(" family %d", address->any.sa_family);
    if (address->any.sa_family == AF_INET)
        say(" %x%s", address->in.sin_addr.s_addr, address->in.sin_port ? " port" : "");
    else if (address->any.sa_family == AF_INET6)
        say(" %x%s", address->in6.sin6_addr.s6_addr[15], address->in6.sin6_port ? " port" : "");
    else if (address->any.sa_family == AF_UNIX && size > 2)
        say(" %s", address->un.sun_path[0] ? address->un.sun_path : "abstract");
}

/* An address to bind, or one that some socket of the program has. */
static socklen_t any_address(union address *address, bool existing) {
    socklen_t size = sizeof *address;
    memset(address, 0, sizeof *address);
    if (existing && !one_in(4)) {
        for (unsigned i = 0; i < 4; i++) {
            size = sizeof *address;
            int fd = any_fd();
            if (getsockname(fd, &address->any, &size) == 0 && size > 2) {
                say("as %d", fd);
                return size;
            }
        }
        memset(address, 0, sizeof *address);
    }
    switch (below(4)) {
    case 0:
        address->in = (struct sockaddr_in){AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}};
        say("127.0.0.1");
        return one_in(9) ? 7 : sizeof address->in;
    case 1:
        address->in6 = (struct sockaddr_in6){.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        say("::1");
        return sizeof address->in6;
    case 2: {
        address->un.sun_family = AF_UNIX;
        const char *name = any_name();
        strcpy(address->un.sun_path, name);
        say("path %s", name);
        return offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1;
    }
    default: {
        address->un.sun_family = AF_UNIX;
        int n = snprintf(address->un.sun_path + 1, 40, "%d.%u", getsid(0), below(3));
        say("abstract");
        return offsetof(struct sockaddr_un, sun_path) + 1 + n;
    }
    }
}

static void bind_it(void) {
    union address address;
    int fd = any_fd();
    say("bind(%d, ", fd);
    socklen_t size = any_address(&address, one_in(4));
    say(")");
    result(bind(fd, &address.any, size));
}

static void connect_it(void) {
    union address address;
    int fd = any_fd();
    say("connect(%d, ", fd);
    socklen_t size = any_address(&address, true);
    say(")");
    if (one_in(12)) {
        address.any.sa_family = AF_UNSPEC;
        say(" AF_UNSPEC");
    }
    result(connect(fd, &address.any, size));
}

static void listen_it(void) {
    int fd = any_fd();
    say("listen(%d)", fd);
    result(listen(fd, below(4)));
}

static void accept_it(void) {
    union address address;
    socklen_t size = sizeof address;
    int fd = any_fd();
    memset(&address, 0, sizeof address);
    say("accept4(%d)", fd);
    if (keep(result(accept4(fd, &address.any, &size, SOCK_NONBLOCK | (one_in(2) ? SOCK_CLOEXEC : 0)))) >= 0)
        say(" family %d", address.any.sa_family);
}

static void a_server(void) {
    union address address = {.in = {AF_INET, 0, {htonl(INADDR_LOOPBACK)}, {0}}};
    socklen_t size = sizeof address.in;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), client = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    say("tcp server %d client %d", keep(server), client);
    result(bind(server, &address.any, size));
    result(listen(server, 5));
    getsockname(server, &address.any, &size);
    result(connect(client, &address.any, size));
    struct pollfd ready = {client, POLLOUT, 0};
    poll(&ready, 1, 5000);
    say(" %x", ready.revents);
    keep(client);
    if (one_in(2))
        keep(result(accept4(server, NULL, NULL, SOCK_NONBLOCK)));
}

static const struct named flags[] = {NAMED(MSG_PEEK), NAMED(MSG_TRUNC), NAMED(MSG_NOSIGNAL), NAMED(MSG_EOR), NAMED(MSG_OOB), NAMED(MSG_CMSG_CLOEXEC)};
static const unsigned sizes[] = {0, 1, 5, 100, 1000, 4096};

static void send_some(void) {
    int fd = any_fd();
    unsigned size = PICK(sizes);
    long set = one_in(3) ? pick_flags(flags, COUNT(flags), 5) & ~MSG_OOB : 0;
    if (one_in(3)) {
        union address address;
        say("sendto(%d, %u, %lx, ", fd, size, set);
        socklen_t length = any_address(&address, true);
        say(")");
        result(sendto(fd, some_bytes(size), size, set | MSG_DONTWAIT, &address.any, length));
    } else {
        say("send(%d, %u, %lx)", fd, size, set);
        result(send(fd, some_bytes(size), size, set | MSG_DONTWAIT));
    }
}

static void receive_some(void) {
    static char buffer[8192];
    union address address;
    socklen_t length = sizeof address;
    int fd = any_fd();
    unsigned size = PICK(sizes);
    long set = one_in(3) ? pick_flags(flags, COUNT(flags), 4) & ~MSG_OOB : 0;
    memset(buffer, 0, sizeof buffer);
    memset(&address, 0, sizeof address);
    say("recvfrom(%d, %u, %lx)", fd, size, set);
    long n = result(recvfrom(fd, buffer, size, set | MSG_DONTWAIT, &address.any, &length));
    if (n >= 0) {
        say_bytes(buffer, n < size ? n : size);
        say_address(&address, length);
    }
}

static void pass(void) {
    int fd = any_fd(), passed = any_fd();
    char byte = 'x', space[CMSG_SPACE(sizeof(int))];
    struct iovec v = {&byte, 1};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = one_in(12) ? 77 : SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &passed, sizeof passed);
    say("sendmsg(%d, rights %d)", fd, passed);
    result(sendmsg(fd, &message, MSG_DONTWAIT));
}

static void take(void) {
    int fd = any_fd();
    char bytes[100] = "", space[200];
    struct iovec v = {bytes, sizeof bytes};
    struct msghdr message = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = space, .msg_controllen = one_in(4) ? 4 : sizeof space};
    say("recvmsg(%d)", fd);
    long n = result(recvmsg(fd, &message, MSG_DONTWAIT | (one_in(2) ? MSG_CMSG_CLOEXEC : 0)));
    if (n < 0)
        return;
    say_bytes(bytes, n);
    say(" flags %x", message.msg_flags);
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        say(" %d:%d", header->cmsg_level, header->cmsg_type);
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            int passed;
            memcpy(&passed, CMSG_DATA(header), sizeof passed);
            say(" fd %d", keep(passed));
        }
    }
}

static void shut(void) {
    int fd = any_fd(), how = below(4);
    say("shutdown(%d, %d)", fd, how);
    result(shutdown(fd, how));
}

struct option {
    const char *name;
    int level, number;
    bool comparable;
};
#define OPTION(LEVEL, NUMBER) {#NUMBER, LEVEL, NUMBER, true}
static const struct option options[] = {
    OPTION(SOL_SOCKET, SO_TYPE), OPTION(SOL_SOCKET, SO_DOMAIN), OPTION(SOL_SOCKET, SO_PROTOCOL), OPTION(SOL_SOCKET, SO_ERROR), OPTION(SOL_SOCKET, SO_ACCEPTCONN),
    OPTION(SOL_SOCKET, SO_REUSEADDR), OPTION(SOL_SOCKET, SO_REUSEPORT), OPTION(SOL_SOCKET, SO_KEEPALIVE), OPTION(SOL_SOCKET, SO_BROADCAST), OPTION(SOL_SOCKET, SO_OOBINLINE),
    OPTION(SOL_SOCKET, SO_PASSCRED), OPTION(SOL_SOCKET, SO_RCVLOWAT), OPTION(SOL_SOCKET, SO_PRIORITY), OPTION(SOL_SOCKET, SO_DONTROUTE), OPTION(SOL_SOCKET, SO_TIMESTAMP),
    OPTION(IPPROTO_TCP, TCP_NODELAY), OPTION(IPPROTO_TCP, TCP_KEEPIDLE), OPTION(IPPROTO_TCP, TCP_KEEPINTVL), OPTION(IPPROTO_TCP, TCP_KEEPCNT), OPTION(IPPROTO_TCP, TCP_CORK),
    OPTION(IPPROTO_TCP, TCP_DEFER_ACCEPT), OPTION(IPPROTO_TCP, TCP_USER_TIMEOUT), OPTION(IPPROTO_IP, IP_TTL), OPTION(IPPROTO_IP, IP_TOS), OPTION(IPPROTO_IP, IP_RECVERR),
    OPTION(IPPROTO_IPV6, IPV6_V6ONLY), OPTION(IPPROTO_IPV6, IPV6_UNICAST_HOPS), {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, false}, {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, false},
    {"SO_LINGER", SOL_SOCKET, SO_LINGER, false}, {"SO_RCVTIMEO", SOL_SOCKET, SO_RCVTIMEO, false}, {"unknown", SOL_SOCKET, 9999, true}, {"unknown level", 9999, 1, true},
};

static void option(void) {
    struct option chosen = PICK(options);
    int fd = any_fd();
    if (one_in(2)) {
        int value[4] = {0};
        socklen_t size = one_in(8) ? 1 : one_in(12) ? 0 : sizeof value;
        say("getsockopt(%d, %s, %u)", fd, chosen.name, size);
        if (result(getsockopt(fd, chosen.level, chosen.number, value, &size)) == 0) {
            say(" size %u", size);
            if (chosen.comparable)
                say(" value %d", value[0]);
        }
    } else {
        int value[4] = {below(3), 0, 0, 0};
        socklen_t size = one_in(8) ? 1 : chosen.comparable ? sizeof(int) : sizeof value;
        say("setsockopt(%d, %s, %d, %u)", fd, chosen.name, value[0], size);
        result(setsockopt(fd, chosen.level, chosen.number, value, size));
    }
}

static void whereabouts(void) {
    union address address;
    socklen_t size = sizeof address;
    int fd = any_fd();
    bool peer = one_in(2);
    memset(&address, 0, sizeof address);
    say("%s(%d)", peer ? "getpeername" : "getsockname", fd);
    if (result(peer ? getpeername(fd, &address.any, &size) : getsockname(fd, &address.any, &size)) == 0)
        say_address(&address, size);
}

static void queued(void) {
    int fd = any_fd(), in = -1, mark = -1;
    say("FIONREAD %d", fd);
    result(ioctl(fd, FIONREAD, &in));
    say(" %d SIOCATMARK", in);
    result(ioctl(fd, 0x8905, &mark));
}

static const struct choice choices[] = {
    {make, 6}, {make_pair, 5}, {bind_it, 5}, {connect_it, 6}, {listen_it, 3}, {accept_it, 5}, {a_server, 3}, {send_some, 8}, {receive_some, 8},
    {pass, 3}, {take, 4}, {shut, 3}, {option, 10}, {whereabouts, 3}, {queued, 2},
};
const struct subject sockets = {"sockets", choices, COUNT(choices)};

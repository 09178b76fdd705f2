/* TCP and UDP inside one machine, and Unix sockets: what is printed must be what it is natively. */
#include "show.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

static struct sockaddr_in local(uint16_t port) {
    struct sockaddr_in address = {AF_INET, htons(port), {htonl(INADDR_LOOPBACK)}, {0}};
    return address;
}

static uint16_t port_of(int fd) {
    struct sockaddr_in address;
    socklen_t len = sizeof address;
    getsockname(fd, (void *)&address, &len);
    return ntohs(address.sin_port);
}

static int listener(int backlog) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(0);
    bind(fd, (void *)&address, sizeof address);
    listen(fd, backlog);
    return fd;
}

static int client(int listening) {
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(port_of(listening));
    connect(fd, (void *)&address, sizeof address);
    return fd;
}

static void events(const char *what, int fd) {
    struct pollfd p = {fd, POLLIN | POLLOUT | POLLRDHUP, 0};
    poll(&p, 1, 0);
    printf("  %s: %x\n", what, p.revents);
}

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t len = sizeof value;
    return getsockopt(fd, level, name, &value, &len) ? -errno : value;
}

static int set(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value);
}

static void half_close(void) {
    TITLE("half-close");
    int l = listener(5), c = client(l), s = accept(l, NULL, NULL);
    char buffer[64];
    events("fresh", c);
    SHOW(write(c, "hello", 5));
    SHOW(shutdown(c, SHUT_WR));
    SHOW(write(c, "x", 1));
    SHOW(read(s, buffer, sizeof buffer));
    SHOW(read(s, buffer, sizeof buffer));
    events("server after the end", s);
    SHOW(write(s, "answer", 6));
    SHOW(read(c, buffer, sizeof buffer));
    SHOW(shutdown(s, SHUT_WR));
    events("client after both ends", c);
    SHOW(read(c, buffer, sizeof buffer));
    SHOW(shutdown(c, 3));
    SHOW(shutdown(l, SHUT_WR));
    close(s), close(c), close(l);
    int fresh = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(shutdown(fresh, SHUT_RD));
    events("never connected", fresh);
    SHOW(read(fresh, buffer, 1));
    SHOW(send(fresh, "x", 1, MSG_NOSIGNAL));
    close(fresh);
}

static void resets(void) {
    TITLE("resets");
    char buffer[64];
    int l = listener(5), c = client(l), s = accept(l, NULL, NULL);
    write(c, "unread", 6);
    close(s);
    events("client of a server that left data unread", c);
    SHOW(read(c, buffer, sizeof buffer));
    SHOW(read(c, buffer, sizeof buffer));
    SHOW(write(c, "x", 1));
    close(c);
    c = client(l), s = accept(l, NULL, NULL);
    struct linger linger = {1, 0};
    setsockopt(s, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    close(s);
    SHOW(option(c, SOL_SOCKET, SO_ERROR));
    SHOW(option(c, SOL_SOCKET, SO_ERROR));
    SHOW(read(c, buffer, sizeof buffer));
    close(c);
    c = client(l);
    close(l);
    SHOW(read(c, buffer, sizeof buffer));
    close(c);
}

static void refused(void) {
    TITLE("refused and in progress");
    int l = listener(5);
    struct sockaddr_in address = local(port_of(l));
    int c = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(connect(c, (void *)&address, 4));
    SHOW(connect(c, (void *)&address, sizeof address));
    SHOW(connect(c, (void *)&address, sizeof address));
    SHOW(listen(c, 1));
    close(c), close(l);
    c = socket(AF_INET, SOCK_STREAM, 0);
    SHOW(connect(c, (void *)&address, sizeof address));
    SHOW(getpeername(c, (void *)&address, &(socklen_t){sizeof address}));
    SHOW(accept(c, NULL, NULL));
    struct sockaddr_in6 six = {AF_INET6, htons(1), 0, IN6ADDR_LOOPBACK_INIT, 0};
    SHOW(connect(c, (void *)&six, sizeof six));
    close(c);
}

/* A socket that does not wait and is refused. */
static int refused_later(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), unused = listener(1);
    struct sockaddr_in address = local(port_of(unused));
    close(unused);
    SHOW(connect(fd, (void *)&address, sizeof address));
    struct pollfd p = {fd, POLLIN, 0};
    poll(&p, 1, 1000);
    return fd;
}

static void refused_while_nobody_waits(void) {
    TITLE("refused while nobody waits");
    char buffer[4] = "";
    int fd = refused_later();
    events("refused", fd);
    SHOW(read(fd, buffer, 4));
    events("read", fd);
    SHOW(read(fd, buffer, 4)), SHOW(send(fd, buffer, 4, MSG_NOSIGNAL));
    close(fd);
    fd = refused_later();
    SHOW(send(fd, buffer, 4, MSG_NOSIGNAL)), SHOW(send(fd, buffer, 4, MSG_NOSIGNAL)), SHOW(read(fd, buffer, 4));
    close(fd);
    fd = refused_later();
    SHOW(option(fd, SOL_SOCKET, SO_ERROR));
    events("asked", fd);
    struct sockaddr_in address = local(1);
    SHOW(connect(fd, (void *)&address, sizeof address)), SHOW(connect(fd, (void *)&address, sizeof address));
    close(fd);
    fd = refused_later();
    SHOW(listen(fd, 1)), SHOW(recv(fd, buffer, 4, MSG_PEEK)), SHOW(recv(fd, buffer, 4, MSG_PEEK));
    close(fd);
    fd = refused_later();
    struct sockaddr none = {AF_UNSPEC, ""};
    SHOW(connect(fd, &none, sizeof none));
    events("given up", fd);
    SHOW(read(fd, buffer, 4)), SHOW(read(fd, buffer, 4));
    close(fd);
}

/* A backlog of 1 holds two connections; a SYN that finds no room is repeated until there is some. */
static void full_backlog(int closes) {
    int l = listener(1), first = client(l), second = client(l);
    struct sockaddr_in address = local(port_of(l));
    socklen_t len = sizeof address;
    char buffer[8];
    int c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    SHOW(connect(c, (void *)&address, sizeof address));
    events("waiting", c);
    SHOW(connect(c, (void *)&address, sizeof address)), SHOW(send(c, "x", 1, 0)), SHOW(recv(c, buffer, 1, 0));
    SHOW(getpeername(c, (void *)&address, &len)), SHOW(option(c, SOL_SOCKET, SO_ERROR));
    close(closes ? l : accept(l, NULL, NULL));
    struct pollfd p = {c, POLLOUT, 0};
    SHOW(poll(&p, 1, 20000)), SHOW(option(c, SOL_SOCKET, SO_ERROR));
    if (!closes) {
        SHOW(connect(c, (void *)&address, sizeof address)), SHOW(connect(c, (void *)&address, sizeof address));
        SHOW(write(c, "hello", 5));
        close(l);
    }
    close(c), close(first), close(second);
}

/* Writable again once three quarters of the buffer are free. */
static void writable(void) {
    TITLE("writable");
    int ends[2];
    static char bytes[65536];
    socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
    SHOW(write(ends[0], bytes, 20000));
    events("a little", ends[0]);
    SHOW(write(ends[0], bytes, 65536));
    events("much", ends[0]);
    SHOW(recv(ends[1], bytes, 65536, MSG_WAITALL));
    events("a little", ends[0]);
    close(ends[0]), close(ends[1]);
    int l = socket(AF_INET, SOCK_STREAM, 0); /* the receiver has much less room than the sender */
    set(l, SOL_SOCKET, SO_RCVBUF, 4096);
    struct sockaddr_in address = local(0);
    bind(l, (void *)&address, sizeof address), listen(l, 1);
    int c = client(l), s = accept(l, NULL, NULL);
    events("small receiver", c);
    close(s), close(c), close(l);
    l = listener(1), c = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0); /* reset before anybody asked */
    address = local(port_of(l));
    SHOW(connect(c, (void *)&address, sizeof address));
    close(l);
    SHOW(write(c, bytes, 1)), SHOW(connect(c, (void *)&address, sizeof address));
    close(c);
}

static void ports(void) {
    TITLE("ports");
    int a = listener(5), b = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = local(port_of(a));
    SHOW(bind(b, (void *)&address, sizeof address));
    SHOW(set(b, SOL_SOCKET, SO_REUSEADDR, 1));
    SHOW(bind(b, (void *)&address, sizeof address));
    SHOW(set(b, SOL_SOCKET, SO_REUSEPORT, 1));
    SHOW(bind(b, (void *)&address, sizeof address));
    close(a), close(b);
    int first = socket(AF_INET, SOCK_STREAM, 0), second = socket(AF_INET, SOCK_STREAM, 0);
    set(first, SOL_SOCKET, SO_REUSEPORT, 1), set(second, SOL_SOCKET, SO_REUSEPORT, 1);
    address.sin_port = 0;
    bind(first, (void *)&address, sizeof address);
    address.sin_port = htons(port_of(first));
    SHOW(bind(second, (void *)&address, sizeof address));
    SHOW(listen(first, 64)), SHOW(listen(second, 64));
    for (int i = 0; i < 64; i++)
        client(first);
    fcntl(first, F_SETFL, O_NONBLOCK), fcntl(second, F_SETFL, O_NONBLOCK);
    int n = 0, m = 0;
    while (accept(first, NULL, NULL) >= 0)
        n++;
    while (accept(second, NULL, NULL) >= 0)
        m++;
    printf("  all %d, each some %d\n", n + m, n > 5 && m > 5);
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in elsewhere = {AF_INET, 0, {htonl(0x08080808)}, {0}};
    SHOW(bind(udp, (void *)&elsewhere, sizeof elsewhere));
    SHOW(listen(udp, 1));
    close(udp);
    for (int fd = 3; fd < 200; fd++)
        close(fd);
}

static void options(void) {
    TITLE("options");
    int t = socket(AF_INET, SOCK_STREAM, 0), u = socket(AF_INET, SOCK_DGRAM, 0), six = socket(AF_INET6, SOCK_STREAM, 0);
    SHOW(option(t, SOL_SOCKET, SO_TYPE)), SHOW(option(u, SOL_SOCKET, SO_PROTOCOL)), SHOW(option(six, SOL_SOCKET, SO_DOMAIN));
    SHOW(set(t, IPPROTO_TCP, TCP_NODELAY, 5)), SHOW(option(t, IPPROTO_TCP, TCP_NODELAY));
    SHOW(set(t, IPPROTO_TCP, TCP_CORK, 1)), SHOW(option(t, IPPROTO_TCP, TCP_CORK));
    SHOW(set(t, IPPROTO_TCP, TCP_KEEPIDLE, 30)), SHOW(option(t, IPPROTO_TCP, TCP_KEEPIDLE));
    SHOW(set(t, IPPROTO_TCP, TCP_KEEPIDLE, 0));
    SHOW(set(t, IPPROTO_TCP, TCP_KEEPINTVL, 10)), SHOW(set(t, IPPROTO_TCP, TCP_KEEPCNT, 3));
    SHOW(set(t, IPPROTO_TCP, TCP_USER_TIMEOUT, 1000)), SHOW(set(t, IPPROTO_TCP, TCP_DEFER_ACCEPT, 1));
    SHOW(set(t, IPPROTO_TCP, TCP_FASTOPEN, 16)), SHOW(set(t, IPPROTO_TCP, TCP_QUICKACK, 0));
    SHOW(set(t, SOL_SOCKET, SO_KEEPALIVE, 1)), SHOW(option(t, SOL_SOCKET, SO_KEEPALIVE));
    SHOW(set(t, SOL_SOCKET, SO_RCVBUF, 10000)), SHOW(option(t, SOL_SOCKET, SO_RCVBUF));
    SHOW(option(t, SOL_SOCKET, SO_ACCEPTCONN));
    SHOW(set(u, IPPROTO_TCP, TCP_NODELAY, 1));
    SHOW(set(u, IPPROTO_IP, IP_TTL, 33)), SHOW(option(u, IPPROTO_IP, IP_TTL));
    SHOW(set(u, IPPROTO_IP, IP_TTL, 300));
    SHOW(set(u, SOL_SOCKET, SO_BROADCAST, 1)), SHOW(option(u, SOL_SOCKET, SO_BROADCAST));
    SHOW(set(six, IPPROTO_IPV6, IPV6_V6ONLY, 1)), SHOW(option(six, IPPROTO_IPV6, IPV6_V6ONLY));
    SHOW(set(t, IPPROTO_IPV6, IPV6_V6ONLY, 1));
    SHOW(set(t, SOL_SOCKET, 9999, 1)), SHOW(option(t, IPPROTO_TCP, 9999));
    SHOW(setsockopt(t, SOL_SOCKET, SO_KEEPALIVE, NULL, 4));
    SHOW(setsockopt(t, SOL_SOCKET, SO_KEEPALIVE, &t, 1));
    int unix_pair[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, unix_pair);
    int sockets[] = {t, u, six, unix_pair[0]}, levels[] = {IPPROTO_IP, IPPROTO_TCP, IPPROTO_UDP, IPPROTO_IPV6, 9999};
    for (unsigned i = 0; i < sizeof sockets / sizeof *sockets; i++)
        for (unsigned j = 0; j < sizeof levels / sizeof *levels; j++) {
            int other = set(sockets[i], levels[j], 9998, 1) ? errno : 0, small = setsockopt(sockets[i], levels[j], 9998, &t, 1) ? errno : 0;
            printf("  %u at %d: get %d, set %d, a byte %d\n", i, levels[j], option(sockets[i], levels[j], 9998), other, small);
        }
    close(unix_pair[0]), close(unix_pair[1]);
    close(t), close(u), close(six);
}

static void datagrams(void) {
    TITLE("datagrams");
    int a = socket(AF_INET, SOCK_DGRAM, 0), b = socket(AF_INET, SOCK_DGRAM, 0);
    char buffer[16];
    struct sockaddr_in address = local(0);
    bind(a, (void *)&address, sizeof address);
    address.sin_port = htons(port_of(a));
    SHOW(send(b, "x", 1, 0));
    SHOW(sendto(b, "datagram", 8, 0, (void *)&address, sizeof address));
    SHOW(recv(a, buffer, 3, MSG_PEEK | MSG_TRUNC));
    SHOW(recv(a, buffer, 3, MSG_DONTWAIT));
    SHOW(recv(a, buffer, 3, MSG_DONTWAIT));
    SHOW(connect(b, (void *)&address, sizeof address));
    SHOW(send(b, "", 0, 0));
    SHOW(recv(a, buffer, 3, 0));
    close(a);
    SHOW(send(b, "x", 1, 0));
    SHOW(send(b, "x", 1, 0));
    SHOW(option(b, SOL_SOCKET, SO_ERROR));
    struct sockaddr none = {AF_UNSPEC, {0}};
    SHOW(connect(b, &none, sizeof none));
    SHOW(getpeername(b, (void *)&address, &(socklen_t){sizeof address}));
    static char large[70000];
    SHOW(sendto(b, large, sizeof large, 0, (void *)&address, sizeof address));
    close(b);
}

static void six(void) {
    TITLE("IPv6");
    int l = socket(AF_INET6, SOCK_STREAM, 0);
    struct sockaddr_in6 any = {AF_INET6, 0, 0, IN6ADDR_ANY_INIT, 0}, got;
    socklen_t len = sizeof got;
    bind(l, (void *)&any, sizeof any), listen(l, 5);
    getsockname(l, (void *)&got, &len);
    int c = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in four = local(ntohs(got.sin6_port));
    int connected = connect(c, (void *)&four, sizeof four);
    printf("  by IPv4: %d\n", connected);
    len = sizeof got;
    int s = accept(l, (void *)&got, &len);
    char text[64];
    printf("  from %s, %d bytes\n", inet_ntop(AF_INET6, &got.sin6_addr, text, sizeof text), (int)len);
    close(s), close(c);
    c = socket(AF_INET6, SOCK_STREAM, 0);
    len = sizeof got, getsockname(l, (void *)&got, &len), got.sin6_addr = in6addr_loopback;
    connected = connect(c, (void *)&got, sizeof got);
    len = sizeof got, getsockname(c, (void *)&got, &len);
    printf("  by IPv6: %d from %s\n", connected, inet_ntop(AF_INET6, &got.sin6_addr, text, sizeof text));
    close(c), close(l);
}

static void passing(void) {
    TITLE("Unix sockets");
    int pair[2], p[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair), pipe(p);
    struct {
        struct cmsghdr header;
        int fd;
    } control = {{CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}, p[0]};
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    struct msghdr m = {NULL, 0, &iov, 1, &control, CMSG_SPACE(sizeof(int)), 0};
    SHOW(sendmsg(pair[0], &m, 0));
    write(p[1], "through", 7);
    m.msg_controllen = CMSG_SPACE(sizeof(int));
    SHOW(recvmsg(pair[1], &m, MSG_CMSG_CLOEXEC));
    char buffer[16];
    SHOW(read(control.fd, buffer, sizeof buffer));
    SHOW(fcntl(control.fd, F_GETFD));
    struct ucred peer;
    socklen_t len = sizeof peer;
    getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &len);
    printf("  peer is this process: %d\n", peer.pid == getpid() && peer.uid == getuid());
    struct sockaddr_un name = {AF_UNIX, "\0torpor-test"};
    int l = socket(AF_UNIX, SOCK_SEQPACKET, 0), c = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    SHOW(connect(c, (void *)&name, 14));
    SHOW(bind(l, (void *)&name, 14)), SHOW(listen(l, 1)), SHOW(connect(c, (void *)&name, 14));
    int s = accept(l, NULL, NULL);
    SHOW(write(c, "one", 3)), SHOW(write(c, "two", 3));
    SHOW(read(s, buffer, 2)), SHOW(read(s, buffer, 10));
    close(c);
    SHOW(read(s, buffer, 1)), SHOW(send(s, "x", 1, MSG_NOSIGNAL));
    int d = socket(AF_UNIX, SOCK_DGRAM, 0);
    SHOW(connect(d, (void *)&name, 14));
}

/* Whom a message is from, as recvfrom(2) tells. */
static void show_source(const char *what, int fd, int flags) {
    char buffer[16];
    struct sockaddr_un from = {.sun_family = 99};
    socklen_t len = sizeof from;
    long n = recvfrom(fd, buffer, 2, flags | MSG_DONTWAIT, (void *)&from, &len);
    int error = n < 0 ? errno : 0;
    printf("  %s: %ld, error %d, family %d, %u bytes\n", what, n, error, n < 0 ? 0 : from.sun_family, n < 0 ? 0 : len);
}

static void unix_names(void) {
    TITLE("names of Unix sockets");
    int types[] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
    for (int i = 0; i < 3; i++) {
        int pair[2], l = socket(AF_UNIX, types[i], 0), c = socket(AF_UNIX, types[i], 0);
        struct sockaddr_un name = {AF_UNIX, "\0torpor-names"}, own = {AF_UNIX, "\0torpor-own"};
        socketpair(AF_UNIX, types[i], 0, pair);
        write(pair[0], "abc", 3), write(pair[0], "def", 3);
        show_source("unnamed", pair[1], MSG_PEEK | MSG_TRUNC), show_source("unnamed", pair[1], 0);
        SHOW(bind(l, (void *)&name, 15)), SHOW(bind(c, (void *)&own, 13));
        listen(l, 1), SHOW(connect(c, (void *)&name, 15));
        int s = types[i] == SOCK_DGRAM ? l : accept(l, NULL, NULL);
        write(c, "abc", 3);
        show_source("named", s, MSG_PEEK), show_source("named", s, MSG_TRUNC);
        write(s, "abc", 3);
        show_source("by the listener's name", c, 0);
        close(pair[0]), close(pair[1]), close(c), close(s), close(l);
    }
}

static void unix_datagram_peers(void) {
    TITLE("datagram peers that go");
    int pair[2];
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    write(pair[1], "unread", 6);
    close(pair[1]);
    SHOW(write(pair[0], "x", 1)), show_source("what it had", pair[0], 0);
    SHOW(write(pair[0], "x", 1)), SHOW(option(pair[0], SOL_SOCKET, SO_ERROR));
    close(pair[0]);
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    struct sockaddr none = {AF_UNSPEC, {0}};
    write(pair[1], "unread", 6);
    SHOW(connect(pair[0], &none, sizeof none)), show_source("after", pair[0], 0);
    events("the peer", pair[1]), SHOW(option(pair[1], SOL_SOCKET, SO_ERROR));
    SHOW(write(pair[1], "x", 1)), SHOW(write(pair[0], "x", 1));
    close(pair[0]), close(pair[1]);
}

/* What a datagram's control messages say, in as many bytes of control data as there are. */
static void show_control(int fd, size_t room) {
    char byte, control[256];
    memset(control, 0, sizeof control);
    struct iovec iov = {&byte, 1};
    struct msghdr m = {NULL, 0, &iov, 1, control, room, 0};
    long n = recvmsg(fd, &m, MSG_DONTWAIT);
    printf("  %ld, flags %x, %zu of %zu bytes of control data\n", n, m.msg_flags, m.msg_controllen, room);
    for (struct cmsghdr *h = CMSG_FIRSTHDR(&m); n >= 0 && h; h = CMSG_NXTHDR(&m, h)) {
        printf("    level %d type %d, %zu bytes:", h->cmsg_level, h->cmsg_type, h->cmsg_len);
        for (size_t at = sizeof *h; at < h->cmsg_len; at++)
            printf(" %x", ((unsigned char *)h)[at]);
        printf("\n");
    }
}

static long send_with(int fd, const void *to, socklen_t to_size, int level, int type, const void *data, size_t size) {
    char byte = 'x', control[64] = "";
    struct iovec iov = {&byte, 1};
    struct msghdr m = {(void *)to, to_size, &iov, 1, control, CMSG_SPACE(size), 0};
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = level, h->cmsg_type = type, h->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(h), data, size);
    return sendmsg(fd, &m, 0);
}

static void packets(void) {
    TITLE("packet information");
    int s = socket(AF_INET, SOCK_DGRAM, 0), c = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = local(0);
    socklen_t len = sizeof to;
    bind(s, (void *)&to, sizeof to), getsockname(s, (void *)&to, &len);
    SHOW(set(s, IPPROTO_IP, IP_PKTINFO, 1)), SHOW(set(s, IPPROTO_IP, IP_RECVTTL, 1)), SHOW(set(s, IPPROTO_IP, IP_RECVTOS, 1));
    set(c, IPPROTO_IP, IP_TOS, 0x10), set(c, IPPROTO_IP, IP_TTL, 9);
    unsigned char class = 0x20;
    int numbers[] = {0, 1, 17, 255, 256, -1, -2};
    sendto(c, "x", 1, 0, (void *)&to, len), show_control(s, 200);
    SHOW(send_with(c, &to, len, IPPROTO_IP, IP_TOS, &class, 1)), show_control(s, 200);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        SHOW(send_with(c, &to, len, IPPROTO_IP, IP_TTL, &numbers[i], 4)), show_control(s, 200);
        SHOW(send_with(c, &to, len, IPPROTO_IP, IP_TOS, &numbers[i], 4)), show_control(s, 200);
    }
    SHOW(send_with(c, &to, len, IPPROTO_IP, IP_TTL, &class, 1)), SHOW(send_with(c, &to, len, IPPROTO_IP, 99, &class, 1));
    SHOW(send_with(c, &to, len, IPPROTO_UDP, 99, &class, 1)), SHOW(send_with(c, &to, len, IPPROTO_TCP, 99, &class, 1));
    show_control(s, 0);
    for (size_t room = 0; room < 80; room += 9)
        sendto(c, "x", 1, 0, (void *)&to, len), show_control(s, room);
    close(s), close(c);

    s = socket(AF_INET6, SOCK_DGRAM, 0), c = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = in6addr_loopback};
    len = sizeof six;
    bind(s, (void *)&six, sizeof six), getsockname(s, (void *)&six, &len);
    SHOW(set(s, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)), SHOW(set(s, IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1)), SHOW(set(s, IPPROTO_IPV6, IPV6_RECVTCLASS, 1));
    sendto(c, "x", 1, 0, (void *)&six, len), show_control(s, 200);
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        SHOW(send_with(c, &six, len, IPPROTO_IPV6, IPV6_HOPLIMIT, &numbers[i], 4)), show_control(s, 200);
        SHOW(send_with(c, &six, len, IPPROTO_IPV6, IPV6_TCLASS, &numbers[i], 4)), show_control(s, 200);
    }
    SHOW(send_with(c, &six, len, IPPROTO_IPV6, IPV6_HOPLIMIT, &numbers, 5)), SHOW(send_with(c, &six, len, IPPROTO_IPV6, 99, &class, 1));
    close(s), close(c);
}

/* Receives a datagram and prints the address that it comes from. */
static void show_from(int fd) {
    struct sockaddr_storage from = {0};
    socklen_t len = sizeof from;
    char byte, text[64];
    if (recvfrom(fd, &byte, 1, MSG_DONTWAIT, (void *)&from, &len) < 0) {
        printf("nothing\n");
        return;
    }
    int six = from.ss_family == AF_INET6;
    const void *at = six ? (void *)&((struct sockaddr_in6 *)&from)->sin6_addr : (void *)&((struct sockaddr_in *)&from)->sin_addr;
    printf("from %s\n", inet_ntop(from.ss_family, at, text, sizeof text));
}

static void sources(void) {
    TITLE("source addresses that the sender chooses");
    int s = socket(AF_INET, SOCK_DGRAM, 0), c = socket(AF_INET, SOCK_DGRAM, 0), bound = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = local(0), own = local(0);
    socklen_t len = sizeof to;
    bind(s, (void *)&to, sizeof to), getsockname(s, (void *)&to, &len);
    own.sin_addr.s_addr = htonl(0x7f000005);
    bind(bound, (void *)&own, sizeof own);
    static const unsigned addresses[] = {0, 0x7f000001, 0x7f000007, 0x08080808, 0xe0000001, 0xffffffff};
    for (unsigned i = 0; i < sizeof addresses / sizeof *addresses; i++) {
        struct in_pktinfo info = {.ipi_spec_dst = {htonl(addresses[i])}, .ipi_addr = {htonl(0x7f000009)}};
        printf("%x\n", addresses[i]);
        SHOW(send_with(c, &to, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
        SHOW(send_with(bound, &to, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
    }
    static const int interfaces[] = {1, 77, -1};
    for (unsigned i = 0; i < sizeof interfaces / sizeof *interfaces; i++) {
        struct in_pktinfo info = {.ipi_ifindex = interfaces[i], .ipi_spec_dst = {htonl(0x7f000007)}};
        SHOW(send_with(c, &to, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
    }
    struct in_pktinfo info = {.ipi_spec_dst = {htonl(0x7f000007)}};
    struct in6_pktinfo info6 = {0};
    SHOW(send_with(c, &to, len, IPPROTO_IP, IP_PKTINFO, &info, 8)), show_from(s);
    SHOW(send_with(c, &to, len, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof info6)), show_from(s);
    connect(c, (void *)&to, len);
    SHOW(send_with(c, NULL, 0, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
    close(s), close(c), close(bound);

    s = socket(AF_INET6, SOCK_DGRAM, 0), c = socket(AF_INET6, SOCK_DGRAM, 0);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6}, mapped;
    len = sizeof six;
    bind(s, (void *)&six, sizeof six), getsockname(s, (void *)&six, &len);
    six.sin6_addr = in6addr_loopback, mapped = six, inet_pton(AF_INET6, "::ffff:127.0.0.1", &mapped.sin6_addr);
    static const char *const names[] = {"::", "::1", "::ffff:127.0.0.7", "2001:db8::1", "ff02::1", "fe80::1"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        for (int interface = 0; interface < 78; interface += interface ? 76 : 1) {
            inet_pton(AF_INET6, names[i], &info6.ipi6_addr), info6.ipi6_ifindex = interface;
            printf("%s %d\n", names[i], interface);
            SHOW(send_with(c, &six, len, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof info6)), show_from(s);
            SHOW(send_with(c, &mapped, len, IPPROTO_IPV6, IPV6_PKTINFO, &info6, sizeof info6)), show_from(s);
        }
    SHOW(send_with(c, &six, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
    SHOW(send_with(c, &mapped, len, IPPROTO_IP, IP_PKTINFO, &info, sizeof info)), show_from(s);
    close(s), close(c);
}

static void udp_lite(void) {
    TITLE("UDP-Lite");
    int s = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), c = socket(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE);
    int u = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in to = local(0);
    socklen_t len = sizeof to;
    char buffer[8];
    SHOW(bind(s, (void *)&to, sizeof to)), getsockname(s, (void *)&to, &len);
    SHOW(bind(u, (void *)&to, sizeof to));
    SHOW(sendto(c, "lite", 4, 0, (void *)&to, len));
    SHOW(recv(u, buffer, 8, MSG_DONTWAIT)), SHOW(recv(s, buffer, 8, MSG_DONTWAIT));
    SHOW(option(s, SOL_SOCKET, SO_PROTOCOL)), SHOW(socket(AF_INET, SOCK_STREAM, IPPROTO_UDPLITE));
    close(s), close(c), close(u);
}

static void nothing_to_a_closed_peer(void) {
    TITLE("nothing to a closed peer");
    int l = listener(5), c = client(l), s = accept(l, NULL, NULL);
    close(c);
    char byte;
    SHOW(recv(s, &byte, 1, 0)), SHOW(send(s, "", 0, 0)), SHOW(write(s, "", 0)), SHOW(send(s, "x", 1, 0)), SHOW(send(s, "x", 1, 0));
    close(s), close(l);
}

static void loopback_interface(void) {
    TITLE("lo");
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq request = {.ifr_name = "lo"};
    SHOW(ioctl(fd, SIOCGIFINDEX, &request)), printf("  %d\n", request.ifr_ifindex);
    SHOW(ioctl(fd, SIOCGIFMTU, &request)), printf("  %d\n", request.ifr_mtu);
    SHOW(ioctl(fd, SIOCGIFADDR, &request));
    printf("  %s\n", inet_ntoa(((struct sockaddr_in *)&request.ifr_addr)->sin_addr));
    SHOW(ioctl(fd, SIOCGIFNETMASK, &request));
    printf("  %s\n", inet_ntoa(((struct sockaddr_in *)&request.ifr_netmask)->sin_addr));
    SHOW(ioctl(fd, SIOCGIFFLAGS, &request)), printf("  %x\n", (unsigned short)request.ifr_flags);
    SHOW(ioctl(fd, SIOCGIFHWADDR, &request)), printf("  %d\n", request.ifr_hwaddr.sa_family);
    strcpy(request.ifr_name, "none9");
    SHOW(ioctl(fd, SIOCGIFADDR, &request));
    SHOW(ioctl(fd, SIOCGIFADDR, NULL));
    SHOW(if_nametoindex("lo"));
    close(fd);
}

/* Receives, and tells what kind of time came along, and whether it is now. */
static void show_time(int fd) {
    char byte, control[200];
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    recvmsg(fd, &message, 0);
    printf("  %d bytes of control\n", (int)message.msg_controllen);
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        struct timespec at;
        memcpy(&at, CMSG_DATA(c), sizeof at);
        int unit = c->cmsg_type == SO_TIMESTAMP ? 1000000 : 1000000000;
        printf("  type %d, now %d\n", c->cmsg_type, labs(time(NULL) - at.tv_sec) < 5 && at.tv_nsec >= 0 && at.tv_nsec < unit);
    }
}

static void arrival(void) {
    TITLE("when a datagram arrived");
    int s = socket(AF_INET, SOCK_DGRAM, 0), pair[2], on = 1;
    struct sockaddr_in to = local(0);
    bind(s, (void *)&to, sizeof to);
    to = local(port_of(s));
    static const struct { int name, value; } settings[] = {
        {SO_TIMESTAMP, 0}, {SO_TIMESTAMP, 1}, {SO_TIMESTAMPNS, 1}, {SO_TIMESTAMP, 1}, {SO_TIMESTAMPNS, 0},
    };
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++) {
        printf("option %d set to %d\n", settings[i].name, settings[i].value);
        SHOW(set(s, SOL_SOCKET, settings[i].name, settings[i].value));
        SHOW(option(s, SOL_SOCKET, SO_TIMESTAMP)), SHOW(option(s, SOL_SOCKET, SO_TIMESTAMPNS));
        SHOW(sendto(s, "x", 1, 0, (void *)&to, sizeof to)), show_time(s);
    }
    socketpair(AF_UNIX, SOCK_DGRAM, 0, pair);
    setsockopt(pair[1], SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    SHOW(send(pair[0], "x", 1, 0)), show_time(pair[1]);
    SHOW(set(s, SOL_SOCKET, SO_MARK, 7)), SHOW(option(s, SOL_SOCKET, SO_MARK));
    close(s), close(pair[0]), close(pair[1]);
}

int main(void) {
    signal(SIGPIPE, SIG_IGN);
    half_close();
    resets();
    refused();
    refused_while_nobody_waits();
    TITLE("a full backlog"), full_backlog(0), full_backlog(1);
    writable();
    ports();
    options();
    datagrams();
    six();
    passing();
    unix_names();
    unix_datagram_peers();
    packets();
    sources();
    arrival();
    udp_lite();
    nothing_to_a_closed_peer();
    loopback_interface();
}

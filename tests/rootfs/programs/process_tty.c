/* Pseudoterminals and the line discipline at their edges: output as natively. */
#include "show.h"
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>

static int master, slave;

/* Everything that can be read now, with control characters made visible. */
static void show_read(const char *name, int fd) {
    char text[600];
    struct pollfd p = {fd, POLLIN, 0};
    /* What is written to one end arrives at the other a moment later. */
    poll(&p, 1, 50);
    long n = read(fd, text, sizeof text);
    printf("%s: %ld \"", name, n);
    for (long i = 0; i < n; i++)
        if (text[i] >= 32 && text[i] < 127)
            putchar(text[i]);
        else
            printf("\\x%02x", (unsigned char)text[i]);
    printf("\"%s%s\n", n < 0 ? " " : "", n < 0 ? strerrorname_np(errno) : "");
    fflush(stdout);
}

static void type(const char *text) { write(master, text, strlen(text)); }

static void modes(tcflag_t clear, tcflag_t set) {
    struct termios t;
    tcgetattr(slave, &t);
    t.c_lflag = (t.c_lflag & ~clear) | set;
    tcsetattr(slave, TCSANOW, &t);
}

static void pairs(void) {
    TITLE("pairs");
    struct stat st;
    master = posix_openpt(O_RDWR | O_NOCTTY);
    SHOW(open(ptsname(master), O_RDWR | O_NOCTTY));
    SHOW(grantpt(master));
    SHOW(unlockpt(master));
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    SHOW(slave >= 0);
    SHOW(isatty(master) && isatty(slave));
    fstat(slave, &st);
    printf("%o %d\n", st.st_mode & S_IFMT, st.st_rdev >> 8 == 136);
    unsigned number;
    SHOW(ioctl(master, TIOCGPTN, &number));
    SHOW(ioctl(slave, TIOCGPTN, &number));
    SHOW(ioctl(slave, 0x5499, &number));
    struct winsize size = {0};
    SHOW(ioctl(slave, TIOCGWINSZ, &size));
    printf("%d %d\n", size.ws_row, size.ws_col);
    struct termios t;
    SHOW(tcgetattr(slave, &t));
    printf("%x %x %x %x line %d speed %d", t.c_iflag, t.c_oflag, t.c_cflag, t.c_lflag, t.c_line, cfgetospeed(&t) == B38400);
    for (int n = 0; n < NCCS - 13; n++) printf(" %d", t.c_cc[n]);
    printf("\n");
    int peer = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY);
    SHOW(peer >= 0);
    close(peer);
    fcntl(master, F_SETFL, O_NONBLOCK);
    fcntl(slave, F_SETFL, O_NONBLOCK);
    SHOW(lseek(slave, 0, SEEK_SET));
}

static void lines(void) {
    TITLE("lines");
    show_read("nothing", slave);
    type("half");
    show_read("half a line", slave);
    show_read("echo", master);
    type(" line\nsecond\n");
    int available = -1;
    struct pollfd p = {slave, POLLIN, 0};
    poll(&p, 1, 50);
    SHOW(ioctl(slave, FIONREAD, &available));
    printf("%d\n", available);
    show_read("first", slave);
    show_read("second", slave);
    show_read("echo", master);
    type("abc\x7f\x7fX\n");
    show_read("erased", slave);
    show_read("echo", master);
    type("one two\x17three\n");
    show_read("word erased", slave);
    show_read("echo", master);
    type("kill me\x15now\n");
    show_read("killed", slave);
    show_read("echo", master);
    type("\x16\x03literal\n");
    show_read("literal", slave);
    show_read("echo", master);
    type("tab\there\x01\n");
    show_read("tab", slave);
    show_read("echo", master);
    type("end\x04");
    show_read("without newline", slave);
    type("\x04");
    show_read("end of file", slave);
    show_read("echo", master);
    type("cr\r");
    show_read("ICRNL", slave);
    show_read("echo", master);
    write(slave, "out\nput\tx", 9);
    show_read("output", master);
    char much[5000];
    memset(much, 'm', sizeof much);
    long n = write(master, much, sizeof much);
    printf("%d\n", n > 0);
    type("\n");
    p = (struct pollfd){slave, POLLIN, 0};
    poll(&p, 1, 50);
    n = read(slave, much, sizeof much);
    printf("%d %d\n", n > 4000, n <= 4096);
    tcflush(slave, TCIOFLUSH);
    tcflush(master, TCIOFLUSH);
    while (read(master, much, sizeof much) > 0);
}

static void raw(void) {
    TITLE("no lines");
    modes(ICANON | ECHO, 0);
    type("ab");
    show_read("two bytes", slave);
    show_read("no echo", master);
    struct termios t;
    tcgetattr(slave, &t);
    t.c_cc[VMIN] = 0;
    t.c_cc[VTIME] = 1;
    tcsetattr(slave, TCSANOW, &t);
    fcntl(slave, F_SETFL, 0);
    char byte;
    SHOW(read(slave, &byte, 1));
    t.c_cc[VTIME] = 0;
    tcsetattr(slave, TCSANOW, &t);
    SHOW(read(slave, &byte, 1));
    t.c_cc[VMIN] = 3;
    tcsetattr(slave, TCSANOW, &t);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        type("a");
        usleep(20000);
        type("bc");
        _exit(0);
    }
    char three[4] = "";
    SHOW(read(slave, three, 4));
    printf("%s\n", three);
    waitpid(pid, NULL, 0);
    t.c_cc[VMIN] = 4;
    t.c_cc[VTIME] = 1;
    tcsetattr(slave, TCSANOW, &t);
    type("de");
    SHOW(read(slave, three, 4));
    cfmakeraw(&t);
    tcsetattr(slave, TCSANOW, &t);
    write(slave, "\n\r\t", 3);
    show_read("raw output", master);
    type("\x03\x1a\r");
    fcntl(slave, F_SETFL, O_NONBLOCK);
    show_read("raw input", slave);
    SHOW(tcsetattr(slave, 77, &t));
    SHOW(tcflow(slave, 9));
    SHOW(tcflush(slave, 9));
    SHOW(tcsendbreak(slave, 0));
    SHOW(tcdrain(slave));
}

static void flow(void) {
    TITLE("flow and packets");
    struct termios t;
    int on = 1;
    SHOW(ioctl(slave, TIOCPKT, &on));
    SHOW(ioctl(master, TIOCPKT, &on));
    write(slave, "p", 1);
    show_read("packet", master);
    tcflush(slave, TCIFLUSH);
    show_read("flush", master);
    tcgetattr(slave, &t);
    t.c_lflag |= ICANON | ECHO | ISIG;
    t.c_iflag |= IXON | ICRNL;
    t.c_oflag |= OPOST | ONLCR;
    tcsetattr(slave, TCSANOW, &t);
    show_read("settings", master);
    SHOW(tcflow(slave, TCOOFF));
    show_read("stopped", master);
    SHOW(write(slave, "x", 1));
    SHOW(tcflow(slave, TCOON));
    show_read("started", master);
    on = 0;
    ioctl(master, TIOCPKT, &on);
    type("\x13");
    usleep(20000);
    SHOW(write(slave, "x", 1));
    type("\x11");
    usleep(20000);
    SHOW(write(slave, "y", 1));
    show_read("after XON", master);
}

static void closing(void) {
    TITLE("closing");
    struct pollfd p = {master, POLLIN | POLLOUT | POLLHUP, 0};
    write(slave, "last", 4);
    close(slave);
    SHOW(poll(&p, 1, 1000));
    printf("%x\n", p.revents & (POLLIN | POLLHUP));
    show_read("what was left", master);
    show_read("then", master);
    slave = open(ptsname(master), O_RDWR | O_NOCTTY);
    write(slave, "again", 5);
    show_read("opened again", master);
    close(master);
    p = (struct pollfd){slave, POLLIN | POLLOUT, 0};
    SHOW(poll(&p, 1, 1000));
    printf("%x\n", p.revents & (POLLHUP | POLLERR | POLLIN));
    char byte;
    SHOW(read(slave, &byte, 1));
    SHOW(write(slave, "x", 1));
    struct termios t;
    SHOW(tcgetattr(slave, &t));
    close(slave);
    /* Who reads already, and who comes afterwards. */
    int fd, other;
    openpty(&fd, &other, NULL, NULL, NULL);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        close(fd);
        SHOW(read(other, &byte, 1));
        SHOW(read(other, &byte, 1));
        _exit(0);
    }
    usleep(300000);
    close(fd);
    waitpid(pid, NULL, 0);
    close(other);
    /* A hangup ends the session's leader. */
    fflush(stdout);
    pid = forkpty(&fd, NULL, NULL, NULL);
    if (pid == 0) {
        write(1, "r", 1);
        for (;;) pause();
    }
    read(fd, &byte, 1);
    close(fd);
    int status = 0;
    waitpid(pid, &status, 0);
    printf("%d\n", WIFSIGNALED(status) ? WTERMSIG(status) : -1);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    pairs();
    lines();
    raw();
    flow();
    closing();
    return 0;
}

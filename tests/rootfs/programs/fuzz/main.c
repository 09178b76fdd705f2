/* fuzz FIRST COUNT [STEPS [OMIT...]]: COUNT random programs of system calls, of seeds FIRST and up.
 *
 * Prints each call with its result, for a run on another kernel to be compared with. Each program
 * runs in a process, directory and session of its own. STEPS and OMIT (step numbers) cut one down.
 */
#include "fuzz.h"
#include <signal.h>
#include <stdarg.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { DEFAULT_STEPS = 60, LIMIT_S = 60 };

static const struct subject *const groups[] = {&files, &names, &pipes, &memory, &processes, &signals, &events, &sockets};

int slots[SLOTS];
unsigned depth;
bool in_thread;
char flag_names[256];

static uint64_t state;
static char line[16384];
static unsigned line_length;
static bool omitted[1000];

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
    x = (x ^ x >> 27) * 0x94d049bb133111eb;
    return x ^ x >> 31;
}

uint64_t draw(void) { return state = mix(state); }
unsigned below(unsigned n) { return n ? (draw() >> 16) % n : 0; }
bool one_in(unsigned n) { return below(n) == 0; }

long pick_flags(const struct named *flags, unsigned count, unsigned rarity) {
    long value = 0;
    unsigned length = 0;
    strcpy(flag_names, "0");
    for (unsigned i = 0; i < count; i++)
        if (one_in(rarity)) {
            value |= flags[i].value;
            length += snprintf(flag_names + length, sizeof flag_names - length, "%s%s", length ? "|" : "", flags[i].name);
        }
    return value;
}

void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int saved = errno;
    line_length += vsnprintf(line + line_length, sizeof line - line_length, format, arguments);
    errno = saved;
    va_end(arguments);
    if (line_length >= sizeof line)
        line_length = sizeof line - 1;
}

long result(long value) {
    int saved = errno;
    if (value == -1)
        say(" = -1 %s", strerrorname_np(saved));
    else
        say(" = %ld", value);
    errno = saved;
    return value;
}

/* Long contents by length, sum and first bytes, so that lines stay short. */
void say_bytes(const void *bytes, long count) {
    const unsigned char *at = bytes;
    uint64_t sum = 0;
    for (long i = 0; i < count; i++)
        sum = mix(sum ^ at[i]);
    say(" \"");
    for (long i = 0; i < count && i < 12; i++)
        say(at[i] >= 'a' && at[i] <= 'z' ? "%c" : "\\%x", at[i]);
    say(count > 12 ? "\"...%lx" : "\"", sum & 0xffff);
}

static void end_line(void) {
    say_signals();
    say("\n");
    for (unsigned done = 0; done < line_length;) {
        ssize_t n = write(OUTPUT, line + done, line_length - done);
        if (n < 0 && errno != EINTR)
            _exit(99);
        done += n > 0 ? n : 0;
    }
    line_length = 0;
}

int keep(int fd) {
    if (fd >= 0) {
        unsigned slot = below(SLOTS);
        if (slots[slot] >= 0 && slots[slot] != fd)
            close(slots[slot]);
        slots[slot] = fd;
    }
    return fd;
}

int any_fd(void) {
    static const int odd[] = {-1, 0, 1, 77, 899, 5000, AT_FDCWD};
    if (one_in(25))
        return PICK(odd);
    unsigned first = below(SLOTS);
    for (unsigned i = 0; i < SLOTS; i++)
        if (slots[(first + i) % SLOTS] >= 0)
            return slots[(first + i) % SLOTS];
    return -1;
}

const char *some_bytes(unsigned count) {
    static char bytes[70000];
    unsigned letter = below(26);
    for (unsigned i = 0; i < count && i < sizeof bytes; i++)
        bytes[i] = 'a' + (letter + i / 7 + i) % 26;
    return bytes;
}

const char *any_name(void) {
    static const char *const known[] = {
        "a", "b", "c", "d", "d/a", "d/b", "d/d", "e", "e/a", "l", "l/a", "./a", "d/../b", "../a", "p",
    };
    static const char *const odd[] = {"", ".", "..", "/", "missing/a", "a/", "d/", "a/b", "l/", "d/.", "d/..", "//", "/a", "/d/a", "/../b"};
    return one_in(15) ? PICK(odd) : PICK(known);
}

static void run_step(uint64_t seed) {
    state = mix(seed);
    const struct subject *group = PICK(groups);
    unsigned total = 0;
    for (unsigned i = 0; i < group->count; i++)
        total += group->choices[i].weight;
    unsigned drawn = below(total);
    const struct choice *choice = group->choices;
    while (drawn >= choice->weight)
        drawn -= choice++->weight;
    begin_signals();
    choice->step();
    end_line();
}

void run_steps(unsigned count) {
    uint64_t inner = draw();
    depth++;
    end_line();
    for (unsigned i = 0; i < count; i++) {
        say("  %*s", depth * 2, "");
        run_step(inner + i);
    }
    say("  %*s.", depth * 2, "");
    depth--;
}

static void run_program(uint64_t seed, unsigned steps) {
    char directory[64];
    snprintf(directory, sizeof directory, "/tmp/fuzz.%lu", seed);
    mkdir(directory, 0755);
    /* Nothing outside is within its reach: it may run as root on a machine that is in use. */
    if (chdir(directory) != 0 || chroot(".") != 0)
        _exit(98);
    umask(022);
    setsid();
    memset(slots, -1, sizeof slots);
    uint64_t program = mix(seed);
    for (unsigned i = 0; i < steps; i++) {
        if (omitted[i])
            continue;
        say("%u ", i);
        run_step(program + i * 1000003);
    }
    _exit(0);
}

int main(int argc, char **argv) {
    uint64_t first = argc > 1 ? strtoull(argv[1], NULL, 0) : 1;
    unsigned count = argc > 2 ? atoi(argv[2]) : 1, steps = argc > 3 ? atoi(argv[3]) : DEFAULT_STEPS;
    for (int i = 4; i < argc; i++)
        omitted[atoi(argv[i]) % COUNT(omitted)] = true;
    struct rlimit limit = {1024, 4096};
    setrlimit(RLIMIT_NOFILE, &limit);
    close_range(3, ~0u, 0);
    int proc = open("/proc", O_PATH), null = open("/dev/null", O_RDWR);
    if (dup2(1, OUTPUT) < 0 || dup2(proc, PROC) < 0)
        return 97;
    close(proc);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    close(null);
    sigset_t child;
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    sigprocmask(SIG_BLOCK, &child, NULL);
    for (uint64_t seed = first; seed < first + count; seed++) {
        say("== %lu", seed);
        end_line();
        pid_t program = fork();
        if (program == 0) {
            sigprocmask(SIG_UNBLOCK, &child, NULL);
            run_program(seed, steps);
        }
        /* A program that hangs is ended, with all that it has started. */
        struct timespec limit_left = {LIMIT_S, 0};
        int status = 0;
        bool hung = false;
        while (waitpid(program, &status, WNOHANG) == 0)
            if (sigtimedwait(&child, NULL, &limit_left) < 0 && errno == EAGAIN) {
                hung = true;
                kill(-program, SIGKILL);
                kill(program, SIGKILL);
            }
        say("-- %s %d", hung ? "timed out" : WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
        end_line();
    }
    return 0;
}

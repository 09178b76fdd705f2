/* Priorities that locks lend to those who have them (FUTEX_LOCK_PI): as sched(7) and pthread_mutexattr_setprotocol(3) say.
 * Output as natively; everything runs on one processor. */
#include "show.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static pthread_mutex_t locks[2];
static volatile int done, taken[4], tids[4];
static volatile int order[4], ordered;

static void make(pthread_mutex_t *lock, int robust, int shared) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
    pthread_mutexattr_setrobust(&attributes, robust);
    pthread_mutexattr_setpshared(&attributes, shared);
    pthread_mutex_init(lock, &attributes);
}

/* What /proc has to say of a thread, from its state on. */
static const char *stat_of(pid_t tid) {
    static char text[512];
    snprintf(text, sizeof text, "/proc/self/task/%d/stat", tid);
    FILE *file = fopen(text, "r");
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    return strrchr(text, ')') + 2;
}

/* Field 18, the priority that the scheduler goes by: -1 less a real-time priority, 20 for nice 0. */
static int priority(pid_t tid) {
    const char *at = stat_of(tid);
    for (int field = 3; field < 18; field++) at = strchr(at, ' ') + 1;
    return atoi(at);
}

static int sleeps(pid_t tid) {
    return *stat_of(tid) == 'S';
}

static void be(int policy, int value) {
    struct sched_param parameter = {value};
    if (sched_setscheduler(0, policy, &parameter)) perror("sched_setscheduler");
}

/* A thread with a real-time priority that takes locks, one after the other, and gives them back. */
struct taker {
    int number, priority, first, second;
    int timeout_ms;
};

static void *taker(void *argument) {
    struct taker *me = argument;
    be(SCHED_FIFO, me->priority);
    tids[me->number] = syscall(SYS_gettid);
    if (me->first >= 0) pthread_mutex_lock(&locks[me->first]);
    taken[me->number] = 1;
    if (me->timeout_ms) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += me->timeout_ms * 1000000l;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        taken[me->number] = pthread_mutex_timedlock(&locks[me->second], &until) == ETIMEDOUT ? 3 : 2;
    } else {
        pthread_mutex_lock(&locks[me->second]);
        taken[me->number] = 2;
        order[ordered++] = me->number;
    }
    if (taken[me->number] == 2) pthread_mutex_unlock(&locks[me->second]);
    if (me->first >= 0) pthread_mutex_unlock(&locks[me->first]);
    return NULL;
}

/* Starts it and returns when it waits for its second lock. */
static pthread_t start(struct taker *it) {
    pthread_t thread;
    taken[it->number] = tids[it->number] = 0;
    pthread_create(&thread, NULL, taker, it);
    while (!taken[it->number] || !sleeps(tids[it->number])) usleep(1000);
    return thread;
}

static void lending(void) {
    pid_t me = syscall(SYS_gettid);
    TITLE("one waiter");
    pthread_mutex_lock(&locks[0]);
    printf("%d\n", priority(me));
    struct taker one = {0, 30, -1, 0, 0}, two = {1, 50, -1, 0, 0}, between = {2, 10, 1, 0, 0};
    pthread_t first = start(&one);
    printf("%d %d\n", priority(me), sched_getscheduler(0));
    pthread_t second = start(&two);
    printf("%d\n", priority(me));
    pthread_t third = start(&between);
    printf("%d %d\n", priority(me), priority(tids[2]));
    pthread_mutex_unlock(&locks[0]);
    printf("%d\n", priority(me));
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    pthread_join(third, NULL);
    printf("in the order %d %d %d\n", order[0], order[1], order[2]);

    TITLE("a chain");
    pthread_mutex_lock(&locks[0]);
    third = start(&between);
    printf("%d %d\n", priority(me), priority(tids[2]));
    struct taker last = {1, 50, -1, 1, 0};
    second = start(&last);
    printf("%d %d\n", priority(me), priority(tids[2]));
    struct sched_param more = {60};
    sched_setparam(tids[1], &more);
    printf("%d %d\n", priority(me), priority(tids[2]));
    pthread_mutex_unlock(&locks[0]);
    printf("%d\n", priority(me));
    pthread_join(second, NULL);
    pthread_join(third, NULL);

    TITLE("a waiter that gives up");
    pthread_mutex_lock(&locks[0]);
    first = start(&one);
    struct taker impatient = {1, 50, -1, 0, 500};
    second = start(&impatient);
    printf("%d\n", priority(me));
    pthread_join(second, NULL);
    printf("%d %d\n", taken[1], priority(me));
    pthread_mutex_unlock(&locks[0]);
    pthread_join(first, NULL);
    printf("%d\n", priority(me));

    TITLE("a circle");
    pthread_mutex_lock(&locks[0]);
    third = start(&between);
    /* The C library would wait for ever. */
    SHOW(syscall(SYS_futex, &locks[1].__data.__lock, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    printf("%d\n", priority(me));
    pthread_mutex_unlock(&locks[0]);
    pthread_join(third, NULL);
    printf("%d\n", priority(me));
}

/* Computes for so many milliseconds of its own processor time. */
static void compute(int ms) {
    struct timespec spent;
    do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &spent);
    while (spent.tv_sec * 1000 + spent.tv_nsec / 1000000 < ms);
}

static void *medium(void *argument) {
    be(SCHED_FIFO, 20);
    taken[1] = 1;
    compute(400);
    order[ordered++] = 1;
    return NULL;
}

static void inversion(void) {
    TITLE("low, medium and high");
    ordered = 0;
    pthread_mutex_lock(&locks[0]);
    struct taker high = {0, 50, -1, 0, 0};
    pthread_t first = start(&high), second;
    taken[1] = 0;
    pthread_create(&second, NULL, medium, NULL);
    /* Without the priority that is lent the medium thread would have the processor from here on. */
    while (!taken[1]) usleep(1000);
    pthread_mutex_unlock(&locks[0]);
    pthread_join(first, NULL);
    pthread_join(second, NULL);
    printf("%s first\n", order[0] == 0 ? "high" : "medium");
}

static pthread_mutex_t *robust_lock;

static void *dies(void *argument) {
    pthread_mutex_lock(robust_lock);
    taken[0] = 1;
    while (!done) usleep(1000);
    return NULL;
}

static void *waits(void *argument) {
    be(SCHED_FIFO, 40);
    tids[1] = syscall(SYS_gettid);
    taken[1] = 1;
    int error = pthread_mutex_lock(robust_lock);
    printf("%s\n", error ? strerrorname_np(error) : "0");
    pthread_mutex_consistent(robust_lock);
    pthread_mutex_unlock(robust_lock);
    return NULL;
}

static void dying(void) {
    TITLE("an owner that ends");
    pthread_mutex_t own;
    make(robust_lock = &own, PTHREAD_MUTEX_ROBUST, 0);
    pthread_t first, second;
    taken[0] = taken[1] = done = 0;
    pthread_create(&first, NULL, dies, NULL);
    while (!taken[0]) usleep(1000);
    pthread_create(&second, NULL, waits, NULL);
    while (!taken[1] || !sleeps(tids[1])) usleep(1000);
    done = 1;
    pthread_join(second, NULL);
    pthread_join(first, NULL);

    TITLE("an owner's process that is killed");
    pthread_mutex_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    volatile int *held = (int *)(shared + 1);
    make(robust_lock = shared, PTHREAD_MUTEX_ROBUST, PTHREAD_PROCESS_SHARED);
    fflush(stdout);
    pid_t owner = fork();
    if (owner == 0) {
        pthread_mutex_lock(shared);
        *held = 1;
        for (;;) pause();
    }
    while (!*held) usleep(100);
    taken[1] = 0;
    pthread_create(&second, NULL, waits, NULL);
    while (!taken[1] || !sleeps(tids[1])) usleep(1000);
    kill(owner, SIGKILL);
    waitpid(owner, NULL, 0);
    pthread_join(second, NULL);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    make(&locks[0], 0, 0);
    make(&locks[1], 0, 0);
    lending();
    inversion();
    dying();
    return 0;
}

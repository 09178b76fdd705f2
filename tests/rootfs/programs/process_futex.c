/* futex(2) whole: waiting, waking, requeueing, priority inheritance, robust lists. Output as natively. */
#include "show.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static long futex(void *word, int op, uint32_t value, const void *timeout, void *second, uint32_t third) {
    return syscall(SYS_futex, word, op, value, timeout, second, third);
}

static uint32_t words[4] __attribute__((aligned(64)));
static volatile int waiting, woken;
static struct timespec short_time = {0, 1000000};

struct wait_for {
    uint32_t *word;
    int op;
    uint32_t bits;
    long result;
    int error;
    void *second;
};

static void *waiter(void *argument) {
    struct wait_for *wait = argument;
    __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
    wait->result = futex(wait->word, wait->op, 0, NULL, wait->second, wait->bits);
    wait->error = errno;
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

/* Starts `count` waiters and returns when all sleep: moving none of them to where they are already tells how many. */
static void start(pthread_t *threads, struct wait_for *waits, int count) {
    waiting = woken = 0;
    for (int n = 0; n < count; n++) {
        pthread_create(&threads[n], NULL, waiter, &waits[n]);
        while (waiting <= n) sched_yield();
    }
    usleep(30000);
}

static void join(pthread_t *threads, struct wait_for *waits, int count) {
    for (int n = 0; n < count; n++) {
        pthread_join(threads[n], NULL);
        printf("waiter %d: %ld\n", n, waits[n].result);
    }
    fflush(stdout);
}

static void errors(void) {
    TITLE("errors");
    SHOW(futex(words, FUTEX_WAIT, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT, 0, &short_time, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT | FUTEX_CLOCK_REALTIME, 0, &short_time, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT, 0, &(struct timespec){0, -1}, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT, 0, &(struct timespec){-1, 0}, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT, 0, (void *)8, NULL, 0));
    SHOW(futex((char *)words + 1, FUTEX_WAIT, 0, NULL, NULL, 0));
    SHOW(futex((char *)words + 2, FUTEX_WAKE, 1, NULL, NULL, 0));
    SHOW(futex((void *)8, FUTEX_WAIT, 0, NULL, NULL, 0));
    SHOW(futex((void *)8, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0));
    SHOW(futex((void *)8, FUTEX_WAKE, 1, NULL, NULL, 0));
    SHOW(futex((void *)8, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    SHOW(futex((void *)-8L, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAKE, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT_BITSET, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAKE_BITSET, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT_BITSET, 0, &short_time, NULL, 1));
    SHOW(futex(words, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &short_time, NULL, 1));
    SHOW(futex(words, FUTEX_FD, 1, NULL, NULL, 0));
    SHOW(futex(words, 77, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAKE | FUTEX_CLOCK_REALTIME, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_CMP_REQUEUE, 1, (void *)1, words + 1, 1));
    SHOW(futex(words, FUTEX_REQUEUE, -1, (void *)1, words + 1, 0));
    SHOW(futex(words, FUTEX_REQUEUE, 1, (void *)-1L, words + 1, 0));
    SHOW(futex(words, FUTEX_CMP_REQUEUE, 1, (void *)1, (void *)8, 0));
    SHOW(futex(words, FUTEX_WAKE_OP, 1, (void *)1, words + 1, FUTEX_OP(15, 0, FUTEX_OP_CMP_EQ, 0)));
    SHOW(futex(words, FUTEX_WAKE_OP, 1, (void *)1, words + 1, FUTEX_OP(FUTEX_OP_SET, 5, 15, 0)));
}

static void waking(void) {
    TITLE("waking some and by bits");
    pthread_t threads[4];
    struct wait_for waits[4];
    for (int n = 0; n < 4; n++) waits[n] = (struct wait_for){words, FUTEX_WAIT_BITSET_PRIVATE, 1u << n, 0, 0, NULL};
    start(threads, waits, 4);
    SHOW(futex(words, FUTEX_WAKE_BITSET_PRIVATE, 9, NULL, NULL, 0x30));
    SHOW(futex(words, FUTEX_WAKE_BITSET_PRIVATE, 9, NULL, NULL, 5));
    SHOW(futex(words, FUTEX_WAKE, 9, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0));
    join(threads, waits, 4);

    TITLE("moving");
    start(threads, waits, 4);
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)2, words + 1, 0));
    SHOW(futex(words, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0));
    SHOW(futex(words + 1, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0));
    join(threads, waits, 4);
    start(threads, waits, 3);
    SHOW(futex(words, FUTEX_REQUEUE_PRIVATE, 0, (void *)9, words + 2, 0));
    SHOW(futex(words + 2, FUTEX_WAKE_PRIVATE, 9, NULL, NULL, 0));
    join(threads, waits, 3);

    TITLE("wake and change");
    words[1] = 3;
    struct wait_for two[2] = {{words, FUTEX_WAIT, 0, 0, 0, NULL}, {words + 2, FUTEX_WAIT, 0, 0, 0, NULL}};
    start(threads, two, 2);
    SHOW(futex(words, FUTEX_WAKE_OP, 1, (void *)1, words + 1, FUTEX_OP(FUTEX_OP_ADD, 4, FUTEX_OP_CMP_EQ, 9)));
    printf("%u\n", words[1]);
    SHOW(futex(words + 3, FUTEX_WAKE_OP, 1, (void *)1, words + 2, FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0)));
    join(threads, two, 2);
    uint32_t value = 6;
    futex(words, FUTEX_WAKE_OP, 0, (void *)0, &value, FUTEX_OP(FUTEX_OP_ANDN, 2, FUTEX_OP_CMP_EQ, 0));
    printf("%u\n", value);
    futex(words, FUTEX_WAKE_OP, 0, (void *)0, &value, FUTEX_OP(FUTEX_OP_XOR, 7, FUTEX_OP_CMP_EQ, 0));
    printf("%u\n", value);
    futex(words, FUTEX_WAKE_OP, 0, (void *)0, &value, FUTEX_OP((FUTEX_OP_SET | FUTEX_OP_OPARG_SHIFT), 5, FUTEX_OP_CMP_EQ, 0));
    printf("%u\n", value);
    words[0] = words[1] = words[2] = 0;

    TITLE("between processes");
    uint32_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        shared[1] = 1;
        long result = futex(shared, FUTEX_WAIT, 0, NULL, NULL, 0);
        _exit(result == 0 ? 4 : errno);
    }
    int status = 0;
    while (!shared[1]) usleep(100);
    while (futex(shared, FUTEX_WAKE, 1, NULL, NULL, 0) == 0) usleep(1000);
    waitpid(pid, &status, 0);
    printf("%d\n", WEXITSTATUS(status));
}

static void *holder(void *argument) {
    futex(words, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    waiting = 1;
    while (!woken) usleep(100);
    long result = futex(words, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    return (void *)result;
}

static void *dies(void *argument) {
    futex(words, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    return NULL;
}

static void inheriting(void) {
    TITLE("priority inheritance");
    pid_t tid = syscall(SYS_gettid);
    words[0] = 0;
    SHOW(futex(words, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    printf("%d\n", words[0] == (uint32_t)tid);
    SHOW(futex(words, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_TRYLOCK_PI, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    printf("%u\n", words[0]);
    words[0] = 99999999;
    SHOW(futex(words, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    words[0] = 1 << 30;
    SHOW(futex(words, FUTEX_LOCK_PI, 0, NULL, NULL, 0));
    printf("%d\n", words[0] == ((uint32_t)tid | 1 << 30));
    SHOW(futex(words, FUTEX_UNLOCK_PI, 0, NULL, NULL, 0));
    words[0] = 0;
    pthread_t thread;
    void *result;
    waiting = woken = 0;
    pthread_create(&thread, NULL, holder, NULL);
    while (!waiting) usleep(100);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    SHOW(futex(words, FUTEX_TRYLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_LOCK_PI_PRIVATE, 0, &soon, NULL, 0));
    clock_gettime(CLOCK_MONOTONIC, &soon);
    SHOW(futex(words, FUTEX_LOCK_PI2_PRIVATE, 0, &soon, NULL, 0));
    SHOW(futex(words, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    SHOW(futex(words, FUTEX_WAIT_PRIVATE, words[0], &short_time, NULL, 0));
    woken = 1;
    SHOW(futex(words, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    pthread_join(thread, &result);
    printf("%ld %d\n", (long)result, (words[0] & 0x3fffffff) == (uint32_t)tid);
    SHOW(futex(words, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    printf("%u\n", words[0]);
    pthread_create(&thread, NULL, dies, NULL);
    pthread_join(thread, NULL);
    SHOW(futex(words, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    words[0] = 0;

    TITLE("mutexes of the C library");
    for (int protocol = PTHREAD_PRIO_NONE; protocol <= PTHREAD_PRIO_INHERIT; protocol++) {
        pthread_mutexattr_t attributes;
        pthread_mutex_t mutex;
        pthread_mutexattr_init(&attributes);
        SHOW(pthread_mutexattr_setprotocol(&attributes, protocol));
        SHOW(pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_ERRORCHECK));
        SHOW(pthread_mutex_init(&mutex, &attributes));
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_lock(&mutex));
        SHOW(pthread_mutex_unlock(&mutex));
        SHOW(pthread_mutex_unlock(&mutex));
    }
}

static void requeueing_pi(void) {
    TITLE("requeueing to an inheriting mutex");
    words[0] = words[1] = 0;
    SHOW(futex(words, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 1, NULL, words + 1, 0));
    SHOW(futex(words, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, &short_time, words + 1, 0));
    SHOW(futex(words, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, NULL, words, 0));
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 2, (void *)1, words + 1, 0));
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1, words + 1, 7));
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1, words + 1, 0));
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1, words, 0));
    pthread_t thread;
    struct wait_for wait = {words, FUTEX_WAIT_REQUEUE_PI_PRIVATE, 0, 0, 0, words + 1};
    start(&thread, &wait, 1);
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1, words + 1, 0));
    join(&thread, &wait, 1);
    printf("%d\n", (words[1] & 0x3fffffff) != 0);
    words[1] = 0;
    /* With the mutex held the waiter moves on to it, and owns it once it is let go. */
    futex(words + 1, FUTEX_LOCK_PI_PRIVATE, 0, NULL, NULL, 0);
    start(&thread, &wait, 1);
    SHOW(futex(words, FUTEX_CMP_REQUEUE_PI_PRIVATE, 1, (void *)1, words + 1, 0));
    printf("%d\n", woken);
    SHOW(futex(words + 1, FUTEX_UNLOCK_PI_PRIVATE, 0, NULL, NULL, 0));
    join(&thread, &wait, 1);
    printf("%d\n", (words[1] & 0x3fffffff) != 0);
}

static pthread_mutex_t robust_mutex;
static void *dies_with(void *argument) {
    pthread_mutex_lock(&robust_mutex);
    return NULL;
}

static void robust(void) {
    TITLE("robust lists");
    void *head;
    size_t size;
    SHOW(syscall(SYS_set_robust_list, words, 8));
    SHOW(syscall(SYS_get_robust_list, 0, &head, &size));
    printf("%zu\n", size);
    SHOW(syscall(SYS_get_robust_list, 99999999, &head, &size));
    for (int protocol = PTHREAD_PRIO_NONE; protocol <= PTHREAD_PRIO_INHERIT; protocol++) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        pthread_mutexattr_setprotocol(&attributes, protocol);
        pthread_mutex_init(&robust_mutex, &attributes);
        pthread_t thread;
        pthread_create(&thread, NULL, dies_with, NULL);
        pthread_join(thread, NULL);
        SHOW(pthread_mutex_lock(&robust_mutex) == EOWNERDEAD);
        SHOW(pthread_mutex_consistent(&robust_mutex));
        SHOW(pthread_mutex_unlock(&robust_mutex));
        pthread_create(&thread, NULL, dies_with, NULL);
        pthread_join(thread, NULL);
        SHOW(pthread_mutex_trylock(&robust_mutex) == EOWNERDEAD);
        SHOW(pthread_mutex_unlock(&robust_mutex));
        SHOW(pthread_mutex_lock(&robust_mutex) == ENOTRECOVERABLE);
    }
    /* The owner's process is killed while somebody waits. */
    pthread_mutex_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    volatile int *held = (int *)(shared + 1);
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(shared, &attributes);
    fflush(stdout);
    pid_t owner = fork();
    if (owner == 0) {
        pthread_mutex_lock(shared);
        *held = 1;
        for (;;) pause();
    }
    while (!*held) usleep(100);
    pid_t killer = fork();
    if (killer == 0) {
        usleep(30000);
        kill(owner, SIGKILL);
        _exit(0);
    }
    SHOW(pthread_mutex_lock(shared) == EOWNERDEAD);
    waitpid(owner, NULL, 0);
    waitpid(killer, NULL, 0);
}

int main(void) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    errors();
    waking();
    inheriting();
    requeueing_pi();
    robust();
    return 0;
}

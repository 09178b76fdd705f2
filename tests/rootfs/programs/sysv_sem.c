/* System V semaphores. Identifiers differ from run to run, so they are not printed. */
#include "show.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>
#include <time.h>

#ifndef SEM_STAT_ANY
#define SEM_STAT_ANY 20
#endif

static const key_t key = 0x54c0de02;

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
    struct seminfo *info;
};

static int id;

static int op(int number, int change, int flags) {
    struct sembuf one = {number, change, flags};
    return semop(id, &one, 1);
}

static void print_values(void) {
    unsigned short values[3];
    SHOW(semctl(id, 0, GETALL, (union semun){.array = values}));
    printf("values %u %u %u, by me %d %d %d, waiting %d+%d\n", values[0], values[1], values[2],
           semctl(id, 0, GETPID) == getpid(), semctl(id, 1, GETPID) == getpid(), semctl(id, 2, GETPID) == getpid(),
           semctl(id, 0, GETNCNT), semctl(id, 0, GETZCNT));
}

static void print_status(void) {
    struct semid_ds ds;
    memset(&ds, 0x55, sizeof ds);
    SHOW(semctl(id, 0, IPC_STAT, (union semun){.buf = &ds}));
    printf("key %#x mode %o %lu semaphores owner %u:%u times %d%d\n", ds.sem_perm.__key, ds.sem_perm.mode,
           ds.sem_nsems, ds.sem_perm.uid, ds.sem_perm.gid, ds.sem_otime != 0, ds.sem_ctime != 0);
}

/* Waits until somebody waits for the first semaphore. */
static void until_waiting(int count) {
    while (semctl(id, 0, GETNCNT) + semctl(id, 0, GETZCNT) < count)
        sched_yield();
}

static void handler(int signal) { (void)signal; }

static void *thread(void *unused) {
    (void)unused;
    SHOW(op(0, 5, SEM_UNDO));
    return NULL;
}

/* Starts a child that performs an operation and says what came of it. */
static pid_t child(int number, int change, int flags) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = SA_RESTART}, NULL);
        int result = op(number, change, flags);
        printf("child: %d %s\n", result, result ? strerrorname_np(errno) : "");
        fflush(stdout);
        _exit(0);
    }
    return pid;
}

int main(void) {
    semctl(semget(key, 0, 0), 0, IPC_RMID);
    TITLE("semget");
    SHOW(semget(key, 1, 0600));
    SHOW(semget(key, 0, 0600 | IPC_CREAT));
    SHOW(semget(key, -1, 0600 | IPC_CREAT));
    SHOW(semget(key, 32001, 0600 | IPC_CREAT));
    id = semget(key, 3, 0600 | IPC_CREAT | IPC_EXCL);
    SHOW(semget(key, 3, 0600 | IPC_CREAT | IPC_EXCL));
    SHOW(semget(key, 4, 0600));
    SHOW(semget(key, 0, 0600) == id);
    print_status();
    print_values();

    TITLE("semctl");
    SHOW(semctl(id, 0, SETVAL, 3));
    SHOW(semctl(id, 0, SETVAL, -1));
    SHOW(semctl(id, 0, SETVAL, 32768));
    SHOW(semctl(id, 3, SETVAL, 1));
    SHOW(semctl(id, 3, GETVAL));
    SHOW(semctl(id, -1, GETPID));
    SHOW(semctl(id, 0, GETVAL));
    unsigned short values[3] = {1, 2, 32768};
    SHOW(semctl(id, 0, SETALL, (union semun){.array = values}));
    values[2] = 32767;
    SHOW(semctl(id, 99, SETALL, (union semun){.array = values}));
    SHOW(semctl(id, 0, SETALL, (union semun){.array = NULL}));
    SHOW(semctl(id, 0, GETALL, (union semun){.array = NULL}));
    SHOW(semctl(id, 0, 99, NULL));
    SHOW(semctl(-1, 0, GETVAL));
    SHOW(semctl(id + 0x7fff, 0, GETVAL));
    print_values();
    struct seminfo info;
    SHOW(semctl(0, 0, IPC_INFO, (union semun){.info = &info}) >= 0);
    printf("%d %d %d %d %d %d %d %d %d %d\n", info.semmap, info.semmni, info.semmns, info.semmnu, info.semmsl,
           info.semopm, info.semume, info.semusz, info.semvmx, info.semaem);
    SHOW(semctl(0, 0, SEM_INFO, (union semun){.info = &info}) >= 0);
    printf("%d sets, %d semaphores\n", info.semusz, info.semaem);
    struct semid_ds ds;
    SHOW(semctl(id & 0x7fff, 0, SEM_STAT, (union semun){.buf = &ds}) == id);
    SHOW(semctl(id & 0x7fff, 0, SEM_STAT_ANY, (union semun){.buf = &ds}) == id);

    TITLE("semop");
    SHOW(op(0, 0, IPC_NOWAIT));
    SHOW(op(0, -2, IPC_NOWAIT));
    SHOW(op(0, -1, IPC_NOWAIT));
    SHOW(op(0, 0, 0));
    SHOW(op(2, 1, 0));
    SHOW(op(3, 1, 0));
    SHOW(semop(id, NULL, 1));
    SHOW(semop(id, NULL, 0));
    SHOW(semop(id, NULL, 501));
    SHOW(semop(-1, &(struct sembuf){0, 1, 0}, 1));
    struct sembuf both[] = {{0, 5, 0}, {1, -3, IPC_NOWAIT}};
    SHOW(semop(id, both, 2));
    both[1].sem_op = -2;
    SHOW(semop(id, both, 2));
    struct sembuf same[] = {{0, -5, 0}, {0, 0, 0}, {0, 7, 0}};
    SHOW(semop(id, same, 3));
    print_values();
    print_status();
    struct timespec timeout = {0, 20000000}, bad = {0, 1000000000};
    SHOW(semtimedop(id, &(struct sembuf){0, -9, 0}, 1, &timeout));
    SHOW(semtimedop(id, &(struct sembuf){0, -9, 0}, 1, &bad));
    SHOW(semtimedop(id, &(struct sembuf){0, -9, 0}, 1, (void *)1));
    SHOW(semtimedop(id, &(struct sembuf){0, -7, 0}, 1, &timeout));

    TITLE("waiting");
    pid_t pid = child(0, -2, 0);
    until_waiting(1);
    print_values();
    SHOW(op(0, 1, 0));
    SHOW(semctl(id, 0, GETNCNT));
    SHOW_AFTER(pid, op(0, 2, 0));
    SHOW(semctl(id, 0, GETPID) == pid);
    SHOW(semctl(id, 0, GETVAL));
    pid = child(0, 0, 0);
    until_waiting(1);
    SHOW(semctl(id, 0, GETZCNT));
    SHOW_AFTER(pid, semctl(id, 0, SETVAL, 0));
    pid = child(0, -1, 0);
    until_waiting(1);
    kill(pid, SIGUSR1);
    waitpid(pid, NULL, 0);
    SHOW(semctl(id, 0, GETNCNT));

    TITLE("undo");
    pid = child(0, 4, SEM_UNDO);
    waitpid(pid, NULL, 0);
    print_values();
    SHOW(semctl(id, 0, SETVAL, 10));
    pid = child(0, -4, SEM_UNDO);
    waitpid(pid, NULL, 0);
    SHOW(semctl(id, 0, GETVAL));
    SHOW(semctl(id, 0, GETPID) == pid);
    SHOW(op(0, -10, SEM_UNDO));
    pid = child(0, -3, 0); /* goes on when what another took is undone */
    until_waiting(1);
    pid_t other = fork();
    if (!other) {
        op(1, 1, SEM_UNDO);
        op(0, 1, SEM_UNDO);
        op(0, -1, SEM_UNDO);
        semctl(id, 0, SETVAL, 3);
        _exit(0);
    }
    waitpid(other, NULL, 0);
    waitpid(pid, NULL, 0);
    print_values();
    SHOW(op(1, 32767, SEM_UNDO));
    SHOW(op(1, -32767, 0));
    SHOW(op(1, 2, SEM_UNDO));
    pthread_t handle;
    pthread_create(&handle, NULL, thread, NULL);
    pthread_join(handle, NULL);
    SHOW(semctl(id, 0, GETVAL)); /* the thread's list is the process's */
    SHOW(unshare(CLONE_SYSVSEM));
    print_values();

    TITLE("another user");
    fflush(stdout);
    pid = fork();
    if (!pid) {
        setuid(1000);
        SHOW(semctl(id, 0, GETVAL));
        SHOW(semctl(id, 0, SETVAL, 1));
        SHOW(semctl(id, 0, IPC_RMID));
        SHOW(semctl(id & 0x7fff, 0, SEM_STAT_ANY, (union semun){.buf = &ds}) == id);
        SHOW(op(0, 1, 0));
        SHOW(op(0, 0, IPC_NOWAIT));
        SHOW(semget(key, 0, 0400));
        _exit(0);
    }
    waitpid(pid, NULL, 0);
    ds.sem_perm.mode = 0666;
    ds.sem_perm.uid = 1000;
    SHOW(semctl(id, 0, IPC_SET, (union semun){.buf = &ds}));
    print_status();

    TITLE("IPC_RMID");
    semctl(id, 0, SETVAL, 0);
    pid = child(0, -1, 0);
    until_waiting(1);
    SHOW_AFTER(pid, semctl(id, 0, IPC_RMID));
    SHOW(semctl(id, 0, GETVAL));
    SHOW(op(0, 1, 0));
    fflush(stdout);
    system("cat /proc/sys/kernel/sem; head -n 1 /proc/sysvipc/sem");
    return 0;
}

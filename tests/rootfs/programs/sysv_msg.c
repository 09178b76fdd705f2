/* System V message queues. Identifiers differ from run to run, so they are not printed. */
#include "show.h"
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/wait.h>

#ifndef MSG_STAT_ANY
#define MSG_STAT_ANY 13
#endif
#ifndef MSG_COPY
#define MSG_COPY 040000
#endif

static const key_t key = 0x54c0de03;

struct message {
    long type;
    char text[20000];
};

static int id;

static int send(long type, const char *text, int flags) {
    struct message message = {.type = type};
    strcpy(message.text, text);
    return msgsnd(id, &message, strlen(text) + 1, flags);
}

static void receive(size_t bytes, long type, int flags) {
    static struct message message;
    memset(&message, 0, sizeof message);
    errno = 0;
    long result = msgrcv(id, &message, bytes, type, flags);
    printf("msgrcv %zu %ld %#o = %ld %s %ld %.16s\n", bytes, type, flags, result,
           result < 0 ? strerrorname_np(errno) : "", message.type, message.text);
    fflush(stdout);
}

static void print_status(void) {
    struct msqid_ds ds;
    memset(&ds, 0x55, sizeof ds);
    SHOW(msgctl(id, IPC_STAT, &ds));
    printf("key %#x mode %o owner %u:%u %lu messages of %lu bytes, at most %lu, sent by me %d received %d times %d%d%d\n",
           ds.msg_perm.__key, ds.msg_perm.mode, ds.msg_perm.uid, ds.msg_perm.gid, ds.msg_qnum, ds.__msg_cbytes,
           ds.msg_qbytes, ds.msg_lspid == getpid(), ds.msg_lrpid == getpid(), ds.msg_stime != 0, ds.msg_rtime != 0,
           ds.msg_ctime != 0);
}

static void handler(int signal) { (void)signal; }

/* A child that receives, or sends where SIZE is not 0, and says what came of it; returns when it sleeps. */
static pid_t child(long type, int size, int restart) {
    fflush(stdout);
    pid_t pid = fork();
    if (!pid) {
        sigaction(SIGUSR1, &(struct sigaction){.sa_handler = handler, .sa_flags = restart ? SA_RESTART : 0}, NULL);
        if (size) {
            static struct message message = {.type = 1};
            int result = msgsnd(id, &message, size, 0);
            printf("child: %d %s\n", result, result ? strerrorname_np(errno) : "");
            fflush(stdout);
        } else {
            receive(100, type, 0);
        }
        _exit(0);
    }
    char path[64], state = 0;
    sprintf(path, "/proc/%d/stat", pid);
    while (state != 'S') {
        FILE *stat = fopen(path, "r");
        if (fscanf(stat, "%*d %*s %c", &state) != 1)
            state = 0;
        fclose(stat);
        sched_yield();
    }
    return pid;
}

int main(void) {
    msgctl(msgget(key, 0), IPC_RMID, NULL);
    TITLE("msgget");
    SHOW(msgget(key, 0600));
    id = msgget(key, 0640 | IPC_CREAT | IPC_EXCL);
    SHOW(msgget(key, 0600 | IPC_CREAT | IPC_EXCL));
    SHOW(msgget(key, 0600) == id);
    print_status();

    TITLE("msgsnd");
    SHOW(send(0, "x", 0));
    SHOW(send(-1, "x", 0));
    SHOW(msgsnd(id, NULL, 1, 0));
    SHOW(msgsnd(id, &(struct message){1, ""}, 8193, 0));
    SHOW(msgsnd(id, &(struct message){1, ""}, -1, 0));
    SHOW(msgsnd(-1, &(struct message){1, ""}, 1, 0));
    SHOW(msgsnd(id + 0x7fff, &(struct message){1, ""}, 1, 0));
    SHOW(send(3, "three", 0));
    SHOW(send(1, "one", 0));
    SHOW(send(2, "two", 0));
    SHOW(send(1, "one more", 0));
    SHOW(msgsnd(id, &(struct message){7, ""}, 0, 0));
    print_status();

    TITLE("msgrcv");
    receive(100, 5, IPC_NOWAIT);
    receive(3, 3, IPC_NOWAIT);
    receive(-1, 0, IPC_NOWAIT);
    receive(100, 0, IPC_NOWAIT | MSG_COPY);
    receive(100, 2, IPC_NOWAIT | MSG_COPY);
    receive(2, 2, IPC_NOWAIT | MSG_COPY);
    receive(100, 9, IPC_NOWAIT | MSG_COPY);
    receive(100, 0, MSG_COPY);
    receive(100, 0, IPC_NOWAIT | MSG_COPY | MSG_EXCEPT);
    receive(3, 3, IPC_NOWAIT | MSG_NOERROR);
    receive(100, -2, 0);
    receive(100, -2, 0);
    receive(100, 7, MSG_EXCEPT);
    receive(100, 0, 0);
    receive(100, 0, IPC_NOWAIT);
    SHOW(msgrcv(id + 0x7fff, NULL, 1, 0, IPC_NOWAIT));
    send(1, "lost", 0);
    SHOW(msgrcv(id, NULL, 100, 0, IPC_NOWAIT));
    print_status();

    TITLE("waiting");
    pid_t pid = child(4, 0, 0);
    SHOW(send(3, "not this", 0));
    SHOW_AFTER(pid, send(4, "but this", 0));
    print_status();
    pid = child(-2, 0, 0);
    static struct message large = {.type = 2};
    SHOW_AFTER(pid, msgsnd(id, &large, 200, 0)); /* too large for the one that waits */
    print_status();
    for (int restart = 0; restart < 2; restart++) {
        pid = child(9, 0, restart);
        kill(pid, SIGUSR1);
        waitpid(pid, NULL, 0);
    }
    while (!msgsnd(id, &large, 1000, IPC_NOWAIT))
        ;
    SHOW(msgsnd(id, &large, 1000, IPC_NOWAIT));
    print_status();
    pid = child(0, 1000, 0);
    receive(10000, 0, 0);
    receive(10000, 0, 0);
    SHOW_AFTER(pid, msgrcv(id, &large, 10000, 0, 0));
    print_status();
    struct msqid_ds ds;
    msgctl(id, IPC_STAT, &ds);
    ds.msg_qbytes = 1000; /* less than there is */
    SHOW(msgctl(id, IPC_SET, &ds));
    while (msgrcv(id, &large, sizeof large.text, 0, IPC_NOWAIT) >= 0)
        ;
    pid = child(0, 8000, 0);
    ds.msg_qbytes = 16384;
    ds.msg_perm.mode = 0606;
    SHOW_AFTER(pid, msgctl(id, IPC_SET, &ds));
    large.type = 2;
    SHOW(msgsnd(id, &large, 1000, 0));
    print_status();

    TITLE("msgctl");
    SHOW(msgctl(id, IPC_STAT, NULL));
    SHOW(msgctl(id, IPC_SET, NULL));
    SHOW(msgctl(id, 99, NULL));
    SHOW(msgctl(-1, IPC_STAT, &ds));
    SHOW(msgctl(id & 0x7fff, MSG_STAT, &ds) == id);
    struct msginfo info;
    SHOW(msgctl(0, IPC_INFO, (void *)&info) >= 0);
    printf("%d %d %d %d %d %d %d %u\n", info.msgpool, info.msgmap, info.msgmax, info.msgmnb, info.msgmni,
           info.msgssz, info.msgtql, info.msgseg);
    SHOW(msgctl(0, MSG_INFO, (void *)&info) >= 0);
    printf("%d queues, %d messages, %d bytes\n", info.msgpool, info.msgmap, info.msgtql);
    fflush(stdout);
    pid = fork();
    if (!pid) {
        setgid(1000);
        setuid(1000);
        SHOW(msgctl(id, IPC_SET, &ds));
        SHOW(msgctl(id, IPC_RMID, NULL));
        receive(10000, 2, IPC_NOWAIT | MSG_NOERROR);
        ds.msg_perm.mode = 0600;
        int mine = msgget(IPC_PRIVATE, 0400);
        msgctl(mine, IPC_STAT, &ds);
        SHOW(msgsnd(mine, &large, 10, IPC_NOWAIT));
        ds.msg_qbytes = 20000;
        SHOW(msgctl(mine, IPC_SET, &ds));
        SHOW(msgctl(mine, IPC_RMID, NULL));
        _exit(0);
    }
    waitpid(pid, NULL, 0);

    TITLE("IPC_RMID");
    pid = child(9, 0, 1);
    SHOW_AFTER(pid, msgctl(id, IPC_RMID, NULL));
    id = msgget(key, 0600 | IPC_CREAT);
    SHOW(msgsnd(id, &large, 8192, 0));
    SHOW(msgsnd(id, &large, 8192, 0));
    pid = child(0, 1, 1);
    SHOW_AFTER(pid, msgctl(id, IPC_RMID, NULL));
    SHOW(msgctl(id, IPC_STAT, &ds));
    fflush(stdout);
    system("cat /proc/sys/kernel/msgmax /proc/sys/kernel/msgmnb /proc/sys/kernel/msgmni; head -n 1 /proc/sysvipc/msg");
    return 0;
}

/* System V shared memory. Identifiers differ from run to run, so they are not printed. */
#include "show.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <sys/wait.h>

#ifndef SHM_STAT_ANY
#define SHM_STAT_ANY 15
#endif

static const key_t key = 0x54c0de01;

static struct shmid_ds status(int id) {
    struct shmid_ds ds;
    memset(&ds, 0x55, sizeof ds);
    if (shmctl(id, IPC_STAT, &ds))
        printf("IPC_STAT: %s\n", strerrorname_np(errno));
    return ds;
}

static void print_status(int id) {
    struct shmid_ds ds = status(id);
    printf("key %#x mode %o size %lu attached %lu owner %u:%u creator %u:%u by me %d last me %d times %d%d%d\n",
           ds.shm_perm.__key, ds.shm_perm.mode, ds.shm_segsz, ds.shm_nattch, ds.shm_perm.uid, ds.shm_perm.gid,
           ds.shm_perm.cuid, ds.shm_perm.cgid, ds.shm_cpid == getpid(), ds.shm_lpid == getpid(),
           ds.shm_atime != 0, ds.shm_dtime != 0, ds.shm_ctime != 0);
}

/* The end of each line of /proc/self/maps about a segment: rights and name. */
static void print_maps(void) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512], rights[8], name[256];
    while (fgets(line, sizeof line, maps)) {
        unsigned long start, end, offset, inode;
        unsigned major, minor;
        if (strstr(line, "SYSV") && sscanf(line, "%lx-%lx %7s %lx %x:%x %lu %255[^\n]", &start, &end, rights, &offset,
                                           &major, &minor, &inode, name) == 8)
            printf("%lu pages %s at %lx: %s\n", (end - start) / 4096, rights, offset, name);
    }
    fclose(maps);
}

/* In a child that has another user. */
static void as_user(int id) {
    TITLE("another user");
    if (!fork()) {
        SHOW(setgid(1000));
        SHOW(setuid(1000));
        struct shmid_ds ds;
        SHOW(shmctl(id, IPC_STAT, &ds));
        SHOW(shmctl(id, SHM_STAT_ANY, &ds) >= 0);
        SHOW(shmctl(id & 0x7fff, SHM_STAT, &ds) >= 0);
        SHOW(shmat(id, NULL, 0));
        SHOW(shmat(id, NULL, SHM_RDONLY));
        SHOW(shmctl(id, IPC_SET, &ds));
        SHOW(shmctl(id, IPC_RMID, NULL));
        SHOW(shmctl(id, SHM_LOCK, NULL));
        SHOW(shmctl(id, SHM_UNLOCK, NULL));
        SHOW(shmget(key, 0, 0600));
        SHOW(shmget(key, 0, 0) == id);
        int mine = shmget(IPC_PRIVATE, 4096, 0600);
        SHOW(shmctl(mine, SHM_LOCK, NULL));
        SHOW(status(mine).shm_perm.mode);
        SHOW(shmctl(mine, SHM_UNLOCK, NULL));
        SHOW(shmctl(mine, IPC_RMID, NULL));
        _exit(0);
    }
    wait(NULL);
}

int main(void) {
    shmctl(shmget(key, 0, 0), IPC_RMID, NULL); /* left by a run that was killed */
    TITLE("shmget");
    SHOW(shmget(key, 4096, 0600));
    SHOW(shmget(key, 0, 0600 | IPC_CREAT));
    SHOW(shmget(IPC_PRIVATE, -1, 0600));
    SHOW(shmget(IPC_PRIVATE, 1ul << 46, 0600));
    SHOW(shmget(IPC_PRIVATE, 4096, 0600 | SHM_HUGETLB));
    int id = shmget(key, 10000, 0640 | IPC_CREAT);
    SHOW(id >= 0);
    SHOW(shmget(key, 10000, 0640 | IPC_CREAT) == id);
    SHOW(shmget(key, 5000, 0) == id);
    SHOW(shmget(key, 10001, 0));
    SHOW(shmget(key, 10000, IPC_CREAT | IPC_EXCL));
    print_status(id);

    TITLE("shmat");
    SHOW(shmat(-1, NULL, 0));
    SHOW(shmat(id + 0x7fff, NULL, 0));
    char *first = shmat(id, NULL, 0);
    char *second = shmat(id, NULL, SHM_RDONLY);
    strcpy(first + 8190, "across pages");
    printf("%s\n", second + 8190);
    print_status(id);
    print_maps();
    SHOW(mprotect(second, 4096, PROT_READ | PROT_WRITE));
    SHOW(shmat(id, first, 0));
    SHOW(shmat(id, first + 1, 0));
    SHOW(shmat(id, NULL, SHM_REMAP));
    SHOW(shmat(id, (void *)1, SHM_REMAP | SHM_RND));
    char *place = mmap(NULL, 1 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    SHOW(shmat(id, place + 4096, 0));
    SHOW((char *)shmat(id, place + 4097, SHM_REMAP | SHM_RND) == place + 4096);
    SHOW(shmat(id, place + 20480, SHM_REMAP | SHM_EXEC) == place + 20480);
    print_status(id);
    print_maps();

    TITLE("shmdt");
    SHOW(shmdt(first + 1));
    SHOW(shmdt(first + 4096));
    SHOW(munmap(place + 8192, 4096)); /* a hole: two pieces of one attachment */
    print_status(id);
    print_maps();
    SHOW(shmdt(place + 4096));
    SHOW(shmdt(place + 20480));
    print_status(id);
    SHOW(mremap(second, 12288, 4096, 0) == second);
    print_status(id);
    SHOW(shmdt(second));
    SHOW(shmdt(second));
    print_status(id);

    TITLE("fork and exit");
    int pipes[2];
    pipe(pipes);
    pid_t child = fork();
    if (!child) {
        strcpy(first, "from the child");
        write(pipes[1], "", 1);
        pause();
    }
    char byte;
    read(pipes[0], &byte, 1);
    print_status(id);
    printf("%s\n", first);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    print_status(id);
    as_user(id);

    TITLE("shmctl");
    struct shmid_ds ds = status(id);
    ds.shm_perm.uid = 1000;
    ds.shm_perm.gid = 100;
    ds.shm_perm.mode = 0604;
    SHOW(shmctl(id, IPC_SET, &ds));
    print_status(id);
    ds.shm_perm.uid = -1;
    SHOW(shmctl(id, IPC_SET, &ds));
    SHOW(shmctl(id, IPC_SET, NULL));
    SHOW(shmctl(id, IPC_STAT, NULL));
    SHOW(shmctl(id, 99, NULL));
    SHOW(shmctl(id, -1, NULL));
    SHOW(shmctl(-1, IPC_STAT, &ds));
    SHOW(shmctl(id, SHM_LOCK, NULL));
    print_status(id);
    SHOW(shmctl(id, SHM_UNLOCK, NULL));
    SHOW(shmctl(id & 0x7fff, SHM_STAT, &ds) == id);
    struct shminfo info;
    SHOW(shmctl(0, IPC_INFO, (void *)&info) >= 0);
    printf("%lu %lu %lu %lu %lu\n", info.shmmax, info.shmmin, info.shmmni, info.shmseg, info.shmall);
    struct shm_info used;
    SHOW(shmctl(0, SHM_INFO, (void *)&used) >= 0);
    printf("%d %lu %lu\n", used.used_ids, used.shm_tot, used.shm_swp);

    TITLE("IPC_RMID");
    SHOW(shmctl(id, IPC_RMID, NULL));
    print_status(id);
    SHOW(shmget(key, 0, 0));
    strcpy(first, "still there");
    char *again = shmat(id, NULL, 0);
    printf("%s\n", again);
    SHOW(shmdt(again));
    SHOW(shmdt(first));
    SHOW(shmdt((void *)4096));
    SHOW(shmctl(id, IPC_STAT, &ds));
    SHOW(shmat(id, NULL, 0));
    system("cat /proc/sys/kernel/shmmax /proc/sys/kernel/shmall /proc/sys/kernel/shmmni /proc/sys/kernel/shm_rmid_forced; "
           "head -n 1 /proc/sysvipc/shm");
    return 0;
}

/* touch_memory MIB ROUNDS: maps MIB of anonymous memory, touches each page, unmaps; ns per round. */
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    size_t bytes = strtoul(argv[1], NULL, 10) << 20;
    for (long rounds = strtol(argv[2], NULL, 10); rounds > 0; rounds--) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 1;
        for (size_t at = 0; at < bytes; at += 4096)
            ((volatile char *)memory)[at] = 1;
        munmap(memory, bytes);
        clock_gettime(CLOCK_MONOTONIC, &end);
        printf("%ld\n", (end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec);
    }
    return 0;
}

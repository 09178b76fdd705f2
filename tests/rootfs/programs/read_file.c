/* read_file PATH BLOCK_BYTES ROUNDS: reads the whole file by blocks; `ns bytes checksum` per round. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    if (argc != 4)
        return 2;
    size_t block_bytes = strtoul(argv[2], NULL, 10);
    uint8_t *block = malloc(block_bytes);
    for (long rounds = strtol(argv[3], NULL, 10); rounds > 0; rounds--) {
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        int fd = open(argv[1], O_RDONLY);
        if (fd < 0)
            return 1;
        long total = 0, got;
        uint64_t checksum = 0;
        while ((got = read(fd, block, block_bytes)) > 0) {
            total += got;
            checksum = checksum * 31 + block[0] + block[got - 1];
        }
        close(fd);
        clock_gettime(CLOCK_MONOTONIC, &end);
        if (got < 0)
            return 1;
        long ns = (end.tv_sec - begin.tv_sec) * 1000000000L + end.tv_nsec - begin.tv_nsec;
        printf("%ld %ld %lu\n", ns, total, checksum);
    }
    return 0;
}

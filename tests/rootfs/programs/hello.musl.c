/* A program of another C library: arguments, environment, stdio, threads with their own storage. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static _Thread_local long own;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long total;

static void *count(void *argument) {
    for (int i = 0; i < 20000; i++) {
        own += (long)argument;
        pthread_mutex_lock(&mutex);
        total++;
        pthread_mutex_unlock(&mutex);
    }
    return (void *)own;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++)
        printf("argument %d: %s\n", i, argv[i]);
    printf("HOME=%s\n", getenv("HOME"));
    pthread_t threads[4];
    for (long i = 0; i < 4; i++)
        if (pthread_create(&threads[i], NULL, count, (void *)(i + 1)))
            return 2;
    for (int i = 0; i < 4; i++) {
        void *result;
        pthread_join(threads[i], &result);
        printf("thread %d: %ld\n", i, (long)result);
    }
    printf("total: %ld, own: %ld\n", total, own);
    struct timespec before, after, pause = {0, 20000000};
    clock_gettime(CLOCK_MONOTONIC, &before);
    nanosleep(&pause, NULL);
    clock_gettime(CLOCK_MONOTONIC, &after);
    long slept_ns = (after.tv_sec - before.tv_sec) * 1000000000L + after.tv_nsec - before.tv_nsec;
    printf("slept long enough: %d\n", slept_ns >= 20000000);
    FILE *file = fopen("/tmp/musl", "w+");
    fprintf(file, "%.17g %s\n", 0.1, strerror(2));
    rewind(file);
    char line[100];
    printf("%s", fgets(line, sizeof line, file));
    return 7;
}

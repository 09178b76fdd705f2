/* What debuggers are tried on: debugged [threads|forks|crash]. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

volatile long counter = 3;

__attribute__((noinline, noclone)) long innermost(long depth) {
    counter += depth;
    return counter;
}

__attribute__((noinline, noclone)) long recursive(long depth) {
    if (depth == 0)
        return innermost(counter) + 1;
    return recursive(depth - 1) * 2 + 1;
}

static void *in_thread(void *argument) {
    for (int n = 0; n < 1000; n++)
        (void)getppid();
    return (void *)innermost((long)argument);
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    if (!strcmp(kind, "threads")) {
        pthread_t threads[4];
        for (long n = 0; n < 4; n++) {
            pthread_create(&threads[n], NULL, in_thread, (void *)n);
            pthread_join(threads[n], NULL);
        }
    } else if (!strcmp(kind, "forks")) {
        pid_t child = fork();
        if (child == 0)
            _exit((int)innermost(1));
        int status;
        waitpid(child, &status, 0);
        printf("child: %d\n", WEXITSTATUS(status));
    } else if (!strcmp(kind, "crash")) {
        *(volatile char *)counter = 1;
    }
    printf("%ld\n", recursive(4));
    return (int)counter;
}

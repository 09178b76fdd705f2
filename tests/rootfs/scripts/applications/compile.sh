#!/bin/bash
# gcc compiling and running a program, by make.
set -eu
cd "$(mktemp -d)"
cat >sum.h <<'END'
long sum(const int *numbers, int count);
END
cat >sum.c <<'END'
#include "sum.h"
long sum(const int *numbers, int count) {
    long total = 0;
    for (int i = 0; i < count; i++)
        total += numbers[i];
    return total;
}
END
cat >main.c <<'END'
#include "sum.h"
#include <math.h>
#include <pthread.h>
#include <stdio.h>
static int numbers[1000];
static void *work(void *result) {
    *(long *)result = sum(numbers, 1000);
    return 0;
}
int main(void) {
    for (int i = 0; i < 1000; i++)
        numbers[i] = i * i;
    long result = 0;
    pthread_t thread;
    pthread_create(&thread, 0, work, &result);
    pthread_join(thread, 0);
    printf("%ld %.6f\n", result, sqrt((double)result));
    return result == 332833500 ? 0 : 1;
}
END
printf 'CFLAGS = -O2 -Wall -g\nmain: main.o sum.o\n\t$(CC) -o $@ $^ -lm -pthread\nmain.o sum.o: sum.h\n' >Makefile
make -s -j2 CC=gcc
./main
ar rcs libsum.a sum.o && ranlib libsum.a && nm libsum.a | grep sum
gcc -shared -fPIC -o libsum.so sum.c && gcc -o dynamic main.c -L. -lsum -lm -Wl,-rpath,"$PWD" && ./dynamic
gcc -static -o static main.c sum.c -lm && ./static
echo 'int main(void) { return missing; }' | gcc -x c - -o no 2>&1 | grep -c undeclared
make -s CC=gcc && echo "nothing left to do"

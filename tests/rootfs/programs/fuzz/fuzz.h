/* A random program of system calls: what its parts share. Every step draws from a generator of its
 * own, seeded by program and step, so that a step does the same when others are left out. */
#pragma once
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(ARRAY) (sizeof(ARRAY) / sizeof *(ARRAY))

/* Chance. */
uint64_t draw(void);
unsigned below(unsigned n);
bool one_in(unsigned n);
#define PICK(ARRAY) ((ARRAY)[below(COUNT(ARRAY))])

/* A constant with its name; NAMED(O_RDWR). */
struct named {
    const char *name;
    long value;
};
#define NAMED(CONSTANT) {#CONSTANT, CONSTANT}
/* Any set of the COUNT flags at FLAGS, each with a chance of 1 in RARITY; its names go to `flag_names`. */
long pick_flags(const struct named *flags, unsigned count, unsigned rarity);
extern char flag_names[256];

/* What is printed. A step is one line: the call, its result, and what else it gave. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
long result(long value);
void say_bytes(const void *bytes, long count);

/* Descriptors of the run itself, out of the program's way: where lines go, and /proc. */
enum { OUTPUT = 900, PROC = 901 };

/* Descriptors that the program has made, some of them closed behind its back. */
enum { SLOTS = 12 };
extern int slots[SLOTS];
int keep(int fd);
int any_fd(void);

/* Some bytes to write: `count` letters that `letter` begins. */
const char *some_bytes(unsigned count);

/* Names that steps share, so that they meet. */
const char *any_name(void);

/* One step of the program, or COUNT of them inside a child or thread. */
void run_steps(unsigned count);
extern unsigned depth;
/* Not all that a step can do makes sense inside a thread. */
extern bool in_thread;

typedef void step(void);
struct choice {
    step *step;
    unsigned weight;
};
struct subject {
    const char *name;
    const struct choice *choices;
    unsigned count;
};
extern const struct subject files, names, pipes, memory, processes, signals, events, sockets;

/* Signals that have been handled since the last line was printed are told by it. */
void begin_signals(void);
void say_signals(void);

/* What the check programs share: a line for each check, and a count of those that failed. */
#pragma once
#include <errno.h>
#include <stdio.h>
#include <string.h>

static int check_failures;

/* Prints NAME and whether CONDITION holds, with errno's name where it does not. */
#define CHECK(NAME, CONDITION)                                                                     \
    do {                                                                                           \
        errno = 0;                                                                                 \
        int check_ok = !!(CONDITION);                                                              \
        if (check_ok)                                                                              \
            printf("%s: ok\n", NAME);                                                              \
        else                                                                                       \
            printf("%s: FAILED (errno %d, %s)\n", NAME, errno, strerror(errno));                   \
        check_failures += !check_ok;                                                               \
        fflush(stdout);                                                                            \
    } while (0)

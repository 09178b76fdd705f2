/* What the comparison programs share: each call is printed with its result, for a native run to be compared with. */
#pragma once
/* These programs pass bad pointers and sizes on purpose, and look at effects rather than at every result. */
#pragma GCC diagnostic ignored "-Wstringop-overflow"
#pragma GCC diagnostic ignored "-Wstringop-overread"
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wnonnull"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Prints the call, what it returned and, for -1, the error. */
#define SHOW(CALL)                                                                                 \
    ({                                                                                             \
        errno = 0;                                                                                 \
        long show_result = (long)(CALL);                                                           \
        int show_errno = errno;                                                                    \
        printf("%s = %ld%s%s\n", #CALL, show_result, show_result == -1 ? " " : "",                 \
               show_result == -1 ? strerrorname_np(show_errno) : "");                              \
        fflush(stdout);                                                                            \
        show_result;                                                                               \
    })

#define TITLE(TEXT) (printf("-- %s\n", TEXT), fflush(stdout))

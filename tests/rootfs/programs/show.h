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

/* As SHOW, printed once a child has said what it has to say. */
#define SHOW_AFTER(CHILD, CALL)                                                                    \
    ({                                                                                             \
        errno = 0;                                                                                 \
        long after_result = (long)(CALL);                                                          \
        int after_errno = errno;                                                                   \
        waitpid(CHILD, NULL, 0);                                                                   \
        printf("%s = %ld%s%s\n", #CALL, after_result, after_result == -1 ? " " : "",               \
               after_result == -1 ? strerrorname_np(after_errno) : "");                            \
        fflush(stdout);                                                                            \
    })

#define TITLE(TEXT) (printf("-- %s\n", TEXT), fflush(stdout))

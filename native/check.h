/* CHECK: a violation prints what failed and aborts, which both a test run and libFuzzer report. */
#ifndef TRAILBOSS_CHECK_H
#define TRAILBOSS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                \
    do {                                                                                                \
        if (!(condition)) {                                                                             \
            (void)fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);             \
            abort();                                                                                    \
        }                                                                                               \
    } while (0)

#endif

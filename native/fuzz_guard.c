/*
 * libFuzzer target: any bytes, taken as lines, as an environment and as a stat, mean the same in whatever pieces they come,
 * and not one byte besides is touched (ASan). Seeds: native/corpus_guard.
 */
#include "check_guard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *copy = malloc(size + 1);

    CHECK(copy != NULL);
    memcpy(copy, data, size);
    copy[size] = '\0';
    check_bytes(copy, size);
    free(copy);
    return 0;
}

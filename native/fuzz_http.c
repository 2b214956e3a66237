/*
 * libFuzzer target: any bytes, taken as a request's head and as an answer's context, are either not plain or keep to the
 * rules, and not one byte past the input or the output is touched (ASan). Seeds: native/corpus_http.
 */
#include "check_http.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_bytes(data, size);
    return 0;
}

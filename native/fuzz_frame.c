/*
 * libFuzzer target: for any bytes, probe and walk agree with an independent reader, a frame's header is given
 * back by the encoder, and not one byte past the input is read (ASan). Seeds: native/corpus.
 */
#include "check_frame.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *repaired = NULL;

    check_bytes(data, size);
    if (size < 12) {
        return 0;
    }
    /* The same bytes with a right CRC, because a fuzzer finds what lies behind it only now and then. */
    repaired = malloc(size);
    CHECK(repaired != NULL);
    memcpy(repaired, data, size);
    for (uint32_t index = 0, crc = check_crc(data, 6); index < 4; index++) {
        repaired[6 + index] = (uint8_t)(crc >> (8 * index));
    }
    check_bytes(repaired, size);
    free(repaired);
    return 0;
}

/*
 * What must be true of the frame codec for any bytes: shared by the unit tests and the fuzz target.
 *
 * An independent reader (bit by bit CRC, no tables, written from the protocol's text) says what to expect; probe,
 * walk and encoder are held to it under several settings. A violation prints what failed and aborts, which both
 * a test run and libFuzzer report.
 */
#ifndef TRAILBOSS_CHECK_FRAME_H
#define TRAILBOSS_CHECK_FRAME_H

#include "check.h"
#include "frame.h"

#include <stdbool.h>
#include <string.h>

struct check_expectation {
    int64_t result; /* what the probe has to return */
    uint64_t missing;
    uint32_t error;
};

static uint32_t check_crc(const uint8_t *data, size_t size)
{
    uint32_t crc = 0xffffffffu;
    for (size_t index = 0; index < size; index++) {
        crc ^= data[index];
        for (int bit = 0; bit < 8; bit++) {
            crc = (crc & 1u) != 0 ? (crc >> 1) ^ 0xedb88320u : crc >> 1;
        }
    }
    return ~crc;
}

static uint32_t check_u32(const uint8_t *bytes)
{
    uint32_t value = 0;
    for (int index = 3; index >= 0; index--) {
        value = value * 256u + bytes[index];
    }
    return value;
}

static struct check_expectation check_malformed(uint32_t error)
{
    return (struct check_expectation){TRAILBOSS_FRAME_MALFORMED, 0, error};
}

/* The checks of the wire protocol, in its order. */
static struct check_expectation check_expect(const uint8_t *data, uint64_t available, uint64_t cap,
                                             bool strict)
{
    uint64_t total = 0;

    if (available < 12) {
        return (struct check_expectation){TRAILBOSS_FRAME_INCOMPLETE, 12 - available, TRAILBOSS_FRAME_OK};
    }
    if (memcmp(data, "Could not op", 12) == 0) {
        return check_malformed(TRAILBOSS_FRAME_FILE_NOT_FOUND);
    }
    if (check_crc(data, 6) != check_u32(data + 6)) {
        return check_malformed(TRAILBOSS_FRAME_BAD_CRC);
    }
    if (strict && data[0] / 16 != 1) {
        return check_malformed(TRAILBOSS_FRAME_VERSION);
    }
    if (data[0] % 16 < 3 || data[0] % 16 > 13) {
        return check_malformed(TRAILBOSS_FRAME_HEADER_LEN);
    }
    if (check_u32(data + 2) > cap) {
        return check_malformed(TRAILBOSS_FRAME_TOO_LARGE);
    }
    total = 4 * (uint64_t)(data[0] % 16) + check_u32(data + 2);
    if (available < total) {
        return (struct check_expectation){TRAILBOSS_FRAME_INCOMPLETE, total - available, TRAILBOSS_FRAME_OK};
    }
    return (struct check_expectation){(int64_t)total, 0, TRAILBOSS_FRAME_OK};
}

/* A whole frame's record says what its bytes say, and the encoder gives those bytes back. */
static void check_record(const uint8_t *data, size_t offset, int64_t total, const struct trailboss_frame *frame)
{
    const uint8_t *head = data + offset;
    const size_t header_size = 4u * (head[0] % 16u);
    uint8_t header[TRAILBOSS_FRAME_HEADER_SIZE_MAX];

    CHECK(frame->flags == head[1]);
    CHECK(frame->stream == head[10]);
    CHECK(frame->reserved == head[11]);
    CHECK(frame->payload_length == check_u32(head + 2));
    CHECK(frame->payload_offset == offset + header_size);
    CHECK((int64_t)(header_size + frame->payload_length) == total);
    CHECK(frame->option_count == header_size / 4 - 3);
    for (size_t index = 0; index < frame->option_count; index++) {
        CHECK(frame->options[index] == check_u32(head + 12 + 4 * index));
    }
    CHECK(trailboss_frame_encode_header(header, frame->flags, frame->stream, frame->options, frame->option_count,
                                        frame->payload_length) == (int32_t)header_size);
    if (head[0] / 16 == 1 && head[11] == 0) {
        CHECK(memcmp(header, head, header_size) == 0);
    }
}

/* Walks the whole buffer in one call of each capacity, against repeated probes, against the expectation. */
static void check_settings(const uint8_t *data, size_t size, uint64_t cap, bool strict)
{
    struct trailboss_frame frames[8];
    struct trailboss_frame frame;
    struct trailboss_frame_end end;
    struct trailboss_frame_end walk_end;
    size_t position = 0;
    uint32_t in_walk = 0; /* frames left in what the last walk found */
    uint32_t walked = 0;

    for (;;) {
        const struct check_expectation expected = check_expect(data + position, size - position, cap, strict);
        int64_t result = 0;

        if (in_walk == 0) {
            walked = trailboss_frame_walk(data, size, position, cap, strict, frames, 8, &walk_end);
            CHECK(walked == walk_end.count);
            CHECK(walk_end.consumed <= size - position);
            in_walk = walked;
        }
        memset(&end, 0xff, sizeof end);
        result = trailboss_frame_probe(data, size, position, cap, strict, &frame, &end);
        CHECK(result == expected.result);
        CHECK(end.missing == expected.missing);
        CHECK(end.error == expected.error);
        if (result < 0) {
            CHECK(end.count == 0 && end.consumed == 0);
            CHECK(in_walk == 0 && walked < 8);
            CHECK(walk_end.missing == expected.missing);
            CHECK(walk_end.error == expected.error);
            return;
        }
        CHECK(end.count == 1 && end.consumed == (uint64_t)result);
        CHECK(in_walk > 0);
        check_record(data, position, result, &frame);
        check_record(data, position, result, &frames[walked - in_walk]);
        position += (size_t)result;
        in_walk -= 1;
    }
}

static void check_bytes(const uint8_t *data, size_t size)
{
    static const uint64_t caps[] = {64u * 1024 * 1024, 0, 16, UINT32_MAX, UINT64_MAX};

    for (size_t index = 0; index < sizeof caps / sizeof caps[0]; index++) {
        check_settings(data, size, caps[index], true);
        check_settings(data, size, caps[index], false);
    }
}

#endif

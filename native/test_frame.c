/*
 * Unit tests of the frame codec. Usage: test_frame FOLDER, a folder of byte strings (native/corpus).
 *
 * Each is checked whole, at every length, and with junk behind it; see guarded.h.
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS */

#include "check_frame.h"
#include "guarded.h"

static size_t encode(uint8_t *frame, uint8_t flags, const uint32_t *options, size_t option_count,
                     const char *payload)
{
    const size_t payload_length = strlen(payload);
    const int32_t header_size =
        trailboss_frame_encode_header(frame, flags, 0, options, option_count, payload_length);

    CHECK(header_size > 0);
    memcpy(frame + header_size, payload, payload_length);
    return (size_t)header_size + payload_length;
}

static int64_t probe(const void *data, size_t size, uint64_t cap, struct trailboss_frame_end *end)
{
    struct trailboss_frame frame;

    return trailboss_frame_probe(guarded(data, size), size, 0, cap, 1, &frame, end);
}

/* Writes the right CRC into a header that was changed by hand. */
static void repair(uint8_t *head)
{
    const uint32_t crc = check_crc(head, 6);

    for (size_t index = 0; index < 4; index++) {
        head[6 + index] = (uint8_t)(crc >> (8 * index));
    }
}

static void test_known_bytes(void)
{
    static const uint8_t expected[] = {0x14, 0x04, 0x07, 0, 0, 0, 0x57, 0x7f, 0xd2, 0x41, 0, 0, 3,
                                       0,    0,    0,    'c', 't', 'x', 'b', 'o', 'd', 'y'};
    const uint32_t option = 3;
    uint8_t frame[64];

    CHECK(encode(frame, 0x04, &option, 1, "ctxbody") == sizeof expected);
    CHECK(memcmp(frame, expected, sizeof expected) == 0);
}

static void test_every_error(void)
{
    struct trailboss_frame_end end;
    uint8_t frame[64];
    const size_t size = encode(frame, 0x80, NULL, 0, "payload");

    CHECK(probe(frame, size, 7, &end) == (int64_t)size);
    CHECK(probe(frame, size, 6, &end) == TRAILBOSS_FRAME_MALFORMED && end.error == TRAILBOSS_FRAME_TOO_LARGE);
    CHECK(probe("Could not open input file: x", 28, 7, &end) == TRAILBOSS_FRAME_MALFORMED);
    CHECK(end.error == TRAILBOSS_FRAME_FILE_NOT_FOUND);
    frame[2] ^= 1;
    CHECK(probe(frame, size, 9, &end) == TRAILBOSS_FRAME_MALFORMED && end.error == TRAILBOSS_FRAME_BAD_CRC);
    frame[2] ^= 1;
    for (unsigned int first = 0; first < 256; first++) {
        const unsigned int words = first % 16;

        frame[0] = (uint8_t)first;
        repair(frame);
        if (first / 16 != 1) {
            CHECK(probe(frame, size, 9, &end) == TRAILBOSS_FRAME_MALFORMED && end.error == TRAILBOSS_FRAME_VERSION);
        } else if (words < 3 || words > 13) {
            CHECK(probe(frame, size, 9, &end) == TRAILBOSS_FRAME_MALFORMED);
            CHECK(end.error == TRAILBOSS_FRAME_HEADER_LEN);
        } else {
            CHECK(probe(frame, size, 9, &end) == (words == 3 ? (int64_t)size : TRAILBOSS_FRAME_INCOMPLETE));
        }
    }
}

/* The largest frame there can be is announced without an overflow anywhere. */
static void test_largest_frame(void)
{
    const uint32_t options[TRAILBOSS_FRAME_OPTION_COUNT_MAX] = {1, 2, 3, 4, 5, 6, 7, 8, 9, UINT32_MAX};
    struct trailboss_frame_end end;
    uint8_t header[TRAILBOSS_FRAME_HEADER_SIZE_MAX];

    CHECK(trailboss_frame_encode_header(header, 0xff, 0xff, options, 10, UINT32_MAX) == 52);
    CHECK(probe(header, 52, UINT64_MAX, &end) == TRAILBOSS_FRAME_INCOMPLETE && end.missing == UINT32_MAX);
    CHECK(probe(header, 12, UINT64_MAX, &end) == TRAILBOSS_FRAME_INCOMPLETE);
    CHECK(end.missing == 40 + (uint64_t)UINT32_MAX);
    CHECK(probe(header, 52, UINT32_MAX - 1, &end) == TRAILBOSS_FRAME_MALFORMED);
}

static void test_encoder_refuses(void)
{
    const uint32_t options[11] = {0};
    uint8_t header[TRAILBOSS_FRAME_HEADER_SIZE_MAX] = {0};
    const uint8_t untouched[TRAILBOSS_FRAME_HEADER_SIZE_MAX] = {0};

    CHECK(trailboss_frame_encode_header(header, 1, 1, options, 11, 1) == TRAILBOSS_FRAME_MALFORMED);
    CHECK(trailboss_frame_encode_header(header, 1, 1, options, SIZE_MAX, 1) == TRAILBOSS_FRAME_MALFORMED);
    CHECK(trailboss_frame_encode_header(header, 1, 1, NULL, 0, (uint64_t)UINT32_MAX + 1) ==
          TRAILBOSS_FRAME_MALFORMED);
    CHECK(memcmp(header, untouched, sizeof header) == 0);
}

static void test_offsets(void)
{
    struct trailboss_frame frames[4];
    struct trailboss_frame_end end;
    uint8_t stream[256];
    size_t size = 0;
    const uint8_t *data = NULL;

    for (int count = 0; count < 5; count++) {
        size += encode(stream + size, (uint8_t)count, NULL, 0, "x");
    }
    data = guarded(stream, size);
    CHECK(trailboss_frame_walk(data, size, 0, 9, 1, frames, 4, &end) == 4);
    CHECK(end.consumed == 52 && end.missing == 0 && end.error == TRAILBOSS_FRAME_OK);
    CHECK(trailboss_frame_walk(data, size, 52, 9, 1, frames, 4, &end) == 1);
    CHECK(frames[0].flags == 4 && frames[0].payload_offset == 64 && end.consumed == 13 && end.missing == 12);
    CHECK(trailboss_frame_walk(data, size, 0, 9, 1, frames, 0, &end) == 0 && end.consumed == 0 && end.missing == 0);
    CHECK(trailboss_frame_probe(data, size, size, 9, 1, frames, &end) == TRAILBOSS_FRAME_INCOMPLETE);
    CHECK(trailboss_frame_probe(data, size, SIZE_MAX, 9, 1, frames, &end) == TRAILBOSS_FRAME_INCOMPLETE);
    CHECK(end.missing == 12);
}

/* One byte string: whole, at every length, and with junk behind it. */
static void test_bytes(const uint8_t *bytes, size_t size)
{
    static const char junk[] = "\n<br />\n<b>Warning</b>";
    uint8_t with_junk[INPUT_SIZE_MAX];

    for (size_t length = 0; length <= size; length++) {
        check_bytes(guarded(bytes, length), length);
    }
    memcpy(with_junk, bytes, size);
    memcpy(with_junk + size, junk, sizeof junk - 1);
    check_bytes(guarded(with_junk, size + sizeof junk - 1), size + sizeof junk - 1);
}

int main(int argument_count, char **arguments)
{
    unsigned int count = 0;

    CHECK(argument_count == 2);
    open_guarded_area();
    test_known_bytes();
    test_every_error();
    test_largest_frame();
    test_encoder_refuses();
    test_offsets();
    count = test_folder(arguments[1], test_bytes);
    CHECK(count > 100);
    (void)printf("frame codec: %u byte strings checked\n", count);
    return 0;
}

/*
 * The goridge frame: probe a header, walk a buffer of frames, write a header.
 *
 * Theory of operation. The caller owns all memory; nothing here allocates, does I/O, keeps state or
 * touches Python. A frame is a header of 12 to 52 bytes and a payload whose length the header names:
 *
 *   byte 0       version in the high nibble, header length in 4-byte words (HL, 3..13) in the low one
 *   byte 1       flags
 *   bytes 2-5    payload length, u32 little-endian
 *   bytes 6-9    CRC-32 (the one of zlib) over bytes 0-5
 *   byte 10      stream bits
 *   byte 11      reserved
 *   then         HL-3 options, u32 little-endian, then the payload
 *
 * The CRC is checked before any other field is believed, sizes before anybody could reserve memory for
 * them. "Incomplete" and "malformed" are different numbers, told apart with the 12th byte. The payload
 * is never read and never copied; results are offsets into the caller's buffer.
 */
#ifndef TRAILBOSS_FRAME_H
#define TRAILBOSS_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define TRAILBOSS_FRAME_HEADER_SIZE_MIN 12
#define TRAILBOSS_FRAME_HEADER_SIZE_MAX 52
#define TRAILBOSS_FRAME_OPTION_COUNT_MAX 10

/* What a probe returns when it does not return the size of a whole frame. */
#define TRAILBOSS_FRAME_MALFORMED (-1)
#define TRAILBOSS_FRAME_INCOMPLETE (-2)

/* Why a frame is malformed (or a header is refused by the encoder). */
#define TRAILBOSS_FRAME_OK 0
#define TRAILBOSS_FRAME_BAD_CRC 1
#define TRAILBOSS_FRAME_VERSION 2
#define TRAILBOSS_FRAME_HEADER_LEN 3
#define TRAILBOSS_FRAME_TOO_LARGE 4
#define TRAILBOSS_FRAME_FILE_NOT_FOUND 5

struct trailboss_frame {
    uint64_t payload_offset; /* from the start of the buffer; the options lie right before it */
    uint32_t payload_length;
    uint8_t flags;
    uint8_t stream;
    uint8_t option_count;
    uint8_t reserved;
    uint32_t options[TRAILBOSS_FRAME_OPTION_COUNT_MAX]; /* only the first option_count are written */
};

/* How a probe or a walk ended; all fields are written by every call. */
struct trailboss_frame_end {
    uint64_t missing;  /* bytes until the next frame, or its 12-byte head, is whole; 0 when malformed */
    uint64_t consumed; /* bytes of the whole frames found */
    uint32_t count;    /* whole frames found */
    uint32_t error;    /* TRAILBOSS_FRAME_OK, or why the next frame is malformed */
};

/*
 * Looks at the frame that starts at data[offset]. Returns its total size (> 0) when all of it is there,
 * TRAILBOSS_FRAME_INCOMPLETE (end->missing says how many bytes more) or TRAILBOSS_FRAME_MALFORMED
 * (end->error says why; no more bytes will change it). `frame` is written when the size is returned.
 * A payload of exactly payload_cap bytes is allowed. With strict_version 0 any version is taken.
 */
int64_t trailboss_frame_probe(const uint8_t *data, size_t size, size_t offset, uint64_t payload_cap,
                              int strict_version, struct trailboss_frame *frame,
                              struct trailboss_frame_end *end);

/*
 * Finds every whole frame in data[offset..size), at most `capacity` of them. Returns how many. When the
 * capacity is used up, end->missing and end->error are 0 and the caller continues at
 * offset + end->consumed.
 */
uint32_t trailboss_frame_walk(const uint8_t *data, size_t size, size_t offset, uint64_t payload_cap,
                              int strict_version, struct trailboss_frame *frames, uint32_t capacity,
                              struct trailboss_frame_end *end);

/*
 * Writes a header (version 1, reserved byte 0) into `header`, which has room for
 * TRAILBOSS_FRAME_HEADER_SIZE_MAX bytes. Returns its size, or TRAILBOSS_FRAME_MALFORMED for more than
 * TRAILBOSS_FRAME_OPTION_COUNT_MAX options or a payload that 32 bits cannot count; then nothing is
 * written. `options` may be NULL when option_count is 0.
 */
int32_t trailboss_frame_encode_header(uint8_t *header, uint8_t flags, uint8_t stream,
                                      const uint32_t *options, size_t option_count,
                                      uint64_t payload_length);

#endif

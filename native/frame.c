/*
 * The goridge frame codec; frame.h says what it promises.
 *
 * The order of checks in `check_head` is the order of the wire protocol (1.5): the text of an
 * interpreter that cannot open its script, the CRC, the version, the header length, the payload cap.
 * Garbage therefore fails with its 12th byte instead of waiting for the bytes that a random length
 * announces. Lengths from the wire are widened to 64 bits before they are added to anything.
 */
#include "frame.h"

#include <string.h>

/* CRC-32/ISO-HDLC (reflected, polynomial 0xEDB88320), one entry per byte value. */
static const uint32_t crc_table[256] = {
    0x00000000u, 0x77073096u, 0xee0e612cu, 0x990951bau, 0x076dc419u, 0x706af48fu,
    0xe963a535u, 0x9e6495a3u, 0x0edb8832u, 0x79dcb8a4u, 0xe0d5e91eu, 0x97d2d988u,
    0x09b64c2bu, 0x7eb17cbdu, 0xe7b82d07u, 0x90bf1d91u, 0x1db71064u, 0x6ab020f2u,
    0xf3b97148u, 0x84be41deu, 0x1adad47du, 0x6ddde4ebu, 0xf4d4b551u, 0x83d385c7u,
    0x136c9856u, 0x646ba8c0u, 0xfd62f97au, 0x8a65c9ecu, 0x14015c4fu, 0x63066cd9u,
    0xfa0f3d63u, 0x8d080df5u, 0x3b6e20c8u, 0x4c69105eu, 0xd56041e4u, 0xa2677172u,
    0x3c03e4d1u, 0x4b04d447u, 0xd20d85fdu, 0xa50ab56bu, 0x35b5a8fau, 0x42b2986cu,
    0xdbbbc9d6u, 0xacbcf940u, 0x32d86ce3u, 0x45df5c75u, 0xdcd60dcfu, 0xabd13d59u,
    0x26d930acu, 0x51de003au, 0xc8d75180u, 0xbfd06116u, 0x21b4f4b5u, 0x56b3c423u,
    0xcfba9599u, 0xb8bda50fu, 0x2802b89eu, 0x5f058808u, 0xc60cd9b2u, 0xb10be924u,
    0x2f6f7c87u, 0x58684c11u, 0xc1611dabu, 0xb6662d3du, 0x76dc4190u, 0x01db7106u,
    0x98d220bcu, 0xefd5102au, 0x71b18589u, 0x06b6b51fu, 0x9fbfe4a5u, 0xe8b8d433u,
    0x7807c9a2u, 0x0f00f934u, 0x9609a88eu, 0xe10e9818u, 0x7f6a0dbbu, 0x086d3d2du,
    0x91646c97u, 0xe6635c01u, 0x6b6b51f4u, 0x1c6c6162u, 0x856530d8u, 0xf262004eu,
    0x6c0695edu, 0x1b01a57bu, 0x8208f4c1u, 0xf50fc457u, 0x65b0d9c6u, 0x12b7e950u,
    0x8bbeb8eau, 0xfcb9887cu, 0x62dd1ddfu, 0x15da2d49u, 0x8cd37cf3u, 0xfbd44c65u,
    0x4db26158u, 0x3ab551ceu, 0xa3bc0074u, 0xd4bb30e2u, 0x4adfa541u, 0x3dd895d7u,
    0xa4d1c46du, 0xd3d6f4fbu, 0x4369e96au, 0x346ed9fcu, 0xad678846u, 0xda60b8d0u,
    0x44042d73u, 0x33031de5u, 0xaa0a4c5fu, 0xdd0d7cc9u, 0x5005713cu, 0x270241aau,
    0xbe0b1010u, 0xc90c2086u, 0x5768b525u, 0x206f85b3u, 0xb966d409u, 0xce61e49fu,
    0x5edef90eu, 0x29d9c998u, 0xb0d09822u, 0xc7d7a8b4u, 0x59b33d17u, 0x2eb40d81u,
    0xb7bd5c3bu, 0xc0ba6cadu, 0xedb88320u, 0x9abfb3b6u, 0x03b6e20cu, 0x74b1d29au,
    0xead54739u, 0x9dd277afu, 0x04db2615u, 0x73dc1683u, 0xe3630b12u, 0x94643b84u,
    0x0d6d6a3eu, 0x7a6a5aa8u, 0xe40ecf0bu, 0x9309ff9du, 0x0a00ae27u, 0x7d079eb1u,
    0xf00f9344u, 0x8708a3d2u, 0x1e01f268u, 0x6906c2feu, 0xf762575du, 0x806567cbu,
    0x196c3671u, 0x6e6b06e7u, 0xfed41b76u, 0x89d32be0u, 0x10da7a5au, 0x67dd4accu,
    0xf9b9df6fu, 0x8ebeeff9u, 0x17b7be43u, 0x60b08ed5u, 0xd6d6a3e8u, 0xa1d1937eu,
    0x38d8c2c4u, 0x4fdff252u, 0xd1bb67f1u, 0xa6bc5767u, 0x3fb506ddu, 0x48b2364bu,
    0xd80d2bdau, 0xaf0a1b4cu, 0x36034af6u, 0x41047a60u, 0xdf60efc3u, 0xa867df55u,
    0x316e8eefu, 0x4669be79u, 0xcb61b38cu, 0xbc66831au, 0x256fd2a0u, 0x5268e236u,
    0xcc0c7795u, 0xbb0b4703u, 0x220216b9u, 0x5505262fu, 0xc5ba3bbeu, 0xb2bd0b28u,
    0x2bb45a92u, 0x5cb36a04u, 0xc2d7ffa7u, 0xb5d0cf31u, 0x2cd99e8bu, 0x5bdeae1du,
    0x9b64c2b0u, 0xec63f226u, 0x756aa39cu, 0x026d930au, 0x9c0906a9u, 0xeb0e363fu,
    0x72076785u, 0x05005713u, 0x95bf4a82u, 0xe2b87a14u, 0x7bb12baeu, 0x0cb61b38u,
    0x92d28e9bu, 0xe5d5be0du, 0x7cdcefb7u, 0x0bdbdf21u, 0x86d3d2d4u, 0xf1d4e242u,
    0x68ddb3f8u, 0x1fda836eu, 0x81be16cdu, 0xf6b9265bu, 0x6fb077e1u, 0x18b74777u,
    0x88085ae6u, 0xff0f6a70u, 0x66063bcau, 0x11010b5cu, 0x8f659effu, 0xf862ae69u,
    0x616bffd3u, 0x166ccf45u, 0xa00ae278u, 0xd70dd2eeu, 0x4e048354u, 0x3903b3c2u,
    0xa7672661u, 0xd06016f7u, 0x4969474du, 0x3e6e77dbu, 0xaed16a4au, 0xd9d65adcu,
    0x40df0b66u, 0x37d83bf0u, 0xa9bcae53u, 0xdebb9ec5u, 0x47b2cf7fu, 0x30b5ffe9u,
    0xbdbdf21cu, 0xcabac28au, 0x53b39330u, 0x24b4a3a6u, 0xbad03605u, 0xcdd70693u,
    0x54de5729u, 0x23d967bfu, 0xb3667a2eu, 0xc4614ab8u, 0x5d681b02u, 0x2a6f2b94u,
    0xb40bbe37u, 0xc30c8ea1u, 0x5a05df1bu, 0x2d02ef8du,
};

/* "php: cannot open the script" arrives on stdout in the place of the first frame. */
static const uint8_t file_not_found_text[TRAILBOSS_FRAME_HEADER_SIZE_MIN] = {
    'C', 'o', 'u', 'l', 'd', ' ', 'n', 'o', 't', ' ', 'o', 'p',
};

/* Byte by byte, so that neither alignment nor the machine's byte order matters; compilers make one load of it. */
static uint32_t read_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | ((uint32_t)bytes[1] << 8) | ((uint32_t)bytes[2] << 16) |
           ((uint32_t)bytes[3] << 24);
}

static void write_u32(uint8_t *bytes, uint32_t value)
{
    bytes[0] = (uint8_t)(value & 0xffu);
    bytes[1] = (uint8_t)((value >> 8) & 0xffu);
    bytes[2] = (uint8_t)((value >> 16) & 0xffu);
    bytes[3] = (uint8_t)(value >> 24);
}

/* The CRC covers version, header length, flags and payload length, nothing else. */
static uint32_t head_crc(const uint8_t *head)
{
    uint32_t crc = 0xffffffffu;
    for (size_t index = 0; index < 6; index++) {
        crc = crc_table[(crc ^ head[index]) & 0xffu] ^ (crc >> 8);
    }
    return crc ^ 0xffffffffu;
}

/* Judges the 12 bytes that every frame has; TRAILBOSS_FRAME_OK means its sizes may be believed. */
static uint32_t check_head(const uint8_t *head, uint64_t payload_cap, int strict_version)
{
    const uint32_t header_words = head[0] & 0x0fu;

    if (head_crc(head) != read_u32(head + 6)) {
        /* The text itself never has a right CRC (it would be 0x04bfd57c), so it is looked for only here. */
        if (memcmp(head, file_not_found_text, sizeof file_not_found_text) == 0) {
            return TRAILBOSS_FRAME_FILE_NOT_FOUND;
        }
        return TRAILBOSS_FRAME_BAD_CRC;
    }
    if (strict_version != 0 && (head[0] >> 4) != 1) {
        return TRAILBOSS_FRAME_VERSION;
    }
    if (header_words < 3 || header_words > 13) {
        return TRAILBOSS_FRAME_HEADER_LEN;
    }
    if (read_u32(head + 2) > payload_cap) {
        return TRAILBOSS_FRAME_TOO_LARGE;
    }
    return TRAILBOSS_FRAME_OK;
}

int64_t trailboss_frame_probe(const uint8_t *data, size_t size, size_t offset, uint64_t payload_cap,
                              int strict_version, struct trailboss_frame *frame,
                              struct trailboss_frame_end *end)
{
    const uint64_t available = offset < size ? (uint64_t)(size - offset) : 0;
    const uint8_t *head = NULL;
    uint64_t header_size = 0;
    uint64_t total = 0;

    end->missing = 0;
    end->consumed = 0;
    end->count = 0;
    end->error = TRAILBOSS_FRAME_OK;
    if (available < TRAILBOSS_FRAME_HEADER_SIZE_MIN) {
        end->missing = TRAILBOSS_FRAME_HEADER_SIZE_MIN - available;
        return TRAILBOSS_FRAME_INCOMPLETE;
    }

    head = data + offset;
    end->error = check_head(head, payload_cap, strict_version);
    if (end->error != TRAILBOSS_FRAME_OK) {
        return TRAILBOSS_FRAME_MALFORMED;
    }
    header_size = (uint64_t)(head[0] & 0x0fu) * 4;
    total = header_size + read_u32(head + 2); /* at most 52 + 2^32 - 1 */
    if (available < total) {
        end->missing = total - available;
        return TRAILBOSS_FRAME_INCOMPLETE;
    }

    frame->payload_offset = (uint64_t)offset + header_size;
    frame->payload_length = read_u32(head + 2);
    frame->flags = head[1];
    frame->stream = head[10];
    frame->reserved = head[11];
    frame->option_count = (uint8_t)((header_size - TRAILBOSS_FRAME_HEADER_SIZE_MIN) / 4);
    for (size_t index = 0; index < frame->option_count; index++) {
        frame->options[index] = read_u32(head + TRAILBOSS_FRAME_HEADER_SIZE_MIN + 4 * index);
    }
    end->consumed = total;
    end->count = 1;
    return (int64_t)total;
}

uint32_t trailboss_frame_walk(const uint8_t *data, size_t size, size_t offset, uint64_t payload_cap,
                              int strict_version, struct trailboss_frame *frames, uint32_t capacity,
                              struct trailboss_frame_end *end)
{
    size_t position = offset;
    uint32_t count = 0;

    end->missing = 0;
    end->error = TRAILBOSS_FRAME_OK;
    while (count < capacity) {
        const int64_t result = trailboss_frame_probe(data, size, position, payload_cap, strict_version,
                                                     &frames[count], end);
        if (result < 0) {
            break;
        }
        position += (size_t)result; /* a whole frame lies inside the buffer, so this cannot pass `size` */
        count += 1;
    }
    end->consumed = (uint64_t)(position - offset);
    end->count = count;
    return count;
}

int32_t trailboss_frame_encode_header(uint8_t *header, uint8_t flags, uint8_t stream,
                                      const uint32_t *options, size_t option_count,
                                      uint64_t payload_length)
{
    if (option_count > TRAILBOSS_FRAME_OPTION_COUNT_MAX || payload_length > UINT32_MAX) {
        return TRAILBOSS_FRAME_MALFORMED;
    }
    header[0] = (uint8_t)(0x10u | (3u + (uint32_t)option_count));
    header[1] = flags;
    write_u32(header + 2, (uint32_t)payload_length);
    write_u32(header + 6, head_crc(header));
    header[10] = stream;
    header[11] = 0;
    for (size_t index = 0; index < option_count; index++) {
        write_u32(header + TRAILBOSS_FRAME_HEADER_SIZE_MIN + 4 * index, options[index]);
    }
    return TRAILBOSS_FRAME_HEADER_SIZE_MIN + 4 * (int32_t)option_count;
}

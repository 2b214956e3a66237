/*
 * What must be true of the plain HTTP message for any bytes: shared by the unit tests and the fuzz target.
 *
 * Whether a message that is plain here means the same to the reference in Python is for native/compare_http.py. This file
 * holds what is taken as plain to rules written without tables from the RFCs and from the JSON grammar, and the
 * functions to their word about memory.
 */
#ifndef TRAILBOSS_CHECK_HTTP_H
#define TRAILBOSS_CHECK_HTTP_H

#include "check.h"
#include "http.h"

#include <stdbool.h>
#include <string.h>
#include <strings.h>

#define CHECK_OUT_MAX ((size_t)64 * 1024)
#define CHECK_CANARY 0xa5

static const char check_beginning[] = "{\"uri\":\"http://a";
static const char check_ending[] = "\"uploads\":null}";

/* Calls of `write_context` and `read_answer` with `capacity` bytes of room; what lies behind stays untouched. */
static uint8_t check_out[CHECK_OUT_MAX + 1];

static size_t check_write(size_t capacity, const uint8_t *target, size_t target_size, const uint8_t *query,
                          size_t query_size, const uint8_t *head, size_t head_size, uint32_t options)
{
    size_t size = 0;

    check_out[capacity] = CHECK_CANARY;
    size = trailboss_http_write_context(check_out, capacity, (const uint8_t *)check_beginning,
                                        sizeof check_beginning - 1, target, target_size, query, query_size, head,
                                        head_size, (const uint8_t *)check_ending, sizeof check_ending - 1, options);
    CHECK(check_out[capacity] == CHECK_CANARY);
    CHECK(size <= capacity);
    return size;
}

static int32_t check_read(const uint8_t *context, size_t size, size_t capacity,
                          struct trailboss_http_answer *answer)
{
    int32_t is_plain = 0;

    memset(answer, 0xff, sizeof *answer);
    check_out[capacity] = CHECK_CANARY;
    is_plain = trailboss_http_read_answer(context, size, check_out, capacity, answer);
    CHECK(check_out[capacity] == CHECK_CANARY);
    CHECK(is_plain == 0 || (is_plain == 1 && answer->lines_size <= capacity));
    return is_plain;
}

/* A JSON object of objects, arrays, strings and plain words: brackets and quotes are in order, nothing is a control
 * character or beyond ASCII. */
static void check_json(const uint8_t *text, size_t size)
{
    char open[8];
    size_t depth = 0;
    bool in_string = false;

    for (size_t index = 0; index < size; index++) {
        const char byte = (char)text[index];

        CHECK(byte >= 0x20 && byte < 0x7f);
        if (in_string && byte == '\\') {
            index++;
            CHECK(index < size && strchr("\"\\t", text[index]) != NULL);
        } else if (byte == '"') {
            in_string = !in_string;
        } else if (!in_string && (byte == '{' || byte == '[')) {
            CHECK(depth < sizeof open);
            open[depth++] = byte;
        } else if (!in_string && (byte == '}' || byte == ']')) {
            CHECK(depth > 0 && open[--depth] == (byte == '}' ? '{' : '['));
        }
    }
    CHECK(depth == 0 && !in_string && size > 0 && text[size - 1] == '}');
}

/* How many lines of data[0..size) begin with `name` and a colon, whatever the case of its letters. */
static int check_count(const uint8_t *data, size_t size, const char *name)
{
    const size_t length = strlen(name);
    int count = 0;

    for (size_t index = 0; index + length < size; index++) {
        if ((index == 0 || data[index - 1] == '\n') && data[index + length] == ':' &&
            strncasecmp((const char *)data + index, name, length) == 0) {
            count++;
        }
    }
    return count;
}

/* Lines: each ends in CR LF, has a name, a colon, and a value without control characters. */
static void check_lines(const uint8_t *lines, size_t size, bool is_answer)
{
    size_t start = 0;

    for (size_t index = 0; index < size; index++) {
        const uint8_t byte = lines[index];

        if (byte == '\n') {
            const uint8_t *colon = memchr(lines + start, ':', index - start);

            CHECK(index > start && lines[index - 1] == '\r' && colon != NULL && colon != lines + start);
            CHECK(memchr(lines + start, ' ', (size_t)(colon - (lines + start))) == NULL);
            CHECK(!is_answer || colon[1] == ' ');
            start = index + 1;
        } else if (byte == '\r') {
            CHECK(index + 1 < size && lines[index + 1] == '\n');
        } else {
            CHECK((byte >= 0x20 || byte == '\t') && byte < 0x7f);
        }
    }
    CHECK(start == size);
}

/* A head that was taken as plain. */
static void check_plain_head(const uint8_t *data, size_t size, const struct trailboss_http_limits *limits,
                             const struct trailboss_http_head *head)
{
    const uint8_t *const target = data + head->method_size + 1;
    const uint8_t *const line_end = memchr(data, '\n', size);
    const uint8_t *const fields = line_end + 1;
    const size_t fields_size = size - 2 - (size_t)(fields - data);
    const uint8_t *const mark = memchr(target, '?', head->target_size);
    uint32_t count = 0;

    CHECK(size <= limits->head && size > 4 && memcmp(data + size - 4, "\r\n\r\n", 4) == 0);
    CHECK((size_t)(line_end - data) - 1 <= limits->request_line);
    CHECK(target[-1] == ' ' && target[0] == '/' && memcmp(target + head->target_size, " HTTP/1.1\r\n", 11) == 0);
    CHECK(target + head->target_size + 10 == line_end);
    for (uint32_t index = 0; index < head->target_size; index++) {
        CHECK(target[index] > ' ' && target[index] < 0x7f && strchr("\"\\<>^`{|}#", target[index]) == NULL);
    }
    CHECK(head->path_size == (mark == NULL ? head->target_size : (size_t)(mark - target)));
    check_lines(fields, fields_size, false);
    for (size_t index = 0; index < fields_size; index++) {
        count += fields[index] == '\n';
    }
    CHECK(count <= limits->fields);
    CHECK(check_count(fields, fields_size, "host") == 1 && head->host_size > 0);
    CHECK(head->host_offset > (size_t)(fields - data) && head->host_offset + head->host_size <= size - 4);
    CHECK(check_count(fields, fields_size, "content-length") <= 1 && check_count(fields, fields_size, "connection") <= 1);
    CHECK(check_count(fields, fields_size, "transfer-encoding") == 0 && check_count(fields, fields_size, "expect") == 0);
    CHECK(check_count(fields, fields_size, "upgrade") == 0);
    CHECK(head->length == 0 || check_count(fields, fields_size, "content-length") == 1);
    CHECK(head->length <= limits->body && head->length <= TRAILBOSS_HTTP_LENGTH_MAX);
    CHECK(head->keep_alive == 1 || (head->keep_alive == 0 && check_count(fields, fields_size, "connection") == 1));
}

/* The contexts of a head under all options: valid, the same with exactly enough room, none with a byte less. */
static void check_contexts(const uint8_t *target, size_t target_size, const uint8_t *query, size_t query_size,
                           const uint8_t *head, size_t head_size)
{
    for (uint32_t options = 0; options < 4; options++) {
        const size_t size =
            check_write(CHECK_OUT_MAX, target, target_size, query, query_size, head, head_size, options);

        if (size == 0) {
            continue;
        }
        CHECK(memcmp(check_out, check_beginning, sizeof check_beginning - 1) == 0);
        CHECK(memcmp(check_out + sizeof check_beginning - 1, target, target_size) == 0);
        check_json(check_out, size);
        CHECK(check_write(size, target, target_size, query, query_size, head, head_size, options) == size);
        CHECK(check_write(size - 1, target, target_size, query, query_size, head, head_size, options) == 0);
    }
}

static void check_as_head(const uint8_t *data, size_t size)
{
    static const struct trailboss_http_limits all_limits[] = {
        {8192, 65536, 100, UINT32_MAX},
        {20, 80, 2, 10},
    };

    for (size_t index = 0; index < sizeof all_limits / sizeof all_limits[0]; index++) {
        struct trailboss_http_head head;
        const int32_t is_plain = trailboss_http_read_head(data, size, &all_limits[index], &head);

        CHECK(is_plain == 0 || is_plain == 1);
        if (is_plain == 1) {
            const uint8_t *target = data + head.method_size + 1;
            const size_t query_at = head.path_size == head.target_size ? head.target_size : head.path_size + 1;

            check_plain_head(data, size, &all_limits[index], &head);
            check_contexts(target, head.target_size, target + query_at, head.target_size - query_at, data, size);
        }
    }
    check_contexts((const uint8_t *)"/", 1, NULL, 0, data, size);
    check_contexts(data, size, data, size, (const uint8_t *)"\n\r\n", 3);
    check_contexts(data, size, NULL, 0, (const uint8_t *)"G\n\r\n", 4);
}

static void check_as_answer(const uint8_t *data, size_t size)
{
    struct trailboss_http_answer answer;
    struct trailboss_http_answer again;

    if (check_read(data, size, CHECK_OUT_MAX, &answer) == 0) {
        return;
    }
    CHECK(answer.status >= 100 && answer.status <= 599 && answer.length >= -1);
    check_lines(check_out, answer.lines_size, true);
    CHECK(check_count(check_out, answer.lines_size, "content-length") == 0);
    CHECK(check_count(check_out, answer.lines_size, "transfer-encoding") == 0);
    CHECK(check_count(check_out, answer.lines_size, "connection") == 0);
    CHECK(check_count(check_out, answer.lines_size, "date") == 0);
    CHECK(check_read(data, size, size + answer.lines_size, &again) == 1);
    CHECK(memcmp(&answer, &again, sizeof answer) == 0);
    CHECK(answer.lines_size == 0 || check_read(data, size, answer.lines_size - 1, &again) == 0);
}

static void check_bytes(const uint8_t *data, size_t size)
{
    check_as_head(data, size);
    check_as_answer(data, size);
}

#endif

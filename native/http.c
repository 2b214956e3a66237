/*
 * The plain HTTP message; http.h says what it promises.
 *
 * Bytes are judged by one table, so that what is let through is what the table names: a byte that is in no set of it
 * (control characters, everything beyond ASCII) makes a message not plain. Names are compared by a hash of their
 * lower-case form where one given twice matters; two names of one hash make the message not plain, which costs time
 * and nothing else.
 */
#include "http.h"

#include <string.h>

#define TOKEN 0x01u   /* of a method or a name */
#define VALUE 0x02u   /* of a header's value: visible ASCII, space, tab */
#define PATH 0x04u    /* of a path, besides %XX */
#define QUERY 0x08u   /* of a query, besides %XX */
#define HOST 0x10u    /* of a host that is a name or an IPv4 address */
#define COOKIE 0x20u  /* of a cookie's value that needs no decoding */
#define ESCAPED 0x40u /* written with a backslash in JSON */

static const uint8_t kinds[256] = {
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x42, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x02, 0x2f, 0x42, 0x23, 0x2f, 0x03, 0x2f, 0x2f, 0x2e, 0x2e, 0x2f, 0x0f, 0x2e, 0x3f, 0x3f, 0x2e,
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x2e, 0x0e, 0x22, 0x2e, 0x22, 0x2a,
    0x2e, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x2a, 0x42, 0x2a, 0x23, 0x3f,
    0x23, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f,
    0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x3f, 0x22, 0x23, 0x22, 0x2f, 0x00,
    /* 0x80 to 0xff: in no set */
};

struct text {
    const uint8_t *at;
    size_t size;
};

struct field {
    struct text name;
    struct text value; /* without white space around it */
    uint32_t hash;     /* of the name in lower case */
};

/* Names of the same set seen before. */
struct seen {
    uint32_t hashes[TRAILBOSS_HTTP_FIELDS_MAX];
    uint32_t count;
};

struct writer {
    uint8_t *at;
    uint8_t *end;
    int is_full;
};

#define HASH_START 2166136261u

static uint32_t hash_on(uint32_t hash, uint8_t byte)
{
    return (hash ^ (byte | 0x20u)) * 16777619u;
}

/* Remembers a name; 0 if it was there before, or there are too many. */
static int is_new(struct seen *seen, uint32_t hash)
{
    if (seen->count == TRAILBOSS_HTTP_FIELDS_MAX) {
        return 0;
    }
    for (uint32_t index = 0; index < seen->count; index++) {
        if (seen->hashes[index] == hash) {
            return 0;
        }
    }
    seen->hashes[seen->count++] = hash;
    return 1;
}

/* Compares with a text of lower-case letters, digits and hyphens, in which bit 5 is always set. */
static int is_word(struct text text, const char *word)
{
    size_t index = 0;

    for (; index < text.size && word[index] != '\0'; index++) {
        if ((text.at[index] | 0x20u) != (uint8_t)word[index] || text.at[index] < 0x20u) {
            return 0;
        }
    }
    return index == text.size && word[index] == '\0';
}

static int is_one_of(struct text text, const char *const *words, size_t count)
{
    for (size_t index = 0; index < count; index++) {
        if (is_word(text, words[index])) {
            return 1;
        }
    }
    return 0;
}

static int is_digit(uint8_t byte)
{
    return byte >= '0' && byte <= '9';
}

static int is_hex(uint8_t byte)
{
    const uint8_t lower = byte | 0x20u;

    return is_digit(byte) || (lower >= 'a' && lower <= 'f');
}

static struct text trimmed(const uint8_t *at, const uint8_t *end)
{
    while (at < end && (*at == ' ' || *at == '\t')) {
        at++;
    }
    while (end > at && (end[-1] == ' ' || end[-1] == '\t')) {
        end--;
    }
    return (struct text){at, (size_t)(end - at)};
}

/* Whether text[at..] consists of bytes of a set and of %XX. */
static int is_encoded(struct text text, size_t at, uint32_t set)
{
    while (at < text.size) {
        if ((kinds[text.at[at]] & set) != 0) {
            at += 1;
        } else if (text.at[at] == '%' && text.size - at > 2 && is_hex(text.at[at + 1]) && is_hex(text.at[at + 2])) {
            at += 3;
        } else {
            return 0;
        }
    }
    return 1;
}

/* The size of the path of a target that is plain, 0 for one that is not. A "?" has something behind it. */
static size_t plain_path_size(struct text target)
{
    const uint8_t *mark = NULL;
    size_t path_size = target.size;

    if (target.size == 0 || target.at[0] != '/') {
        return 0;
    }
    mark = memchr(target.at, '?', target.size);
    if (mark != NULL) {
        path_size = (size_t)(mark - target.at);
        if (path_size + 1 == target.size || !is_encoded(target, path_size + 1, QUERY)) {
            return 0;
        }
    }
    return is_encoded((struct text){target.at, path_size}, 0, PATH) ? path_size : 0;
}

/* A number of digits without leading zeros, at most `maximum`; -1 for anything else. */
static int64_t plain_number(struct text text, int64_t maximum)
{
    int64_t number = 0;

    if (text.size == 0 || text.size > 15 || (text.at[0] == '0' && text.size > 1)) {
        return -1;
    }
    for (size_t index = 0; index < text.size; index++) {
        if (!is_digit(text.at[index])) {
            return -1;
        }
        number = number * 10 + (text.at[index] - '0');
    }
    return number <= maximum ? number : -1;
}

/* Reads the header line at `at`; returns where the next one begins, NULL for a line that is not plain. */
static const uint8_t *read_field(const uint8_t *at, const uint8_t *end, struct field *field)
{
    const uint8_t *start = at;

    field->hash = HASH_START;
    while (at < end && (kinds[*at] & TOKEN) != 0) {
        field->hash = hash_on(field->hash, *at);
        at++;
    }
    field->name = (struct text){start, (size_t)(at - start)};
    if (at == start || at == end || *at != ':') {
        return NULL;
    }
    at++;
    start = at;
    while (at < end && (kinds[*at] & VALUE) != 0) {
        at++;
    }
    if (end - at < 2 || at[0] != '\r' || at[1] != '\n') {
        return NULL;
    }
    field->value = trimmed(start, at);
    return at + 2;
}

/* Where the header lines begin and end (at the empty line); 0 where the head is not closed by an empty line. */
static int find_fields(const uint8_t *data, size_t size, const uint8_t **begin, const uint8_t **end)
{
    const uint8_t *line_end = size < 4 ? NULL : memchr(data, '\n', size - 2);

    if (line_end == NULL || memcmp(data + size - 2, "\r\n", 2) != 0) {
        return 0;
    }
    *begin = line_end + 1;
    *end = data + size - 2;
    return 1;
}

/* --- a request's head ---------------------------------------------------------------------------------- */

static uint32_t method_size(const uint8_t *data, size_t size)
{
    static const char *const methods[] = {"GET ", "POST ", "HEAD ", "PUT ", "DELETE ", "PATCH ", "OPTIONS "};

    for (size_t index = 0; index < sizeof methods / sizeof methods[0]; index++) {
        const size_t length = strlen(methods[index]);

        if (size > length && memcmp(data, methods[index], length) == 0) {
            return (uint32_t)(length - 1);
        }
    }
    return 0;
}

/* A host name or an IPv4 address, with a port or without. */
static int is_plain_host(struct text host)
{
    size_t at = 0;

    while (at < host.size && (kinds[host.at[at]] & HOST) != 0) {
        at++;
    }
    if (at == 0) {
        return 0;
    }
    if (at == host.size) {
        return 1;
    }
    return host.at[at] == ':' && plain_number((struct text){host.at + at + 1, host.size - at - 1}, 65535) >= 0;
}

/* Which headers have been there already. */
struct framing {
    int has_host;
    int has_length;
    int has_connection;
};

/* Takes note of a header that says something about the message or the connection; 0 where it is not plain. */
static int examine(const uint8_t *data, const struct field *field, uint32_t body_max, struct framing *framing,
                   struct trailboss_http_head *head)
{
    int64_t length = 0;

    switch (field->name.size) {
    case 4:
        if (!is_word(field->name, "host")) {
            return 1;
        }
        head->host_offset = (uint32_t)(field->value.at - data);
        head->host_size = (uint32_t)field->value.size;
        return !framing->has_host++ && is_plain_host(field->value);
    case 6:
        return !is_word(field->name, "expect");
    case 7:
        return !is_word(field->name, "upgrade");
    case 10:
        if (!is_word(field->name, "connection")) {
            return 1;
        }
        head->keep_alive = (uint32_t)is_word(field->value, "keep-alive");
        return !framing->has_connection++ && (head->keep_alive || is_word(field->value, "close"));
    case 14:
        if (!is_word(field->name, "content-length")) {
            return 1;
        }
        length = plain_number(field->value, body_max);
        head->length = (uint32_t)length;
        return !framing->has_length++ && length >= 0;
    case 16:
        return !is_word(field->name, "proxy-connection");
    case 17:
        return !is_word(field->name, "transfer-encoding");
    default:
        return 1;
    }
}

int32_t trailboss_http_read_head(const uint8_t *data, size_t size, const struct trailboss_http_limits *limits,
                                 struct trailboss_http_head *head)
{
    static const char version[] = " HTTP/1.1\r\n";
    const uint32_t body_max =
        limits->body < TRAILBOSS_HTTP_LENGTH_MAX ? limits->body : TRAILBOSS_HTTP_LENGTH_MAX;
    struct framing framing = {0, 0, 0};
    struct text target;
    const uint8_t *at = NULL;
    const uint8_t *end = NULL;
    uint32_t count = 0;

    memset(head, 0, sizeof *head);
    head->keep_alive = 1;
    head->method_size = size <= limits->head ? method_size(data, size) : 0;
    if (head->method_size == 0 || !find_fields(data, size, &at, &end)) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    target.at = data + head->method_size + 1;
    target.size = (size_t)(at - target.at);
    if (target.size < sizeof version - 1 || (size_t)(at - data) - 2 > limits->request_line ||
        memcmp(at - (sizeof version - 1), version, sizeof version - 1) != 0) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    target.size -= sizeof version - 1;
    head->target_size = (uint32_t)target.size;
    head->path_size = (uint32_t)plain_path_size(target);
    if (head->path_size == 0) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    while (at < end) {
        struct field field;

        at = read_field(at, end, &field);
        count += 1;
        if (at == NULL || count > limits->fields || !examine(data, &field, body_max, &framing, head)) {
            return TRAILBOSS_HTTP_NOT_PLAIN;
        }
    }
    return framing.has_host;
}

/* --- a request's context ------------------------------------------------------------------------------- */

static void put(struct writer *writer, const void *bytes, size_t size)
{
    if ((size_t)(writer->end - writer->at) < size) {
        writer->is_full = 1;
        return;
    }
    if (size != 0) {
        memcpy(writer->at, bytes, size);
    }
    writer->at += size;
}

static void put_text(struct writer *writer, struct text text)
{
    put(writer, text.at, text.size);
}

static void put_word(struct writer *writer, const char *word)
{
    put(writer, word, strlen(word));
}

/* A header's value between the quotes of a JSON text. */
static void put_value(struct writer *writer, struct text value)
{
    size_t start = 0;

    for (size_t index = 0; index < value.size; index++) {
        const uint8_t byte = value.at[index];

        if ((kinds[byte] & ESCAPED) != 0) {
            const uint8_t escape[2] = {'\\', byte == '\t' ? 't' : byte};

            put(writer, value.at + start, index - start);
            put(writer, escape, sizeof escape);
            start = index + 1;
        }
    }
    put(writer, value.at + start, value.size - start);
}

/* The name as workers know it: the first letter of each part is large, all others are small. */
static void put_name(struct writer *writer, struct text name)
{
    int is_first = 1;

    if ((size_t)(writer->end - writer->at) < name.size) {
        writer->is_full = 1;
        return;
    }
    for (size_t index = 0; index < name.size; index++) {
        uint8_t byte = name.at[index];

        if (byte >= 'a' && byte <= 'z' && is_first) {
            byte = (uint8_t)(byte - 0x20);
        } else if (byte >= 'A' && byte <= 'Z' && !is_first) {
            byte = (uint8_t)(byte + 0x20);
        }
        is_first = byte == '-';
        *writer->at++ = byte;
    }
}

/* Headers between two neighbours, and what the worker is told in other ways. */
static int is_withheld(struct text name)
{
    static const char *const words[] = {"connection",         "host",    "http2-settings",   "keep-alive",
                                        "proxy",              "te",      "proxy-connection", "trailer",
                                        "proxy-authenticate", "upgrade", "transfer-encoding", "proxy-authorization"};

    return is_one_of(name, words, sizeof words / sizeof words[0]);
}

/* Whether a Connection names none of the headers that would otherwise reach the worker. */
static int names_no_header(struct text value)
{
    static const char *const options[] = {"close", "keep-alive", "upgrade", "te", "trailer", "http2-settings"};
    const uint8_t *const end = value.at + value.size;
    const uint8_t *at = value.at;

    while (at < end) {
        const uint8_t *comma = memchr(at, ',', (size_t)(end - at));
        const struct text option = trimmed(at, comma == NULL ? end : comma);

        if (option.size != 0 && !is_one_of(option, options, sizeof options / sizeof options[0])) {
            return 0;
        }
        at = comma == NULL ? end : comma + 1;
    }
    return 1;
}

/* Whether "form" is in it, whatever the case of its letters. */
static int is_form(struct text value)
{
    for (size_t index = 0; index + 4 <= value.size; index++) {
        if (is_word((struct text){value.at + index, 4}, "form")) {
            return 1;
        }
    }
    return 0;
}

/* Cookies with nothing to decode, each name once, as members of a JSON object; 0 where they are not plain. */
static int put_cookies(struct writer *writer, struct text cookies)
{
    const uint8_t *const end = cookies.at + cookies.size;
    const uint8_t *at = cookies.at;
    struct seen seen;

    seen.count = 0;
    for (;;) {
        const uint8_t *start = at;
        struct text name;
        uint32_t hash = HASH_START;

        while (at < end && (kinds[*at] & TOKEN) != 0) {
            hash = hash_on(hash, *at);
            at++;
        }
        name = (struct text){start, (size_t)(at - start)};
        if (name.size == 0 || at == end || *at != '=' || !is_new(&seen, hash)) {
            return 0;
        }
        at++;
        start = at;
        while (at < end && (kinds[*at] & COOKIE) != 0) {
            at++;
        }
        put_word(writer, seen.count == 1 ? "\"" : ",\"");
        put_text(writer, name);
        put_word(writer, "\":\"");
        put(writer, start, (size_t)(at - start));
        put_word(writer, "\"");
        if (at == end) {
            return 1;
        }
        if (end - at < 2 || at[0] != ';' || at[1] != ' ') {
            return 0;
        }
        at += 2;
    }
}

/* Whether a header is told (1), left out (0), or makes the request not plain (-1). */
static int judge(const struct field *field, uint32_t options)
{
    if (is_withheld(field->name)) {
        return is_word(field->name, "connection") && !names_no_header(field->value) ? -1 : 0;
    }
    if ((options & TRAILBOSS_HTTP_UNDERSCORES) == 0 && memchr(field->name.at, '_', field->name.size) != NULL) {
        return 0;
    }
    if ((options & TRAILBOSS_HTTP_FORMS) == 0 && is_word(field->name, "content-type") && is_form(field->value)) {
        return -1;
    }
    return 1;
}

static int put_fields(struct writer *writer, const uint8_t *at, const uint8_t *end, uint32_t options,
                      struct text *cookies)
{
    struct seen seen;

    seen.count = 0;
    while (at < end) {
        struct field field;
        int verdict = 0;

        at = read_field(at, end, &field);
        if (at == NULL) {
            return 0;
        }
        verdict = judge(&field, options);
        if (verdict < 0 || (verdict > 0 && !is_new(&seen, field.hash))) {
            return 0;
        }
        if (verdict == 0) {
            continue;
        }
        put_word(writer, seen.count == 1 ? "\"" : ",\"");
        put_name(writer, field.name);
        put_word(writer, "\":[\"");
        put_value(writer, field.value);
        put_word(writer, "\"]");
        if (is_word(field.name, "cookie")) {
            *cookies = field.value;
        }
    }
    return 1;
}

size_t trailboss_http_write_context(uint8_t *out, size_t capacity, const uint8_t *beginning, size_t beginning_size,
                                    const uint8_t *target, size_t target_size, const uint8_t *query,
                                    size_t query_size, const uint8_t *head, size_t head_size,
                                    const uint8_t *ending, size_t ending_size, uint32_t options)
{
    struct writer writer = {out, out + capacity, 0};
    struct text cookies = {NULL, 0};
    const uint8_t *at = NULL;
    const uint8_t *end = NULL;

    if (plain_path_size((struct text){target, target_size}) == 0 ||
        !is_encoded((struct text){query, query_size}, 0, QUERY) || !find_fields(head, head_size, &at, &end)) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    put(&writer, beginning, beginning_size);
    put(&writer, target, target_size);
    put_word(&writer, "\",\"headers\":{");
    if (!put_fields(&writer, at, end, options, &cookies)) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    put_word(&writer, "},\"cookies\":{");
    if (cookies.at != NULL && !put_cookies(&writer, cookies)) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    put_word(&writer, "},\"rawQuery\":\"");
    put(&writer, query, query_size);
    put_word(&writer, "\",");
    put(&writer, ending, ending_size);
    return writer.is_full ? TRAILBOSS_HTTP_NOT_PLAIN : (size_t)(writer.at - out);
}

/* --- an answer ----------------------------------------------------------------------------------------- */

/* A JSON text that is read from its beginning to its end. */
struct reader {
    const uint8_t *at;
    const uint8_t *end;
};

static void skip_space(struct reader *reader)
{
    while (reader->at < reader->end &&
           (*reader->at == ' ' || *reader->at == '\t' || *reader->at == '\n' || *reader->at == '\r')) {
        reader->at++;
    }
}

/* Takes a byte, and the white space in front of it, if it is the one expected. */
static int take(struct reader *reader, char expected)
{
    skip_space(reader);
    if (reader->at == reader->end || *reader->at != (uint8_t)expected) {
        return 0;
    }
    reader->at++;
    return 1;
}

/* Takes a JSON string without escapes of which every byte belongs to a set. */
static int take_word(struct reader *reader, uint32_t set, struct text *word)
{
    if (!take(reader, '"')) {
        return 0;
    }
    word->at = reader->at;
    while (reader->at < reader->end && (kinds[*reader->at] & set) != 0) {
        reader->at++;
    }
    word->size = (size_t)(reader->at - word->at);
    return reader->at < reader->end && *reader->at++ == '"';
}

/*
 * Takes a JSON string that is a header's value, and writes it without its escapes and without white space around it.
 * What was written is `value`.
 */
static int take_value(struct reader *reader, struct writer *writer, struct text *value)
{
    uint8_t *const start = writer->at;

    if (!take(reader, '"')) {
        return 0;
    }
    while (reader->at < reader->end && *reader->at != '"') {
        uint8_t byte = *reader->at++;

        if (byte == '\\') {
            if (reader->at == reader->end) {
                return 0;
            }
            byte = *reader->at++;
            if (byte == 't') {
                byte = '\t';
            } else if (byte != '/' && byte != '"' && byte != '\\') {
                return 0;
            }
        } else if (byte == '\t' || (kinds[byte] & VALUE) == 0) {
            return 0;
        }
        if ((byte != ' ' && byte != '\t') || writer->at != start) {
            put(writer, &byte, 1);
        }
    }
    while (writer->at > start && (writer->at[-1] == ' ' || writer->at[-1] == '\t')) {
        writer->at--;
    }
    *value = (struct text){start, (size_t)(writer->at - start)};
    return reader->at < reader->end && *reader->at++ == '"';
}

/* What becomes of a header that a worker has named. */
enum use { LINE, LEFT_OUT, LENGTH, UNUSUAL };

static enum use use_of(struct text name)
{
    static const char *const left_out[] = {"connection", "keep-alive", "proxy-connection", "upgrade",
                                           "te",         "date",       "server"};

    if (is_one_of(name, left_out, sizeof left_out / sizeof left_out[0])) {
        return LEFT_OUT;
    }
    if (is_word(name, "content-length")) {
        return LENGTH;
    }
    return is_word(name, "trailer") || is_word(name, "transfer-encoding") ? UNUSUAL : LINE;
}

/* Takes the values of one header and writes a line for each. */
static int take_values(struct reader *reader, struct writer *writer, struct text name,
                       struct trailboss_http_answer *answer)
{
    const enum use use = use_of(name);

    if (use == UNUSUAL || !take(reader, '[')) {
        return 0;
    }
    if (take(reader, ']')) {
        return 1;
    }
    do {
        uint8_t *const start = writer->at;
        struct text value;

        put_text(writer, name);
        put_word(writer, ": ");
        if (!take_value(reader, writer, &value)) {
            return 0;
        }
        put_word(writer, "\r\n");
        if (use == LENGTH) {
            if (answer->length >= 0) {
                return 0;
            }
            answer->length = plain_number(value, INT64_MAX);
            if (answer->length < 0) {
                return 0;
            }
        }
        if (use != LINE) {
            writer->at = start;
        }
    } while (take(reader, ','));
    return take(reader, ']');
}

static int take_headers(struct reader *reader, struct writer *writer, struct trailboss_http_answer *answer)
{
    struct seen seen;

    if (take(reader, '[')) {
        return take(reader, ']'); /* what PHP makes of an empty array */
    }
    if (!take(reader, '{')) {
        return 0;
    }
    if (take(reader, '}')) {
        return 1;
    }
    seen.count = 0;
    do {
        struct text name;
        uint32_t hash = HASH_START;

        if (!take_word(reader, TOKEN, &name) || name.size == 0 || name.size > 256 || !take(reader, ':')) {
            return 0;
        }
        for (size_t index = 0; index < name.size; index++) {
            hash = hash_on(hash, name.at[index]);
        }
        if (!is_new(&seen, hash) || !take_values(reader, writer, name, answer)) {
            return 0;
        }
    } while (take(reader, ','));
    return take(reader, '}');
}

static int take_status(struct reader *reader, struct trailboss_http_answer *answer)
{
    struct text digits;

    skip_space(reader);
    digits.at = reader->at;
    while (reader->at < reader->end && is_digit(*reader->at)) {
        reader->at++;
    }
    digits.size = (size_t)(reader->at - digits.at);
    answer->status = (uint32_t)(digits.size == 3 ? plain_number(digits, 599) : 0);
    return answer->status >= 100 && answer->status <= 599;
}

int32_t trailboss_http_read_answer(const uint8_t *context, size_t size, uint8_t *out, size_t capacity,
                                   struct trailboss_http_answer *answer)
{
    struct reader reader = {context, context + size};
    struct writer writer = {out, out + capacity, 0};
    int has_headers = 0;

    *answer = (struct trailboss_http_answer){-1, 0, 0};
    if (!take(&reader, '{')) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    do {
        struct text key;

        if (!take_word(&reader, TOKEN, &key) || !take(&reader, ':')) {
            return TRAILBOSS_HTTP_NOT_PLAIN;
        }
        if (key.size == 6 && memcmp(key.at, "status", 6) == 0 && answer->status == 0) {
            if (!take_status(&reader, answer)) {
                return TRAILBOSS_HTTP_NOT_PLAIN;
            }
        } else if (key.size == 7 && memcmp(key.at, "headers", 7) == 0 && !has_headers++) {
            if (!take_headers(&reader, &writer, answer)) {
                return TRAILBOSS_HTTP_NOT_PLAIN;
            }
        } else {
            return TRAILBOSS_HTTP_NOT_PLAIN;
        }
    } while (take(&reader, ','));
    if (!take(&reader, '}') || answer->status == 0) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    skip_space(&reader);
    if (reader.at != reader.end || writer.is_full) {
        return TRAILBOSS_HTTP_NOT_PLAIN;
    }
    answer->lines_size = (uint32_t)(writer.at - out);
    return 1;
}

/*
 * The plain HTTP message: judge a request's head, write its context, turn a worker's answer into lines.
 *
 * Theory of operation. The caller owns all memory; nothing here allocates, does I/O, keeps state or touches
 * Python. Each function says "plain" and gives a result, or says TRAILBOSS_HTTP_NOT_PLAIN, and then the
 * reference in Python has the word: it alone refuses requests and answers, it alone knows why. So what is
 * accepted here is less than what HTTP allows, never more: one Host of letters and digits, HTTP/1.1, no
 * transfer coding, no expectation, nothing beyond ASCII, no name twice where that would matter.
 */
#ifndef TRAILBOSS_HTTP_H
#define TRAILBOSS_HTTP_H

#include <stddef.h>
#include <stdint.h>

#define TRAILBOSS_HTTP_NOT_PLAIN 0

/* A message with more fields than this is not plain. */
#define TRAILBOSS_HTTP_FIELDS_MAX 64

/* What a body may at most announce in a plain head; the caller's own limit may be smaller. */
#define TRAILBOSS_HTTP_LENGTH_MAX 2147483647

struct trailboss_http_limits {
    uint32_t request_line; /* bytes of the request line without its end */
    uint32_t head;         /* bytes of the head */
    uint32_t fields;       /* number of header lines */
    uint32_t body;         /* bytes of the body */
};

/* Where the parts of a plain head are. The method begins at 0, the target one space behind it. */
struct trailboss_http_head {
    uint32_t method_size;
    uint32_t target_size;
    uint32_t path_size; /* of the target, up to the first "?" */
    uint32_t host_offset;
    uint32_t host_size;
    uint32_t length;     /* of the body */
    uint32_t keep_alive; /* 0: the client closes the connection behind this request */
};

/* The header names with an underscore are told to the worker. */
#define TRAILBOSS_HTTP_UNDERSCORES 1u
/* A Content-Type of a form is plain, too: nobody parses the form here. */
#define TRAILBOSS_HTTP_FORMS 2u

/*
 * Judges data[0..size), which is one head, its empty line included, and nothing more. Returns 1 and writes
 * `head`, or returns TRAILBOSS_HTTP_NOT_PLAIN.
 */
int32_t trailboss_http_read_head(const uint8_t *data, size_t size, const struct trailboss_http_limits *limits,
                                 struct trailboss_http_head *head);

/*
 * Writes the context of a request in the JSON dialect into `out`. `beginning` is its text up to the target, `ending`
 * its text behind the query; both are copied as they are. `target` and `query` are checked, and so is `head`, of
 * which the header lines are told. Returns the size, at most `capacity`, or TRAILBOSS_HTTP_NOT_PLAIN; then what `out`
 * holds means nothing.
 */
size_t trailboss_http_write_context(uint8_t *out, size_t capacity, const uint8_t *beginning, size_t beginning_size,
                                    const uint8_t *target, size_t target_size, const uint8_t *query,
                                    size_t query_size, const uint8_t *head, size_t head_size,
                                    const uint8_t *ending, size_t ending_size, uint32_t options);

/* What an answer's context says besides its header lines. */
struct trailboss_http_answer {
    int64_t length; /* Content-Length, -1 where there is none */
    uint32_t status;
    uint32_t lines_size;
};

/*
 * Reads the context of an answer in the JSON dialect, and writes its header lines into `out` without those that are
 * the server's to say. Returns 1 and writes `answer`, or returns TRAILBOSS_HTTP_NOT_PLAIN; then what `out` holds means
 * nothing.
 */
int32_t trailboss_http_read_answer(const uint8_t *context, size_t size, uint8_t *out, size_t capacity,
                                   struct trailboss_http_answer *answer);

#endif

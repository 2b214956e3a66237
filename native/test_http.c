/*
 * Unit tests of the plain HTTP message. Usage: test_http FOLDER, a folder of byte strings (native/corpus_http).
 *
 * Each is checked whole, at every length, and with every byte changed; see guarded.h.
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS */

#include "check_http.h"
#include "guarded.h"

static const struct trailboss_http_limits limits = {8192, 65536, 100, 1000};

static int32_t read_head(const char *text, struct trailboss_http_head *head)
{
    return trailboss_http_read_head(guarded(text, strlen(text)), strlen(text), &limits, head);
}

static bool is_plain(const char *text)
{
    struct trailboss_http_head head;

    return read_head(text, &head) == 1;
}

#define GET "GET / HTTP/1.1\r\nHost: a\r\n"

static void test_a_plain_head(void)
{
    static const char text[] = "POST /a/%41?b=c HTTP/1.1\r\nHost:\t a.example:80 \r\nContent-Length: 12\r\n"
                               "X_y:\r\nConnection: Close\r\n\r\n";
    struct trailboss_http_head head;

    CHECK(read_head(text, &head) == 1);
    CHECK(head.method_size == 4 && head.target_size == 10 && head.path_size == 6);
    CHECK(head.length == 12 && head.keep_alive == 0);
    CHECK(head.host_size == 12 && memcmp(text + head.host_offset, "a.example:80", 12) == 0);
    CHECK(read_head(GET "connection: Keep-Alive\r\n\r\n", &head) == 1 && head.keep_alive == 1 && head.length == 0);
}

static void test_heads_that_are_not_plain(void)
{
    static const char *const texts[] = {
        "", "\r\n", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET", "get / HTTP/1.1\r\nHost: a\r\n\r\n", "TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", "GET /\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "GET * HTTP/1.1\r\nHost: a\r\n\r\n", "GET /? HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /% HTTP/1.1\r\nHost: a\r\n\r\n", "GET /%4g HTTP/1.1\r\nHost: a\r\n\r\n", "GET /%g4 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\" HTTP/1.1\r\nHost: a\r\n\r\n", "GET /?# HTTP/1.1\r\nHost: a\r\n\r\n", "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n", GET, GET "\n\r\n", GET "A: b\n\r\n", GET "A : b\r\n\r\n", GET ": b\r\n\r\n",
        GET "A\r\n\r\n", GET " A: b\r\n\r\n", GET "A: b\r\n c\r\n\r\n", GET "A: \x01\r\n\r\n", GET "A: \xc3\xa9\r\n\r\n",
        GET "A: b\r \r\n\r\n", GET "Host: b\r\n\r\n", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:x\r\n\r\n", GET "Expect: 100-continue\r\n\r\n", GET "Upgrade: h2c\r\n\r\n",
        GET "Connection: upgrade\r\n\r\n", GET "Connection: close\r\nConnection: close\r\n\r\n",
        GET "Content-Length: 1001\r\n\r\n", GET "Content-Length: 05\r\n\r\n", GET "Content-Length: +5\r\n\r\n",
        GET "Content-Length: \r\n\r\n", GET "Content-Length: 1\r\nContent-Length: 1\r\n\r\n",
        GET "Content-Length: 1111111111111111\r\n\r\n", GET "Transfer-Encoding: chunked\r\n\r\n",
        GET "Proxy-Connection: close\r\n\r\n", GET "\r\nA: b\r\n\r\n", GET "A: b\r\n\r\n\r\n",
    };

    for (size_t index = 0; index < sizeof texts / sizeof texts[0]; index++) {
        CHECK(!is_plain(texts[index]));
    }
    CHECK(is_plain(GET "Content-Length: 1000\r\n\r\n") && is_plain(GET "Xpect: a\r\nUpgrad3: b\r\nX-nnection: c\r\n\r\n"));
    CHECK(is_plain(GET "Content-Lengt_: a\r\nTransfer-Encodin_: a\r\nProxy-Connectio_: a\r\nHos_: a\r\n\r\n"));
    CHECK(is_plain("OPTIONS / HTTP/1.1\r\nHost: a:65535\r\n\r\n"));
}

static void test_limits_of_a_head(void)
{
    static const char text[] = GET "A: b\r\n\r\n";
    const struct trailboss_http_limits exact = {14, sizeof text - 1, 2, 0};
    struct trailboss_http_head head;

    for (int index = 0; index < 4; index++) {
        struct trailboss_http_limits less = exact;

        less.request_line -= index == 1;
        less.head -= index == 2;
        less.fields -= index == 3;
        CHECK(trailboss_http_read_head(guarded(text, sizeof text - 1), sizeof text - 1, &less, &head) == (index == 0));
    }
}

/* Compares the context of a head that has these header lines; "" stands for one that is not plain. */
static void context(const char *lines, uint32_t options, const char *headers, const char *cookies)
{
    char head[4096];
    char expected[4096];
    size_t size = 0;

    CHECK(snprintf(head, sizeof head, "GET /p?q=1 HTTP/1.1\r\n%s\r\n", lines) < (int)sizeof head);
    size = check_write(CHECK_OUT_MAX, (const uint8_t *)"/p?q=1", 6, (const uint8_t *)"q=1", 3,
                       guarded(head, strlen(head)), strlen(head), options);
    if (strlen(headers) == 0) {
        CHECK(size == 0);
        return;
    }
    CHECK(snprintf(expected, sizeof expected, "%s/p?q=1\",\"headers\":%s,\"cookies\":%s,\"rawQuery\":\"q=1\",%s",
                   check_beginning, headers, cookies, check_ending) < (int)sizeof expected);
    CHECK(size == strlen(expected) && memcmp(check_out, expected, size) == 0);
}

static void test_contexts(void)
{
    context("", 0, "{}", "{}");
    context("Host: a\r\nx-REQUEST-id:  a \t b\t\r\nDNT:\r\n", 0, "{\"X-Request-Id\":[\"a \\t b\"],\"Dnt\":[\"\"]}", "{}");
    context("A: \"b\\c\"\r\n", 0, "{\"A\":[\"\\\"b\\\\c\\\"\"]}", "{}");
    context("Connection: close, , TE\r\nKeep-Alive: 1\r\nUPGRADE: a\r\nProxy: b\r\nB: c\r\n", 0, "{\"B\":[\"c\"]}", "{}");
    context("Connection: x-secret\r\n", 0, "", "");
    context("Connection: keep-alive,\r\n", 0, "{}", "{}");
    context("a_b: c\r\n", 0, "{}", "{}");
    context("a_b: c\r\n", TRAILBOSS_HTTP_UNDERSCORES, "{\"A_b\":[\"c\"]}", "{}");
    context("Content-Type: Multipart/Form-Data\r\n", 0, "", "");
    context("Content-Type: a/FORM\r\n", TRAILBOSS_HTTP_FORMS, "{\"Content-Type\":[\"a/FORM\"]}", "{}");
    context("Content-Type: text/for\r\n", 0, "{\"Content-Type\":[\"text/for\"]}", "{}");
    context("A: b\r\na: c\r\n", 0, "", "");
    context("A: b\n", 0, "", "");
    context("cookie: a=b; c=; d==e\r\n", 0, "{\"Cookie\":[\"a=b; c=; d==e\"]}", "{\"a\":\"b\",\"c\":\"\",\"d\":\"=e\"}");
    context("Cookie:\r\n", 0, "", "");
    context("Cookie: a\r\n", 0, "", "");
    context("Cookie: a=b;c=d\r\n", 0, "", "");
    context("Cookie: a=b;\r\n", 0, "", "");
    context("Cookie: a=b; \r\n", 0, "", "");
    context("Cookie: a=%41\r\n", 0, "", "");
    context("Cookie: a=b; a=c\r\n", 0, "", "");
}

static void test_targets_of_contexts(void)
{
    static const uint8_t head[] = "GET / HTTP/1.1\r\n\r\n";
    const size_t size = sizeof head - 1;

    CHECK(check_write(999, (const uint8_t *)"", 0, NULL, 0, head, size, 0) == 0);
    CHECK(check_write(999, (const uint8_t *)"/", 1, (const uint8_t *)"\"", 1, head, size, 0) == 0);
    CHECK(check_write(999, (const uint8_t *)"/", 1, NULL, 0, head, size - 1, 0) == 0);
    CHECK(check_write(999, (const uint8_t *)"/", 1, NULL, 0, head, size, 0) > 0);
    CHECK(check_write(0, (const uint8_t *)"/", 1, NULL, 0, head, size, 0) == 0);
}

/* Whatever part of a context there is no room for, it is not written behind the room. */
static void test_every_capacity(void)
{
    static const uint8_t head[] = "GET / HTTP/1.1\r\nX-Long-Name: a\"b\r\nCookie: a=b\r\n\r\n";
    const size_t all = check_write(CHECK_OUT_MAX, (const uint8_t *)"/", 1, NULL, 0, head, sizeof head - 1, 0);

    CHECK(all > 0);
    for (size_t capacity = 0; capacity < all; capacity++) {
        CHECK(check_write(capacity, (const uint8_t *)"/", 1, NULL, 0, head, sizeof head - 1, 0) == 0);
    }
}

/* More fields than are remembered, of different names. */
static void test_many_fields(void)
{
    for (int count = TRAILBOSS_HTTP_FIELDS_MAX; count <= TRAILBOSS_HTTP_FIELDS_MAX + 1; count++) {
        uint8_t head[2048] = "GET / HTTP/1.1\r\n";
        size_t size = 16;

        for (int index = 0; index < count; index++) {
            size += (size_t)snprintf((char *)head + size, sizeof head - size, "a%d: b\r\n", index);
        }
        head[size++] = '\r';
        head[size++] = '\n';
        CHECK((check_write(CHECK_OUT_MAX, (const uint8_t *)"/", 1, NULL, 0, guarded(head, size), size, 0) > 0) ==
              (count == TRAILBOSS_HTTP_FIELDS_MAX));
    }
}

/* Compares what an answer's context means; a status of 0 stands for one that is not plain. */
static void answer(const char *text, uint32_t status, int64_t length, const char *lines)
{
    struct trailboss_http_answer found;
    const int32_t plain = check_read(guarded(text, strlen(text)), strlen(text), CHECK_OUT_MAX, &found);

    CHECK(plain == (status != 0));
    if (status != 0) {
        CHECK(found.status == status && found.length == length && found.lines_size == strlen(lines));
        CHECK(memcmp(check_out, lines, found.lines_size) == 0);
    }
}

static void test_plain_answers(void)
{
    answer("{\"status\":200,\"headers\":{\"Content-Type\":[\"text\\/html; charset=UTF-8\"]}}", 200, -1,
           "Content-Type: text/html; charset=UTF-8\r\n");
    answer(" { \"headers\" : [ ] , \"status\" : 404 } \n", 404, -1, "");
    answer("{\"status\":103,\"headers\":{}}", 103, -1, "");
    answer("{\"status\":200}", 200, -1, "");
    answer("{\"status\":200,\"headers\":{\"A\":[\" \\t\\\"b\\\\ \",\"\"],\"B\":[]}}", 200, -1, "A: \"b\\\r\nA: \r\n");
    answer("{\"status\":599,\"headers\":{\"Date\":[\"x\"],\"A\":[\"b\"],\"CONTENT-LENGTH\":[\"12\"],\"Te\":[\"y\"]}}", 599, 12,
           "A: b\r\n");
}

static void test_answers_that_are_not_plain(void)
{
    static const char *const texts[] = {
        "", "[]", "{", "{}", "{\"status\":200", "{\"status\":200}x", "{\"status\":200,}", "{\"status\"200}", "{status:200}",
        "{\"status\":\"200\"}", "{\"status\":99}", "{\"status\":600}", "{\"status\":020}", "{\"status\":2000}", "{\"status\":200.0}",
        "{\"status\":200,\"status\":200}", "{\"status\":200,\"other\":1}", "{\"headers\":{}}", "{\"status\":200,\"headers\":null}",
        "{\"status\":200,\"headers\":[1]}", "{\"status\":200,\"headers\":{},\"headers\":{}}", "{\"status\":200,\"headers\":{\"A\"}}",
        "{\"status\":200,\"headers\":{\"A\":\"b\"}}", "{\"status\":200,\"headers\":{\"A\":[b]}}", "{\"status\":200,\"headers\":{\"A\":[\"b]}}",
        "{\"status\":200,\"headers\":{\"A\":[\"b\"}}", "{\"status\":200,\"headers\":{\"A\":[\"b\\", "{\"status\":200,\"headers\":{\"A\":[\"\\n\"]}}",
        "{\"status\":200,\"headers\":{\"A\":[\"\\u0041\"]}}", "{\"status\":200,\"headers\":{\"A\":[\"\t\"]}}",
        "{\"status\":200,\"headers\":{\"A\":[\"\xc3\xa9\"]}}", "{\"status\":200,\"headers\":{\"\":[\"b\"]}}", "{\"status\":200,\"headers\":{\"A b\":[\"b\"]}}",
        "{\"status\":200,\"headers\":{\"A\":[\"b\"],\"a\":[\"b\"]}}", "{\"status\":200,\"headers\":{\"A\":[\"b\"]", "{\"status\":200,\"headers\":{\"A\":[\"b\"],}}",
        "{\"status\":200,\"headers\":{\"Trailer\":[\"b\"]}}", "{\"status\":200,\"headers\":{\"Transfer-Encoding\":[\"chunked\"]}}",
        "{\"status\":200,\"headers\":{\"Content-Length\":[\"1\",\"1\"]}}", "{\"status\":200,\"headers\":{\"Content-Length\":[\"x\"]}}",
        "{\"status\":200,\"headers\":{\"Content-Length\":[\"01\"]}}", "{\"status\":200,\"headers\":{\"A\"",
    };

    for (size_t index = 0; index < sizeof texts / sizeof texts[0]; index++) {
        answer(texts[index], 0, 0, "");
    }
}

/* One byte string: whole, at every length, and with each byte changed in a few ways. */
static void test_bytes(const uint8_t *bytes, size_t size)
{
    static const uint8_t others[] = {0x00, '\n', '\r', '"', ':', '\\', 0x80};
    uint8_t changed[INPUT_SIZE_MAX];

    for (size_t length = 0; length <= size; length++) {
        check_bytes(guarded(bytes, length), length);
    }
    memcpy(changed, bytes, size);
    for (size_t index = 0; index < size; index++) {
        for (size_t other = 0; other < sizeof others; other++) {
            changed[index] = others[other];
            check_bytes(guarded(changed, size), size);
        }
        changed[index] = bytes[index];
    }
}

int main(int argument_count, char **arguments)
{
    unsigned int count = 0;

    CHECK(argument_count == 2);
    open_guarded_area();
    test_a_plain_head();
    test_heads_that_are_not_plain();
    test_limits_of_a_head();
    test_contexts();
    test_targets_of_contexts();
    test_every_capacity();
    test_many_fields();
    test_plain_answers();
    test_answers_that_are_not_plain();
    count = test_folder(arguments[1], test_bytes);
    CHECK(count > 100);
    (void)printf("plain HTTP messages: %u byte strings checked\n", count);
    return 0;
}

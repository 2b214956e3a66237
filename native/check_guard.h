/*
 * What must be true of the pure part of the guard for any bytes: shared by the unit tests and the fuzz target.
 *
 * Bytes are taken as lines, as an environment, and as a stat. Whether they mean the same to the reference in Python is for
 * native/compare_guard.py; here it must not matter in what pieces they come, and counts must be what is there.
 */
#ifndef TRAILBOSS_CHECK_GUARD_H
#define TRAILBOSS_CHECK_GUARD_H

#include "check.h"
#include "guard.h"

#include <string.h>

/* The marks that environments are searched for: those of the tokens "lost", "" and "other". */
static const char check_values[] = "lost\0\0other";
static const struct trailboss_guard_marks check_marks = {"TRAILBOSS_TOKEN=", check_values, sizeof check_values};

/* What happened while lines were fed. */
struct check_events {
    uint64_t count;
    uint64_t hash;
};

/* Feeds in pieces, and does what has to be done between them; a full table of tokens is emptied. */
static void check_feed(struct trailboss_guard *guard, const char *bytes, size_t size, size_t piece_size,
                       struct check_events *events)
{
    for (size_t begin = 0; begin < size; begin += piece_size) {
        const size_t end = size - begin < piece_size ? size : begin + piece_size;

        for (size_t at = begin; at < end;) {
            enum trailboss_guard_event event = TRAILBOSS_GUARD_CONSUMED;
            const size_t taken = trailboss_guard_feed(guard, bytes + at, end - at, &event);

            CHECK(taken <= end - at);
            at += taken;
            CHECK(event != TRAILBOSS_GUARD_CONSUMED || at == end);
            CHECK(event != TRAILBOSS_GUARD_QUIT || guard->group_count == 0);
            if (event == TRAILBOSS_GUARD_FULL) {
                CHECK(guard->tokens_size > 0);
                guard->tokens_size = 0;
            }
            if (event != TRAILBOSS_GUARD_CONSUMED) {
                events->count += 1;
                events->hash = events->hash * 31 + (uint64_t)event * 7 + guard->line_size;
            }
        }
    }
}

static void check_lines(const char *bytes, size_t size)
{
    static struct trailboss_guard whole;
    static struct trailboss_guard pieces;
    struct check_events events = {0, 0};
    struct check_events events_again = {0, 0};
    uint32_t count = 0;

    memset(&whole, 0, sizeof whole);
    memset(&pieces, 0, sizeof pieces);
    check_feed(&whole, bytes, size, size + 1, &events);
    check_feed(&pieces, bytes, size, size % 5 + 1, &events_again);
    CHECK(events.count == events_again.count && events.hash == events_again.hash);
    CHECK(memcmp(whole.groups, pieces.groups, sizeof whole.groups) == 0);
    CHECK(whole.group_count == pieces.group_count);
    CHECK(whole.tokens_size == pieces.tokens_size);
    CHECK(memcmp(whole.tokens, pieces.tokens, whole.tokens_size) == 0);
    CHECK(strcmp(whole.cgroup, pieces.cgroup) == 0);
    CHECK(whole.line_size == pieces.line_size && whole.line_size <= TRAILBOSS_GUARD_LINE_SIZE_MAX + 1);
    for (uint32_t word = 0; word < TRAILBOSS_GUARD_PROCESS_NUMBERS / 64; word++) {
        if (whole.groups[word] != 0) {
            count += (uint32_t)__builtin_popcountll(whole.groups[word]);
        }
    }
    CHECK(count == whole.group_count);
    CHECK(!trailboss_guard_knows(&whole, 0) && !trailboss_guard_knows(&whole, 1));
}

static bool check_search(const char *bytes, size_t size, size_t piece_size)
{
    static struct trailboss_guard_search search;

    memset(&search, 0xff, sizeof search);
    search.marks = &check_marks;
    search.found = false;
    search.entry_size = 0;
    for (size_t at = 0; at < size; at += piece_size) {
        trailboss_guard_search_feed(&search, bytes + at, size - at < piece_size ? size - at : piece_size);
    }
    trailboss_guard_search_end(&search);
    return search.found;
}

/* Whether an entry of the environment is a mark, told by a look at each place where one may begin. */
static bool check_is_marked(const char *bytes, size_t size)
{
    static const char *const entries[] = {"TRAILBOSS_TOKEN=lost", "TRAILBOSS_TOKEN=", "TRAILBOSS_TOKEN=other"};

    for (size_t begin = 0; begin < size; begin++) {
        for (size_t index = 0; index < 3 && (begin == 0 || bytes[begin - 1] == '\0'); index++) {
            const size_t length = strlen(entries[index]);

            if (size - begin >= length && memcmp(bytes + begin, entries[index], length) == 0 &&
                (size - begin == length || bytes[begin + length] == '\0')) {
                return true;
            }
        }
    }
    return false;
}

/* Any bytes, taken as each of the three. A zero must stand behind them. */
static void check_bytes(const char *bytes, size_t size)
{
    const bool is_marked = check_is_marked(bytes, size);
    const struct trailboss_guard_stat stat = trailboss_guard_read_stat(bytes, size);

    check_lines(bytes, size);
    CHECK(check_search(bytes, size, size + 1) == is_marked);
    CHECK(check_search(bytes, size, 1) == is_marked);
    CHECK(check_search(bytes, size, size % 7 + 2) == is_marked);
    CHECK(stat.session < TRAILBOSS_GUARD_PROCESS_NUMBERS && stat.session != 1);
    CHECK(memchr(bytes, ')', size) != NULL || (!stat.is_alive && stat.session == 0));
}

#endif

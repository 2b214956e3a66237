/*
 * Shows what the pure part of the guard makes of bytes, for native/compare_guard.py.
 *
 * Input: any number of cases, each KIND (l lines, e environment, s stat), the size of the bytes and that of the pieces they
 * are fed in (two unsigned 32-bit numbers of this machine), and the bytes. One line of output a case; tokens and folder in
 * hexadecimal.
 */
#include "check.h"
#include "guard.h"

#include <string.h>

static void show_hex(const char *bytes, size_t size)
{
    for (size_t index = 0; index < size; index++) {
        (void)printf("%02x", (unsigned int)(unsigned char)bytes[index]);
    }
}

static void show_tokens(const struct trailboss_guard *guard)
{
    for (size_t at = 0; at < guard->tokens_size; at += strlen(guard->tokens + at) + 1) {
        (void)printf(" x");
        show_hex(guard->tokens + at, strlen(guard->tokens + at));
    }
}

static void show_lines(const char *bytes, size_t size, size_t piece_size)
{
    static struct trailboss_guard guard;
    unsigned int quits = 0;

    memset(&guard, 0, sizeof guard);
    for (size_t at = 0; at < size;) {
        enum trailboss_guard_event event = TRAILBOSS_GUARD_CONSUMED;

        at += trailboss_guard_feed(&guard, bytes + at, size - at < piece_size ? size - at : piece_size, &event);
        if (event == TRAILBOSS_GUARD_FULL) {
            show_tokens(&guard);
            guard.tokens_size = 0;
        }
        quits += event == TRAILBOSS_GUARD_QUIT;
    }
    show_tokens(&guard);
    for (uint32_t group = 0; group < TRAILBOSS_GUARD_PROCESS_NUMBERS; group++) {
        if (guard.groups[group / 64] == 0) {
            group |= 63;
        } else if (trailboss_guard_knows(&guard, group)) {
            (void)printf(" +%u", (unsigned int)group);
        }
    }
    (void)printf(" @");
    show_hex(guard.cgroup, strlen(guard.cgroup));
    (void)printf(" q%u\n", quits);
}

static void show_search(const char *bytes, size_t size, size_t piece_size)
{
    static const char values[] = "lost\0\0other";
    const struct trailboss_guard_marks marks = {"TRAILBOSS_TOKEN=", values, sizeof values};
    struct trailboss_guard_search search = {.marks = &marks};

    for (size_t at = 0; at < size; at += piece_size) {
        trailboss_guard_search_feed(&search, bytes + at, size - at < piece_size ? size - at : piece_size);
    }
    trailboss_guard_search_end(&search);
    (void)printf("%d\n", search.found);
}

int main(void)
{
    static char bytes[1024 * 1024 + 1];
    uint32_t sizes[2];

    for (int kind = getchar(); kind != EOF; kind = getchar()) {
        CHECK(fread(sizes, sizeof sizes, 1, stdin) == 1);
        CHECK(sizes[0] < sizeof bytes && sizes[1] > 0);
        CHECK(fread(bytes, 1, sizes[0], stdin) == sizes[0]);
        bytes[sizes[0]] = '\0';
        if (kind == 'l') {
            show_lines(bytes, sizes[0], sizes[1]);
        } else if (kind == 'e') {
            show_search(bytes, sizes[0], sizes[1]);
        } else {
            const struct trailboss_guard_stat stat = trailboss_guard_read_stat(bytes, sizes[0]);

            (void)printf("%d %u\n", stat.is_alive, (unsigned int)stat.session);
        }
    }
    return 0;
}

/*
 * The guard; guard.h says what it promises. First what the lines mean, then what /proc says, then the hunt.
 *
 * System calls that a libc may not wrap go by their numbers. No stdio, no allocation: what is needed when the
 * machine is out of memory has to be there already.
 */
#define _GNU_SOURCE /* O_DIRECTORY, syscall, DT_DIR */

#include "guard.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

/* Calls that are newer than some headers; all but Alpha and MIPS have the same numbers. */
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif

/* The hunt ends after this many rounds in a row that found nobody. */
#define QUIET_ROUNDS 3
#define ROUND_MILLISECONDS 50
/* From one look for children of workers that have ended to the next; it serves all that have ended meanwhile. */
#define STRAYS_MILLISECONDS 250
/* Looks at most, while there are more: some may be forking. */
#define STRAY_ROUNDS 10
/* Control groups that nest deeper than this stay: empty, and nobody's trouble. */
#define CGROUP_DEPTH_MAX 32

/* --- lines -------------------------------------------------------------------------------------------------- */

bool trailboss_guard_knows(const struct trailboss_guard *guard, uint32_t group)
{
    return group < TRAILBOSS_GUARD_PROCESS_NUMBERS && (guard->groups[group / 64] >> (group % 64) & 1) != 0;
}

static void set_group(struct trailboss_guard *guard, uint32_t group, bool exists)
{
    if (trailboss_guard_knows(guard, group) != exists) {
        guard->groups[group / 64] ^= (uint64_t)1 << (group % 64);
        guard->group_count = exists ? guard->group_count + 1 : guard->group_count - 1;
    }
}

/* A number that a process can have, of digits only; 0 where it is none. That of init is none, and neither is 0:
 * killing "their" groups would mean everybody, or the guard. */
static uint32_t process_number(const char *digits, size_t size)
{
    uint32_t number = 0;

    for (size_t index = 0; index < size; index++) {
        if (digits[index] < '0' || digits[index] > '9') {
            return 0;
        }
        number = number * 10 + (uint32_t)(digits[index] - '0');
        if (number >= TRAILBOSS_GUARD_PROCESS_NUMBERS) {
            return 0;
        }
    }
    return number > 1 ? number : 0;
}

/* Whether one of some values, each with a zero behind it, is this one. */
static bool is_one_of(const char *values, size_t values_size, const char *value, size_t size)
{
    for (size_t at = 0, length = 0; at < values_size; at += length + 1) {
        length = strlen(values + at);
        if (length == size && memcmp(values + at, value, size) == 0) {
            return true;
        }
    }
    return false;
}

/* Remembers a token; false where there is no room. */
static bool add_token(struct trailboss_guard *guard, const char *token, size_t size)
{
    if (memchr(token, 0, size) != NULL || is_one_of(guard->tokens, guard->tokens_size, token, size)) {
        return true; /* no environment can hold the one, the other is there */
    }
    if (size >= sizeof guard->tokens - guard->tokens_size) {
        return false;
    }
    memcpy(guard->tokens + guard->tokens_size, token, size);
    guard->tokens_size += size;
    guard->tokens[guard->tokens_size++] = '\0';
    return true;
}

/* A folder whose path holds a zero cannot be opened: then there is none. */
static void set_cgroup(struct trailboss_guard *guard, const char *folder, size_t size)
{
    size = memchr(folder, 0, size) != NULL ? 0 : size;
    memcpy(guard->cgroup, folder, size);
    guard->cgroup[size] = '\0';
}

static enum trailboss_guard_event take_line(struct trailboss_guard *guard)
{
    const bool is_too_long = guard->line_size > sizeof guard->line;
    const char *rest = guard->line + 1;
    const size_t rest_size = is_too_long || guard->line_size == 0 ? 0 : guard->line_size - 1;
    const char verb = guard->line_size == 0 ? '\0' : guard->line[0];

    if (verb == '@') {
        set_cgroup(guard, rest, rest_size); /* too long a path is none either */
    } else if (is_too_long) {
        return TRAILBOSS_GUARD_CONSUMED;
    } else if (verb == 'x') {
        return add_token(guard, rest, rest_size) ? TRAILBOSS_GUARD_CONSUMED : TRAILBOSS_GUARD_FULL;
    } else if (verb == 'q' && rest_size == 0) {
        return guard->group_count == 0 ? TRAILBOSS_GUARD_QUIT : TRAILBOSS_GUARD_CONSUMED;
    } else if ((verb == '+' || verb == '-') && process_number(rest, rest_size) != 0) {
        set_group(guard, process_number(rest, rest_size), verb == '+');
    }
    return TRAILBOSS_GUARD_CONSUMED;
}

static void add_to_line(struct trailboss_guard *guard, const char *bytes, size_t size)
{
    if (guard->line_size > sizeof guard->line) {
        return;
    }
    const size_t room = sizeof guard->line - guard->line_size;

    memcpy(guard->line + guard->line_size, bytes, size < room ? size : room);
    guard->line_size += size <= room ? size : room + 1;
}

size_t trailboss_guard_feed(struct trailboss_guard *guard, const char *bytes, size_t size,
                            enum trailboss_guard_event *event)
{
    size_t at = 0;

    *event = TRAILBOSS_GUARD_CONSUMED;
    while (at < size && *event == TRAILBOSS_GUARD_CONSUMED) {
        const char *end = memchr(bytes + at, '\n', size - at);
        const size_t piece = end == NULL ? size - at : (size_t)(end - bytes) - at;

        add_to_line(guard, bytes + at, piece);
        at += piece;
        if (end == NULL) {
            break;
        }
        *event = take_line(guard);
        if (*event != TRAILBOSS_GUARD_FULL) { /* else its end is read once more, and then there is room */
            guard->line_size = 0;
            at += 1;
        }
    }
    return at;
}

/* --- what /proc says ---------------------------------------------------------------------------------------- */

static bool is_mark(const struct trailboss_guard_marks *marks, const char *entry, size_t size)
{
    const size_t name_size = strlen(marks->name);

    return size >= name_size && memcmp(entry, marks->name, name_size) == 0 &&
           is_one_of(marks->values, marks->values_size, entry + name_size, size - name_size);
}

void trailboss_guard_search_feed(struct trailboss_guard_search *search, const char *bytes, size_t size)
{
    for (size_t at = 0; at < size && !search->found;) {
        const char *end = memchr(bytes + at, 0, size - at);
        const size_t piece = end == NULL ? size - at : (size_t)(end - bytes) - at;

        if (end != NULL && search->entry_size == 0) {
            search->found = is_mark(search->marks, bytes + at, piece);
        } else {
            const size_t room =
                search->entry_size < sizeof search->entry ? sizeof search->entry - search->entry_size : 0;

            memcpy(search->entry + (sizeof search->entry - room), bytes + at, piece < room ? piece : room);
            search->entry_size += piece;
            if (end != NULL) {
                trailboss_guard_search_end(search);
            }
        }
        at += end == NULL ? piece : piece + 1;
    }
}

void trailboss_guard_search_end(struct trailboss_guard_search *search)
{
    /* The room is larger than any mark. */
    if (search->entry_size <= sizeof search->entry && is_mark(search->marks, search->entry, search->entry_size)) {
        search->found = true;
    }
    search->entry_size = 0;
}

struct trailboss_guard_stat trailboss_guard_read_stat(const char *bytes, size_t size)
{
    struct trailboss_guard_stat stat = {false, 0};
    size_t field = 0;

    /* The command name may hold blanks, brackets and line ends; what follows its last bracket is regular. */
    while (size > 0 && bytes[size - 1] != ')') {
        size--;
    }
    for (const char *at = bytes + size; size > 0 && *at != '\0' && field < 4; field++) {
        at += strspn(at, " ");
        const size_t length = strcspn(at, " \n");

        if (field == 0) {
            stat.is_alive = length == 1 && *at != 'Z' && *at != 'X';
        } else if (field == 3) {
            stat.session = process_number(at, length);
        }
        at += length;
    }
    return stat;
}

static int64_t now_milliseconds(void)
{
    struct timespec now = {0, 0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether there is input; waits for it, until some time where there is one (not 0). A signal ends the wait. */
static bool wait_for_input(int64_t until)
{
    struct pollfd input = {.fd = 0, .events = POLLIN, .revents = 0};
    const int64_t left = until == 0 ? -1 : until - now_milliseconds();

    return poll(&input, 1, until != 0 && left < 0 ? 0 : (int)left) > 0;
}

static void pause_milliseconds(int64_t milliseconds)
{
    const int64_t until = now_milliseconds() + milliseconds;

    for (int64_t left = milliseconds; left > 0; left = until - now_milliseconds()) {
        (void)poll(NULL, 0, (int)left);
    }
}

static ssize_t read_some(int descriptor, char *bytes, size_t size)
{
    ssize_t count = 0;

    do {
        count = read(descriptor, bytes, size);
    } while (count < 0 && errno == EINTR);
    return count;
}

/* Reads to the end of a file, or as much as there is room for. */
static size_t read_whole(int file, char *bytes, size_t room)
{
    size_t size = 0;

    for (ssize_t count = 1; count > 0 && size < room;) {
        count = read_some(file, bytes + size, room - size);
        size += count > 0 ? (size_t)count : 0;
    }
    return size;
}

/* Who is looked for, and what has come of it. */
struct look {
    const struct trailboss_guard *sessions; /* those of its groups; NULL: by marks alone */
    struct trailboss_guard_marks marks;
    bool kills;
    bool found;    /* somebody */
    bool in_doubt; /* something could not be read though it is there: no files or no memory left */
};

/* Opens /proc/PID/NAME; -1 where that is not possible. */
static int open_of_process(struct look *look, int proc, const char *pid, const char *name)
{
    char path[32];
    const size_t pid_size = strlen(pid);
    int file = -1;

    memcpy(path, pid, pid_size); /* 7 digits at most, see `look_at_all` */
    path[pid_size] = '/';
    memcpy(path + pid_size + 1, name, strlen(name) + 1);
    file = openat(proc, path, O_RDONLY | O_CLOEXEC);
    look->in_doubt |= file < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM);
    return file;
}

static struct trailboss_guard_stat stat_of(struct look *look, int proc, const char *pid)
{
    char bytes[4096];
    size_t size = 0;
    const int file = open_of_process(look, proc, pid, "stat");

    if (file >= 0) {
        size = read_whole(file, bytes, sizeof bytes - 1);
        (void)close(file);
    }
    bytes[size] = '\0';
    return trailboss_guard_read_stat(bytes, size);
}

static bool is_marked(struct look *look, int proc, const char *pid)
{
    struct trailboss_guard_search search;
    char bytes[16384];
    size_t size = 0;
    const int file = open_of_process(look, proc, pid, "environ");

    if (file < 0) {
        return false;
    }
    search.marks = &look->marks;
    search.found = false;
    search.entry_size = 0;
    for (ssize_t count = 1; count > 0 && !search.found && size < TRAILBOSS_GUARD_ENVIRON_SIZE_MAX;) {
        count = read_some(file, bytes, sizeof bytes);
        if (count > 0) {
            trailboss_guard_search_feed(&search, bytes, (size_t)count);
            size += (size_t)count;
        }
    }
    trailboss_guard_search_end(&search);
    (void)close(file);
    return search.found;
}

static bool is_looked_for(struct look *look, int proc, const char *pid)
{
    if (look->sessions != NULL) {
        const struct trailboss_guard_stat stat = stat_of(look, proc, pid);

        if (!stat.is_alive || trailboss_guard_knows(look->sessions, stat.session)) {
            return stat.is_alive;
        }
    }
    return is_marked(look, proc, pid);
}

/* The process is held by a descriptor from the second look on, so a number that is in use again harms nobody. */
static void look_at(struct look *look, int proc, const char *name, uint32_t pid)
{
    int pidfd = -1;

    if (!is_looked_for(look, proc, name)) {
        return;
    }
    if (!look->kills) {
        look->found = true;
        return;
    }
    pidfd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    look->in_doubt |= pidfd < 0 && errno != ESRCH;
    if (is_looked_for(look, proc, name)) {
        look->found = true;
        /* In the hunt who cannot be held is killed all the same: no worker must outlive the server. */
        (void)(pidfd >= 0 ? syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0)
                          : (look->sessions != NULL ? kill((pid_t)pid, SIGKILL) : 0));
    }
    if (pidfd >= 0) {
        (void)close(pidfd);
    }
}

/* One entry of a folder, as the kernel writes it (linux_dirent64). */
struct entry {
    const char *name;
    uint8_t type;
    size_t size;
};

static struct entry entry_at(const char *bytes)
{
    uint16_t size = 0;

    memcpy(&size, bytes + 16, sizeof size);
    return (struct entry){bytes + 19, (uint8_t)bytes[18], size};
}

/* Looks at every process but this one and init. */
static void look_at_all(struct look *look, const char *proc_path)
{
    char bytes[4096];
    long size = 0;
    const int proc = open(proc_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    look->found = false;
    look->in_doubt = proc < 0;
    while (proc >= 0 && (size = syscall(SYS_getdents64, proc, bytes, sizeof bytes)) > 0) {
        for (long at = 0; at < size; at += (long)entry_at(bytes + at).size) {
            const char *name = entry_at(bytes + at).name;
            const uint32_t pid = strlen(name) <= 7 ? process_number(name, strlen(name)) : 0;

            if (pid != 0 && (pid_t)pid != getpid()) {
                look_at(look, proc, name, pid);
            }
        }
    }
    look->in_doubt |= size < 0;
    if (proc >= 0) {
        (void)close(proc);
    }
}

/* --- what is done about it ---------------------------------------------------------------------------------- */

/* Kills every process with one of the tokens in its environment, and looks again until there is none. */
static void end_strays(struct trailboss_guard *guard, const char *proc)
{
    struct look look = {.marks = {"TRAILBOSS_TOKEN=", guard->tokens, guard->tokens_size}, .kills = true};

    for (unsigned int round = 0; round < STRAY_ROUNDS; round++) {
        look_at_all(&look, proc);
        if (!look.found && !look.in_doubt) {
            break;
        }
        pause_milliseconds(ROUND_MILLISECONDS);
    }
    guard->tokens_size = 0;
}

/* Kills all groups and whatever belongs to them, until nothing is left or the time is up. */
static void hunt(struct look *look, const char *proc, int64_t milliseconds)
{
    const int64_t deadline = now_milliseconds() + milliseconds;
    unsigned int quiet = 0;

    for (uint32_t group = 0; group < TRAILBOSS_GUARD_PROCESS_NUMBERS; group++) {
        if (look->sessions->groups[group / 64] == 0) {
            group |= 63; /* none of these 64 */
        } else if (trailboss_guard_knows(look->sessions, group) && (pid_t)group != getpid()) {
            (void)kill(-(pid_t)group, SIGKILL);
        }
    }
    look->kills = true;
    while (quiet < QUIET_ROUNDS && now_milliseconds() < deadline) {
        look_at_all(look, proc);
        quiet = look->found || look->in_doubt ? 0 : quiet + 1;
        pause_milliseconds(ROUND_MILLISECONDS);
    }
}

/* Kills everything in a control group and below it, whatever session or environment it has. */
static void kill_cgroup(const char *folder)
{
    const int parent = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int file = parent < 0 ? -1 : openat(parent, "cgroup.kill", O_WRONLY | O_CLOEXEC);

    if (file >= 0) {
        const ssize_t written = write(file, "1", 1);

        (void)written; /* what is left is hunted for */
        (void)close(file);
    }
    if (parent >= 0) {
        (void)close(parent);
    }
}

/* Removes the empty control groups in a folder. */
static void remove_below(int folder, unsigned int depth)
{
    char bytes[1024];
    long size = 0;

    while ((size = syscall(SYS_getdents64, folder, bytes, sizeof bytes)) > 0) {
        for (long at = 0; at < size; at += (long)entry_at(bytes + at).size) {
            const char *name = entry_at(bytes + at).name;
            int child = -1;

            if (entry_at(bytes + at).type != DT_DIR || strcmp(name, ".") == 0 || strcmp(name, "..") == 0) {
                continue;
            }
            child = depth < CGROUP_DEPTH_MAX
                        ? openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)
                        : -1;
            if (child >= 0) {
                remove_below(child, depth + 1);
                (void)close(child);
            }
            (void)unlinkat(folder, name, AT_REMOVEDIR);
        }
    }
}

/* Removes an empty control group and those in it. */
static void remove_cgroup(const char *path)
{
    const int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (folder >= 0) {
        remove_below(folder, 0);
        (void)close(folder);
    }
    (void)rmdir(path);
}

/* The supervisor ends this process by the pipe; nothing that is meant for the server's terminal or unit does. */
static void ignore_signals(void)
{
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE};

    for (size_t index = 0; index < sizeof ignored / sizeof ignored[0]; index++) {
        (void)signal(ignored[index], SIG_IGN);
    }
}

/* Says "I am there" and lets go of the supervisor's log: nothing of the guard may hold a pipe open. */
static bool say_ready(void)
{
    const bool is_said = write(1, "ready\n", 6) == 6;
    const int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (int number = 1; number <= 2; number++) {
        (void)(null >= 0 ? dup2(null, number) : close(number));
    }
    if (null > 2) {
        (void)close(null);
    }
    return is_said;
}

int trailboss_guard_run(struct trailboss_guard *guard, const char *instance, const char *proc,
                        int64_t hunt_milliseconds)
{
    struct look survivors = {.sessions = guard,
                             .marks = {"TRAILBOSS_INSTANCE=", instance, strlen(instance) + 1}};
    int64_t next_look = 0;
    ssize_t size = 1;

    ignore_signals();
    if (!say_ready()) {
        return 1;
    }
    while (size != 0) {
        char bytes[4096];

        if (guard->tokens_size > 0 && now_milliseconds() >= next_look) {
            end_strays(guard, proc);
            next_look = now_milliseconds() + STRAYS_MILLISECONDS;
        }
        if (!wait_for_input(guard->tokens_size > 0 ? next_look : 0)) {
            continue;
        }
        size = read_some(0, bytes, sizeof bytes);
        if (size < 0) {
            return 1; /* no end of file: the supervisor lives, and starts another guard */
        }
        for (size_t at = 0; at < (size_t)size;) {
            enum trailboss_guard_event event = TRAILBOSS_GUARD_CONSUMED;

            at += trailboss_guard_feed(guard, bytes + at, (size_t)size - at, &event);
            if (event == TRAILBOSS_GUARD_FULL) {
                end_strays(guard, proc);
            } else if (event == TRAILBOSS_GUARD_QUIT) {
                look_at_all(&survivors, proc);
                if (!survivors.found && !survivors.in_doubt) {
                    return 0; /* else the end of file follows, and with it the hunt for what changed its session */
                }
            }
        }
    }
    if (guard->cgroup[0] != '\0') {
        kill_cgroup(guard->cgroup);
    }
    hunt(&survivors, proc, hunt_milliseconds);
    if (guard->cgroup[0] != '\0') {
        remove_cgroup(guard->cgroup);
    }
    return 0;
}

/*
 * The guard: a small process that ends every worker when the supervisor is gone, however it went.
 *
 * Theory of operation. Standard input is the read end of the lifeline pipe, whose only write end is the
 * supervisor's. Lines on it say which process groups exist ("+PID") and which do not any more ("-PID"),
 * which control group holds those of workers ("@FOLDER"), and which token the processes have that a worker
 * has left behind ("xTOKEN"): they are ended now. "q" says that the supervisor ends in good order. End of
 * file means that it is gone, even by SIGKILL: then the control group, the process groups, all processes
 * of their sessions, and all that carry the mark of this instance in their environment are killed, until
 * nothing is left.
 *
 * Nothing is allocated: every number that the kernel can give to a process has a bit, so no group is ever
 * lost for want of memory (a page of them becomes real when the first bit in it is set), and tokens that do
 * not fit any more are looked for at once instead of a moment later. A line that is longer than anything
 * that can be meant is nobody's.
 *
 * Linux only. What it does is the same as in workers/guard_process.py, its reference and fallback; that file
 * and this one are compared (native/compare_guard.py), and change together.
 */
#ifndef TRAILBOSS_GUARD_H
#define TRAILBOSS_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* No process has this number or one above (PID_MAX_LIMIT of the kernel). */
#define TRAILBOSS_GUARD_PROCESS_NUMBERS ((uint32_t)4 * 1024 * 1024)
/* Longest line, without its end. Twice what the kernel takes as a path. */
#define TRAILBOSS_GUARD_LINE_SIZE_MAX ((size_t)8191)
/* Room for the tokens of one look; any line fits into it while it is empty. */
#define TRAILBOSS_GUARD_TOKENS_SIZE ((size_t)16384)
/* Bytes of an environment that are read. execve refuses more than 6 MiB; a process that says it has more lies. */
#define TRAILBOSS_GUARD_ENVIRON_SIZE_MAX ((size_t)8 * 1024 * 1024)

/* What the lines have said so far. All zero: nothing. */
struct trailboss_guard {
    uint64_t groups[TRAILBOSS_GUARD_PROCESS_NUMBERS / 64];
    uint32_t group_count;
    char tokens[TRAILBOSS_GUARD_TOKENS_SIZE]; /* each with a zero behind it */
    size_t tokens_size;
    char cgroup[TRAILBOSS_GUARD_LINE_SIZE_MAX + 1]; /* "": none */
    char line[TRAILBOSS_GUARD_LINE_SIZE_MAX];       /* the beginning of a line whose end has not come yet */
    size_t line_size;                               /* beyond LINE_SIZE_MAX: too long, the rest of it is dropped */
};

/* Why `feed` came back. */
enum trailboss_guard_event {
    TRAILBOSS_GUARD_CONSUMED, /* all is taken in */
    TRAILBOSS_GUARD_QUIT,     /* a "q" while no group is known */
    TRAILBOSS_GUARD_FULL,     /* no room for a token: look for those that are there, empty `tokens`, go on */
};

/* Takes lines in, in pieces of any size, up to where something is to be done; returns how many bytes. */
size_t trailboss_guard_feed(struct trailboss_guard *guard, const char *bytes, size_t size,
                            enum trailboss_guard_event *event);

/* Whether there is such a group. */
bool trailboss_guard_knows(const struct trailboss_guard *guard, uint32_t group);

/* The entries NAME followed by one of VALUES, each with a zero behind it. NAME ends with the equals sign. */
struct trailboss_guard_marks {
    const char *name;
    const char *values;
    size_t values_size;
};

/* Reads an environment in pieces and remembers whether an entry of it, as a whole, is one of the marks. */
struct trailboss_guard_search {
    const struct trailboss_guard_marks *marks;
    bool found;
    size_t entry_size; /* of the entry that has begun in an earlier piece; may be beyond the room for it */
    char entry[TRAILBOSS_GUARD_LINE_SIZE_MAX + 64];
};
void trailboss_guard_search_feed(struct trailboss_guard_search *search, const char *bytes, size_t size);
/* The last entry may have no zero behind it. */
void trailboss_guard_search_end(struct trailboss_guard_search *search);

/* What /proc/PID/stat says. */
struct trailboss_guard_stat {
    bool is_alive;    /* no zombie, and the line is one */
    uint32_t session; /* 0: none that could be ours */
};
/* A zero has to stand behind the bytes. */
struct trailboss_guard_stat trailboss_guard_read_stat(const char *bytes, size_t size);

/* Follows the lifeline on descriptor 0 to its end, then hunts for HUNT_MILLISECONDS at most. PROC is "/proc" but in
 * tests. Returns the exit code. */
int trailboss_guard_run(struct trailboss_guard *guard, const char *instance, const char *proc,
                        int64_t hunt_milliseconds);

#endif

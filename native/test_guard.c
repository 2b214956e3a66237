/*
 * Unit tests of the guard. Usage: test_guard FOLDER, a folder of byte strings (native/corpus_guard).
 *
 * The pure part is checked on each, right before a guard page. The rest runs in a process of its own, on real children of
 * this program and on a folder that says about them what /proc would: whatever a test wants.
 */
#define _GNU_SOURCE /* MAP_ANONYMOUS, nftw */

#include "check_guard.h"
#include "guarded.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define MARK "TRAILBOSS_INSTANCE=me"
#define OTHER_SESSION 4194302u /* no process has it as its group, but for an unlikely machine */

static char folder[64];     /* everything of a test */
static char proc_path[96];  /* what stands for /proc */

/* --- a made-up /proc ---------------------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *status, int flag, struct FTW *place)
{
    (void)status;
    (void)flag;
    (void)place;
    return remove(path);
}

static void open_folder(void)
{
    (void)strcpy(folder, "/tmp/test_guard_XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
    CHECK(snprintf(proc_path, sizeof proc_path, "%s/proc", folder) < (int)sizeof proc_path);
    CHECK(mkdir(proc_path, 0755) == 0);
}

static void close_folder(void)
{
    CHECK(nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0);
}

static void write_file(const char *path, const void *bytes, size_t size)
{
    const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

    CHECK(file >= 0);
    CHECK(write(file, bytes, size) == (ssize_t)size);
    CHECK(close(file) == 0);
}

/* A process that is told of under a name; its environment may be NULL: it cannot be read. */
static void add_named(const char *name, const char *stat, const char *environment, size_t environment_size)
{
    char path[256];

    CHECK(snprintf(path, sizeof path, "%s/%s", proc_path, name) < (int)sizeof path);
    CHECK(mkdir(path, 0755) == 0);
    CHECK(snprintf(path, sizeof path, "%s/%s/stat", proc_path, name) < (int)sizeof path);
    write_file(path, stat, strlen(stat));
    if (environment != NULL) {
        CHECK(snprintf(path, sizeof path, "%s/%s/environ", proc_path, name) < (int)sizeof path);
        write_file(path, environment, environment_size);
    }
}

static void add_process(pid_t pid, char state, unsigned int session, const char *environment, size_t environment_size)
{
    char name[16];
    char stat[128];

    (void)snprintf(name, sizeof name, "%d", (int)pid);
    (void)snprintf(stat, sizeof stat, "%d (a) Z) b) %c 1 %d %u 0 -1 4194560\n", (int)pid, state, (int)pid, session);
    add_named(name, stat, environment, environment_size);
}

/* --- real children ------------------------------------------------------------------------------------------ */

/* A child that sleeps, the leader of a group. */
static pid_t sleeper(void)
{
    const pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        (void)alarm(60); /* should a test fail, nothing stays */
        for (;;) {
            (void)pause();
        }
    }
    CHECK(setpgid(pid, pid) == 0);
    return pid;
}

static void must_be_killed(pid_t pid)
{
    int status = 0;

    CHECK(waitpid(pid, &status, 0) == pid); /* a whole test has a deadline, see `main` */
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static void must_live(pid_t pid)
{
    int status = 0;

    CHECK(waitpid(pid, &status, WNOHANG) == 0);
    CHECK(kill(pid, SIGTERM) == 0);
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
}

/* --- a guard ------------------------------------------------------------------------------------------------ */

struct run {
    pid_t pid;
    int lifeline;
    int hello;
};

/* What a guard may have to live with. */
enum trouble { NO_TROUBLE, NO_DESCRIPTORS, NO_PIDFDS, NO_LIFELINE, NO_LISTENER };

static void refuse_pidfds(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};

    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static int guard_code(enum trouble trouble)
{
    static struct trailboss_guard guard;
    struct rlimit limit;
    rlim_t before = 0;
    int code = 0;

    CHECK(setsid() > 0);
    add_process(getpid(), 'S', OTHER_SESSION, MARK, sizeof MARK); /* it never ends itself */
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    before = limit.rlim_cur;
    if (trouble == NO_DESCRIPTORS) {
        limit.rlim_cur = 1; /* not even those that are open could be had again */
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    } else if (trouble == NO_PIDFDS) {
        refuse_pidfds();
    } else if (trouble == NO_LIFELINE) {
        const int root = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);

        CHECK(dup2(root, 0) == 0 && close(root) == 0);
    } else if (trouble == NO_LISTENER) {
        CHECK(close(1) == 0);
    }
    code = trailboss_guard_run(&guard, "me", proc_path, 400);
    limit.rlim_cur = before;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    return code;
}

static struct run start(enum trouble trouble)
{
    struct run run = {0, -1, -1};
    int lifeline[2];
    int hello[2];

    CHECK(pipe2(lifeline, O_CLOEXEC) == 0 && pipe2(hello, O_CLOEXEC) == 0);
    (void)fflush(NULL);
    run.pid = fork();
    CHECK(run.pid >= 0);
    if (run.pid == 0) {
        (void)alarm(60);
        CHECK(dup2(lifeline[0], 0) == 0 && dup2(hello[1], 1) == 1);
        for (int number = 0; number < 2; number++) {
            CHECK(close(lifeline[number]) == 0 && close(hello[number]) == 0);
        }
        exit(guard_code(trouble)); /* not _exit: what it covered has to be written */
    }
    CHECK(close(lifeline[0]) == 0 && close(hello[1]) == 0);
    run.lifeline = lifeline[1];
    run.hello = hello[0];
    return run;
}

static void must_be_ready(const struct run *run)
{
    char bytes[16];

    CHECK(read(run->hello, bytes, sizeof bytes) == 6 && memcmp(bytes, "ready\n", 6) == 0);
    CHECK(read(run->hello, bytes, sizeof bytes) == 0); /* it has let go of it */
}

static void tell(const struct run *run, const void *bytes, size_t size)
{
    CHECK(write(run->lifeline, bytes, size) == (ssize_t)size);
}

static void tell_number(const struct run *run, const char *verb, pid_t number)
{
    char line[32];
    const int size = snprintf(line, sizeof line, "%s%d\n", verb, (int)number);

    tell(run, line, (size_t)size);
}

static void must_exit(const struct run *run, int code)
{
    int status = 0;

    CHECK(waitpid(run->pid, &status, 0) == run->pid);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == code);
    CHECK(close(run->hello) == 0);
}

static void hang_up(const struct run *run)
{
    CHECK(close(run->lifeline) == 0);
    must_exit(run, 0);
}

/* --- tests -------------------------------------------------------------------------------------------------- */

static void test_groups(enum trouble trouble)
{
    const pid_t told = sleeper();
    const pid_t untold = sleeper();
    const pid_t taken_back = sleeper();
    struct run run;

    open_folder();
    run = start(trouble);
    must_be_ready(&run);
    tell_number(&run, "+", told);
    tell_number(&run, "+", taken_back);
    tell_number(&run, "+", run.pid); /* its own group */
    tell_number(&run, "-", taken_back);
    tell_number(&run, "+1\n+0\n-", untold);
    tell(&run, "+4194304\n+12", 12); /* the last line has no end */
    hang_up(&run);
    must_be_killed(told);
    must_live(untold);
    must_live(taken_back);
    close_folder();
}

static void test_sessions_and_marks(enum trouble trouble)
{
    enum { LARGE = 3 * 1024 * 1024 };
    const pid_t in_session = sleeper();
    const pid_t marked = sleeper();
    const pid_t marked_late = sleeper();
    const pid_t marked_across = sleeper();
    const pid_t too_late = sleeper();
    const pid_t zombie = sleeper();
    const pid_t unreadable = sleeper();
    const pid_t like_marked = sleeper();
    const size_t lie_size = TRAILBOSS_GUARD_ENVIRON_SIZE_MAX + 65536;
    char *large = calloc(1, lie_size);
    struct run run;

    CHECK(large != NULL);
    open_folder();
    add_process(in_session, 'S', OTHER_SESSION, "A=b", 4);
    add_process(marked, 'D', 0, "A=b\0" MARK "\0C=d", sizeof "A=b\0" MARK "\0C=d");
    memset(large, 'a', LARGE); /* one long entry, and one mark behind it that has no end */
    memcpy(large + LARGE - sizeof MARK, "\0" MARK, sizeof MARK);
    add_process(marked_late, 'R', 7, large, LARGE);
    memset(large, 0, LARGE);
    memcpy(large + 16384 - 5, MARK, sizeof MARK); /* across the border of two reads */
    add_process(marked_across, 'S', 7, large, 32768);
    memset(large, 0, lie_size);
    memcpy(large + lie_size - sizeof MARK, MARK, sizeof MARK);
    add_process(too_late, 'S', 7, large, lie_size);
    add_process(zombie, 'Z', OTHER_SESSION, MARK, sizeof MARK);
    add_process(unreadable, 'S', 7, NULL, 0);
    add_process(like_marked, 'S', 7, MARK "2\0X=" MARK "\0TRAILBOSS_INSTANCE=m",
                sizeof MARK "2\0X=" MARK "\0TRAILBOSS_INSTANCE=m");
    free(large);
    add_named("12a", "1 (a) S 1 1 4194302 ", MARK, sizeof MARK);
    add_named("1", "1 (a) S 1 1 4194302 ", MARK, sizeof MARK);
    add_named("99999999", "1 (a) S 1 1 4194302 ", MARK, sizeof MARK);
    run = start(trouble);
    must_be_ready(&run);
    tell_number(&run, "+", (pid_t)OTHER_SESSION);
    hang_up(&run);
    must_be_killed(in_session);
    must_be_killed(marked);
    must_be_killed(marked_late);
    must_be_killed(marked_across);
    must_live(too_late);
    must_live(zombie);
    must_live(unreadable);
    must_live(like_marked);
    close_folder();
}

static void test_strays(enum trouble trouble)
{
    static const char lines[] = "xlost\nxlost\nxa\0b\nx\n";
    const pid_t stray = sleeper();
    const pid_t late = sleeper();
    const pid_t full = sleeper();
    const pid_t other = sleeper();
    char token[4096];
    struct run run;

    open_folder();
    add_process(stray, 'S', 7, "TRAILBOSS_TOKEN=lost", 20);
    add_process(late, 'S', 7, "A=b\0TRAILBOSS_TOKEN=late", 25);
    add_process(full, 'S', 7, "TRAILBOSS_TOKEN=full", 21);
    add_process(other, 'S', 7, "TRAILBOSS_TOKEN=lost2\0TRAILBOSS_TOKEN=los\0" MARK "2", 45);
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, lines, sizeof lines - 1);
    must_be_killed(stray);
    tell(&run, "xlate\n", 6); /* so soon after a look that it waits for the next */
    must_be_killed(late);
    /* More than there is room for: those before are looked for on the way. */
    tell(&run, "xfull\n", 6);
    memset(token, 'a', sizeof token);
    token[0] = 'x';
    token[sizeof token - 1] = '\n';
    for (char index = 0; index < 6; index++) {
        token[1] = (char)('0' + index);
        tell(&run, token, sizeof token);
    }
    must_be_killed(full);
    hang_up(&run);
    must_live(other);
    close_folder();
}

static void test_strays_that_cannot_be_held(enum trouble trouble)
{
    const pid_t stray = sleeper();
    struct run run;

    open_folder();
    add_process(stray, 'S', 7, "TRAILBOSS_TOKEN=lost", 21);
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, "xlost\n", 6);
    hang_up(&run);
    must_live(stray); /* its number might be another's by now; it ends with the server at the latest */
    close_folder();
}

/* Between the two looks at a process its number goes to another one, which is nobody's stray. */
static void test_number_in_use_again(enum trouble trouble)
{
    const pid_t innocent = sleeper();
    char path[256];
    char other[128];
    int environment = -1;
    struct run run;

    open_folder();
    add_process(innocent, 'S', 7, NULL, 0);
    CHECK(snprintf(path, sizeof path, "%s/%d/environ", proc_path, (int)innocent) < (int)sizeof path);
    CHECK(mkfifo(path, 0600) == 0);
    CHECK(snprintf(other, sizeof other, "%s/other", folder) < (int)sizeof other);
    write_file(other, "A=b", 4);
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, "xlost\n", 6);
    environment = open(path, O_WRONLY | O_CLOEXEC); /* it reads the pipe now, and what takes its place the next time */
    CHECK(environment >= 0 && rename(other, path) == 0);
    CHECK(write(environment, "TRAILBOSS_TOKEN=lost", 21) == 21 && close(environment) == 0);
    hang_up(&run);
    must_live(innocent);
    close_folder();
}

/* Who cannot look does not take it for quiet, and so stays until the end of file. */
static void test_good_order_unseen(enum trouble trouble)
{
    const pid_t told = sleeper();
    struct run run;

    open_folder();
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, "q\n", 2);
    tell_number(&run, "+", told);
    hang_up(&run);
    must_be_killed(told);
    close_folder();
}

static void test_good_order(enum trouble trouble)
{
    const pid_t survivor = sleeper();
    struct run run;

    open_folder();
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, "+4194302\nq\n-4194302\nq\n", 22);
    must_exit(&run, 0);
    CHECK(close(run.lifeline) == 0);
    close_folder();

    open_folder();
    add_process(survivor, 'S', 7, MARK, sizeof MARK);
    run = start(trouble);
    must_be_ready(&run);
    tell(&run, "q\n", 2);
    hang_up(&run);
    must_be_killed(survivor);
    close_folder();
}

static void test_no_standard_streams(enum trouble trouble)
{
    struct run run;

    open_folder();
    run = start(trouble);
    must_exit(&run, 1);
    CHECK(close(run.lifeline) == 0);
    close_folder();
}

static bool exists(const char *name)
{
    char path[4096];
    struct stat status;

    CHECK(snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path);
    return lstat(path, &status) == 0;
}

static void make_folder(const char *name)
{
    char path[4096];

    CHECK(snprintf(path, sizeof path, "%s/%s", folder, name) < (int)sizeof path);
    CHECK(mkdir(path, 0755) == 0);
}

static void watch(const char *name, enum trouble trouble)
{
    char line[4096];
    const int size = snprintf(line, sizeof line, "@%s/%s\n", folder, name);
    const struct run run = start(trouble);

    must_be_ready(&run);
    tell(&run, line, (size_t)size);
    hang_up(&run);
}

static void test_cgroups(enum trouble trouble)
{
    char path[4096];
    char deep[4096] = "deep";
    char written = 0;
    int file = -1;

    open_folder();
    make_folder("group\xff");
    make_folder("group\xff/leaf");
    make_folder("group\xff/leaf/below");
    make_folder("elsewhere");
    CHECK(snprintf(path, sizeof path, "%s/group\xff/link", folder) < (int)sizeof path);
    CHECK(symlink("../elsewhere", path) == 0);
    CHECK(snprintf(path, sizeof path, "%s/group\xff/cgroup.kill", folder) < (int)sizeof path);
    write_file(path, "", 0);
    watch("group\xff", trouble);
    file = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(file >= 0 && read(file, &written, 1) == 1 && written == '1');
    CHECK(close(file) == 0);
    CHECK(!exists("group\xff/leaf") && exists("elsewhere") && exists("group\xff/link"));

    make_folder("plain");
    watch("plain", trouble);
    CHECK(!exists("plain"));
    watch("none", trouble);

    make_folder(deep);
    for (unsigned int depth = 0; depth < 40; depth++) {
        (void)strcat(deep, "/d");
        make_folder(deep);
    }
    watch("deep", trouble);
    CHECK(exists(deep)); /* too deep to be followed; nothing else happens */
    close_folder();
}

/* Numbers that are none, and lines too long, whatever comes before and behind. */
static void test_long_lines(void)
{
    static struct trailboss_guard guard;
    struct check_events events = {0, 0};
    char *line = malloc(20002);

    CHECK(line != NULL);
    for (size_t size = 8189; size < 20000; size += size < 8194 ? 1 : 11805) {
        const bool fits = size <= TRAILBOSS_GUARD_LINE_SIZE_MAX;

        for (size_t piece_size = 1; piece_size <= 32768; piece_size *= 32) {
            memset(&guard, 0, sizeof guard);
            check_feed(&guard, "@/before\n", 9, piece_size, &events);
            memset(line, 'a', size);
            line[size] = '\n';
            line[0] = '@';
            check_feed(&guard, line, size + 1, piece_size, &events);
            CHECK(strlen(guard.cgroup) == (fits ? size - 1 : 0));
            line[0] = 'x';
            check_feed(&guard, line, size + 1, piece_size, &events);
            CHECK(guard.tokens_size == (fits ? size : 0));
            memset(line + 1, '0', size - 1);
            line[0] = '+';
            line[size - 1] = '7';
            check_feed(&guard, line, size + 1, piece_size, &events);
            CHECK(guard.group_count == fits && trailboss_guard_knows(&guard, 7) == fits);
            check_feed(&guard, "+7\n", 3, piece_size, &events);
            CHECK(guard.group_count == 1);
        }
    }
    free(line);
    CHECK(!trailboss_guard_knows(&guard, TRAILBOSS_GUARD_PROCESS_NUMBERS));
}

static void test_every_group(void)
{
    static struct trailboss_guard guard;
    struct check_events events = {0, 0};
    char line[32];

    for (uint32_t group = 2; group < TRAILBOSS_GUARD_PROCESS_NUMBERS; group += 61) {
        check_feed(&guard, line, (size_t)snprintf(line, sizeof line, "+%u\n", group), 32, &events);
        CHECK(trailboss_guard_knows(&guard, group));
    }
    CHECK(guard.group_count == (TRAILBOSS_GUARD_PROCESS_NUMBERS - 3) / 61 + 1);
    for (uint32_t group = 2; group < TRAILBOSS_GUARD_PROCESS_NUMBERS; group += 61) {
        check_feed(&guard, line, (size_t)snprintf(line, sizeof line, "-%u\n", group), 32, &events);
    }
    CHECK(guard.group_count == 0);
}

static void test_bytes(const uint8_t *bytes, size_t size)
{
    char copy[INPUT_SIZE_MAX / 2 + 1];

    for (size_t length = 0; length <= size; length++) {
        memcpy(copy, bytes, length);
        copy[length] = '\0';
        check_bytes((const char *)guarded(copy, length + 1), length);
    }
}

/* The lives of a guard wait most of the time, so they do it beside each other. */
static const struct {
    void (*test)(enum trouble trouble);
    enum trouble trouble;
} lives[] = {
    {test_groups, NO_TROUBLE},
    {test_groups, NO_DESCRIPTORS},
    {test_groups, NO_PIDFDS},
    {test_sessions_and_marks, NO_TROUBLE},
    {test_sessions_and_marks, NO_PIDFDS},
    {test_strays, NO_TROUBLE},
    {test_strays_that_cannot_be_held, NO_PIDFDS},
    {test_number_in_use_again, NO_TROUBLE},
    {test_good_order, NO_TROUBLE},
    {test_good_order_unseen, NO_DESCRIPTORS},
    {test_no_standard_streams, NO_LIFELINE},
    {test_no_standard_streams, NO_LISTENER},
    {test_cgroups, NO_TROUBLE},
};
#define LIFE_COUNT (sizeof lives / sizeof lives[0])

static void test_lives(void)
{
    pid_t pids[LIFE_COUNT];

    (void)fflush(NULL);
    for (size_t index = 0; index < LIFE_COUNT; index++) {
        pids[index] = fork();
        CHECK(pids[index] >= 0);
        if (pids[index] == 0) {
            (void)alarm(60);
            lives[index].test(lives[index].trouble);
            exit(0);
        }
    }
    for (size_t index = 0; index < LIFE_COUNT; index++) {
        int status = 0;

        CHECK(waitpid(pids[index], &status, 0) == pids[index]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
}

int main(int argument_count, char **arguments)
{
    unsigned int count = 0;

    CHECK(argument_count == 2);
    (void)alarm(120);
    open_guarded_area();
    count = test_folder(arguments[1], test_bytes);
    CHECK(count > 10);
    test_long_lines();
    test_every_group();
    test_lives();
    (void)printf("guard: %u byte strings and %zu lives checked\n", count, LIFE_COUNT);
    return 0;
}

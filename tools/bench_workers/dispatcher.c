/* The yardstick for pool exec: a dispatcher in C over the same pipes and the same workers, one epoll, nothing else.
 *
 *   dispatcher WORKERS IN_FLIGHT COUNT COMMAND [ARGUMENT...]
 *
 * Starts WORKERS processes, shakes hands, then keeps IN_FLIGHT execs of a 28-byte payload under way until COUNT are
 * answered. Prints executions per second and its own CPU in microseconds per execution.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct worker {
	int in;
	int out;
	pid_t pid;
};

static uint32_t crc32_of(const unsigned char *data, size_t length)
{
	uint32_t crc = 0xFFFFFFFFu;
	for (size_t i = 0; i < length; i++) {
		crc ^= data[i];
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
	}
	return crc ^ 0xFFFFFFFFu;
}

static void put32(unsigned char *at, uint32_t value)
{
	for (int i = 0; i < 4; i++)
		at[i] = (unsigned char)(value >> (8 * i));
}

static uint32_t get32(const unsigned char *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static void put_header(unsigned char *at, int words, unsigned flags, uint32_t payload)
{
	at[0] = (unsigned char)(0x10 | words);
	at[1] = (unsigned char)flags;
	put32(at + 2, payload);
	put32(at + 6, crc32_of(at, 6));
	at[10] = at[11] = 0;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void start(struct worker *worker, char **argv)
{
	int to[2], from[2];
	if (pipe2(to, O_CLOEXEC) < 0 || pipe2(from, O_CLOEXEC) < 0)
		fail("pipe");
	worker->pid = fork();
	if (worker->pid < 0)
		fail("fork");
	if (worker->pid == 0) {
		dup2(to[0], 0);
		dup2(from[1], 1);
		execvp(argv[0], argv);
		_exit(127);
	}
	close(to[0]);
	close(from[1]);
	worker->in = to[1];
	worker->out = from[0];
	unsigned char hello[64];
	int length = snprintf((char *)hello + 12, 48, "{\"pid\":%d}", (int)getpid());
	put_header(hello, 3, 9, (uint32_t)length);
	if (write(worker->in, hello, 12 + (size_t)length) < 0)
		fail("write");
	unsigned char answer[256];
	if (read(worker->out, answer, sizeof answer) <= 0)
		fail("handshake");
}

static void receive(struct worker *worker)
{
	unsigned char answer[4096];
	size_t have = 0;
	do {
		ssize_t got = read(worker->out, answer + have, sizeof answer - have);
		if (got <= 0)
			fail("read");
		have += (size_t)got;
	} while (have < 12 || have < (size_t)(answer[0] & 15) * 4 + get32(answer + 2));
	if (crc32_of(answer, 6) != get32(answer + 6))
		fail("crc");
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: dispatcher WORKERS IN_FLIGHT COUNT COMMAND [ARGUMENT...]\n");
		return 2;
	}
	int workers = atoi(argv[1]), in_flight = atoi(argv[2]);
	long count = atol(argv[3]), started = 0, done = 0;
	struct worker *pool = calloc((size_t)workers, sizeof *pool);
	int *idle = calloc((size_t)workers, sizeof *idle), idle_count = 0;
	int epoll = epoll_create1(EPOLL_CLOEXEC);
	if (pool == NULL || idle == NULL || epoll < 0)
		fail("start");
	for (int i = 0; i < workers; i++) {
		start(&pool[i], argv + 4);
		struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)i};
		epoll_ctl(epoll, EPOLL_CTL_ADD, pool[i].out, &event);
		idle[idle_count++] = i;
	}
	unsigned char frame[16 + 28];
	memset(frame, 'x', sizeof frame);
	struct timespec t0, t1;
	struct rusage u0, u1;
	clock_gettime(CLOCK_MONOTONIC, &t0);
	getrusage(RUSAGE_SELF, &u0);
	while (done < count) {
		while (idle_count > 0 && started < count && started - done < in_flight) {
			int i = idle[--idle_count];
			put_header(frame, 4, 4, 28);
			put32(frame + 12, 8);
			if (write(pool[i].in, frame, sizeof frame) != (ssize_t)sizeof frame)
				fail("write");
			started++;
		}
		struct epoll_event events[64];
		int ready = epoll_wait(epoll, events, 64, -1);
		for (int k = 0; k < ready; k++) {
			int i = (int)events[k].data.u32;
			receive(&pool[i]);
			idle[idle_count++] = i;
			done++;
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &t1);
	getrusage(RUSAGE_SELF, &u1);
	double seconds = (double)(t1.tv_sec - t0.tv_sec) + (double)(t1.tv_nsec - t0.tv_nsec) / 1e9;
	double cpu = (double)(u1.ru_utime.tv_sec - u0.ru_utime.tv_sec + u1.ru_stime.tv_sec - u0.ru_stime.tv_sec) +
		     (double)(u1.ru_utime.tv_usec - u0.ru_utime.tv_usec + u1.ru_stime.tv_usec - u0.ru_stime.tv_usec) / 1e6;
	printf("%.0f %.2f\n", (double)count / seconds, cpu / (double)count * 1e6);
	for (int i = 0; i < workers; i++) {
		close(pool[i].in);
		waitpid(pool[i].pid, NULL, 0);
	}
	return 0;
}

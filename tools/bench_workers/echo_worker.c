/* The fastest worker there can be: echoes every payload. Its cost is the floor, so what a measurement shows is the
 * server's own. Speaks just enough of the protocol: pid handshake, stop control, one answer per request.
 *
 *   echo_worker        answers context and body unchanged
 *   echo_worker ack    answers the jobs acknowledgement {"type":0,"data":[]}
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

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

static void write_all(const unsigned char *data, size_t length)
{
	while (length > 0) {
		ssize_t sent = write(1, data, length);
		if (sent <= 0)
			exit(0);
		data += sent;
		length -= (size_t)sent;
	}
}

static void put_header(unsigned char *at, int words, unsigned flags, uint32_t payload)
{
	at[0] = (unsigned char)(0x10 | words);
	at[1] = (unsigned char)flags;
	put32(at + 2, payload);
	put32(at + 6, crc32_of(at, 6));
	at[10] = at[11] = 0;
}

int main(int argc, char **argv)
{
	static unsigned char buffer[1 << 20];
	static unsigned char ack[64];
	static const char body[] = "{\"type\":0,\"data\":[]}";
	size_t have = 0;
	const int acks = argc > 1 && strcmp(argv[1], "ack") == 0;
	put_header(ack, 4, 0, sizeof body - 1);
	put32(ack + 12, 0);
	memcpy(ack + 16, body, sizeof body - 1);
	for (;;) {
		ssize_t got = read(0, buffer + have, sizeof buffer - have);
		if (got <= 0)
			return 0;
		have += (size_t)got;
		for (;;) {
			if (have < 12)
				break;
			size_t header = (size_t)(buffer[0] & 15) * 4;
			size_t total = header + get32(buffer + 2);
			if (total > sizeof buffer)
				return 1;
			if (have < total)
				break;
			if (buffer[1] & 1) {
				unsigned char hello[64];
				if (memmem(buffer + header, total - header, "stop", 4) != NULL)
					return 0;
				int length = snprintf((char *)hello + 12, 48, "{\"pid\":%d}", (int)getpid());
				put_header(hello, 3, 1, (uint32_t)length);
				write_all(hello, 12 + (size_t)length);
			} else if (acks) {
				write_all(ack, 16 + sizeof body - 1);
			} else {
				write_all(buffer, total);
			}
			memmove(buffer, buffer + total, have - total);
			have -= total;
		}
	}
}

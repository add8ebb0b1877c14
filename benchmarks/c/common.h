/* What the three programs share: STAMP's octets (RFC 8762 section 4), clocks, sockets, errors. */
#ifndef LLAMA_BENCHMARK_COMMON_H
#define LLAMA_BENCHMARK_COMMON_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <linux/errqueue.h>
#include <linux/net_tstamp.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define STAMP_SIZE 44         /* unauthenticated, both ways */
#define STAMP_SEQUENCE 0      /* 4: the sender's, or the reflector's own */
#define STAMP_TIME 4          /* 8: T1, or T3 */
#define STAMP_ERROR 12        /* 2 */
#define STAMP_SSID 14         /* 2 (RFC 8972) */
#define STAMP_RECEIVED 16     /* 8: T2, replies only, as all that follows */
#define STAMP_ECHO_SEQUENCE 24 /* 4 */
#define STAMP_ECHO_TIME 28    /* 8 */
#define STAMP_ECHO_ERROR 36   /* 2 */
#define STAMP_ECHO_TTL 40     /* 1 */
#define STAMP_SYNCHRONISED 0x8001 /* error estimate: S set, NTP format, multiplier 1 */

#define SECOND 1000000000ULL
#define NTP_EPOCH 2208988800ULL /* seconds from 1900 to 1970 */

static inline void fail(const char *what)
{
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;
	if (clock_gettime(clock, &t))
		fail("clock_gettime");
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

static inline uint64_t ntp_from_timespec(const struct timespec *t)
{
	return ((uint64_t)t->tv_sec + NTP_EPOCH) << 32 | ((uint64_t)t->tv_nsec << 32) / SECOND;
}

/* Nanoseconds since 1970. */
static inline uint64_t ns_from_ntp(uint64_t ntp)
{
	return ((ntp >> 32) - NTP_EPOCH) * SECOND + (((ntp & 0xffffffffULL) * SECOND) >> 32);
}

static inline uint64_t ntp_now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return ntp_from_timespec(&t);
}

static inline void put16(uint8_t *to, uint16_t value)
{
	value = htons(value);
	memcpy(to, &value, 2);
}

static inline void put32(uint8_t *to, uint32_t value)
{
	value = htonl(value);
	memcpy(to, &value, 4);
}

static inline void put64(uint8_t *to, uint64_t value)
{
	value = __builtin_bswap64(value);
	memcpy(to, &value, 8);
}

static inline uint32_t get32(const uint8_t *from)
{
	uint32_t value;
	memcpy(&value, from, 4);
	return ntohl(value);
}

static inline uint64_t get64(const uint8_t *from)
{
	uint64_t value;
	memcpy(&value, from, 8);
	return __builtin_bswap64(value);
}

static inline void set_int(int fd, int level, int name, int value, const char *what)
{
	if (setsockopt(fd, level, name, &value, sizeof value))
		fail(what);
}

/* Beyond rmem_max where we may, as far as it allows where not; 0 leaves the stock buffers. */
static inline void set_buffers(int fd, int octets)
{
	if (!octets)
		return;
	if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &octets, sizeof octets))
		set_int(fd, SOL_SOCKET, SO_RCVBUF, octets, "SO_RCVBUF");
	if (setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &octets, sizeof octets))
		set_int(fd, SOL_SOCKET, SO_SNDBUF, octets, "SO_SNDBUF");
}

/* The options that LLAMA's own sockets have; stamps are flags of SO_TIMESTAMPING. */
static inline void set_measuring(int fd, int stamps)
{
	set_int(fd, SOL_SOCKET, SO_TIMESTAMPING, stamps, "SO_TIMESTAMPING");
	set_int(fd, IPPROTO_IP, IP_RECVTTL, 1, "IP_RECVTTL");
	set_int(fd, IPPROTO_IP, IP_RECVTOS, 1, "IP_RECVTOS");
	set_int(fd, IPPROTO_IP, IP_PKTINFO, 1, "IP_PKTINFO");
	set_int(fd, IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_OMIT, "IP_MTU_DISCOVER");
}

static inline struct sockaddr_in address(const char *text, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
	if (inet_pton(AF_INET, text, &a.sin_addr) != 1) {
		fprintf(stderr, "%s: not an IPv4 address\n", text);
		exit(2);
	}
	return a;
}

static inline int bound_socket(struct sockaddr_in at)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		fail("socket");
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		fail("bind");
	return fd;
}

/* The clock of the CPU time, user and system, that a process has used (clock_getcpuclockid(3)). */
static inline clockid_t cpu_clock_of(pid_t pid)
{
	clockid_t clock;
	int error = clock_getcpuclockid(pid, &clock);
	if (error) {
		errno = error;
		fail("clock_getcpuclockid");
	}
	return clock;
}

#endif

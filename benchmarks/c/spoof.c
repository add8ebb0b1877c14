/* A flood of STAMP probes, each from another address: what a reflector must bear.
 *
 * Whole IPv4 packets leave through a raw socket, so this needs root. The sources are --first and the
 * --sources addresses from there on, in turn; the source port changes as well. It sends --rate
 * probes/s in bursts of at most 64, or as many as it can when that is 0, until --count are sent or
 * --seconds are over, or it is told to end; replies go to whoever has those addresses. --behind are
 * octets, in hexadecimal, that follow the base packet: TLVs. Prints one JSON object.
 *
 * It is no weapon: --host is on loopback, 127.0.0.0/8, or at an end of the benchmarks' own cable,
 * 10.99.0.0/30, else it refuses.
 */
#include "common.h"

#include <netinet/ip.h>
#include <netinet/udp.h>
#include <signal.h>

#define BATCH 64
#define LOW_PORT 30000 /* from here on nothing answers that reflectors refuse */
#define PORTS 30000
#define MOST_BEHIND 1024

struct packet {
	struct iphdr ip;
	struct udphdr udp;
	uint8_t stamp[STAMP_SIZE + MOST_BEHIND];
} __attribute__((packed));

static struct packet packets[BATCH];
static struct iovec vectors[BATCH];
static struct mmsghdr messages[BATCH];
static volatile sig_atomic_t ended;

static int is_ours(struct in_addr host)
{
	uint32_t at = ntohl(host.s_addr);

	return at >> 24 == 127 || (at & 0xfffffffc) == 0x0a630000; /* 127/8, 10.99.0.0/30 */
}

static void end(int number)
{
	(void)number;
	ended = 1;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"host", 1, 0, 'h'},    {"port", 1, 0, 'p'},  {"first", 1, 0, 'f'},   {"sources", 1, 0, 'n'},
		{"count", 1, 0, 'c'},   {"rate", 1, 0, 'r'},  {"seconds", 1, 0, 's'},
		{"behind", 1, 0, 'b'},  {0}};
	const char *host = "127.0.0.1", *first = "10.0.0.0", *behind = "";
	uint64_t sources = 1 << 24, count = UINT64_MAX;
	double rate = 0, seconds = 1e6;
	int port = 0, o;

	while ((o = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (o) {
		case 'h': host = optarg; break;
		case 'p': port = atoi(optarg); break;
		case 'f': first = optarg; break;
		case 'n': sources = strtoull(optarg, NULL, 10); break;
		case 'c': count = strtoull(optarg, NULL, 10); break;
		case 'r': rate = atof(optarg); break;
		case 's': seconds = atof(optarg); break;
		case 'b': behind = optarg; break;
		default: return 2;
		}
	}
	size_t more = strlen(behind) / 2, size = STAMP_SIZE + more;
	if (!sources || rate < 0 || seconds < 0 || more > MOST_BEHIND) {
		fprintf(stderr, "--sources takes 1 or more, --rate and --seconds no less than 0, --behind at"
			" most %d octets\n", MOST_BEHIND);
		return 2;
	}
	struct sockaddr_in to = address(host, port);
	if (!is_ours(to.sin_addr)) {
		fprintf(stderr, "--host %s: forged probes go to 127.0.0.0/8 and 10.99.0.0/30 alone\n", host);
		return 2;
	}
	int fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	if (fd < 0)
		fail("raw socket");
	uint32_t from = ntohl(address(first, 0).sin_addr.s_addr);
	to.sin_port = 0;
	if (connect(fd, (struct sockaddr *)&to, sizeof to))
		fail("connect");
	set_buffers(fd, 1 << 20);
	struct sigaction told = {.sa_handler = end};
	sigaction(SIGTERM, &told, NULL);
	for (int i = 0; i < BATCH; i++) {
		struct packet *p = &packets[i];
		p->ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP};
		p->ip.daddr = to.sin_addr.s_addr; /* length and checksum are the kernel's business */
		p->udp.dest = htons((uint16_t)port);
		p->udp.len = htons((uint16_t)(sizeof p->udp + size)); /* no checksum: IPv4 allows that */
		for (size_t octet = 0; octet < more; octet++)
			sscanf(behind + 2 * octet, "%2hhx", p->stamp + STAMP_SIZE + octet);
		put16(p->stamp + STAMP_ERROR, STAMP_SYNCHRONISED);
		put16(p->stamp + STAMP_SSID, 1);
		vectors[i] = (struct iovec){p, sizeof p->ip + sizeof p->udp + size};
		messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i], .msg_iovlen = 1};
	}

	uint64_t sent = 0, failed = 0, begin = clock_ns(CLOCK_MONOTONIC), now = begin;
	while (!ended && sent < count && now - begin < seconds * SECOND) {
		uint64_t due = count - sent;
		if (rate) {
			uint64_t by_now = (uint64_t)((double)(now - begin) * rate / SECOND);
			due = by_now > sent ? by_now - sent : 0;
			due = due > count - sent ? count - sent : due;
		}
		if (!due) {
			struct timespec moment = {.tv_nsec = 50000};
			nanosleep(&moment, NULL);
			now = clock_ns(CLOCK_MONOTONIC);
			continue;
		}
		unsigned batch = due < BATCH ? (unsigned)due : BATCH;
		uint64_t stamp = ntp_now();
		for (unsigned i = 0; i < batch; i++) {
			uint64_t number = sent + i;
			packets[i].ip.saddr = htonl(from + (uint32_t)(number % sources));
			packets[i].udp.source = htons((uint16_t)(LOW_PORT + number % PORTS));
			put32(packets[i].stamp + STAMP_SEQUENCE, (uint32_t)number);
			put64(packets[i].stamp + STAMP_TIME, stamp);
		}
		int taken = sendmmsg(fd, messages, batch, 0);
		if (taken < 0) {
			if (errno == EINTR)
				continue;
			if (errno != ENOBUFS)
				fail("sendmmsg");
			failed++;
			taken = 0;
		}
		sent += (uint64_t)taken;
		now = clock_ns(CLOCK_MONOTONIC);
	}
	printf("{\"sent\": %llu, \"sources\": %llu, \"failed\": %llu, \"seconds\": %.6f}\n",
	       (unsigned long long)sent, (unsigned long long)(sent < sources ? sent : sources),
	       (unsigned long long)failed, (double)(clock_ns(CLOCK_MONOTONIC) - begin) / SECOND);
	return 0;
}
